"""What is saved and when: with a model or without, in the background or not, and what a disk that is full leaves."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit import cli
from bltkit.checkpoint import load_bundle
from bltkit.config import dump_toml
from bltkit.train import read_metrics
from bltkit.train import trainer as trainer_module
from bltkit.train.run_directory import RunDirectory
from bltkit.train.state import Saver
from tests.processes import port
from tests.tiny_training import Workplace, same, state_of

AT_THE_END = ["checkpoint.export=end", "checkpoint.every_steps=2"]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def names(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir())


def has_model(step: Path) -> bool:
    return (step / "config.json").exists()


class TestExport:
    @pytest.mark.parametrize("kind", ["blt", "entropy"])
    def test_at_the_end_there_is_a_model_although_the_step_was_due(self, kind: str, place: Workplace) -> None:
        place.train("always", kind, "checkpoint.every_steps=2", "checkpoint.keep=9")
        place.train("end", kind, *AT_THE_END, "checkpoint.keep=9")
        steps = sorted((place.path / "end").glob("step-*"))
        assert [has_model(step) for step in steps] == [False] * 4 + [True]
        assert all(has_model(step) for step in (place.path / "always").glob("step-*"))
        same(place.tensors("end"), place.tensors("always"))
        assert names(place.path / "end") == names(place.path / "always")

    def test_a_run_goes_on_without_exported_weights(self, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
        place.train("whole", "blt")
        self.interrupted(place, monkeypatch, at=7)
        steps = ["step-00000006", "step-00000007"]
        assert names(place.path / "run") == ["config.toml", "latest", "metrics.jsonl", "run.json", *steps]
        place.train("run", "blt", *AT_THE_END, resume=True)
        same(place.tensors("run"), place.tensors("whole"))
        assert place.losses("run") == place.losses("whole")

    def test_loading_it_before_says_what_to_do_and_that_helps(
        self, place: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupted(place, monkeypatch, at=7)
        out = place.path / "run"
        for path in (out, out / "step-00000007"):
            with pytest.raises(ValueError, match=r"not yet a model .*--resume`, or lower trainer\.max_steps to where"):
                load_bundle(path)
        before = state_of(out / "latest")
        place.train("run", "blt", *AT_THE_END, "trainer.max_steps=7", resume=True)
        assert load_bundle(out, verify=True).record["steps"] == 7
        place.train("seven", "blt", "trainer.max_steps=7")
        same(place.weights("run"), place.weights("seven"))
        same(state_of(out / "latest"), before)
        again = names(out), place.tensors("run")
        place.train("run", "blt", *AT_THE_END, "trainer.max_steps=7", resume=True)
        assert names(out) == again[0] and not list(out.glob(".*"))
        same(place.tensors("run"), again[1])

    def test_older_models_names_go_when_the_newest_has_none(self, place: Workplace) -> None:
        place.train("run", "blt", "trainer.max_steps=4")
        place.train("more", "blt", *AT_THE_END, "trainer.max_steps=6")
        shutil.rmtree(place.path / "more" / "step-00000006")
        shutil.copytree(place.path / "more" / "step-00000004", place.path / "run" / "step-00000005")
        RunDirectory(place.path / "run").publish(place.path / "run" / "step-00000005")
        assert "config.json" not in names(place.path / "run")

    def interrupted(self, place: Workplace, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        """A run of ten steps that SIGTERM reaches in step `at`."""
        with monkeypatch.context() as patched:
            interrupt_in(patched, at)
            assert place.train("run", "blt", *AT_THE_END).interrupted


def interrupt_in(monkeypatch: pytest.MonkeyPatch, step: int, times: int = 1) -> None:
    real = trainer_module.Learner.step

    def stepped(self: Any, batches: Any, number: int, *rest: Any) -> Any:
        if number + 1 == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches, number, *rest)

    monkeypatch.setattr(trainer_module.Learner, "step", stepped)


def test_two_sigterms_save_like_one(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's and torchrun's own."""
    with monkeypatch.context() as patched:
        interrupt_in(patched, 4, times=2)
        result = place.train("run", "blt")
    assert result.interrupted and result.steps == 4
    place.train("run", "blt", resume=True)
    place.train("whole", "blt")
    same(place.tensors("run"), place.tensors("whole"))


def test_in_the_background_or_not_the_same_is_written(place: Workplace) -> None:
    for background in ("true", "false"):
        more = [f"checkpoint.background={background}", "checkpoint.every_steps=2", "checkpoint.keep=9"]
        place.train(background, "blt", *more)
    assert names(place.path / "true") == names(place.path / "false")
    for step in (2, 4, 6, 8, 10):
        ours, theirs = (state_of(place.path / out / f"step-{step:08d}") for out in ("true", "false"))
        same(ours, theirs)
    assert place.losses("true") == place.losses("false")


def test_what_is_written_is_the_state_of_its_step(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk so slow that the next steps are done before the writing begins."""
    real, go = Saver.save, threading.Event()

    def slow(self: Any, directory: Path, state: Any, position: Any, beside: Callable[[], None], done: Any) -> None:
        def late() -> None:
            go.wait(0.3)
            beside()

        real(self, directory, state, position, late, done)

    monkeypatch.setattr(Saver, "save", slow)
    place.train("run", "blt", "checkpoint.every_steps=4", "checkpoint.keep=9", "trainer.max_steps=8")
    monkeypatch.undo()
    place.train("four", "blt", "trainer.max_steps=4")
    same(state_of(place.path / "run" / "step-00000004"), state_of(place.path / "four" / "latest"))


@pytest.mark.parametrize(("keep", "every", "left"), [(1, 4, [4, 8, 10]), (2, 3, [3, 6, 9, 10]), (9, 2, range(2, 11))])
def test_what_is_kept(keep: int, every: int, left: Any, place: Workplace) -> None:
    more = [f"checkpoint.keep={keep}", f"checkpoint.keep_every={every}", "checkpoint.every_steps=1"]
    place.train("run", "cnn", *more)
    assert [step.name for step in RunDirectory(place.path / "run").steps()] == [f"step-{step:08d}" for step in left]


@pytest.mark.parametrize("where", ["beside", "state", "name"])
@pytest.mark.parametrize("step", [4, 6])
def test_a_disk_that_fills_up_in_the_background(
    where: str, step: int, place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the loop's back, at a checkpoint in the middle and at the last: one line, exit 2, the one before stays."""
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields("blt", "checkpoint.every_steps=2", "trainer.max_steps=6")))
    out = place.path / "run"
    target = {
        "beside": "bltkit.train.learner.write_bundle",
        "state": "torch.distributed.checkpoint.filesystem._write_item",
        "name": "bltkit.train.checkpoint_writer.sync_tree",
    }[where]
    with monkeypatch.context() as patched:
        fail_from(patched, target, out, step)
        assert cli.main(["train", str(config), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    note, error = captured.err.splitlines()
    assert note.startswith("transformers will not load") and os.strerror(errno.ENOSPC) in error and captured.out == ""
    assert [found.name for found in RunDirectory(out).steps()][-1] == f"step-{step - 2:08d}"
    assert load_bundle(out, verify=True).record["steps"] == step - 2 and not list(out.glob(".*"))
    assert cli.main(["train", str(config), "--out", str(out), "--resume"]) == 0
    place.train("whole", "blt", "trainer.max_steps=6")
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole")


def fail_from(monkeypatch: pytest.MonkeyPatch, target: str, out: Path, step: int) -> None:
    """The disk is full while the checkpoint of `step` is written."""
    module, _, name = target.rpartition(".")
    real = getattr(sys.modules[module], name)

    def full(*arguments: Any, **named: Any) -> Any:
        if (out / f".step-{step:08d}.tmp").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    monkeypatch.setattr(target, full)


def test_a_run_that_fails_still_has_what_it_was_writing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody writes there any more when `train` has returned."""
    real = Saver.save

    def slow(self: Any, directory: Path, state: Any, position: Any, beside: Callable[[], None], done: Any) -> None:
        real(self, directory, state, position, lambda: time.sleep(0.3) or beside(), done)  # type: ignore[func-returns-value]

    monkeypatch.setattr(Saver, "save", slow)
    step = trainer_module.Learner.step

    def broken(self: Any, batches: Any, number: int, *rest: Any) -> Any:
        if number == 4:
            raise FloatingPointError("the loss is not a number")
        return step(self, batches, number, *rest)

    monkeypatch.setattr(trainer_module.Learner, "step", broken)
    with pytest.raises(FloatingPointError):
        place.train("run", "blt", "checkpoint.every_steps=4")
    assert load_bundle(place.path / "run").record["steps"] == 4 and not list((place.path / "run").glob(".*"))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.slow
def test_sigterm_to_two_processes(place: Workplace) -> None:
    """Both of them, or one alone: all save and leave, and one process goes on to the losses of a run of one."""
    config = place.path / "run.toml"
    place.train("whole", "blt", "trainer.max_steps=6")
    for who in ([0, 1], [1]):
        out = place.path / f"run{len(who)}"
        config.write_text(dump_toml(place.fields("blt", "trainer.max_steps=100000", "checkpoint.every_steps=3")))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "bltkit", "train", str(config), "--out", str(out)]
        started = [
            subprocess.Popen(
                command,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        until = time.monotonic() + 120
        while time.monotonic() < until and not ((out / "latest").exists() and len(read_metrics(out)) > 4):
            time.sleep(0.05)
        for rank in who:
            started[rank].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [130, 130], ends
        assert "interrupted: step" in ends[0][1] and "interrupted" not in ends[1][1]
        reached = load_bundle(out, verify=True).record["steps"]
        assert reached >= 4 and max(place.losses(out.name)) == reached and not list(out.glob(".*"))
        place.train(out.name, "blt", f"trainer.max_steps={reached + 1}", resume=True)
        ours, theirs = place.losses(out.name), place.losses("whole")
        assert all(ours[step] == pytest.approx(theirs[step], rel=2e-5) for step in range(1, 5))
        assert all(torch.isfinite(torch.tensor(figures)).all() for figures in ours.values())
