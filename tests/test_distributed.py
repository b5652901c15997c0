"""Two processes train as one does: the same losses, the same checkpoints, and one goes on where the other stopped."""

from pathlib import Path

import pytest
import torch

from bltkit.checkpoint import load_bundle
from bltkit.config import dump_toml
from tests.processes import train_together
from tests.tiny_training import Workplace

STEPS = 10
TOLERANCE = 2e-5
"""Of losses and gradient norms, relative: sums of fp32 numbers in another order, over ten steps at a high rate."""

LEVERS = [
    "optim.muon={}",
    "optim.ema=0.9",
    "trainer.zero_outputs=true",
    "data.stages=[{until=0.3, shorter=2}]",
]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def write_config(place: Workplace, *overrides: str) -> Path:
    path = place.path / "config.toml"
    path.write_text(dump_toml(place.fields("blt", *overrides)))
    return path


def together(place: Workplace, out: str, count: int, *overrides: str, resume: bool = False) -> None:
    config = write_config(place, *overrides)
    for rank, end in enumerate(train_together(count, config, place.path / out, *(["--resume"] if resume else []))):
        assert end.returncode == 0, f"process {rank}: {end.stderr[-2000:]}"
        assert rank == 0 or not [line for line in end.stderr.splitlines() if "step" in line], "one process talks"


def agree(ours: dict[int, tuple[float, float, float]], theirs: dict[int, tuple[float, float, float]]) -> None:
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    for step, figures in ours.items():
        assert figures == pytest.approx(theirs[step], rel=TOLERANCE), step


def test_two_one_two_processes_train_as_one(place: Workplace) -> None:
    """Interrupted twice: 4 steps on two processes, 3 on one, 3 on two."""
    place.train("one", "blt", f"trainer.max_steps={STEPS}")
    together(place, "mixed", 2, "trainer.max_steps=4")
    place.train("mixed", "blt", "trainer.max_steps=7", resume=True)
    together(place, "mixed", 2, f"trainer.max_steps={STEPS}", resume=True)
    agree(place.losses("mixed"), place.losses("one"))
    ours, theirs = place.weights("mixed"), place.weights("one")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)
    record = load_bundle(place.path / "mixed").record
    assert record["steps"] == STEPS and record["bytes_seen"] == load_bundle(place.path / "one").record["bytes_seen"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "more"),
    [
        (2, ["trainer.shard=1"]),
        (4, ["trainer.shard=2"]),
        (2, ["trainer.accumulate=2", "optim.tables=dense"]),
        (2, ["trainer.checkpoint_activations=true"]),
        (2, ["data.workers=2", "patching.where=workers"]),
        (2, ["objective={kind='block-diffusion', block=4}"]),
        (2, LEVERS),
        (4, [*LEVERS, "trainer.shard=2"]),
    ],
    ids=["replicated", "hsdp", "dense tables", "recomputed", "workers", "blocks", "levers", "levers, hsdp"],
)
def test_every_layout_trains_as_one_process(place: Workplace, count: int, more: list[str]) -> None:
    more = [*more, f"trainer.max_steps={STEPS}", "data.batch_rows=4"]
    place.train("one", "blt", *(key for key in more if "shard" not in key))
    together(place, "several", count, *more)
    agree(place.losses("several"), place.losses("one"))


def test_levers_resume_on_another_number_of_processes(place: Workplace) -> None:
    """Muon's momentum and the average of the weights are shards that any number of processes can read."""
    more = [*LEVERS, "data.batch_rows=4"]
    place.train("one", "blt", f"trainer.max_steps={STEPS}", *more)
    together(place, "mixed", 2, "trainer.max_steps=6", *more)
    place.train("mixed", "blt", f"trainer.max_steps={STEPS}", *more, resume=True)
    agree(place.losses("mixed"), place.losses("one"))
    for name, weight in place.weights("mixed").items():
        torch.testing.assert_close(weight, place.weights("one")[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"), [("entropy", []), ("bpe", []), ("bpe", ["model.tied=true"])], ids=["entropy", "bpe", "tied"]
)
def test_so_do_models_without_tables(place: Workplace, kind: str, more: list[str]) -> None:
    """A token model's processes each make the same tokenizer."""
    place.train("one", kind, *more, f"trainer.max_steps={STEPS}")
    config = place.path / "config.toml"
    config.write_text(dump_toml(place.fields(kind, *more, f"trainer.max_steps={STEPS}")))
    for end in train_together(2, config, place.path / "two"):
        assert end.returncode == 0, end.stderr[-2000:]
    agree(place.losses("two"), place.losses("one"))


def test_processes_that_do_not_fit_are_refused(place: Workplace) -> None:
    config = write_config(place, "data.batch_rows=3")
    for end in train_together(2, config, place.path / "odd"):
        assert end.returncode == 2 and "data.batch_rows" in end.stderr and "Traceback" not in end.stderr
