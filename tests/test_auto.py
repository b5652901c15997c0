"""`auto`: what it expects of drafts, what it plans, and that it stays near the better of the ways it may go.

That its bytes are those of plain decoding is in test_strategies.py, as for every strategy.
"""

import gc
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.generate import Request, Sampling, Session, Speculative, Stats, Strategy, generate, strategy_of
from bltkit.generate.strategies import Auto, Outcome, Pending, Verified
from bltkit.generate.strategies.acceptance import (
    CPU,
    GPU,
    LONGEST,
    WAYS,
    AcceptanceTally,
    DraftPlan,
    Experience,
    Machine,
    RoundCosts,
    Way,
    plan,
)
from bltkit.generate.strategies.auto import SURE
from bltkit.model import EntropyConfig, EntropyModel
from tests import tiny
from tests.rows import GREEDY, blurred, by, example, start, stats_of, tempered
from tests.tiny import Case

COSTS = RoundCosts(CPU, 1, read=6.8e6, bytes=3.3e6, block=2.4e6, latent=11.5e6, layers=(6, 3, 2, 3), closing=0.23)
"""About those of bltkit:tiny."""

rounds_made = st.lists(
    st.tuples(st.sampled_from([None, *WAYS]), st.booleans(), st.integers(0, LONGEST), st.floats(0, 1)), max_size=12
)


def experience_of(rounds: Sequence[tuple[Way | None, bool, int, float]]) -> Experience:
    found = Experience()
    for way, sure, drafted, share in rounds:
        found = found.after(way, sure, drafted, int(share * drafted))
    return found


@given(st.lists(st.tuples(st.integers(0, LONGEST), st.floats(0, 1)), max_size=8))
def test_a_tally_counts_places_up_to_the_first_wrong_one(drafts: list[tuple[int, float]]) -> None:
    tally, tried, kept = AcceptanceTally(), [0] * LONGEST, [0] * LONGEST
    for drafted, share in drafts:
        accepted = int(share * drafted)
        tally = tally.after(drafted, accepted)
        for place in range(drafted):
            tried[place] += place <= accepted
            kept[place] += place < accepted
    borders = (0, 1, 3, 7, 15, 31, 32)
    assert tally.tried == tuple(sum(tried[a:b]) for a, b in itertools.pairwise(borders))
    assert tally.kept == tuple(sum(kept[a:b]) for a, b in itertools.pairwise(borders))


@given(rounds_made, st.sampled_from(WAYS), st.booleans(), st.integers(-1, 40), st.integers(0, LONGEST))
def test_gains(
    rounds: list[tuple[Way | None, bool, int, float]], way: Way, sure: bool, room: int, longest: int
) -> None:
    """Each further byte is kept less often than the one before it; there are no more than there is room for."""
    known = experience_of(rounds)
    assert all(0 < chance <= 1 for chance in known.chances(way, sure))
    gains = known.gains(way, sure, room, longest)
    steps = np.diff(gains)
    assert len(gains) == longest + 1 and gains[0] == 0
    assert (steps[: max(0, room)] > 0).all() and (steps[max(0, room) :] == 0).all()
    assert (np.diff(steps) <= 1e-12).all() and (steps <= 1).all()


def test_what_was_never_tried_is_worth_a_try() -> None:
    """More than plain decoding; and a way that failed is forgotten little by little, but not while it fails."""
    fresh = Experience()
    for way in WAYS:
        assert fresh.gains(way, True, 99)[8] > 6
        failed = experience_of([(way, False, 8, 0.0)] * 10)
        chances = [max(failed.chances(way, False))]
        for _ in range(300):
            failed = failed.after(None, False, 0, 0)
            chances.append(max(failed.chances(way, False)))
        assert chances == sorted(chances) and chances[0] < 0.5 and chances[-1] > 0.9
        other = WAYS[1 - WAYS.index(way)]
        assert experience_of([(way, False, 8, 0.0)] * 10).chances(other, False) == fresh.chances(other, False)


def test_drafts_behind_sure_bytes_are_counted_apart() -> None:
    mixed = experience_of([("bytes", True, 8, 1.0), ("bytes", False, 8, 0.0)] * 10)
    sure, unsure = (mixed.gains("bytes", which, 99) for which in (True, False))
    assert sure[8] > 1.2 * unsure[8]
    # Of what was never seen, the others say what is to be expected.
    alone = experience_of([("bytes", True, 8, 0.0)] * 10)
    assert alone.gains("bytes", False, 99)[8] < 1


def test_places_have_chances_of_their_own() -> None:
    """A block's first cells are right more often than its last ones."""
    known = experience_of([("block", True, 7, 3 / 7)] * 10)
    first, second, third, *_ = known.chances("block", True)
    assert first > 0.8 and second > 0.8 and third < 0.7


@given(
    machine=st.sampled_from([CPU, GPU, Machine(0.0, 0.0, 0.0)]),
    rows=st.integers(1, 3),
    own=st.booleans(),
    closing=st.floats(0, 1),
)
def test_costs_of_a_round(machine: Machine, rows: int, own: bool, closing: float) -> None:
    """Pass by pass."""
    layers = (6, 2 if own else 3, 2, 3)
    costs = replace(COSTS, machine=machine, rows=rows, layers=layers, closing=closing)

    def cost(weights: float, count: int, positions: int) -> float:
        several = machine.several if positions > 1 else 0.0
        return machine.layer * count + weights * (1 + several + machine.position * (positions - 1))

    found = costs.rounds(4, 3)
    assert found.shape == (5, 4)
    for num_bytes, num_block in itertools.product(range(5), range(4)):
        positions = rows * (1 + max(num_bytes, num_block))
        wanted = cost(costs.read, 6, positions) + (1 - (1 - closing) ** positions) * cost(costs.latent, 3, 1)
        wanted += num_bytes * cost(costs.bytes, layers[1], rows)
        if num_block:
            wanted += cost(costs.block, 2, rows * (1 + num_block))
        assert found[num_bytes, num_block] == pytest.approx(wanted, rel=1e-12)


@st.composite
def gains_of(draw: st.DrawFn, rows: int, longest: int) -> np.ndarray:
    """Expected bytes of drafts of every length: concave, as they are."""
    chances = [[draw(st.floats(0.05, 0.99)) for _ in range(longest)] for _ in range(rows)]
    return np.array([np.concatenate(([0.0], np.cumprod(row).cumsum())) for row in chances])


@given(st.data(), st.integers(1, 2))
def test_the_plan_is_the_best_of_all(data: st.DataObject, rows: int) -> None:
    """Against every assignment of a way and a length to every row."""
    gains: dict[Way, np.ndarray] = {
        "bytes": data.draw(gains_of(rows, 3)),
        "block": data.draw(gains_of(rows, data.draw(st.sampled_from([0, 2])))),
    }
    steps = {way: data.draw(st.sampled_from([0.05, 0.3, 1.0, 5.0])) for way in WAYS}
    cost = np.array(
        [
            [1 + steps["bytes"] * i + steps["block"] * (0.1 * j + (j > 0)) for j in range(gains["block"].shape[1])]
            for i in range(4)
        ]
    )

    def value(chosen: Sequence[tuple[Way | None, int]]) -> float:
        made, longest = float(rows), dict.fromkeys(WAYS, 0)
        for row, (way, count) in enumerate(chosen):
            if way is not None:
                made += gains[way][row, count]
                longest[way] = max(longest[way], count)
        return made / cost[longest["bytes"], longest["block"]]

    one: list[tuple[Way | None, int]] = [(None, 0)]
    one += [(way, count) for way in WAYS for count in range(1, gains[way].shape[1])]
    found = plan(gains, cost)
    chosen = list(zip(found.ways, found.counts, strict=True))
    assert all(own in one for own in chosen)
    assert value(chosen) == pytest.approx(max(map(value, itertools.product(one, repeat=rows))), rel=1e-9)


def test_what_one_row_drafts_is_free_for_the_others() -> None:
    """Passes serve all rows: a row that would not draft for itself goes along."""
    good, poor = np.cumsum([0.0] + [0.99**i for i in range(1, 9)]), np.cumsum([0.0] + [0.2**i for i in range(1, 9)])
    cost = replace(COSTS, rows=2).rounds(8, 0)
    none = np.zeros((2, 1))
    assert plan({"bytes": np.array([poor, poor]), "block": none}, cost) == DraftPlan((None, None), (0, 0))
    together = plan({"bytes": np.array([good, poor]), "block": none}, cost)
    assert together.ways == ("bytes", "bytes") and together.counts_of("bytes")[0] == 8
    assert together.counts_of("block") == [0, 0]


def lived(chance: Sequence[float], way: Way, seed: int = 0) -> tuple[list[int], list[int]]:
    """Lengths of the drafts and what was kept of them, of rounds in which a drafted byte is right with a probability
    of chance[round]."""
    random, known = np.random.default_rng(seed), Experience()
    cost = COSTS.rounds(LONGEST, 0 if way == "bytes" else 7)
    drafted, accepted = [], []
    for share in chance:
        room = {one: 999 if one == way else 0 for one in WAYS}
        gains = {
            one: known.gains(one, False, room[one], LONGEST if one == "bytes" else cost.shape[1] - 1)[None]
            for one in WAYS
        }
        found = plan(gains, cost)
        assert found.ways[0] in (None, way)
        count = found.counts[0]
        right = int(random.geometric(1 - share)) - 1
        drafted.append(count)
        accepted.append(min(count, right))
        known = known.after(found.ways[0], False, count, accepted[-1])
    return drafted, accepted


@pytest.mark.parametrize("way", WAYS)
def test_poor_drafts_are_left_alone_but_not_for_good(way: Way) -> None:
    drafted, _ = lived([0.1] * 400, way)
    tries = sum(count > 0 for count in drafted[20:])
    assert 1 <= tries <= 60
    assert sum(drafted[20:]) <= 4 * tries  # and they are short


@pytest.mark.parametrize("way", WAYS)
def test_changes_its_mind(way: Way) -> None:
    """A text that becomes easy, and one that becomes hard."""
    longest = LONGEST if way == "bytes" else 7
    easy, _ = lived([0.1] * 100 + [0.995] * 200, way)
    assert np.mean(easy[50:100]) < 1 and np.mean(easy[-50:]) > longest / 2
    hard, _ = lived([0.995] * 100 + [0.1] * 100, way)
    assert np.mean(hard[50:100]) > longest / 2 and np.mean(hard[-50:]) < 1


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_near_the_better_of_plain_and_drafted(chance: float) -> None:
    """By what its rounds would cost: at most 8 % more than the best draft of one length, none included."""
    cost = COSTS.rounds(LONGEST, 0)[:, 0]
    drafted, accepted = lived([chance] * 1500, "bytes")
    ours = cost[drafted].sum() / (len(drafted) + sum(accepted))
    made = [1 + sum(chance**place for place in range(1, k + 1)) for k in range(LONGEST + 1)]
    assert ours < 1.08 * min(cost / made)


def block_case() -> Case:
    """A model with a block-diffusion decoder, whose drafts are now right, now wrong."""
    return blurred(tempered(example("stride:k=3", diffusion_block=8), 0.1), 0.1)


def known_for(way: Way, others: Way) -> Experience:
    return experience_of([(others, True, 7, 0.0), (way, True, 7, 1.0)] * 20)


def test_rows_of_a_round_go_different_ways() -> None:
    """Each draft is what the way's own strategy drafts for that row. With a global transformer so deep that every
    round is dear."""
    plain = example("stride:k=3", diffusion_block=8)
    deep = plain.config.replace(latent=plain.config.latent.replace(layers=40))
    case = blurred(tempered(replace(plain, config=deep), 0.1), 0.1)
    prompts = [vocab.encode(text).tolist() for text in (b"some text", b"another one", b"a third")]
    session = start(case, 3).extend(prompts)
    states = [known_for("bytes", "block"), known_for("block", "bytes"), known_for("bytes", "block")]
    rooms = (20, 20, 1)
    rows = [
        Pending(chosen=70 + i, room=room, sampling=GREEDY, constraint=None, state=state, entropy=0.1)
        for i, (room, state) in enumerate(zip(rooms, states, strict=True))
    ]
    found = Auto().propose(session, rows)
    assert found.ways == ("bytes, sure", "block, sure", "none") and not found.trusted
    counts = [len(own) for own in found.drafts]
    assert counts[0] > 1 and counts[1] > 1 and counts[2] == 0
    alone = [start(case).extend(prompt) for prompt in prompts]
    by_bytes = Speculative().propose(alone[0], [replace(rows[0], state=counts[0])])
    by_block = Verified(draft=counts[1] + 1).propose(alone[1], [rows[1]])
    assert (found.drafts[0], found.drafts[1]) == (by_bytes.drafts[0], by_block.drafts[0])
    assert found.passes.decoder == by_bytes.passes.decoder + 1 and found.passes.encoder == by_bytes.passes.encoder
    assert found.passes.latent == found.passes.entropy == 0


@pytest.mark.parametrize("entropy", [0.0, SURE, None])
def test_outcomes_reach_the_tally_they_belong_to(entropy: float | None) -> None:
    session = start(block_case()).extend(vocab.encode(b"some text"))
    row = Pending(70, 20, GREEDY, None, Experience(), entropy)
    proposal = Auto().propose(session, [row])
    way, sure = proposal.ways[0].split(", ")
    assert sure == ("unsure" if entropy == SURE else "sure") and way in WAYS
    after = Auto().next_state(row.state, Outcome(5, 3, proposal.ways[0]))
    assert after == Experience().after(cast(Way, way), sure == "sure", 5, 3) != row.state
    assert Auto().next_state(after, Outcome(0, 0, "none")) == after.after(None, False, 0, 0) != after
    assert Auto().next_state(after, Outcome(0, 0)) == after


def made(case: Case, strategy: Strategy, max_bytes: int = 120) -> Stats:
    session = Session.start(case.model, case.scorer, case.rule).extend(vocab.encode(b"some text"))
    return stats_of(list(generate(session, by(strategy, Request(Sampling(temperature=0), max_bytes)))))


def test_without_a_block_decoder_none_is_asked() -> None:
    session = start(example("byte")).extend(vocab.encode(b"some text"))
    rows = [Pending(70, 20, GREEDY, None, known_for("block", "bytes"), 0.1)]
    proposal = Auto().propose(session, rows)
    assert proposal.ways[0] in ("none", "bytes, sure") and proposal.passes.cells == 0


def test_a_run_can_be_repeated() -> None:
    """To the last pass: no clock decides anything."""
    one, other = (made(block_case(), Auto()) for _ in range(2))
    assert one.drafted > 0
    assert replace(one, seconds=0, bytes_per_second=0) == replace(other, seconds=0, bytes_per_second=0)


@pytest.mark.parametrize("damping", [0.0, 0.1, 1.0])
def test_reads_little_more_than_the_better_strategy(damping: float) -> None:
    """Drafts that are all right, some, and none, with matrices large enough that calls do not count."""
    stack = tiny.StackConfig(width=128, layers=2, heads=2, window=32)
    config = tiny.BltConfig(
        encoder=stack.replace(layers=1),
        latent=stack.replace(width=256, window=None),
        decoder=stack,
        ngrams=tiny.NgramConfig(buckets=31),
    )
    scorer = EntropyConfig(width=128, layers=3, heads=2, window=32)
    case = tempered(replace(example("stride:k=4"), config=config, scorer_config=scorer), damping, eos=0.0)
    case.__dict__["scorer"] = tiny.fill(EntropyModel(scorer), 1)
    case.__dict__["model"] = case.model.float()
    case.__dict__["rule"] = tiny.parse_rule("threshold:threshold=100.0,max_patch_bytes=4")
    stats = {kind: made(case, strategy_of(kind), 120) for kind in ("ar", "speculative", "auto")}
    assert {one.bytes for one in stats.values()} == {120}
    read = {kind: one.weight_gb_read for kind, one in stats.items()}
    assert read["auto"] < 1.15 * min(read["ar"], read["speculative"])
    if damping == 0.0:
        assert read["auto"] < 0.8 * read["ar"]


def test_models_are_not_kept_alive() -> None:
    """What passes read is counted once a model, and remembered."""
    case = example("byte")
    made(case, Auto(), 8)
    model = weakref.ref(case.model)
    del case
    gc.collect()
    assert model() is None
