"""The guard and the sinks, through the trainer: what a bad step leaves behind, and what a resumed run remembers."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit import cli
from bltkit.checkpoint import load_bundle
from bltkit.config import dump_toml
from bltkit.train import read_metrics
from bltkit.train.learner import Learner
from tests.tiny_training import Workplace, same

SPIKES = ["guard.spike_factor=1.5", "guard.after=3", "guard.window=4"]
SKIP = [*SPIKES, "guard.on_spike=skip", "guard.max_skips=2"]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


class BadSteps:
    """Multiplies the losses of single batches, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
        self.seen = 0
        real = Learner.loss

        def loss(learner: Any, *arguments: Any) -> Any:
            if not learner.model.training:
                return real(learner, *arguments)
            self.seen += 1
            losses, patches = real(learner, *arguments)
            return losses._replace(total=losses.total * factors.get(self.seen, 1.0)), patches

        monkeypatch.setattr(Learner, "loss", loss)

    def at(self, batch: int) -> None:
        """The next one is number `batch` + 1: as after a resume."""
        self.seen = batch


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["blt", "entropy"])
def test_a_step_without_a_number_touches_nothing(
    kind: str, factor: float, place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields(kind, "checkpoint.every_steps=2", "checkpoint.keep=9")))
    out = place.path / "run"
    with monkeypatch.context() as patched:
        BadSteps(patched, {6: factor})
        assert cli.main(["train", str(config), "--out", str(out)]) == 1
    *notes, error = capsys.readouterr().err.splitlines()
    assert all(note.startswith("transformers will not load") for note in notes) and len(notes) == (kind == "blt")
    assert "the loss of step 6 is not finite" in error and "--resume" in error
    assert sorted(step.name for step in out.glob("step-*")) == ["step-00000002", "step-00000004"]
    assert all(tensor.isfinite().all() for tensor in place.tensors("run").values())
    assert max(place.losses("run")) == 5 and not list(out.glob(".*"))
    place.train("run", kind, resume=True)
    place.train("whole", kind)
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole")


def test_a_gradient_without_a_number_touches_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite losses whose gradient is not: only the norm tells."""
    real = Learner.loss
    calls = 0

    def loss(learner: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += learner.model.training
        losses, patches = real(learner, *arguments)
        if calls == 3:
            weight = learner.model.decoder.head.weight
            slope = (weight - weight.detach()).abs().sqrt().sum()  # 0, with a slope of infinity times 0
            losses = losses._replace(total=losses.total + slope)
        return losses, patches

    monkeypatch.setattr(Learner, "loss", loss)
    with pytest.raises(FloatingPointError, match=r"the gradient of step 3 is not finite \(nan\)"):
        place.train("run", "blt", "checkpoint.every_steps=1")
    monkeypatch.undo()
    place.train("two", "blt", "trainer.max_steps=2")
    same(place.tensors("run"), place.tensors("two"))


def test_a_spike_stops_the_run(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    BadSteps(monkeypatch, {2: 100.0, 7: 10.0})  # the first one comes too early to be one
    with pytest.raises(FloatingPointError, match=r"the loss jumped at step 7: .* where the last 4 steps had") as error:
        place.train("run", "blt", *SPIKES, "checkpoint.every_steps=3")
    assert "\n" not in str(error.value) and load_bundle(place.path / "run").record["steps"] == 6


def test_a_spike_is_left_out(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    BadSteps(monkeypatch, {6: 10.0})
    place.train("six", "blt", *SKIP, "trainer.max_steps=6")
    monkeypatch.undo()
    place.train("five", "blt", "trainer.max_steps=5")
    same(place.weights("six"), place.weights("five"))
    rows = [row for row in read_metrics(place.path / "six") if "loss" in row]
    assert [row.get("skipped") for row in rows] == [None] * 5 + [1]
    assert rows[5]["loss"] > 3 * rows[4]["loss"]
    assert json.loads((place.path / "six/latest/training.json").read_text())["guard"]["skipped"] == 1


def test_spikes_in_a_row_end_the_run(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    BadSteps(monkeypatch, {6: 10.0, 7: 10.0, 8: 10.0})
    with pytest.raises(FloatingPointError, match="step 8, after 2 updates in a row that were left out"):
        place.train("run", "cnn", *SKIP)


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_a_resumed_run_remembers_losses_and_skips(stop: int, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before, at and between spikes."""
    bad = {6: 10.0, 7: 10.0, 9: 10.0}
    BadSteps(monkeypatch, bad)
    place.train("whole", "blt", *SKIP)
    monkeypatch.undo()
    steps = BadSteps(monkeypatch, bad)
    place.train("parts", "blt", *SKIP, f"trainer.max_steps={stop}")
    steps.at(stop)
    place.train("parts", "blt", *SKIP, resume=True)
    same(place.tensors("parts"), place.tensors("whole"))
    assert place.losses("parts") == place.losses("whole")
    guards = [
        json.loads((place.path / out / "latest/training.json").read_text())["guard"] for out in ("parts", "whole")
    ]
    assert guards[0] == guards[1] and guards[0]["skipped"] == 3 and len(guards[0]["losses"]) == 4


def test_skips_between_reports_are_counted_over_an_interruption(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = BadSteps(monkeypatch, {6: 10.0, 8: 10.0})
    every = [*SKIP, "trainer.log_every=5"]
    place.train("run", "blt", *every, "trainer.max_steps=10", "checkpoint.every_steps=7", "checkpoint.keep=9")
    whole = read_metrics(place.path / "run")
    newest = place.path / "run" / "step-00000010"
    newest.rename(place.path / "gone")
    steps.at(7)
    place.train("run", "blt", *every, "trainer.max_steps=10", resume=True)
    again = read_metrics(place.path / "run")
    assert [row.get("skipped") for row in again if "loss" in row] == [None, 2]
    assert [row.get("loss") for row in again] == [row.get("loss") for row in whole]


class TestTensorboard:
    REPORT = 'trainer.report=["tensorboard"]'

    def figures(self, out: Path) -> dict[str, list[tuple[int, float]]]:
        events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        found = events.EventAccumulator(str(out / "tensorboard"))
        found.Reload()
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}

    def test_shows_what_metrics_say_also_after_an_interruption(self, place: Workplace) -> None:
        """Steps that a killed run took and took again stand there once."""
        pytest.importorskip("tensorboard")
        more = [self.REPORT, "trainer.validate_every=4", "checkpoint.every_steps=6", "checkpoint.keep=9"]
        place.train("run", "blt", *more)
        (place.path / "run" / "step-00000010").rename(place.path / "gone")
        place.train("run", "blt", *more, resume=True)
        found, rows = self.figures(place.path / "run"), read_metrics(place.path / "run")
        for tag, name in (("train/loss", "loss"), ("validation/bits_per_byte", "validation_bits_per_byte")):
            wanted = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
            assert found[tag] == wanted and wanted
        assert [step for step, _ in found["train/loss"]] == list(range(1, 11))

    def test_a_missing_extra_is_noticed_before_anything_is_written(
        self, place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        config = place.path / "run.toml"
        config.write_text(dump_toml(place.fields("cnn", self.REPORT)))
        assert cli.main(["train", str(config), "--out", str(place.path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "pip install 'bltkit[plot]'" in error
        assert not (place.path / "run").exists()


def test_the_guard_looks_at_the_whole_step(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad batch among several is a bad step, and none of its gradient stays for the next."""
    BadSteps(monkeypatch, {12: 10.0})
    place.train("six", "blt", *SKIP, "trainer.max_steps=6", "trainer.accumulate=2")
    monkeypatch.undo()
    place.train("five", "blt", "trainer.max_steps=5", "trainer.accumulate=2")
    same(place.weights("six"), place.weights("five"))
    assert torch.isfinite(torch.tensor(place.losses("six")[6])).all()
