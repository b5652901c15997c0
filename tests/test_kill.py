"""`kill -9` at twenty random moments: the run that goes on each time ends like one never stopped, bit for bit."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bltkit import cli
from bltkit.checkpoint import load_bundle
from bltkit.config import dump_toml
from bltkit.train import read_metrics
from bltkit.train.run_directory import RunDirectory, is_step
from bltkit.train.state import read_position
from tests.tiny_training import Workplace, same, state_of

KILLS = 20
SETTINGS = ["trainer.threads=1", "optim.schedule_steps=200", "trainer.log_every=3", "checkpoint.background=true"]
PROGRAM = """
import sys, time
from bltkit.checkpoint import atomic
from bltkit.train.learner import Learner
step, sync = Learner.step, atomic._sync
Learner.step = lambda *arguments: time.sleep(0.01) or step(*arguments)
atomic._sync = lambda path: time.sleep(0.004) or sync(path)
from bltkit.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`blt`, whose steps and files take as long as those of something larger."""


def start(place: Workplace, out: Path) -> "subprocess.Popen[str]":
    config = place.path / "run.toml"
    more = [*SETTINGS, "trainer.max_steps=100000", "checkpoint.every_steps=1", "checkpoint.keep=1"]
    config.write_text(dump_toml(place.fields("blt", *more)))
    command = [sys.executable, "-c", PROGRAM, "train", str(config), "--out", str(out), "--resume"]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, cwd=place.path
    )


def last_step(out: Path) -> int:
    rows = read_metrics(out) if (out / "metrics.jsonl").exists() else []
    return int(rows[-1]["step"]) if rows else 0


def kill_at_some_moment(process: "subprocess.Popen[str]", out: Path, chance: random.Random) -> None:
    """After some steps or none; often while a checkpoint is written, renamed or removed."""
    begun, steps = last_step(out), chance.choice([-1, 3, 6, 9])
    sign = chance.choice([".step-*.tmp", ".step-*.old", ".latest.tmp", "step-*"])
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None and last_step(out) < begun + steps:
        time.sleep(0.01)
    late = time.monotonic() + 1
    while time.monotonic() < late and not list(out.glob(sign)):
        pass
    time.sleep(chance.choice([0, chance.random() * 0.03, chance.random()]))
    assert process.poll() is None, f"ended by itself: {process.communicate()[1]}"
    process.kill()
    process.communicate()


def complete(out: Path) -> int:
    """Looks at every checkpoint that bears its name; returns the newest one's step."""
    found = RunDirectory(out)
    for step in found.steps():
        assert is_step(step.name) and load_bundle(step, verify=True).record["steps"] == read_position(step).step
        assert step.name == f"step-{read_position(step).step:08d}" and state_of(step)
    latest = found.latest()
    return 0 if latest is None else read_position(latest).step


@pytest.mark.slow
def test_twenty_kills_change_nothing(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    out, chance, reached, left = place.path / "run", random.Random(20), 0, set[str]()
    for _ in range(KILLS):
        process = start(place, out)
        kill_at_some_moment(process, out, chance)
        left |= {entry.suffix for entry in out.glob(".step-*")}
        now = complete(out)
        assert now >= reached, "a complete checkpoint was lost"
        reached = now
        if reached:
            # As it lies there: nobody has repaired the directory yet.
            assert cli.main(["generate", "the ", "--model", str(out), "--max-bytes", "3"]) == 0
            assert cli.main(["score", "the of and", "--model", str(out), "--json"]) == 0
            capsys.readouterr()
    assert ".tmp" in left, "no kill came while a checkpoint was written"
    steps = [*SETTINGS, f"trainer.max_steps={reached + 5}"]
    place.train("run", "blt", *steps, resume=True)
    place.train("whole", "blt", *steps)
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole") and reached > KILLS
    assert not list(out.glob(".*")), "something half-written is left"


@pytest.mark.parametrize("rest", [".step-00000009.tmp", ".step-00000003.old"])
def test_half_a_checkpoint_is_none(rest: str, place: Workplace) -> None:
    """A directory without its name does not count, however much of it is there."""
    place.train("run", "cnn", "trainer.max_steps=5")
    out = place.path / "run"
    shutil.copytree(out / "step-00000005", out / rest)
    (out / ".metrics.jsonl.tmp-0123abcd").write_text("half")
    (out / ".latest.tmp").symlink_to(rest)
    assert complete(out) == 5
    assert place.train("run", "cnn", "trainer.max_steps=7", resume=True).steps == 7
    place.train("whole", "cnn", "trainer.max_steps=7")
    same(place.tensors("run"), place.tensors("whole"))
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("tail", ['{"step": 6, "lo', '{"step": 6}', "\x00\x00"])
def test_a_torn_line_of_metrics_is_taken_away(tail: str, place: Workplace) -> None:
    """Else the next row would be added to it, and both were lost."""
    place.train("run", "cnn", "trainer.max_steps=5", "data.validation_fraction=0")
    with (place.path / "run" / "metrics.jsonl").open("a") as file:
        file.write(tail)
    place.train("run", "cnn", "trainer.max_steps=8", "data.validation_fraction=0", resume=True)
    place.train("whole", "cnn", "trainer.max_steps=8", "data.validation_fraction=0")
    assert place.losses("run") == place.losses("whole") and len(place.losses("run")) == 8


def test_a_report_over_several_steps_spans_an_interruption(place: Workplace) -> None:
    """Means of four steps, two of them before and two after: the losses of a run that was never stopped."""
    every = ["trainer.log_every=4", "optim.schedule_steps=12"]
    place.train("whole", "blt", *every, "trainer.max_steps=12", "checkpoint.every_steps=6", "checkpoint.keep=9")
    shutil.copytree(place.path / "whole", place.path / "run", symlinks=True)
    shutil.rmtree(place.path / "run" / "step-00000012")
    place.train("run", "blt", *every, "trainer.max_steps=12", resume=True)
    ours, theirs = read_metrics(place.path / "run"), read_metrics(place.path / "whole")
    for row in [*ours, *theirs]:
        for clock in ("bytes_per_second", "padding"):  # of this process alone
            row.pop(clock, None)
    assert ours == theirs and [row["step"] for row in ours] == [4, 8, 12, 12]


def test_the_last_validation_is_made_up_for(place: Workplace) -> None:
    """A kill behind the last checkpoint and before it."""
    place.train("whole", "blt", "trainer.max_steps=5")
    shutil.copytree(place.path / "whole", place.path / "run", symlinks=True)
    metrics = place.path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    for _ in range(2):
        place.train("run", "blt", "trainer.max_steps=5", resume=True)
        assert metrics.read_bytes() == (place.path / "whole" / "metrics.jsonl").read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)
