"""Twenty steps in deterministic mode give the losses that are kept in `golden/train_losses.json`, and give them again.

`python -m scripts.make_train_golden` writes that file anew.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import golden_training
from tests.golden_training import FIGURES, LOSSES, MODELS, STEPS, TEXT, run
from tests.tiny_training import Workplace, same

TOLERANCE = 1e-5
"""Relative, of losses and gradient norms. On one machine torch's code for SSE, AVX2 and AVX-512, with the matrix
products of each, differed by at most 2e-7; other makes and releases are given fifty times that. A rate that is 0.1 %
higher changes the last losses by some thirty times the tolerance."""

WRITE = """
import json, sys
from pathlib import Path
from tests.golden_training import MODELS, run
print(json.dumps({kind: run(kind, Path(sys.argv[1]) / kind) for kind in MODELS}))
"""


def kept() -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = json.loads(LOSSES.read_text())
    return found


def distance(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """The largest relative difference of any figure of any step."""
    assert len(ours) == len(theirs) == STEPS
    pairs = [(row[name], other[name]) for row, other in zip(ours, theirs, strict=True) for name in FIGURES]
    return max(abs(one - two) / abs(two) for one, two in pairs)


def test_what_is_kept_is_worth_comparing() -> None:
    assert kept().keys() == MODELS.keys() and 3_000 <= TEXT.stat().st_size <= 6_000
    for rows in kept().values():
        losses = [row["loss"] for row in rows]
        assert losses[0] > 5.5 and losses[-1] < 3.8 and len(set(losses)) == STEPS


@pytest.mark.parametrize("kind", MODELS)
def test_the_losses_are_those_that_are_kept(kind: str, tmp_path: Path) -> None:
    assert distance(run(kind, tmp_path / "run"), kept()[kind]) < TOLERANCE


@pytest.mark.parametrize("kind", MODELS)
def test_a_second_run_has_every_bit_of_the_first(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = run(kind, tmp_path / "first")
    torch.manual_seed(2)
    second = run(kind, tmp_path / "second")
    assert first == second
    same(Workplace(tmp_path).tensors("first"), Workplace(tmp_path).tensors("second"))
    assert not torch.are_deterministic_algorithms_enabled(), "the mode stays behind"


def test_a_small_change_of_training_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = golden_training.parse

    def other(of: Any, fields: dict[str, Any], where: str) -> Any:
        return real(of, fields | {"optim": fields["optim"] | {"lr": 4.004e-3}}, where)

    monkeypatch.setattr(golden_training, "parse", other)
    changed, expected = run("blt", tmp_path / "run"), kept()["blt"]
    assert abs(changed[-1]["loss"] - expected[-1]["loss"]) / expected[-1]["loss"] > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_other_instructions_of_the_processor_stay_far_inside_the_tolerance(capability: str, tmp_path: Path) -> None:
    products = {"default": "COMPATIBILITY", "avx2": "AVX2", "avx512": "AVX512"}[capability]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "MKL_CBWR": products, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=root)
    found = json.loads(done.stdout)
    assert max(distance(found[kind], kept()[kind]) for kind in MODELS) < TOLERANCE / 10
