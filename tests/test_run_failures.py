"""What ends a run early: a full disk, a lost worker, a loss that is no number. One line that is true, nothing half."""

import errno
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from bltkit import cli
from bltkit.config import dump_toml
from bltkit.data import loader as loader_module
from bltkit.train import trainer as trainer_module
from bltkit.train.run_directory import RunDirectory
from tests.tiny_training import Workplace, same

EVERY = "checkpoint.every_steps=3"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def blt_train(place: Workplace, capsys: pytest.CaptureFixture[str], *overrides: str, resume: bool = False) -> str:
    """The one line of a training that fails with status 2 or 1 (a loss that is no number)."""
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields("cnn", *overrides)))
    status = cli.main(["train", str(config), "--out", str(place.path / "run"), *["--resume"][: int(resume)]])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("blt: "), captured
    assert status == (1 if "not finite" in captured.err else 2)
    return captured.err


@pytest.fixture
def small_files() -> Iterator[Any]:
    """Sets the largest file that this process may write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_room_is_looked_at_before_the_first_step(
    place: Workplace, capsys: pytest.CaptureFixture[str], small_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place.path / "run"
    small_files(20_000)
    error = blt_train(place, capsys)
    assert f"{out}: a checkpoint has a file of at least" in error and "20 kB at most" in error and "ulimit -f" in error
    assert not out.exists()
    small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: Usage(100_000, 80_000, 20_000))
        error = blt_train(place, capsys)
    assert f"{out}: a checkpoint takes at least" in error and "20 kB are free" in error and not out.exists()


@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("first", [True, False])
def test_a_file_that_grows_too_large(
    first: bool, background: str, place: Workplace, capsys: pytest.CaptureFixture[str], small_files: Any
) -> None:
    """In spite of the look: what is known before is what it takes at least."""
    more = [f"checkpoint.background={background}"]
    if not first:
        place.train("run", "cnn", "trainer.max_steps=2", *more)
    out, whole = place.path / "run", place.path / "whole"
    place.train("whole", "cnn", EVERY)
    (state,) = (whole / "latest" / "state").glob("*.distcp")
    small_files(state.stat().st_size - 2000)
    error = blt_train(place, capsys, EVERY, *more, resume=not first)
    assert f"{out}: the checkpoint could not be written" in error and "it takes about" in error and "free" in error
    way = "no checkpoint was written yet" if first else f"the newest checkpoint is {out / 'step-00000002'}"
    assert way in error and not list(out.glob(".*"))
    small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    place.train("run", "cnn", EVERY, resume=True)
    same(place.tensors("run"), place.tensors("whole"))


@pytest.mark.parametrize("context", [OSError(errno.ENOSPC, "No space left on device"), None])
def test_a_disk_that_is_full_within_a_tensor(
    context: OSError | None, place: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's writer of archives then speaks of its own positions; another process's context does not come along."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    error.__context__ = context

    def full(state: Any, checkpoint_id: Path, **options: Any) -> None:
        checkpoint_id.mkdir()
        raise CheckpointException("write", {0: (error, traceback.StackSummary())})

    monkeypatch.setattr("bltkit.train.state.save", full)
    told = blt_train(place, capsys)
    assert ("(No space left on device)" if context else "the tensors could not be written") in told
    assert not list((place.path / "run").glob(".*"))


def test_what_a_full_disk_was_left_with_goes_before_room_is_looked_for(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.train("run", "cnn", "trainer.max_steps=2")
    rest = place.path / "run" / ".step-00000003.tmp"
    rest.mkdir()
    looked: list[bool] = []
    monkeypatch.setattr("bltkit.train.trainer.check_room", lambda *sizes: looked.append(rest.exists()))
    place.train("run", "cnn", "trainer.max_steps=3", resume=True)
    assert looked == [False]


@pytest.mark.parametrize("saved", [True, False])
def test_a_worker_that_is_killed(
    saved: bool, place: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, step = place.path / "run", trainer_module.Learner.step

    def stepped(self: Any, batches: Any, number: int, *rest: Any) -> Any:
        if number == 4:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
        return step(self, batches, number, *rest)

    more = ["data.workers=2", EVERY if saved else "checkpoint.every_steps=99"]
    with monkeypatch.context() as patched:
        patched.setattr(trainer_module.Learner, "step", stepped)
        error = blt_train(place, capsys, *more)
    assert "a loader's worker ended before its time" in error and "Killed" in error
    way = f"the newest checkpoint is {out / 'step-00000003'}: go on from it with --resume"
    assert (way if saved else "no checkpoint was written yet: the same command with --resume begins again") in error
    assert not list(out.glob(".*")) and not multiprocessing.active_children()
    place.train("run", "cnn", *more, resume=True)
    place.train("whole", "cnn")
    same(place.tensors("run"), place.tensors("whole"))


@pytest.mark.parametrize(
    ("fault", "reason"), [(OSError(5, "Input/output error", "/text"), "'/text'"), (MemoryError(), "out of memory")]
)
def test_a_worker_that_cannot_go_on(
    fault: Exception,
    reason: str,
    place: Workplace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise fault

    monkeypatch.setattr(loader_module, "assemble", broken)
    assert reason in blt_train(place, capsys, "data.workers=1")
    assert not list((place.path / "run").glob(".*"))


def test_advice_names_checkpoints_that_exist(
    place: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is no number: in the first steps, and behind a checkpoint."""
    out, loss = place.path / "run", trainer_module.Learner.loss
    bad = 2

    def spoiled(self: Any, batch: Any, step: int = 0) -> Any:
        losses, patches = loss(self, batch, step)
        return (losses if step != bad else losses._replace(total=losses.total * float("nan"))), patches

    monkeypatch.setattr(trainer_module.Learner, "loss", spoiled)
    error = blt_train(place, capsys, EVERY)
    assert "the loss of step 3 is not finite" in error and "lower optim.lr" in error
    assert error.endswith("no checkpoint was written yet: the same command with --resume begins again\n")
    assert RunDirectory(out).latest() is None
    bad = 4
    config = place.config("cnn", EVERY, "optim.lr=1e-3")
    with pytest.raises(FloatingPointError, match=f"the newest checkpoint is {out / 'step-00000003'}: go on from it"):
        trainer_module.train(config, out, resume=True, say=lambda line: None)
    monkeypatch.undo()
    assert trainer_module.train(config, out, resume=True, say=lambda line: None).steps == 10


def test_the_last_line_says_what_it_measured(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    text = place.path / "one.md"
    text.write_bytes(b"one text, many words; " * 40)
    config = place.path / "run.toml"
    for fraction, words in ((0.05, "held-out"), (0, "training")):
        source = [f"data.sources=['{text}']", f"data.validation_fraction={fraction}"]
        config.write_text(dump_toml(place.fields("cnn", "trainer.max_steps=1", *source)))
        for more, expected in (
            ([], f" bits per byte ({words}), "),
            (["--resume", "--json"], f'"measured_on": "{words}"'),
        ):
            assert cli.main(["train", str(config), "--out", str(place.path / words), *more]) == 0
            assert expected in capsys.readouterr().out
