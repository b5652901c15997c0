"""Mistakes and mishaps of a training run: one clear line, exit status 2, nothing half-written, and nobody waits."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit import cli
from bltkit.checkpoint import load_bundle
from bltkit.config import dump_toml
from bltkit.train.parallel import World
from bltkit.train.process import KERNELS, numerics
from bltkit.train.run_directory import RunDirectory
from tests.processes import port, train_together
from tests.tiny_training import Workplace, same

FAILING = """
import os, sys
place, who = sys.argv[1], sys.argv[2]
from bltkit.train import learner, trainer
def plant(owner, name, failure):
    assert hasattr(owner, name), f"{name} has moved: nothing would fail"
    if os.environ["RANK"] == who: setattr(owner, name, failure)
def refuse(*arguments, **named): raise ValueError("what is wrong here")
def full(*arguments, **named): raise OSError(28, "No space left on device")
def third(self, batches, number, *rest): return refuse() if number == 2 else step(self, batches, number, *rest)
step = trainer.Learner.step
if place == "start": plant(trainer, "starting_point", refuse)
if place == "corpus": plant(trainer._Trainer, "_read_corpus", refuse)
if place == "model": plant(trainer.Learner, "_prepare", refuse)
if place == "laid out": plant(trainer, "forget_after", full)
if place == "step": plant(trainer.Learner, "step", third)
if place == "begun": plant(trainer.RunDirectory, "begin", full)
if place == "written": plant(learner, "write_bundle", full)
if place == "named": plant(trainer.RunDirectory, "complete", full)
from bltkit.cli import main
sys.exit(main(["train", *sys.argv[3:]]))
"""
"""`blt train`, in one process of which something goes wrong."""


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def blt_train(
    place: Workplace, capsys: pytest.CaptureFixture[str], out: str, *overrides: str, kind: str = "blt"
) -> tuple[int, str]:
    """Status and stderr of the command."""
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields(kind)))
    options = [word for word in overrides if word.startswith("--")]
    rest = [word for word in overrides if not word.startswith("--")]
    status = cli.main(["train", str(config), *rest, "--out", str(place.path / out), *options])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.kind=blt2"], "blt2"),
        (["trainer.max_step=3"], "max_steps"),
        (["trainer.max_steps=0"], "max_steps"),
        (["trainer.shard=2"], "trainer.shard = 2 does not divide the 1 process of this run"),
        (["optim.schedule=wsdd"], "did you mean"),
        (["optim.latent_lr=0"], "latent_lr"),
        (["guard.spike_factor=0.5"], "half of all losses"),
        (["adapt.freeze=['encode']"], "known: embed, encoder, latent, decoder, ngrams"),
        (["adapt.freeze=['embed', 'encoder', 'latent', 'decoder']"], "leaves nothing to train"),
        (["adapt.lora={}"], "set trainer.init"),
        (["trainer.init=nowhere"], "no such directory"),
        (["trainer.branch=nowhere"], "is no directory"),
        (["data.row_patches=20"], "blt annotate"),
        (["data.batch_rows=0"], "batch_rows"),
        (["trainer.report=['tensorbord']"], "tensorboard"),
        (["checkpoint.export=never"], "'always' or 'end'"),
    ],
)
def test_one_line_and_nothing_written(
    overrides: list[str], message: str, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = blt_train(place, capsys, "run", *overrides)
    assert (status, error.count("\n")) == (2, 1) and message in error, error
    assert not (place.path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources={other}"], "belongs to another corpus"),
        (["data.row_bytes=32"], "data.row_bytes = 32 differs from the run's own, 64"),
        (["trainer.seed=5"], "trainer.seed = 5"),
        (["model.decoder.layers=2"], "model.decoder.layers = 2"),
        (["model.ngrams.buckets=67"], "model.ngrams.buckets = 67"),
        (["adapt.freeze=['embed', 'encoder', 'latent', 'decoder']"], "leaves nothing to train"),
    ],
)
def test_resuming_as_something_else_leaves_the_run_alone(
    overrides: list[str], message: str, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.path / "other.md").write_text("another text, " * 30)
    place.train("run", "blt", "trainer.max_steps=3")
    before = {file: file.stat().st_mtime_ns for file in sorted((place.path / "run").rglob("*")) if file.is_file()}
    chosen = [override.format(other=place.path / "other.md") for override in overrides]
    status, error = blt_train(place, capsys, "run", *chosen, "--resume")
    assert (status, error.count("\n")) == (2, 1) and message in error, error
    assert {
        file: file.stat().st_mtime_ns for file in sorted((place.path / "run").rglob("*")) if file.is_file()
    } == before


def test_resuming_with_other_settings_of_the_optimizer_is_allowed(place: Workplace) -> None:
    """Rates, betas and how tables are updated are no part of the state; they hold from the resumed step on."""
    place.train("run", "blt", "trainer.max_steps=5")
    place.train("whole", "blt")
    place.train("run", "blt", "optim.tables=dense", "optim.lr=1e-3", "optim.latent_lr=1e-4", resume=True)
    ours, theirs = place.losses("run"), place.losses("whole")
    assert [ours[step] for step in range(1, 6)] == [theirs[step] for step in range(1, 6)]
    assert ours[6][:2] == theirs[6][:2] and ours[6][2] == pytest.approx(theirs[6][2] / 10) and ours[8] != theirs[8]


def test_a_corpus_alone_is_no_run(place: Workplace) -> None:
    """What several processes leave that stop at a mistake after the text was read; the same command goes through."""
    (place.path / "run" / "corpus").mkdir(parents=True)
    assert place.train("run", "cnn", "trainer.max_steps=1").steps == 1
    (place.path / "mine" / "thesis").mkdir(parents=True)
    with pytest.raises(ValueError, match="exists; add --resume"):
        place.train("mine", "cnn")
    assert not RunDirectory(place.path / "nowhere").in_use()


def test_one_process_raises_its_own_error() -> None:
    world = World(0, 1, torch.device("cpu"), 1)
    with pytest.raises(KeyError, match="mine"), world.together():
        raise KeyError("mine")
    with world.together():
        pass


def test_determinism_on_a_gpu_names_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    with (
        pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"),
        numerics(1, True, cuda),
    ):
        pass
    for deterministic, device in ((False, cuda), (True, cpu)):
        with numerics(1, deterministic, device):
            assert torch.are_deterministic_algorithms_enabled() is deterministic


def failing(place: Workplace, where: str, who: int, out: str, *more: str) -> list[tuple[int, str]]:
    """Status and stderr of two processes, in one of which something fails."""
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields("blt", "checkpoint.every_steps=2")))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FAILING, where, str(who), str(config), "--out", str(place.path / out), *more]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    ends: list[tuple[int, str]] = []
    try:
        for process in started:
            ends.append((process.wait(240), process.communicate()[1]))  # noqa: PERF401
    finally:
        for process in started:
            process.kill()
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("where", ["start", "corpus", "model", "step"])
def test_what_one_process_refuses_ends_both(where: str, who: int, place: Workplace) -> None:
    """Before the first message between them, and after."""
    ends = failing(place, where, who, "run")
    assert [status for status, _ in ends] == [2, 2], ends
    assert [line for line in ends[who][1].splitlines() if line.startswith("blt:")] == ["blt: what is wrong here"]
    (other,) = [line for line in ends[1 - who][1].splitlines() if line.startswith("blt:")]
    if where == "step":
        assert other == f"blt: process {1 - who} lost another one of this run, whose own message says why"
        assert load_bundle(place.path / "run", verify=True).record["steps"] == 2
    else:
        assert other == f"blt: process {who}: what is wrong here"
        assert not RunDirectory(place.path / "run").in_use()
    assert not any("Traceback" in error for _, error in ends)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["laid out", "begun", "written", "named"])
def test_a_disk_that_is_full_for_one_process_ends_both(where: str, place: Workplace) -> None:
    place.train("run", "blt", "trainer.max_steps=1")
    before = place.tensors("run")
    for status, error in failing(place, where, 0, "run", "--resume"):
        assert status == 2 and "No space left on device" in error and "Traceback" not in error, error
    assert [step.name for step in RunDirectory(place.path / "run").steps()] == ["step-00000001"]
    same(place.tensors("run"), before)
    assert not list((place.path / "run").glob(".step-*"))


@pytest.mark.slow
def test_processes_that_do_not_fit(place: Workplace) -> None:
    config = place.path / "run.toml"

    def ends(count: int, *overrides: str, options: tuple[str, ...] = ()) -> list[Any]:
        config.write_text(dump_toml(place.fields("blt", *overrides)))
        return train_together(count, config, place.path / "run", *options)

    for count, overrides, message in (
        (3, ("data.batch_rows=4",), "data.batch_rows = 4 rows cannot be shared evenly by 3 processes; use a multiple"),
        (2, ("trainer.shard=3",), "trainer.shard = 3 does not divide the 2 processes of this run"),
        (2, ("trainer.branch=nowhere",), "trainer.branch = 'nowhere' is no directory"),
    ):
        for end in ends(count, *overrides):
            assert end.returncode == 2 and message in end.stderr and "Traceback" not in end.stderr, end.stderr
        assert not (place.path / "run").exists()
    (place.path / "run").mkdir()
    first, second = ends(2, "trainer.max_steps=2", options=("--resume",))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "no complete checkpoint" in first.stderr and "no complete checkpoint" not in second.stderr
    assert load_bundle(place.path / "run").record["steps"] == 2


def test_kernels_in_memory_are_as_many_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else fewer than oneDNN would keep: with a shape of its own for every batch they are gigabytes."""
    (name,) = KERNELS
    for given in (None, "7"):
        monkeypatch.delenv(name, raising=False) if given is None else monkeypatch.setenv(name, given)
        with numerics(1, False, torch.device("cpu")):
            assert os.environ[name] == (given or KERNELS[name]) and int(KERNELS[name]) < 1024
