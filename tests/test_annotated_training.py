"""Training from annotated shards, in workers, recomputed, compiled: other ways to the same steps."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from bltkit.annotate import annotate
from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.config import dump_toml, parse
from bltkit.data import DataConfig
from bltkit.model import EntropyModel
from bltkit.patching import parse_rule
from bltkit.train import TrainConfig, read_metrics, train
from tests.processes import train_together
from tests.tiny import fill
from tests.tiny_training import Workplace, same, state_of

RULE = "threshold:threshold=2.25"
WHOLE = ["data.row_bytes=512", "trainer.max_steps=6"]
"""Rows that hold the longest document: the entropy model begins anew with each of them, here and there."""


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


def scorer_of(place: Workplace, name: str, seed: int) -> str:
    scorer = cast(EntropyModel, fill(EntropyModel(place.config("entropy").model), seed, head=4.0))  # type: ignore[arg-type]
    save_bundle(place.path / name, Bundle(None, scorer, parse_rule(RULE)))
    return str(place.path / name)


@pytest.fixture
def scorer(place: Workplace) -> str:
    return scorer_of(place, "scorer", 1)


@pytest.fixture
def shards(place: Workplace, scorer: str) -> str:
    pytest.importorskip("pyarrow")
    data: DataConfig = parse(DataConfig, {"sources": [str(place.path / "*.txt")]}, "test")
    annotate(data.sources, scorer, place.path / "shards", shard_bytes=1500)
    return str(place.path / "shards")


def by(scorer: str, *more: str) -> list[str]:
    return [f"patching={{model = '{scorer}'}}", *more]


def annotated(shards: str, *more: str) -> list[str]:
    return [f"data.sources=[{{kind = 'annotated', path = '{shards}'}}]", *more]


def figures(place: Workplace, out: str) -> list[dict[str, Any]]:
    rows = read_metrics(place.path / out)
    clocks = {"bytes_per_second", "patch_padding"}  # the latter is known of shards only
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


def test_shards_train_like_patches_made_on_the_way(place: Workplace, scorer: str, shards: str) -> None:
    here = place.train("here", "blt", *WHOLE, *by(scorer))
    stored = place.train("stored", "blt", *WHOLE, *by(scorer, *annotated(shards)))
    assert figures(place, "stored") == figures(place, "here")
    same(place.weights("stored"), place.weights("here"))
    assert dataclasses.replace(stored, out=here.out) == here and 1.2 < (here.mean_patch_bytes or 0) < 40


def test_rows_with_a_budget_of_patches(place: Workplace, scorer: str, shards: str) -> None:
    """Five and five make ten, no row has more patches than it may, and all of a document comes."""
    budget = by(scorer, *annotated(shards, "data.row_patches=24"))
    place.train("whole", "blt", *budget)
    place.train("parts", "blt", *budget, "trainer.max_steps=5")
    place.train("parts", "blt", *budget, resume=True)
    same(place.tensors("parts"), place.tensors("whole"))
    assert all(0 <= row["patch_padding"] < 1 for row in read_metrics(place.path / "whole") if "loss" in row)
    with pytest.raises(ValueError, match=r"data\.row_patches = 30 differs from the run's own, 24"):
        place.train("whole", "blt", *by(scorer, *annotated(shards, "data.row_patches=30")), resume=True)
    with pytest.raises(ValueError, match="blt annotate"):
        place.train("none", "blt", *by(scorer), "data.row_patches=24")
    assert not (place.path / "none").exists()


def test_a_longer_patch_axis_changes_nothing(place: Workplace, scorer: str, shards: str) -> None:
    """Padding patches, which a budget that no row comes near only adds."""
    place.train("exact", "blt", *WHOLE, *by(scorer, *annotated(shards)))
    place.train("padded", "blt", *WHOLE, *by(scorer, *annotated(shards, "data.row_patches=700")))
    for step, (loss, norm, _) in place.losses("padded").items():
        assert (loss, norm) == pytest.approx(place.losses("exact")[step][:2], rel=1e-5)


def test_shards_of_another_model_or_rule_are_refused(place: Workplace, scorer: str, shards: str) -> None:
    other = scorer_of(place, "other", 2)
    cut = f"data.sources=[{{kind = 'annotated', path = '{shards}', rule = 'threshold:threshold=1.0'}}]"
    ruled = [f"patching={{model = '{scorer}', rule = 'bpe-oracle:tokenizer=t.json'}}"]
    mixed = f"data.sources=[{{kind = 'annotated', path = '{shards}'}}, '{place.path / '00.txt'}']"
    for overrides, message in (
        (by(other, *annotated(shards)), r"but patching\.model is another model .*; annotate anew with that one, or"),
        (by(scorer, cut), "but the run's is 'threshold:threshold=2.25'; name the same in both"),
        ([*ruled, *annotated(shards)], "needs to see the byte it decides about"),
        (by(scorer, mixed), "annotate all sources or none"),
        (by(scorer, *annotated(str(place.path / "nowhere"))), "nowhere"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            place.train("run", "blt", *overrides)
        assert "\n" not in str(error.value) and not (place.path / "run").exists()


def test_another_threshold_is_decided_by_the_stored_entropies(place: Workplace, scorer: str, shards: str) -> None:
    finer = f"patching={{model = '{scorer}', rule = 'threshold:threshold=1.7'}}"
    place.train("here", "blt", *WHOLE, finer)
    place.train("stored", "blt", *WHOLE, finer, *annotated(shards))
    place.train("coarse", "blt", *WHOLE, *by(scorer))
    assert figures(place, "stored") == figures(place, "here") != figures(place, "coarse")
    assert load_bundle(place.path / "stored").rule == parse_rule("threshold:threshold=1.7")


def test_workers_find_the_patches_of_the_device(place: Workplace, scorer: str) -> None:
    for out, more in (("device", []), ("workers", ["data.workers=2", "patching.where=workers"])):
        place.train(out, "blt", *by(scorer), *more)
    assert place.losses("workers") == place.losses("device")
    same(place.tensors("workers"), place.tensors("device"))


def test_recomputing_changes_no_bit(place: Workplace, scorer: str) -> None:
    for out, value in (("kept", "false"), ("again", "true")):
        place.train(out, "blt", *by(scorer), f"trainer.checkpoint_activations={value}", "model.decoder.layers=2")
    same(place.tensors("again"), place.tensors("kept"))
    assert place.losses("again") == place.losses("kept")
    mixed = [*by(scorer), "model.decoder.layers=2"]
    place.train("mixed", "blt", *mixed, "trainer.max_steps=5", "trainer.checkpoint_activations=true")
    place.train("mixed", "blt", *mixed, resume=True)
    same(place.tensors("mixed"), place.tensors("kept"))


TRACED = """
import sys
from pathlib import Path
import torch
from bltkit.config import load_toml, parse
from bltkit.train import TrainConfig, train
real, compiled = torch.nn.Module.compile, []
def traced(module, *arguments, **options):
    compiled.append(module)
    real(module, *arguments, **options | {"backend": "eager"})
torch.nn.Module.compile = traced
for out, steps in (("plain", 4), ("traced", 2), ("traced", 4)):
    more = [f"trainer.compile={'true' if out == 'traced' else 'false'}", f"trainer.max_steps={steps}"]
    fields = load_toml(Path("run.toml"), [*sys.argv[1:], *more])
    train(parse(TrainConfig, fields, "test"), out, resume=Path(out).exists(), say=lambda line: None)
assert len(compiled) == 2 * 3, len(compiled)
"""
"""Layers that dynamo traces and then runs as they are, which needs no compiler; one run of them in two parts."""


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["trainer.checkpoint_activations=true"]], ids=["", "recomputed"])
def test_compiled_layers_train_alike(more: list[str], place: Workplace) -> None:
    """In a process of its own, where no shapes are checked: dynamo would trace those checks."""
    (place.path / "run.toml").write_text(dump_toml(place.fields("blt")))
    command = [sys.executable, "-c", TRACED, *more]
    done = subprocess.run(command, cwd=place.path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert place.weights("plain").keys() == place.weights("traced").keys()
    for step, found in place.losses("traced").items():
        assert found == pytest.approx(place.losses("plain")[step], rel=1e-5)
    assert len(place.losses("traced")) == 4


@pytest.mark.slow
def test_two_processes_from_shards(place: Workplace, scorer: str, shards: str) -> None:
    more = by(scorer, *annotated(shards, "data.row_patches=24", "data.batch_rows=4"))
    config = place.path / "run.toml"
    config.write_text(dump_toml(place.fields("blt", *more)))
    for end in train_together(2, config, place.path / "two"):
        assert end.returncode == 0, end.stderr[-2000:]
    place.train("one", "blt", *more)
    for step, found in place.losses("two").items():
        assert found == pytest.approx(place.losses("one")[step], rel=2e-5), step
    shutil.rmtree(place.path / "two" / "corpus")  # made again where it is missing
    fields: TrainConfig = parse(TrainConfig, place.fields("blt", *more, "trainer.max_steps=12"), "test")
    assert train(fields, place.path / "two", resume=True, say=lambda line: None).steps == 12
    assert state_of(place.path / "two" / "latest")
