"""`blt check` of a training run: what a resume compares is compared, and what is done on purpose is no damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bltkit import cli
from bltkit.checkpoint import load_bundle, store_rule
from bltkit.checkpoint.checksums import CHECKSUMS, write_checksums
from bltkit.patching import parse_rule
from bltkit.train.state import verify
from tests.test_sound_checkpoints import NEW, OLD, SAVED, as_version_0_1_0, flip, state_file
from tests.tiny_training import Workplace


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints at 3 and 6."""
    place = Workplace.at(tmp_path_factory.mktemp("finished"))
    place.train("run", "cnn", *SAVED, "trainer.max_steps=6")
    return place.path / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def findings(directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Status and findings of `blt check`."""
    capsys.readouterr()
    text = Path(__file__)
    code = cli.main(["check", str(directory), "--files", str(text), "--json"])
    return code, {row["name"]: row for row in json.loads(capsys.readouterr().out)["findings"]}


def test_a_sound_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = findings(run, capsys)[1]
    assert rows["training state"]["status"] == rows["files"]["status"] == "ok" and len(rows) > 3
    assert rows["training state"]["expected"].startswith("2 training checkpoints")
    assert findings(run / OLD, capsys)[1]["training state"]["expected"].startswith("1 training checkpoints")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensors of the newest": (lambda run: flip(state_file(run / NEW)), f"{NEW}: state/__0_0.distcp has another"),
    "tensors of an older one": (lambda run: flip(state_file(run / OLD)), f"{OLD}: state/__0_0.distcp has another"),
    "their description": (lambda run: flip(run / NEW / "state" / ".metadata"), f"{NEW}: state/.metadata has another"),
    "the position": (lambda run: flip(run / NEW / "training.json"), f"{NEW}: training.json has another"),
    "the position is gone": (lambda run: (run / NEW / "training.json").unlink(), f"{NEW}: training.json is missing"),
    "the tensors are gone": (lambda run: shutil.rmtree(run / NEW / "state"), "is missing"),
    "the list": (lambda run: flip(run / NEW / CHECKSUMS), f"{NEW}: {CHECKSUMS}"),
    "no list": (lambda run: (run / OLD / CHECKSUMS).unlink(), f"{OLD}: {CHECKSUMS} is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_the_training_state(damage: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    act, reason = DAMAGES[damage]
    act(run)
    code, rows = findings(run, capsys)
    assert code == 1 and rows["training state"]["status"] == "problem"
    assert reason in rows["training state"]["expected"], rows["training state"]
    assert rows["files"]["status"] == "ok", "the model itself is sound"


def test_a_run_without_a_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """checkpoint.export = "end", before the end."""
    for step, number in ((OLD, 3), (NEW, 6)):
        for name in ("model.safetensors", "bltkit.json", "config.json"):
            (run / step / name).unlink()
            (run / name).unlink(missing_ok=True)
        write_checksums(run / step, number)
    code, rows = findings(run, capsys)
    assert code == 0 and list(rows) == ["training state"]
    flip(state_file(run / NEW))
    assert findings(run, capsys)[0] == 1


def test_a_run_of_version_0_1_0(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (OLD, NEW):
        as_version_0_1_0(run / step)
    row = findings(run, capsys)[1]["training state"]
    assert row["status"] == "warning" and f"0.1.0 wrote {OLD}, {NEW}" in row["cause"]


@pytest.mark.parametrize("place", ["", NEW, "latest"])
def test_a_rule_that_was_stored_is_no_damage(place: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = parse_rule("threshold:threshold=1.25")
    store_rule(run / place, rule)
    assert load_bundle(run, verify=True).rule == rule
    assert (run / "bltkit.json").is_symlink() and verify(run / NEW)
    assert findings(run, capsys)[1]["training state"]["status"] == "ok"
