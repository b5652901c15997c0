"""Sampling against brute-force definitions, and in distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.config import parse
from bltkit.generate import Sampling
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
    seed=st.integers(-(2**63), 2**63),
)


def by_definition(sampling: Sampling, logits: Tensor) -> list[float]:
    """Probabilities, one filter at a time over plain lists."""
    alive = [i for i in range(len(logits)) if i not in NEVER]
    peak = max(float(logits[i]) for i in alive)
    weight = {i: math.exp((float(logits[i]) - peak) / sampling.temperature) for i in alive}
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


@given(samplings, st.integers(0, 2**16), st.sampled_from([None, 8]))
def test_filters_follow_their_definitions(sampling: Sampling, seed: int, levels: int | None) -> None:
    logits = logits_of(seed, levels)
    expected = torch.tensor(by_definition(sampling, logits), dtype=torch.float64)
    torch.testing.assert_close(sampling.probabilities(logits), expected, atol=1e-12, rtol=1e-9)


@given(samplings, st.integers(0, 2**16), st.integers(0, 2**40))
def test_a_pick_is_a_function_of_seed_and_position(sampling: Sampling, seed: int, position: int) -> None:
    logits = logits_of(seed)
    before = logits.clone()
    picked = sampling.pick(logits, position)
    torch.randn(1000)
    assert sampling.pick(logits, position) == picked
    assert sampling.pick(logits.double(), position) == picked
    assert sampling.probabilities(logits)[picked] > 0 and picked not in NEVER
    assert torch.equal(logits, before)


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
def test_distribution(sampling: Sampling) -> None:
    """Chi-square of 6,000 draws against the probabilities."""
    logits = logits_of(1)
    logits[EOS] = 3.0
    draws = 6_000
    counts = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
    for position in range(draws):
        counts[sampling.pick(logits, position)] += 1
    expected = sampling.probabilities(logits) * draws
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    # Rare ids together are one cell.
    seen = torch.cat((counts[common], counts[~common].sum()[None]))
    wanted = torch.cat((expected[common], expected[~common].sum()[None]))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    chi2, freedom = float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([None, 4]))
def test_greedy_is_the_lowest_of_the_most_probable(seed: int, levels: int | None) -> None:
    logits = logits_of(seed, levels)
    logits[[PAD, BOS, MASK]] = 100.0
    allowed = [(-float(value), at) for at, value in enumerate(logits) if at not in NEVER]
    greedy = Sampling(temperature=0)
    assert greedy.pick(logits, seed) == min(allowed)[1]
    assert greedy.probabilities(logits).nonzero().tolist() == [[min(allowed)[1]]]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = logits_of(3)
    assert Sampling(temperature=1e-300).pick(logits, 0) == Sampling(temperature=0).pick(logits, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_broken_model_is_not_sampled_from(value: float, temperature: float) -> None:
    """NaN would win every comparison, and look like a model that says EOS."""
    logits = logits_of(4)
    logits[100] = value
    with pytest.raises(ValueError, match="not finite"):
        Sampling(temperature=temperature).pick(logits, 0)


@pytest.mark.parametrize("field", ["temperature=-1", "top_k=0", "top_p=0", "top_p=1.5", "min_p=-0.1"])
def test_bad_values_are_named(field: str) -> None:
    name, value = field.split("=")
    with pytest.raises(ValueError, match=f"sampling: {name} ="):
        parse(Sampling, {name: float(value)}, "sampling")
