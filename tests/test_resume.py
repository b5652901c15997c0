"""A run that was stopped, killed or out of disk goes on as if nothing had happened, bit for bit."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import bltkit
from bltkit import cli
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.config import dump_toml
from bltkit.data import Corpus, Loader
from bltkit.patching import ThresholdRule
from bltkit.patching.calibrate import calibrate
from bltkit.train import read_metrics
from bltkit.train import run_directory as run_module
from tests.tiny_training import Workplace, same

FIVE, TEN = "trainer.max_steps=5", "trainer.max_steps=10"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def entropy_patched(place: Workplace) -> str:
    """Trains an entropy model, calibrates a threshold, and returns the override that patches a BLT by them."""
    place.train("scorer", "entropy", TEN)
    scorer = load_bundle(place.path / "scorer").scorer
    assert scorer is not None
    ids = next(Loader(Corpus.from_sources(place.config("entropy").data.sources), 64, 1, 0)).ids[0]
    rule, mean = calibrate(ThresholdRule(threshold=1.0), [scorer.scores(ids[None])[0]], [ids], 3.0)
    assert 2.5 < mean < 3.5
    save_bundle(place.path / "patcher", Bundle(None, scorer, rule))
    return f"patching={{model = '{place.path / 'patcher'}'}}"


@pytest.mark.parametrize("more", [(), ("trainer.accumulate=2",)], ids=["", "accumulate"])
@pytest.mark.parametrize(
    "kind", ["entropy", "boundary", "cnn", "blt", "blt by entropy", "megabyte", "spacebyte", "bpe"]
)
def test_ten_steps_are_five_and_five(kind: str, more: tuple[str, ...], place: Workplace) -> None:
    if kind == "blt by entropy":
        kind, more = "blt", (*more, entropy_patched(place))
    whole = place.train("whole", kind, TEN, *more)
    place.train("parts", kind, FIVE, *more)
    parts = place.train("parts", kind, TEN, *more, resume=True)
    same(place.tensors("parts"), place.tensors("whole"))
    assert place.losses("parts") == place.losses("whole") and place.losses("whole").keys() == set(range(1, 11))
    assert dataclasses.replace(parts, out="") == dataclasses.replace(whole, out="")
    positions = [json.loads((place.path / name / "latest/training.json").read_text()) for name in ("whole", "parts")]
    assert [position.pop("seconds") > 0 for position in positions] == [True, True]
    assert positions[0] == positions[1] and ("accumulate" not in str(more) or positions[0]["loader"]["epoch"] > 0)


def test_five_more_steps_do_change_the_weights(place: Workplace) -> None:
    """The test above compares something."""
    place.train("run", "cnn", FIVE)
    five = place.tensors("run")
    place.train("run", "cnn", TEN, resume=True)
    ten = place.tensors("run")
    assert all(not torch.equal(five[name], ten[name]) for name in five)


def test_the_first_schedule_stays_with_the_run(place: Workplace) -> None:
    """Without optim.schedule_steps it is the first run's max_steps, also when the run is lengthened."""
    place.train("whole", "cnn", TEN, "optim.schedule_steps=5")
    free = place.fields("cnn", FIVE)
    del free["optim"]["schedule_steps"]
    for steps, resume in ((5, False), (10, True)):
        config = free | {"trainer": free["trainer"] | {"max_steps": steps}}
        bltkit.train(bltkit.TrainConfig(**config), place.path / "free", resume=resume, say=lambda line: None)
    same(place.tensors("free"), place.tensors("whole"))
    place.train("other", "cnn", TEN)
    assert place.losses("other")[10] != place.losses("free")[10]


def test_a_directory_that_exists_is_refused(place: Workplace) -> None:
    place.train("run", "cnn", FIVE)
    before = snapshot(place.path / "run")
    with pytest.raises(ValueError, match=r"run exists; add --resume to go on with it, or name another --out"):
        place.train("run", "cnn", TEN)
    (place.path / "file").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match="file is no directory; --out names the directory of a run"):
            place.train("file", "cnn", resume=resume)
    assert snapshot(place.path / "run") == before and (place.path / "file").read_text() == "mine"
    (place.path / "empty").mkdir()
    assert place.train("empty", "cnn", FIVE).steps == 5


def test_resume_without_a_checkpoint_starts_over_and_says_so(place: Workplace) -> None:
    place.train("whole", "cnn", FIVE)
    said: list[str] = []
    place.train("new", "cnn", FIVE, resume=True, say=said.append)
    (place.path / "half" / ".step-00000003.tmp-1234").mkdir(parents=True)  # what a kill can leave
    (place.path / "half" / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    place.train("half", "cnn", FIVE, resume=True, say=said.append)
    assert [line.split(" in ")[0] for line in said] == ["no complete checkpoint"] * 2
    assert all(line.endswith(": starting over") for line in said)
    for out in ("new", "half"):
        same(place.tensors(out), place.tensors("whole"))
        assert place.losses(out) == place.losses("whole")
    assert not list((place.path / "half").glob(".*"))


def test_resume_starts_over_beside_somebodys_files(place: Workplace) -> None:
    """Of a scheduler, say, whose log lies there; what a run would replace is in the way."""
    home = place.path / "home"
    home.mkdir()
    for name in ("slurm-7.out", ".letter.tmp~", ".letter.tmp"):
        (home / name).write_text("mine")
    before = snapshot(home)
    (home / "config.json").write_text("mine")
    with pytest.raises(ValueError, match=r"home has no checkpoint to go on from, and config\.json is not a run's"):
        place.train("home", "cnn", FIVE, resume=True)
    assert (home / "config.json").read_text() == "mine" and not (home / "config.toml").exists()
    (home / "config.json").unlink()
    assert place.train("home", "cnn", FIVE, resume=True).steps == 5
    assert before.items() <= snapshot(home).items()


def snapshot(path: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file below."""
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.lstat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_past_the_last_step_nothing_changes(place: Workplace) -> None:
    done = place.train("run", "blt", FIVE)
    before = snapshot(place.path / "run")
    said: list[str] = []
    for steps in (5, 3):
        again = place.train("run", "blt", f"trainer.max_steps={steps}", resume=True, say=said.append)
        assert again == done
    assert snapshot(place.path / "run") == before
    assert "is at step 5 already; raise trainer.max_steps (5)" in said[0]


def test_a_run_of_another_shape_data_or_seed_is_refused(place: Workplace) -> None:
    place.train("run", "entropy", FIVE)
    before = snapshot(place.path / "run")
    for override, message in (
        ("model.layers=2", r"model\.layers = 2 differs from the run's own, 1 .*start another run with --out"),
        ("trainer.seed=4", r"trainer\.seed = 4 differs from the run's own, 3"),
        ("data.row_bytes=32", r"data\.row_bytes = 32"),
        ("data.validation_fraction=0.5", "belongs to another corpus"),
    ):
        with pytest.raises(ValueError, match=message):
            place.train("run", "entropy", TEN, override, resume=True)
    with pytest.raises(ValueError, match=r"differs from the run's own, .*; so do model\.\w+"):
        place.train("run", "cnn", TEN, resume=True)
    assert snapshot(place.path / "run") == before


def test_old_checkpoints_go(place: Workplace) -> None:
    place.train("run", "cnn", TEN, "checkpoint.every_steps=2", "checkpoint.keep=3")
    assert sorted(path.name for path in (place.path / "run").iterdir()) == [
        "README.md",
        "bltkit.json",
        "config.json",
        "config.toml",
        "latest",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
        *(f"step-{step:08d}" for step in (6, 8, 10)),
    ]
    assert (place.path / "run" / "latest").readlink() == Path("step-00000010")


@pytest.mark.parametrize("where", ["weights", "state"])
def test_a_full_disk_leaves_the_checkpoint_before(
    where: str, place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.train("whole", "cnn", TEN)
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields("cnn", FIVE)))
    out = str(place.path / "run")
    assert cli.main(["train", str(config), "--out", out]) == 0
    before = place.tensors("run")
    capsys.readouterr()

    def full(tensors: Any, path: Path, *rest: Any, **named: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def full_as_well(*rest: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if where == "weights":
            patched.setattr("bltkit.checkpoint.weights.save_file", full)
        else:
            patched.setattr("torch.distributed.checkpoint.filesystem._write_item", full_as_well)
        assert cli.main(["train", str(config), TEN, "--out", out, "--resume"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("blt: ") and os.strerror(errno.ENOSPC) in captured.err
    same(place.tensors("run"), before)
    assert sorted(path.name for path in (place.path / "run").iterdir() if path.is_dir()) == ["latest", "step-00000005"]
    assert cli.main(["train", str(config), TEN, "--out", out, "--resume"]) == 0
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole")


def test_a_kill_between_saving_and_linking_is_repaired(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Any, step: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_module.RunDirectory, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            place.train("run", "cnn", FIVE)
    assert not (place.path / "run" / "latest").exists()
    assert place.train("run", "cnn", FIVE, resume=True).steps == 5
    assert load_bundle(place.path / "run").record["steps"] == 5


def start(place: Workplace, out: str, *overrides: str) -> "subprocess.Popen[str]":
    """`blt train` in a process of its own, a step in which takes 20 ms at least."""
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields("entropy", "optim.schedule_steps=1000", *overrides)))
    program = (
        "import sys, time, torch\n"
        "torch.set_num_threads(1)\n"
        "from bltkit.train.learner import Learner\n"
        "step = Learner.step\n"
        "Learner.step = lambda *arguments: time.sleep(0.02) or step(*arguments)\n"
        "from bltkit.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "train", str(config), "--out", str(place.path / out), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.path
    )


def wait_for_step(place: Workplace, out: str, step: int, process: "subprocess.Popen[str]") -> None:
    """Until metrics.jsonl tells of a step so far."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if (place.path / out / "metrics.jsonl").exists():
            rows = read_metrics(place.path / out)
            if rows and rows[-1]["step"] >= step:
                return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"never came to step {step}: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_exactly(number: signal.Signals, place: Workplace) -> None:
    process = start(place, "run", "trainer.max_steps=1000")
    wait_for_step(place, "run", 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    record = load_bundle(place.path / "run").record
    reached = record["steps"]
    assert 3 <= reached < 1000 and f"step {reached} is saved in" in err and f"step {reached}, " in out
    steps = ["optim.schedule_steps=1000", f"trainer.max_steps={reached + 3}"]
    place.train("run", "entropy", *steps, resume=True)
    place.train("whole", "entropy", *steps)
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole")


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_run_that_loads(place: Workplace) -> None:
    generator = random.Random(1)
    for attempt in range(3):
        process = start(place, "run", "trainer.max_steps=1000", "checkpoint.every_steps=1")
        done = read_metrics(place.path / "run")[-1]["step"] if attempt else 0
        wait_for_step(place, "run", done + 3, process)
        time.sleep(generator.random() * 0.2)
        process.kill()
        process.communicate()
        reached = load_bundle(place.path / "run", verify=True).record["steps"]
        assert reached >= done
    steps = ["optim.schedule_steps=1000", f"trainer.max_steps={reached + 3}"]
    place.train("run", "entropy", *steps, resume=True)
    place.train("whole", "entropy", *steps)
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole")
    assert not list((place.path / "run").glob(".*"))


@pytest.mark.gpu
def test_a_run_on_a_gpu_resumes(place: Workplace) -> None:
    for out, steps in (("whole", [10]), ("parts", [5, 10])):
        for number in steps:
            place.train(out, "entropy", f"trainer.max_steps={number}", "trainer.device=cuda", resume=number > steps[0])
    for name, tensor in place.tensors("whole").items():
        torch.testing.assert_close(place.tensors("parts")[name], tensor, rtol=1e-3, atol=1e-4)
