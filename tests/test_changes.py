"""What a resumed run may change, what it must not, and what is written down; metrics that cannot be read; locks."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from bltkit.config import load_toml, parse
from bltkit.files.lock import HOLDER, LOCK, writer_lock
from bltkit.train import TrainConfig, read_metrics
from bltkit.train.changes import CHANGEABLE, read_changes
from tests.tiny_training import Workplace

FIVE, TEN = "trainer.max_steps=5", "trainer.max_steps=10"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.latent.heads=4", "model.latent.heads"),
        ("model.encoder.window=8", "model.encoder.window"),
        ("model.latent.rope_theta=1000", "model.latent.rope_theta"),
        ("model.quirks.averaged_ngrams=true", "model.quirks.averaged_ngrams"),
        ("patching.rule=stride:k=5", "patching.rule"),
        ("patching.rule=space", "patching.rule"),
        ("objective={kind = 'block-diffusion', block = 4}", "model.diffusion_block"),
        ("data.row_patches=9", "data.row_patches"),
        ("trainer.init=elsewhere", "trainer.init"),
    ],
)
def test_what_weights_fit_as_well_is_refused(override: str, key: str, place: Workplace) -> None:
    place.train("run", "blt", FIVE)
    before = (place.path / "run" / "config.toml").read_bytes()
    with pytest.raises(ValueError, match=rf"{key}.* differs from the run's own") as caught:
        place.train("run", "blt", TEN, override, resume=True)
    assert "\n" not in str(caught.value) and "--out" in str(caught.value)
    assert (place.path / "run" / "config.toml").read_bytes() == before
    assert not (place.path / "run" / "changes.jsonl").exists()


def test_what_changes_is_written_down(place: Workplace) -> None:
    place.train("run", "blt", FIVE)
    place.train("run", "blt", TEN, "optim.lr=1e-3", "data.workers=1", resume=True)
    row = {"optim.lr": [0.01, 0.001], "data.workers": [0, 1], "trainer.max_steps": [5, 10]}
    (change,) = read_changes(place.path / "run")
    assert change["step"] == 5
    assert {key: [pair["before"], pair["after"]] for key, pair in change["changes"].items()} == row
    kept: TrainConfig = parse(TrainConfig, load_toml(place.path / "run" / "config.toml"), "kept")
    assert kept == place.config("blt", TEN, "optim.lr=1e-3", "data.workers=1")
    place.train("run", "blt", "trainer.max_steps=11", "optim.schedule=constant", resume=True)
    assert [change["step"] for change in read_changes(place.path / "run")] == [5, 10]


def test_the_list_names_keys(place: Workplace) -> None:
    """Each of them is one of the config, so that none outlives a key that is renamed."""
    schema = TrainConfig.model_json_schema()

    def tables(node: dict[str, Any]) -> list[dict[str, Any]]:
        """The tables that a value may be."""
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        members = [table for member in node.get("anyOf", []) + node.get("oneOf", []) for table in tables(member)]
        return [node, *members] if "properties" in node else members

    for name in CHANGEABLE:
        nodes = [schema]
        for key in name.split("."):
            below = [table["properties"][key] for node in nodes for table in tables(node) if key in table["properties"]]
            assert below, name
            nodes = below


def test_a_scorer_that_was_replaced_in_its_place(place: Workplace) -> None:
    """The same path, other weights; and the same weights elsewhere."""
    for name, seed in (("scorer", 1), ("other", 2)):
        place.train(name, "entropy", "trainer.max_steps=1", f"trainer.seed={seed}")
    by = "patching={{model = '{}', rule = 'threshold:threshold=2.0'}}"
    place.train("run", "blt", FIVE, by.format(place.path / "scorer"))
    (place.path / "scorer").rename(place.path / "moved")
    place.train("run", "blt", "trainer.max_steps=6", by.format(place.path / "moved"), resume=True)
    (place.path / "moved").rename(place.path / "away")
    (place.path / "other").rename(place.path / "moved")
    with pytest.raises(ValueError, match=r"patching\.model: what it stands for is not what this run was trained with"):
        place.train("run", "blt", TEN, by.format(place.path / "moved"), resume=True)


def test_a_config_that_is_gone_or_broken(place: Workplace) -> None:
    place.train("run", "cnn", FIVE)
    path = place.path / "run" / "config.toml"
    path.write_text("[model")
    with pytest.raises(ValueError, match=r"config\.toml.* not valid TOML"):
        place.train("run", "cnn", TEN, resume=True)
    path.unlink()
    said: list[str] = []
    place.train("run", "cnn", TEN, resume=True, say=said.append)
    assert len(said) == 1 and "config.toml is missing" in said[0] and path.exists()


@pytest.mark.parametrize("broken", [b'{"step": 2, "lo', b"\x00\xff\x00", b'{"loss": 1}', b"[]", b"", b"[" * 2000])
def test_a_broken_line_of_metrics_costs_that_line(broken: bytes, place: Workplace) -> None:
    place.train("run", "cnn", FIVE)
    place.train("whole", "cnn", TEN)
    metrics = place.path / "run" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines()
    lines[1] = broken
    metrics.write_bytes(b"\n".join(lines) + b"\n")
    said: list[str] = []
    assert [row["step"] for row in read_metrics(place.path / "run", said.append)] == [1, 3, 4, 5, 5]
    place.train("run", "cnn", TEN, resume=True, say=said.append)
    assert len(said) == 2 and all("passed over 1 line that cannot be read (line 2" in line for line in said)
    assert "metrics.jsonl.broken" in said[1] and not any("\n" in line for line in said)
    assert (place.path / "run" / "metrics.jsonl.broken").read_bytes() == broken + b"\n"
    expected = place.losses("whole")
    del expected[2]
    assert place.losses("run") == expected


def test_a_run_has_one_writer(place: Workplace) -> None:
    place.train("run", "cnn", FIVE)
    with writer_lock(place.path / "run"):
        for resume in (True, False):
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"):
                place.train("run", "cnn", TEN, resume=resume)
    with writer_lock(place.path / "new"), pytest.raises(ValueError, match="in use by process"):
        place.train("new", "cnn", FIVE)
    place.train("run", "cnn", TEN, resume=True)


def test_a_lock_that_was_left_is_taken_over(place: Workplace) -> None:
    """Also in a directory that holds nothing else: the run was killed before its first file."""
    out = place.path / "run"
    out.mkdir()
    (out / LOCK).touch()
    (out / HOLDER).write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": "then"}))
    said: list[str] = []
    assert place.train("run", "cnn", FIVE, say=said.append).steps == 5
    assert len(said) == 1 and f"taking over the lock of process {2**22 + 1}" in said[0]
    assert not list(out.glob(".*"))
