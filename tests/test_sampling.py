"""Sampling against brute-force definitions, in distribution, and in batches against one choice at a time."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.config import parse
from bltkit.generate.sampling import Choice, Sampling, choose, seen_along
from bltkit.vocab import BOS, EOS, MASK, PAD, VOCAB_SIZE

NEVER = {PAD, BOS, MASK}


def logits_of(seed: int, levels: int | None = None) -> Tensor:
    """Random logits; few `levels` make many equal ones."""
    noise = 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    return noise if levels is None else (noise * levels / 4).round() * 4 / levels


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.one_of(st.none(), st.sampled_from([1, 2, 5, 100, 257, 1000])),
    top_p=st.one_of(st.none(), st.floats(0.01, 1)),
    min_p=st.one_of(st.none(), st.floats(0, 1)),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.2, 4.0]),
    seed=st.integers(-(2**63), 2**63),
    logit_bias=st.sampled_from([{}, {50: 2.5}, {EOS: -100.0, 4: 100.0}, {100: -3.0, 259: 4.5, 101: 0.0}]),
)


def mask_of(seed: int, *shape: int) -> Tensor:
    """A random mask over the ids that has at least one id that can be chosen."""
    mask = torch.rand(*shape, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[..., EOS + seed % 5 * 50] |= ~mask[..., sorted(set(range(VOCAB_SIZE)) - NEVER)].any(-1)
    return mask


def by_definition(sampling: Sampling, logits: Tensor, allowed: Tensor | None, seen: Tensor | None) -> list[float]:
    """Probabilities, one filter at a time over plain lists."""
    alive = [i for i in range(len(logits)) if i not in NEVER and (allowed is None or allowed[i])]
    score = {i: float(logits[i]) for i in alive}
    for i, bias in sampling.logit_bias:
        if i in score:
            score[i] += bias
    for i in alive:
        if seen is not None and seen[i]:
            penalty = sampling.repetition_penalty
            score[i] = score[i] / penalty if score[i] > 0 else score[i] * penalty
    peak = max(score.values())
    weight = {i: math.exp((score[i] - peak) / sampling.temperature) for i in alive}
    alive.sort(key=lambda i: (-weight[i], i))
    if sampling.top_k is not None:
        alive = alive[: sampling.top_k]
    if sampling.top_p is not None:
        total, mass, kept = sum(weight[i] for i in alive), 0.0, []
        for i in alive:
            kept.append(i)
            mass += weight[i] / total
            if mass >= sampling.top_p:
                break
        alive = kept
    if sampling.min_p is not None:
        alive = [i for i in alive if weight[i] >= sampling.min_p * weight[alive[0]]]
    total = sum(weight[i] for i in alive)
    return [weight[i] / total if i in alive else 0.0 for i in range(len(logits))]


@given(samplings, st.integers(0, 2**16), st.sampled_from([None, 8]), st.booleans(), st.booleans())
@example(Sampling(top_k=5, top_p=0.6), 0, None, False, False)
@example(Sampling(top_k=20, top_p=0.9, min_p=0.3, repetition_penalty=1.3), 1, None, True, True)
def test_filters_follow_their_definitions(
    sampling: Sampling, seed: int, levels: int | None, constrained: bool, repeating: bool
) -> None:
    logits = logits_of(seed, levels)
    allowed = mask_of(seed) if constrained else None
    seen = mask_of(seed + 1) if repeating else None
    expected = torch.tensor(by_definition(sampling, logits, allowed, seen), dtype=torch.float64)
    torch.testing.assert_close(sampling.probabilities(logits, allowed, seen), expected, atol=1e-12, rtol=1e-9)


@given(samplings, st.integers(0, 2**16), st.integers(0, 2**40))
def test_a_pick_is_a_function_of_seed_and_position(sampling: Sampling, seed: int, position: int) -> None:
    logits = logits_of(seed)
    double = logits.double()
    before = double.clone()
    picked = sampling.pick(logits, position)
    torch.randn(1000)
    assert sampling.pick(logits, position) == picked
    assert sampling.pick(double, position) == picked
    assert sampling.probabilities(logits)[picked] > 0 and picked not in NEVER
    assert torch.equal(logits, before) and torch.equal(double, before)


def test_seeds_and_positions_differ() -> None:
    flat = torch.zeros(VOCAB_SIZE)
    picks = {Sampling(temperature=1, seed=seed).pick(flat, at) for seed in range(8) for at in range(8)}
    assert len(picks) > 40  # 64 draws from 257 ids leave 57 different ones on average
    assert Sampling(temperature=1, seed=0).pick(flat, 1) != Sampling(temperature=1, seed=1).pick(flat, 0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=0.7, top_k=9, seed=6),
        Sampling(temperature=1.5, top_p=0.8, min_p=0.05, seed=7),
    ],
)
@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_distribution(sampling: Sampling, along: str) -> None:
    """Chi-square of 6,000 draws against the probabilities."""
    logits = logits_of(1)
    logits[EOS] = 3.0
    draws = 6_000
    if along == "positions":
        ids = choose([sampling], logits.expand(1, draws, -1), [0]).ids[0]
    else:
        rows = [sampling.replace(seed=seed) for seed in range(draws)]
        ids = [row[0] for row in choose(rows, logits.expand(draws, 1, -1), [77] * draws).ids]
    counts = torch.bincount(torch.tensor(ids), minlength=VOCAB_SIZE).double()
    expected = sampling.probabilities(logits) * draws
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    # Rare ids together are one cell.
    seen = torch.cat((counts[common], counts[~common].sum()[None]))
    wanted = torch.cat((expected[common], expected[~common].sum()[None]))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    chi2, freedom = float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)


def test_positions_are_independent() -> None:
    """Chi-square of pairs of neighbours, most of them within a block of noise, some across two."""
    logits = torch.full((VOCAB_SIZE,), -torch.inf)
    logits[10:14] = torch.tensor([0.0, 0.5, 1.0, -0.5])
    sampling, draws = Sampling(temperature=1, seed=8), 8_001
    ids = torch.tensor(choose([sampling], logits.expand(1, draws, -1), [0]).ids[0]) - 10
    counts = torch.bincount(4 * ids[:-1] + ids[1:], minlength=16).double()
    p = sampling.probabilities(logits)[10:14]
    wanted = (p[:, None] * p).flatten() * (draws - 1)
    chi2 = float(((counts - wanted) ** 2 / wanted).sum())
    assert abs(chi2 - 15) < 4 * math.sqrt(2 * 15)


any_sampling = st.one_of(samplings, st.builds(Sampling, temperature=st.just(0.0), repetition_penalty=st.just(2.0)))


@given(st.data())
def test_a_choice_in_a_batch_is_the_choice_alone(data: st.DataObject) -> None:
    """Ids and log-probabilities, bit for bit, whatever stands beside them."""
    rows = data.draw(st.lists(any_sampling, min_size=1, max_size=6))
    if data.draw(st.booleans()):
        rows = [rows[0].replace(seed=row.seed) for row in rows]  # as for several samples of a prompt
    columns, seed = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 2**16))
    positions = data.draw(st.lists(st.integers(0, 100), min_size=len(rows), max_size=len(rows)))
    logits = torch.stack([logits_of(seed + at, data.draw(st.sampled_from([None, 2]))) for at in range(len(rows))])
    logits = logits[:, None] * torch.linspace(1, 2, columns)[:, None]
    allowed = mask_of(seed, len(rows), columns) if data.draw(st.booleans()) else None
    seen = mask_of(seed + 1, len(rows), columns) if data.draw(st.booleans()) else None

    def part(mask: Tensor | None, row: slice, column: slice) -> Tensor | None:
        return None if mask is None else mask[row, column]

    whole = choose(rows, logits, positions, allowed=allowed, seen=seen, logprobs=True)
    assert choose(rows, logits, positions, allowed=allowed, seen=seen) == Choice(whole.ids, None)
    for r, row in enumerate(rows):
        for s in range(columns):
            here = (slice(r, r + 1), slice(s, s + 1))
            alone = choose(
                [row],
                logits[here],
                [positions[r] + s],
                allowed=part(allowed, *here),
                seen=part(seen, *here),
                logprobs=True,
            )
            assert alone == Choice([[whole.ids[r][s]]], [[whole.logprobs[r][s]]])


@given(samplings, st.integers(0, 2**16), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_layout_and_type_of_the_logits_do_not_matter(sampling: Sampling, seed: int, dtype: torch.dtype) -> None:
    logits = torch.stack([logits_of(seed + at) for at in range(4)]).bfloat16().reshape(2, 2, -1)
    rows = [sampling, sampling.replace(seed=seed)]
    expected = choose(rows, logits.double(), [3, 15], logprobs=True)
    strided = logits.to(dtype).permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    assert choose(rows, strided, [3, 15], logprobs=True) == expected


@given(any_sampling, st.integers(0, 2**16), st.booleans())
def test_logprobs_are_the_models_own(sampling: Sampling, seed: int, constrained: bool) -> None:
    logits = logits_of(seed)
    allowed = mask_of(seed) if constrained else torch.ones(VOCAB_SIZE, dtype=torch.bool)
    found = choose(
        [sampling], logits[None, None], [seed], allowed=allowed[None, None], seen=mask_of(2)[None, None], logprobs=True
    )
    weight = {i: math.exp(float(logits[i])) for i in range(VOCAB_SIZE) if i not in NEVER and allowed[i]}
    expected = math.log(weight[found.ids[0][0]] / math.fsum(weight.values()))
    assert found.logprobs == [[pytest.approx(expected, abs=1e-12)]]


def test_a_penalty_counts_for_greedy_too() -> None:
    logits, greedy = torch.full((VOCAB_SIZE,), -5.0), Sampling(temperature=0, repetition_penalty=2)
    logits[[50, 60, 70]] = torch.tensor([3.0, 2.0, -1.0])
    seen = torch.zeros(1, 1, VOCAB_SIZE, dtype=torch.bool)
    seen[..., 50] = True
    assert choose([greedy], logits[None, None], [0], seen=seen).ids == [[60]]
    assert choose([Sampling(temperature=0)], logits[None, None], [0], seen=seen).ids == [[50]]
    assert choose([greedy], logits[None, None], [0]).ids == [[50]]
    seen[..., 60] = True  # now 1.5 and 1.0
    assert choose([greedy], logits[None, None], [0], seen=seen).ids == [[50]]


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 12), st.integers(1, 15))
def test_seen_ids_are_those_in_the_window(ids: list[int], num_drafts: int, window: int) -> None:
    cut = max(0, len(ids) - num_drafts)
    before, drafts = ids[:cut], ids[cut:]
    columns = seen_along(before, drafts, window)
    assert len(columns) == len(drafts) + 1
    for at, column in enumerate(columns):
        assert column.nonzero().flatten().tolist() == sorted(set(ids[max(0, cut + at - window) : cut + at]))
    assert torch.equal(seen_along(before[-window:], drafts, window), columns)


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([None, 4]))
def test_greedy_is_the_lowest_of_the_most_probable(seed: int, levels: int | None) -> None:
    logits = logits_of(seed, levels)
    logits[[PAD, BOS, MASK]] = 100.0
    allowed = [(-float(value), at) for at, value in enumerate(logits) if at not in NEVER]
    greedy = Sampling(temperature=0)
    assert greedy.pick(logits, seed) == min(allowed)[1]
    assert greedy.probabilities(logits).nonzero().tolist() == [[min(allowed)[1]]]


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = logits_of(3)
    assert Sampling(temperature=temperature).pick(logits, 0) == Sampling(temperature=0).pick(logits, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_broken_model_is_not_sampled_from(value: float, temperature: float) -> None:
    """NaN would win every comparison, and look like a model that says EOS."""
    logits = logits_of(4)
    logits[100] = value
    with pytest.raises(ValueError, match="not finite"):
        Sampling(temperature=temperature).pick(logits, 0)
    both, rows = torch.stack((logits_of(4), logits))[:, None], [Sampling(temperature=temperature)] * 2
    allowed = torch.ones_like(both, dtype=torch.bool)
    allowed[..., 100] = False
    with pytest.raises(ValueError, match="not finite"):
        choose(rows, both, [0, 0], allowed=allowed)


@pytest.mark.parametrize("temperature", [0, 1])
def test_only_what_is_allowed_is_chosen(temperature: float) -> None:
    logits = torch.stack([logits_of(at) for at in range(300)])[None]
    allowed = mask_of(9, 1, 300)
    sampling = Sampling(temperature=temperature)
    ids = choose([sampling], logits, [0], allowed=allowed).ids[0]
    assert all(allowed[0, at, chosen] and chosen not in NEVER for at, chosen in enumerate(ids))
    allowed[0, 5] = False
    allowed[0, 5, [PAD, BOS, MASK]] = True
    with pytest.raises(ValueError, match="constraint allows no id"):
        choose([sampling], logits, [0], allowed=allowed)


@pytest.mark.parametrize(
    "field",
    ["temperature=-1", "top_k=0", "top_p=0", "top_p=1.5", "min_p=-0.1", "repetition_penalty=0", "repetition_window=0"],
)
def test_bad_values_are_named(field: str) -> None:
    name, value = field.split("=")
    with pytest.raises(ValueError, match=f"sampling: {name} ="):
        parse(Sampling, {name: float(value)}, "sampling")


def test_the_most_probable_ids_are_named() -> None:
    """Of the model's own distribution: whatever the temperature, the bias, the filters and what was chosen."""
    logits = torch.stack(
        [torch.stack([logits_of(seed, 8) for seed in (7, 8)]), torch.stack([logits_of(9), logits_of(10)])]
    )
    logits[:, :, PAD] = 1e3  # never named
    allowed = torch.ones(2, 2, VOCAB_SIZE, dtype=torch.bool)
    allowed[1, 0] = False
    allowed[1, 0, [70, 71]] = True
    rows = [Sampling(temperature=0.1, top_k=1, logit_bias={60: 100.0}), Sampling(temperature=1.0)]
    found = choose(rows, logits, [3, 4], allowed=allowed, tops=[5, 20])
    assert found.tops is not None and found.logprobs is None
    assert [len(tops) for tops in found.tops[0]] == [5, 5] and [len(tops) for tops in found.tops[1]] == [2, 20]
    assert found.ids[0] == [60, 60]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        own = logits[row, column].double().masked_fill(~allowed[row, column], -torch.inf)
        own[[*NEVER]] = -torch.inf
        wanted = own.log_softmax(0)
        order = sorted(range(VOCAB_SIZE), key=lambda i, wanted=wanted: (-float(wanted[i]), i))
        tops = found.tops[row][column]
        assert [at for at, _ in tops] == order[: len(tops)]
        torch.testing.assert_close(torch.tensor([value for _, value in tops]).double(), wanted[order[: len(tops)]])
    assert choose(rows, logits, [3, 4], allowed=allowed, tops=[0, 2]).tops is not None
    assert choose(rows, logits, [3, 4], allowed=allowed, tops=[0, 0]).tops is None


def test_a_bias_bans_and_forces() -> None:
    logits = logits_of(3)
    best = Sampling(temperature=0).pick(logits, 0)
    assert Sampling(temperature=0, logit_bias={best: -100}).pick(logits, 0) != best
    assert {Sampling(temperature=1, seed=seed, logit_bias={77: 100}).pick(logits, 5) for seed in range(20)} == {77}
    pairs = ((9, 1.0), (8, -2.0))
    assert Sampling(logit_bias=pairs) == Sampling(logit_bias=dict(pairs)) and hash(Sampling(logit_bias=pairs))


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({BOS: 1.0}, "id 1 cannot be emitted"),
        ({260: 1.0}, "id 260 cannot be emitted"),
        ({-1: 1.0}, "id -1 cannot be emitted"),
        ({70: 100.5}, "bias 100.5 of id 70 is beyond -100 to 100"),
        ({70: math.nan}, "logit_bias"),
        (((70, 1.0), (70, 2.0)), "an id is given twice"),
        ("x", "logit_bias"),
    ],
)
def test_a_wrong_bias_is_refused(bias: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(Sampling, {"logit_bias": bias}, "sampling")
