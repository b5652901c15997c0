"""Plans of the study `scaling` for tests, and a trainer that counts instead of learning."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bltkit.checkpoint.checksums import POSITION
from bltkit.config import parse
from bltkit.study.driver import run_study
from bltkit.study.scaling import scaling_batches
from bltkit.study.scaling.scaling_batches import Heldout, Seen
from bltkit.study.scaling.scaling_study import ScalingStudy
from bltkit.train import Result, TrainConfig
from bltkit.train.run_directory import RunDirectory

STAMP = {"commit": "c", "machine": {"cpu": "test"}, "command": "blt study scaling"}
LOCAL = {"width": 16, "heads": 1, "ffn_width": 24, "window": 16, "ngram_sizes": [3], "ngram_buckets": 61}


def size(name: str, width: int) -> dict[str, Any]:
    """A size of one layer."""
    return {"name": name, "width": width, "layers": 1, "heads": 1, "ffn_width": 2 * width, "local": LOCAL, "lr": 1e-2}


def plan(**changes: Any) -> ScalingStudy:
    """Two families that need no entropy model, two sizes, three budgets."""
    fields: dict[str, Any] = {
        "families": ["blt-stride-6", "blt-space"],
        "sizes": [size("a", 16), size("b", 32)],
        "budgets": [2e8, 4e8, 8e8],
        "seeds": 2,
        "row_bytes": 64,
        "batch_rows": 2,
        "validation_batches": 2,
        "warmup_steps": 2,
        "decay_shape": "linear",
    }
    found: ScalingStudy = parse(ScalingStudy, fields | changes, "test")
    return found


def text_of(step: int, seed: int) -> tuple[int, int]:
    """Bytes and patches of a step: neither is ever the same."""
    num_bytes = 120 + (step * 7 + seed * 3) % 11
    return num_bytes, num_bytes // 5 + (step + seed) % 4


@dataclass
class Counting:
    """A trainer whose loss is a function of config and step. Dies in the training number `dies_at`, half way."""

    trained: list[tuple[str, int, int]] = field(default_factory=list)
    """Directory, first and last step of every training."""
    dies_at: int | None = None
    now: float = 0.0
    """Seconds on its clock, of which a step takes one."""

    def measure(self, study: ScalingStudy, out: Path, **options: Any) -> list[dict[str, Any]]:
        """All rows of a study, run with this trainer."""
        counted = {
            "seen_by": self.seen_by,
            "steps_ahead": self.ahead,
            "heldout": self.heldout,
            "seconds_of": lambda checkpoint: 1.0,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, function in counted.items():
                patch.setattr(scaling_batches, name, function)
            return run_study(study, out, STAMP, train=self.train, clock=lambda: self.now, **options).rows()

    def train(self, config: TrainConfig, out: Path, *, resume: bool, say: Any) -> Result:
        """Leaves a checkpoint, as a run does."""
        assert resume
        run, step = RunDirectory(out), 0
        if (latest := run.latest()) is not None:
            step = self.seen_by(latest).step
        elif config.trainer.branch is not None:
            trunk = Path(config.trainer.branch)
            step = self.seen_by(trunk if trunk.name.startswith("step-") else RunDirectory(trunk).latest() or trunk).step
        first, last = step, config.trainer.max_steps
        assert first <= last, "a run cannot go back"
        dies = self.dies_at is not None and len(self.trained) == self.dies_at
        if dies:
            last = (first + last) // 2
        seen = Seen(0, 0, 0)
        for seen in self._steps(Seen(0, 0, 0), config.trainer.seed):
            if seen.step >= last:
                break
        directory = out / f"step-{seen.step:08d}"
        directory.mkdir(parents=True, exist_ok=True)
        for old in run.steps()[:-2]:
            (old / POSITION).unlink()
            old.rmdir()
        (directory / POSITION).write_text(json.dumps(vars(seen)))
        self.trained.append((str(out), first, seen.step))
        self.now += seen.step - first
        loss = 3 - 0.1 * seen.step**0.3 + 0.01 * config.trainer.seed + config.optim.schedule.rate(1, 10) / 100
        return Result(str(out), seen.step, loss, seen.num_bytes, 0.0, seen.unit_bytes, dies, "held-out")

    def seen_by(self, checkpoint: Path) -> Seen:
        """As it wrote it."""
        return Seen(**json.loads((checkpoint / POSITION).read_text()))

    def ahead(self, config: TrainConfig, checkpoint: Path) -> Iterator[Seen]:
        """The same text as it trains on."""
        return self._steps(self.seen_by(checkpoint), config.trainer.seed)

    def heldout(self, config: TrainConfig, checkpoint: Path) -> dict[str, Heldout]:
        """One source."""
        return {"text": Heldout(2.0 + config.trainer.seed, 100)}

    @staticmethod
    def _steps(seen: Seen, seed: int) -> Iterator[Seen]:
        while True:
            num_bytes, units = text_of(seen.step, seed)
            seen = Seen(seen.step + 1, seen.num_bytes + num_bytes, seen.units + units)
            yield seen
