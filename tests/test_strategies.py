"""The contract of every strategy: it proposes, and what comes out is what plain decoding makes.

A strategy is enrolled by its registration, with the `examples` of its fields. Those whose proposals are trusted are
not exact: what comes out of them is in test_trusted.py.
"""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.generate import (
    STRATEGIES,
    Autoregressive,
    Chunk,
    Request,
    Sampling,
    SequenceBatch,
    Session,
    Strategy,
    Utf8,
    generate,
    generate_rows,
)
from bltkit.generate import strategy_of as strategy_named
from bltkit.generate.strategies import Outcome, Pending
from tests import tiny
from tests.rows import (
    GREEDY,
    NEWLINE,
    Decoded,
    Uncached,
    blurred,
    by,
    counted,
    draw_request,
    example,
    start,
    stats_of,
    tempered,
)
from tests.test_session import TIE, nearest_tie
from tests.tiny import Case

KINDS = sorted(STRATEGIES)
EXACT = [kind for kind in KINDS if STRATEGIES[kind].exact]
DRAFTING = [kind for kind in EXACT if kind != "ar"]
LOCAL = ["auto", "speculative", "verified"]
"""Those whose drafts the local model chooses, as the full model would."""


def examples_of(kind: str) -> list[Strategy]:
    """Every value and every allowed combination of the examples of its fields; drafts of every length up to 16, each
    of them with one of the combinations of the other fields."""
    fields = {name: list(field.examples or []) for name, field in STRATEGIES[kind].model_fields.items()}
    fields = {name: values for name, values in fields.items() if values}
    drafts = [*dict.fromkeys([*fields.pop("draft"), *range(1, 17)])] if "draft" in fields else [None]
    others = []
    for values in itertools.product(*fields.values()):
        given = dict(zip(fields, values, strict=True))
        with suppress(ValueError):
            strategy_named(kind, **given)
            others.append(given)
    count = max(len(drafts), len(others))
    pairs = itertools.islice(zip(itertools.cycle(drafts), itertools.cycle(others), strict=False), count)
    found = [strategy_named(kind, draft=draft, **other) for draft, other in pairs]
    assert all(isinstance(one, STRATEGIES[kind]) for one in found)
    return found


def drawn(case: Case, data: st.DataObject, damping: Sequence[float] = (0.0, 0.1, 1.0), eos: float = 1.0) -> Case:
    """The case with either input of the decoder, and drafts of every quality, those of blocks included."""
    config = case.config.replace(decoder_input=data.draw(st.sampled_from(["encoder", "embedding"])))
    case = tempered(replace(case, config=config), data.draw(st.sampled_from(damping)), eos)
    return blurred(case, data.draw(st.sampled_from([0.05, 1.0])))


def decoded(session: Session, request: Request, strategy: Strategy) -> Decoded:
    return Decoded.of(list(generate(session, by(strategy, request))))


def scored_case(case: Case) -> Case:
    """An example with a scorer and a limit, whose patches are of every length up to it."""
    config = tiny.EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, window=6, reset_at_newline=True)
    fields = {"kind": "threshold", "threshold": 0.6, "max_patch_bytes": 4}
    return replace(case, scorer_config=config, rule_fields=fields, ids=vocab.encode(b"some text here").tolist())


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=8)
@given(case=tiny.cases(), data=st.data())
def test_bytes_and_logprobs_are_those_of_plain_decoding(kind: str, case: Case, data: st.DataObject) -> None:
    """With any model, rule, scorer and request."""
    strategy = data.draw(st.sampled_from(examples_of(kind)))
    case = drawn(case, data, eos=data.draw(st.sampled_from([1.0, 2.0])))
    prompt = case.ids[:14]
    request = draw_request(data, prompt, longest=18)
    found = decoded(start(case).extend(prompt), request, strategy)
    found.assert_equals(Uncached(case).decode(prompt, request), request)


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=4)
@given(case=tiny.cases(), data=st.data())
def test_rows_do_not_meet(kind: str, case: Case, data: st.DataObject) -> None:
    """Rows of a batch accept different numbers of their drafts, and end at different times."""
    strategy = data.draw(st.sampled_from(examples_of(kind)))
    case = drawn(case, data)
    prompts = [case.ids[:9], *data.draw(st.lists(tiny.rows(9), min_size=1, max_size=3))]
    asked = [draw_request(data, prompt) for prompt in prompts]
    found, uncached = decode_rows(start(case, len(prompts)).extend(prompts), asked, strategy), Uncached(case)
    for one, prompt, request in zip(found, prompts, asked, strict=True):
        one.assert_equals(uncached.decode(prompt, request), request)


@pytest.mark.parametrize("kind", EXACT)
def test_every_budget(kind: str) -> None:
    """Of none, of one byte, around the number of drafts; the last round drafts no more than there is room for."""
    case = tempered(scored_case(example("byte")), 0.1)
    session = start(case).extend(case.ids)
    settled = [Sampling(temperature=temperature, seed=5) for temperature in (0, 1)]
    whole = [Uncached(case).decode(case.ids, Request(sampling, 18)) for sampling in settled]
    assert {one.finish for one in whole} == {"length"}
    settings_in_turns = itertools.cycle(zip(settled, whole, strict=True))
    for strategy, (sampling, wanted) in zip(examples_of(kind), settings_in_turns, strict=False):
        k = getattr(strategy, "draft", None) or 8
        for budget in {0, 1, k, k + 1}:
            request = Request(sampling, budget, logprobs=True)
            chunks = list(generate(session, by(strategy, request)))
            cut = Decoded(wanted.data[:budget], "length", wanted.logprobs[:budget])
            Decoded.of(chunks).assert_equals(cut, request)
            if budget <= 2:
                assert stats_of(chunks).drafted == 0


@pytest.mark.parametrize("kind", EXACT)
def test_what_ends_inside_a_draft(kind: str) -> None:
    """EOS and stop strings anywhere in what a whole draft would have been; what comes behind them is nobody's."""
    ends = set()
    for seed in range(4):
        case = tempered(replace(scored_case(example("byte")), seed=seed), 0.05, eos=3.0)
        session, uncached = start(case).extend(case.ids), Uncached(case)
        for sampling in (GREEDY, Sampling(temperature=1, seed=seed)):
            free = uncached.decode(case.ids, Request(sampling, 12))
            for at in (1, 4, 12):
                stop = (free.data[at : at + 2],) if free.data[at : at + 2] else ()
                request = Request(sampling, 12, stop, logprobs=True)
                wanted = uncached.decode(case.ids, request)
                ends.add(wanted.finish)
                strategy = examples_of(kind)[(seed + at) % len(examples_of(kind))]
                found = list(generate(session, by(strategy, request)))
                Decoded.of(found).assert_equals(wanted, request)
                assert stats_of(found).accepted <= stats_of(found).drafted
    assert ends == {"eos", "stop", "length"}


@pytest.mark.parametrize("kind", LOCAL)
def test_drafts_are_accepted_and_rejected(kind: str) -> None:
    """So that the tests above can fail: both happen, also across patch borders and cuts."""
    shares = []
    for sharpness in (0.0, 0.1, 1.0):
        case = blurred(tempered(scored_case(example("byte")), sharpness), sharpness)
        session = start(case).extend(case.ids)
        stats = stats_of(list(generate(session, by(strategy_named(kind), Request(GREEDY, 48)))))
        shares.append(stats.accepted / stats.drafted)
        assert stats.drafted >= 24
        assert stats.global_passes >= 1
    assert shares[0] > 0.9  # latents and bytes that do not count: drafts are what the full model says
    assert shares[2] < 0.9


@pytest.mark.parametrize("kind", LOCAL)
def test_drafts_are_chosen_as_the_bytes_are(kind: str) -> None:
    """With the noise of their position and the filters: where nothing that is read counts, nothing is rejected."""
    case = blurred(tempered(scored_case(example("byte")), 0.0), 0.0)
    session = start(case).extend(case.ids)
    for sampling in (Sampling(temperature=1, seed=3), Sampling(temperature=2, seed=4, top_k=20, min_p=0.01)):
        stats = stats_of(list(generate(session, by(strategy_named(kind), Request(sampling, 40)))))
        assert stats.accepted == stats.drafted > 20


def test_byte_by_byte_drafts_know_the_drafts_in_front_of_them() -> None:
    """Also the penalty and the constraint: where latents do not count, nothing is rejected."""
    case = tempered(scored_case(example("byte")), 0.0)
    session = start(case).extend(case.ids)
    for sampling, constraint in (
        (Sampling(temperature=0, repetition_penalty=3), None),
        (Sampling(temperature=0, repetition_penalty=3, repetition_window=3), None),
        (Sampling(temperature=2, seed=5), Utf8()),
    ):
        request = Request(sampling, 40, constraint=constraint)
        stats = stats_of(list(generate(session, by(strategy_named("speculative"), request))))
        assert stats.accepted == stats.drafted > 20


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4)
@given(case=tiny.cases(), data=st.data())
def test_the_ledger_counts_what_happens(kind: str, case: Case, data: st.DataObject) -> None:
    """Passes against hooks on the modules; at most one pass of the global transformer a round, none to draft unless
    the open patch is to have a latent."""
    strategy = data.draw(st.sampled_from(examples_of(kind)))
    case = drawn(case, data, (0.0, 1.0))
    prompts = [case.ids[:9], case.ids[:4]]
    request = Request(Sampling(temperature=data.draw(st.sampled_from([0, 1]))), 14)
    session = start(case, 2).extend(prompts)
    batch, stats, rounds = SequenceBatch().admit(session, [by(strategy, request)] * 2), {}, 0
    with counted(session) as calls:
        while batch.rows:
            before = calls.copy()
            batch, made = batch.step()
            rounds += 1
            assert calls["latent"] - before["latent"] <= 1 + reads_open_patch(strategy)
            assert calls["entropy"] - before["entropy"] <= 1
            assert calls["latent"] == calls["pooling"] == calls["patch_kv"]
            for key, chunk in made:
                if chunk.stats is not None:
                    stats[key] = chunk.stats
                    passes = chunk.stats
                    assert (passes.encoder_passes, passes.decoder_passes) == (calls["encoder"], calls["decoder"])
                    assert (passes.global_passes, passes.entropy_passes) == (calls["latent"], calls["entropy"])
    assert set(stats) == {0, 1}
    for one in stats.values():
        assert 0 <= one.accepted <= one.drafted
        # A round makes one byte of its own beside those accepted; the first has no draft. EOS is no byte.
        assert one.bytes <= one.accepted + rounds


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(case=tiny.cases(), data=st.data())
def test_a_proposal(kind: str, case: Case, data: st.DataObject) -> None:
    """No more than there is room for, nothing that resets the scorer, by the local model alone, to no effect."""
    strategy = data.draw(st.sampled_from(examples_of(kind)))
    prompts = [case.ids[:12], case.ids[:5]]
    case = drawn(case, data)
    session, uncached = start(case, 2).extend(prompts), Uncached(case)
    strategy.check(session.model)
    pending = [
        Pending(
            chosen=data.draw(st.sampled_from([4, 50, 255, NEWLINE])),
            room=data.draw(st.sampled_from([1, 2, 5, 40])),
            sampling=Sampling(temperature=data.draw(st.sampled_from([0, 2]))),
            constraint=None,
            state=strategy.first_state,
            entropy=1.0 if strategy.reads_entropy else None,
        )
        for _ in prompts
    ]
    with counted(session) as calls:
        proposal = strategy.propose(session, pending)
    assert not (strategy.exact and proposal.trusted) and len(proposal.ways) in (0, 2)
    for row, drafts in zip(pending, proposal.drafts, strict=True):
        assert len(drafts) <= row.room - 1 + proposal.trusted + 1 - strategy.draft_column
        assert not session.resets & set(drafts)
        assert not set(drafts) & set(vocab.NEVER_EMITTED) and vocab.EOS not in drafts[:-1]
    passes = proposal.passes
    assert (passes.encoder, passes.decoder) == (calls["encoder"], calls["decoder"])
    assert passes.encoder <= max(len(drafts) + 1 for drafts in proposal.drafts)
    assert passes.entropy == calls["entropy"] == 0
    assert passes.latent == calls["latent"] == calls["pooling"] == calls["patch_kv"] <= reads_open_patch(strategy)
    uncached.assert_rows(session, prompts)
    more = [[row.chosen, 60] for row in pending]
    uncached.assert_rows(session.extend(more), [[*p, *m] for p, m in zip(prompts, more, strict=True)])


def reads_open_patch(strategy: Strategy) -> bool:
    return getattr(strategy, "latent", "closed") == "open"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_refused_in_one_line_or_served(kind: str) -> None:
    """Of a model that fills in blocks and one that does not, with every field at its examples."""
    plain = example("stride:k=3")
    served = 0
    for case in (plain, replace(plain, config=plain.config.replace(diffusion_block=4))):
        session = start(case).extend(case.ids[:5])
        for strategy in examples_of(kind)[:12]:
            try:
                strategy.check(session.model)
            except ValueError as error:
                assert "\n" not in str(error) and ("use" in str(error) or "train" in str(error))
            else:
                served += 1
                assert list(generate(session, by(strategy, Request(GREEDY, 3))))[-1].stats is not None
    assert served


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_of_a_row(kind: str) -> None:
    """Is a value; a round without drafts says nothing."""
    for strategy in examples_of(kind):
        state = strategy.first_state
        for accepted in (0, 3, 8, 0):
            assert strategy.next_state(state, Outcome(0, 0)) == state
            after = strategy.next_state(state, Outcome(8, accepted))
            assert after == strategy.next_state(state, Outcome(8, accepted))
            assert hash(after) == hash(strategy.next_state(state, Outcome(8, accepted)))
            state = after


def test_a_draft_that_adapts() -> None:
    """It stays within bounds, and what is fixed stays as it is."""
    for draft in (None, 1, 5):
        strategy = strategy_named("speculative", draft=draft)
        found = {strategy.first_state}
        for share in (1.0, 0.0, 0.5):
            state = strategy.first_state
            for _ in range(12):
                state = strategy.next_state(state, Outcome(state, int(share * state)))
                found.add(state)
        assert found == {draft} if draft else min(found) >= 1 and max(found) <= 64 and len(found) > 2


def test_strategies_by_name() -> None:
    assert strategy_named("speculative", draft=None) == strategy_named("speculative")
    with pytest.raises(ValueError, match=r"no strategy 'speculativ'.*speculative"):
        strategy_named("speculativ")
    with pytest.raises(ValueError, match="draft"):
        strategy_named("speculative", draft=0)
    with pytest.raises(ValueError, match="draft"):
        strategy_named("ar", draft=4)


def decode_rows(session: Session, asked: list[Request], strategy: Strategy) -> list[Decoded]:
    chunks: list[list[Chunk]] = [[] for _ in asked]
    for row, chunk in generate_rows(session, [by(strategy, request) for request in asked]):
        chunks[row].append(chunk)
    return [Decoded.of(own) for own in chunks]


def random_prompts(generator: torch.Generator, count: int = 16) -> list[list[int]]:
    sizes = torch.randint(0, 40, (count,), generator=generator).tolist()
    return [[vocab.BOS, *torch.randint(4, 260, (size,), generator=generator).tolist()] for size in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_thousands_of_prompts(kind: str, temperature: float) -> None:
    """In float64 there is no exception: every row of every batch, drafts of every length."""
    generator, strategies, ends = torch.Generator().manual_seed(0), examples_of(kind), set()
    for turn in range(80):
        case = tempered(replace(scored_case(example("byte")), seed=turn), (0.0, 0.1, 1.0)[turn % 3], eos=1.2)
        case = blurred(case, (0.05, 1.0)[turn % 2])
        prompts = random_prompts(generator)
        asked = [
            Request(
                Sampling(temperature=temperature, seed=row, repetition_penalty=1.3 if row % 4 == 0 else 1.0),
                max_bytes=24,
                constraint=Utf8.behind(vocab.decode(prompt)) if row % 3 == 0 else None,
                logprobs=True,
            )
            for row, prompt in enumerate(prompts)
        ]
        session, strategy = start(case, len(prompts)).extend(prompts), strategies[turn % len(strategies)]
        plain, drafted = decode_rows(session, asked, Autoregressive()), decode_rows(session, asked, strategy)
        for one, other, request in zip(plain, drafted, asked, strict=True):
            other.assert_equals(one, request)
            ends.add(one.finish)
    assert ends == {"eos", "length"}


def ties_met(case: Case, prompts: list[list[int]], sampling: Sampling, strategy: Strategy) -> int:
    """Rows whose bytes are others than in plain decoding: each only where float64 finds a tie."""
    session, asked, ties = start(case, len(prompts)).extend(prompts), [Request(sampling, 16)] * len(prompts), 0
    rows = decode_rows(session, asked, Autoregressive()), decode_rows(session, asked, strategy)
    for prompt, plain, found in zip(prompts, *rows, strict=True):
        if plain != found:
            pairs = zip(plain.data, found.data, strict=False)
            same = bytes(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            assert nearest_tie(case, [*prompt, *vocab.encode(same, bos=False).tolist()], sampling) < TIE
            ties += 1
    return ties


@pytest.mark.parametrize("kind", DRAFTING)
@settings(max_examples=5, derandomize=True)
@given(case=tiny.cases(dtype=torch.float32), data=st.data())
def test_fp32_differs_only_on_ties(kind: str, case: Case, data: st.DataObject) -> None:
    strategy = data.draw(st.sampled_from(examples_of(kind)))
    sampling = Sampling(temperature=data.draw(st.sampled_from([0, 0.8])))
    print(f"{ties_met(drawn(case, data, (0.1,)), [case.ids, case.ids[:5]], sampling, strategy)} ties")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAFTING)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_thousands_of_prompts_in_fp32(kind: str, temperature: float) -> None:
    generator, strategies, ties = torch.Generator().manual_seed(1), examples_of(kind), 0
    for turn in range(70):
        case = replace(scored_case(example("byte")), seed=turn, dtype=torch.float32)
        sampling, strategy = Sampling(temperature=temperature, seed=turn), strategies[turn % len(strategies)]
        ties += ties_met(
            blurred(tempered(case, 0.1), (0.05, 1.0)[turn % 2]), random_prompts(generator), sampling, strategy
        )
    print(f"{ties} ties in {70 * 16} rows")
