"""Calibration against the obvious search: every threshold, patches counted by slow loops."""

import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from bltkit.patching import PatchingRule, StrideRule, ThresholdRule, parse_rule, patch
from bltkit.patching.calibrate import calibrate, tuned_field
from bltkit.vocab import BOS, OFFSET, encode
from tests.reference_patching import row_starts

GRID = 64
"""Scores are multiples of 1 / GRID: exact in fp16, their differences too, and often equal."""

RULES = st.sampled_from(
    [
        {"kind": "threshold", "threshold": 99.0},
        {"kind": "threshold", "threshold": 0.0, "max_patch_bytes": 3},
        {"kind": "rise", "rise": 0.0},
        {"kind": "rise", "rise": 0.0, "max_patch_bytes": 4},
        {"kind": "both", "threshold": 1.0, "rise": 0.05},
        {"kind": "bpe"},
    ]
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor]]:
    """Ids with BOS, some with EOS, and a score for each."""
    texts = draw(st.lists(st.tuples(st.binary(max_size=12), st.booleans()), min_size=1, max_size=4))
    ids = [encode(text, eos=eos) for text, eos in texts]
    steps = [draw(st.lists(st.integers(-9, 9), min_size=len(row), max_size=len(row))) for row in ids]
    return ids, [torch.tensor(row) / GRID for row in steps]


def mean_by_loops(rule: PatchingRule, ids: list[Tensor], scores: list[Tensor]) -> float:
    """Bytes of text per patch, BOS's own not counted."""
    fields = rule.model_dump()
    num_patches = num_bytes = 0
    for row, values in zip(ids, scores, strict=True):
        starts = row_starts(fields, row.tolist(), values.tolist(), documents=True)
        num_patches += sum(opens for opens, value in zip(starts, row.tolist(), strict=False) if value != BOS)
        num_bytes += int((row >= OFFSET).sum())
    return num_bytes / num_patches


@given(documents(), RULES, st.floats(0.5, 8))
def test_no_threshold_comes_nearer(
    docs: tuple[list[Tensor], list[Tensor]], fields: dict[str, Any], goal: float
) -> None:
    ids, scores = docs
    assume(any(bool((row >= OFFSET).any()) for row in ids))
    rule = parse_rule(fields)
    field = tuned_field(rule)
    assert field is not None
    every = [rule.replace(**{field: step / GRID}) for step in range(-20, 20)]
    means = [mean_by_loops(candidate, ids, scores) for candidate in every]
    assert means == sorted(means)
    if not means[0] <= goal <= means[-1]:
        with pytest.raises(ValueError, match=re.escape(f"patch_bytes = {goal}")):
            calibrate(rule, scores, ids, goal)
        return
    found, reached = calibrate(rule, scores, ids, goal)
    assert reached == pytest.approx(mean_by_loops(found, ids, scores))
    assert abs(reached - goal) <= min(abs(mean - goal) for mean in means) + 1e-12
    assert found.replace(**{field: 0.0}) == rule.replace(**{field: 0.0})  # nothing else changed


@given(st.integers(0, 99), st.floats(1.5, 6))
def test_many_scores_give_the_wanted_mean_and_fp16_the_same_patches(seed: int, goal: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = [encode(bytes(2000)) for _ in range(2)]
    scores = [torch.rand(2001, generator=generator) * 5 for _ in ids]
    rule, reached = calibrate(ThresholdRule(threshold=0), scores, ids, goal)
    assert reached == pytest.approx(goal, rel=0.03)
    for row, values in zip(ids, scores, strict=True):
        stored = values.half().float()
        assert torch.equal(patch(rule, row[None], values[None]).starts, patch(rule, row[None], stored[None]).starts)


def test_what_cannot_be_calibrated_is_said() -> None:
    ids, scores = [encode(b"abcd")], [torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])]
    rule = ThresholdRule(threshold=1)
    with pytest.raises(ValueError, match="'stride' has no threshold"):
        calibrate(StrideRule(k=4), scores, ids, 4.5)
    with pytest.raises(ValueError, match=r"can reach 1 to 4 bytes per patch on these 4 bytes"):
        calibrate(rule, scores, ids, 4.5)
    with pytest.raises(ValueError, match="hold no text"):
        calibrate(rule, [torch.zeros(1)], [encode(b"")], 1.0)
    with pytest.raises(ValueError, match="no documents"):
        calibrate(rule, [], [], 1.0)
    with pytest.raises(ValueError, match="1 documents but 0 rows"):
        calibrate(rule, [], ids, 1.0)
    with pytest.raises(ValueError, match="document 0: 5 ids but 4 scores"):
        calibrate(rule, [scores[0][1:]], ids, 1.0)
    with pytest.raises(ValueError, match="does not begin with BOS"):
        calibrate(rule, scores, [torch.full((5,), 70)], 1.0)
    with pytest.raises(ValueError, match="not finite"):
        calibrate(rule, [scores[0] * torch.nan], ids, 1.0)


def test_arguments_stay_as_they_were() -> None:
    ids, scores = [encode(b"abcd")], [torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])]
    rule = ThresholdRule(threshold=1)
    found, mean = calibrate(rule, scores, ids, 2.0)
    assert rule == ThresholdRule(threshold=1) and mean == 2.0
    assert 2 < found.threshold < 3 and scores[0].tolist() == [0, 1, 2, 3, 4]
