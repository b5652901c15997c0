"""Damaged, swapped and malicious checkpoints: refused or passed over in one line, and never unpickled."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bltkit import cli
from bltkit.checkpoint.checksums import CHECKSUMS, write_checksums
from bltkit.config import dump_toml
from bltkit.train.run_directory import RunDirectory
from bltkit.train.state import read_position, verify
from bltkit.train.tensor_reader import TensorReader, read_metadata
from tests.tiny_training import Workplace, same

OLD, NEW = "step-00000003", "step-00000006"
SAVED = ["checkpoint.every_steps=3", "checkpoint.keep=9"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A run of six steps with checkpoints at 3 and 6, and the same one of nine steps."""
    place = Workplace.at(tmp_path_factory.mktemp("finished"))
    place.train("run", "cnn", *SAVED, "trainer.max_steps=6")
    place.train("whole", "cnn", *SAVED, "trainer.max_steps=9")
    return place


@pytest.fixture
def place(finished: Workplace, tmp_path: Path) -> Workplace:
    """The run in a place of its own."""
    for entry in finished.path.iterdir():
        if entry.is_dir():
            shutil.copytree(entry, tmp_path / entry.name, symlinks=True)
    return finished.__class__(tmp_path)


def resumed(finished: Workplace, place: Workplace, *more: str) -> list[str]:
    """What is said by a run that goes on to step 9."""
    said: list[str] = []
    config = finished.config("cnn", *SAVED, "trainer.max_steps=9", *more)
    from bltkit.train import train

    train(config, place.path / "run", resume=True, say=said.append)
    return said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def state_file(step: Path) -> Path:
    (file,) = (step / "state").glob("*.distcp")
    return file


def copy(old: Path, new: Path, *names: str) -> None:
    for name in names:
        if (old / name).is_dir():
            shutil.rmtree(new / name)
            shutil.copytree(old / name, new / name)
        else:
            shutil.copy(old / name, new / name)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a bit of the tensors": (lambda old, new: flip(state_file(new)), "__0_0.distcp has another checksum"),
    "a bit of their description": (lambda old, new: flip(new / "state" / ".metadata"), ".metadata has another"),
    "a bit of the model": (lambda old, new: flip(new / "model.safetensors"), "model.safetensors has another checksum"),
    "tensors cut short": (lambda old, new: os.truncate(state_file(new), 999), "has 999 bytes of"),
    "the position": (lambda old, new: flip(new / "training.json"), "training.json has another checksum"),
    "the position is gone": (lambda old, new: (new / "training.json").unlink(), "training.json is missing"),
    "the tensors are gone": (lambda old, new: shutil.rmtree(new / "state"), "is missing"),
    "a pipe": (lambda old, new: (state_file(new).unlink(), os.mkfifo(new / "state" / "__0_0.distcp")), "is no file"),
    "a file of another step": (lambda old, new: copy(old, new, f"state/{state_file(old).name}"), "another checksum"),
    "the position of another step": (lambda old, new: copy(old, new, "training.json"), "another checksum"),
    "the state of another step": (lambda old, new: copy(old, new, "state", "training.json"), "another checksum"),
    "all of another step": (
        lambda old, new: copy(old, new, "state", "training.json", "model.safetensors", "bltkit.json", CHECKSUMS),
        "its files are those of step 3",
    ),
    "a link to another step": (
        lambda old, new: (shutil.rmtree(new), new.symlink_to(old.name)),
        "its files are those of step 3",
    ),
    "a file": (lambda old, new: (shutil.rmtree(new), new.write_text("x")), "it is no directory"),
    "a list that is a directory": (
        lambda old, new: ((new / CHECKSUMS).unlink(), (new / CHECKSUMS).mkdir()),
        "is a directory",
    ),
    "a list that is a pipe": (
        lambda old, new: ((new / CHECKSUMS).unlink(), os.mkfifo(new / CHECKSUMS)),
        "is a named pipe",
    ),
    "a position that is a pipe": (
        lambda old, new: ((new / "training.json").unlink(), os.mkfifo(new / "training.json")),
        "is a named pipe",
    ),
    "no list": (lambda old, new: (new / CHECKSUMS).unlink(), "checksums.json is missing"),
    "a list that was cut": (lambda old, new: os.truncate(new / CHECKSUMS, 99), "checksums.json: ValueError"),
    "a list of other words": (
        lambda old, new: (new / CHECKSUMS).write_text((new / CHECKSUMS).read_text().replace('"step": 6', '"step": 7')),
        "another digest than it says",
    ),
    "no list at all": (lambda old, new: (new / CHECKSUMS).write_text("[]"), "checksums.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_sound_checkpoint_is_taken(damage: str, finished: Workplace, place: Workplace) -> None:
    run = place.path / "run"
    act, reason = DAMAGES[damage]
    act(run / OLD, run / NEW)
    said = resumed(finished, place)
    assert len(said) == 1 and "\n" not in said[0]
    assert f"{NEW} is damaged" in said[0] and reason in said[0] and f"going on from {OLD}" in said[0]
    same(place.tensors("run"), place.tensors("whole"))
    assert place.losses("run") == place.losses("whole")
    assert os.path.lexists(run / f"damaged-{NEW}"), "what is damaged is nobody's to remove"
    assert [step.name for step in RunDirectory(run).steps()] == [OLD, NEW, "step-00000009"]
    assert resumed(finished, place) == [f"{run} is at step 9 already; raise trainer.max_steps (9) to go on"]


def test_a_step_of_another_run_is_none_of_this_one(finished: Workplace, place: Workplace) -> None:
    """Its files have their checksums, and its step is the right one."""
    run = place.path / "run"
    assert json.loads((run / "run.json").read_text()).keys() == {"run"}
    from bltkit.train import train

    train(finished.config("cnn", *SAVED, "trainer.max_steps=6", "optim.lr=0.5"), place.path / "other")
    shutil.rmtree(run / NEW)
    shutil.copytree(place.path / "other" / NEW, run / NEW)
    said = resumed(finished, place)
    assert len(said) == 1 and f"{NEW} is damaged (it is of another run): going on from {OLD}" in said[0]
    same(place.tensors("run"), place.tensors("whole"))


def test_a_run_whose_number_is_gone_goes_by_its_newest_checkpoint(finished: Workplace, place: Workplace) -> None:
    run = place.path / "run"
    number = (run / "run.json").read_text()
    (run / "run.json").unlink()
    assert resumed(finished, place) == []
    assert (run / "run.json").read_text() == number
    (run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json names no run; remove it"):
        resumed(finished, place)


def test_a_checkpoint_may_lie_elsewhere(finished: Workplace, place: Workplace) -> None:
    """A link to it is followed, and goes when its step's turn comes; what it leads to stays."""
    run, elsewhere = place.path / "run", place.path / "disk" / NEW
    elsewhere.parent.mkdir()
    (run / NEW).rename(elsewhere)
    (run / NEW).symlink_to(elsewhere)
    assert resumed(finished, place, "checkpoint.keep=1") == []
    same(place.tensors("run"), place.tensors("whole"))
    assert [step.name for step in RunDirectory(run).steps()] == ["step-00000009"] and elsewhere.is_dir()


def test_without_a_sound_one_nothing_is_touched(finished: Workplace, place: Workplace) -> None:
    run = place.path / "run"
    for step in (OLD, NEW):
        flip(state_file(run / step))
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(ValueError, match=f"no sound checkpoint .*{NEW} is damaged .*{OLD} is damaged") as caught:
        resumed(finished, place)
    assert "\n" not in str(caught.value) and sorted(path.name for path in run.iterdir()) == before


def test_a_branch_takes_no_damaged_trunk(finished: Workplace, place: Workplace) -> None:
    run = place.path / "run"
    flip(state_file(run / NEW))
    config = ["cnn", *SAVED, "trainer.max_steps=9"]
    from bltkit.train import train

    for branch in (run, run / NEW, run / "latest"):
        with pytest.raises(ValueError, match=r"is damaged .*name another step-XXXXXXXX"):
            train(finished.config(*config, f"trainer.branch={branch}"), place.path / "branch", say=lambda line: None)
        assert not (place.path / "branch").exists()
    train(finished.config(*config, f"trainer.branch={run / OLD}"), place.path / "branch", say=lambda line: None)
    same(place.weights("branch"), place.weights("whole"))


def as_version_0_1_0(step: Path) -> None:
    """Without a list, and with a position that has no format."""
    (step / CHECKSUMS).unlink()
    position = json.loads((step / "training.json").read_text())
    del position["format"], position["inputs"]
    (step / "training.json").write_text(json.dumps(position, indent=1))


def test_checkpoints_of_version_0_1_0_are_read(finished: Workplace, place: Workplace) -> None:
    run = place.path / "run"
    for step in (OLD, NEW):
        as_version_0_1_0(run / step)
    said = resumed(finished, place)
    assert len(said) == 1 and f"{NEW} carries no checksums" in said[0]
    same(place.tensors("run"), place.tensors("whole"))
    assert verify(run / "step-00000009") and not verify(run / OLD)


@pytest.mark.parametrize("damage", ["cut", "step", "gone"])
def test_what_can_be_seen_without_checksums(damage: str, finished: Workplace, place: Workplace) -> None:
    run = place.path / "run"
    for step in (OLD, NEW):
        as_version_0_1_0(run / step)
    if damage == "cut":
        os.truncate(state_file(run / NEW), 999)
    elif damage == "gone":
        (run / NEW / "state" / ".metadata").unlink()
    else:
        copy(run / OLD, run / NEW, "training.json")
    said = resumed(finished, place)
    assert f"{NEW} is damaged" in said[0] and f"{OLD} carries no checksums" in said[1]
    same(place.tensors("run"), place.tensors("whole"))


def test_torchs_advice_to_load_anything_is_not_passed_on(finished: Workplace, place: Workplace) -> None:
    """Pickles in place of tensors, under a list of checksums that fits them."""
    step = place.path / "run" / NEW
    state_file(step).write_bytes(pickle.dumps(Attack(place.path / "sign", "system")) * 1000)
    write_checksums(step, 6)
    with pytest.raises(ValueError, match="is damaged") as caught:
        resumed(finished, place)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (place.path / "sign").exists()


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, sign: Path, how: str) -> None:
        self.sign, self.how = sign, how

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        if self.how == "system":
            return os.system, (f"touch {self.sign}",)
        if self.how == "eval":
            return eval, (f"open({str(self.sign)!r}, 'w')",)
        import builtins

        return builtins.open, (str(self.sign), "w")


@pytest.mark.parametrize("how", ["system", "eval", "open"])
@pytest.mark.parametrize("disguise", ["plain", "listed", "old"])
def test_a_command_is_not_run(how: str, disguise: str, place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    """Not from a checkpoint whose list was written to fit it, nor from one that claims to be of version 0.1.0."""
    run, sign = place.path / "run", place.path / "sign"
    for step, number in ((OLD, 3), (NEW, 6)):
        if disguise == "old":
            as_version_0_1_0(run / step)
        (run / step / "state" / ".metadata").write_bytes(pickle.dumps(Attack(sign, how)))
        if disguise == "listed":
            write_checksums(run / step, number)
    config = place.path / "run.toml"
    fields = Workplace.at(place.path).fields("cnn", *SAVED, "trainer.max_steps=9")
    stored = (run / "config.toml").read_text()
    config.write_text(stored.replace("max_steps = 6", "max_steps = 9"))
    assert cli.main(["train", str(config), "--out", str(run), "--resume"]) == 2
    first = capsys.readouterr().err
    config.write_text(dump_toml(fields))
    assert cli.main(["train", str(config), f"trainer.branch={run / NEW}", "--out", str(place.path / "new")]) == 2
    second = capsys.readouterr().err
    for error in (first, second):
        assert error.startswith("blt: ") and error.count("\n") == 1 and "damaged" in error, error
    assert not sign.exists() and not (place.path / "new").exists()


def test_what_describes_no_tensors_of_this_directory(place: Workplace, tmp_path: Path) -> None:
    step = place.path / "run" / NEW
    metadata = TensorReader(step / "state").read_metadata()
    assert read_position(step).step == 6 and TensorReader(step / "state").shapes()
    path, names = tmp_path / "metadata", list(metadata.state_dict_metadata)

    def refused(what: object, reason: str) -> None:
        path.write_bytes(pickle.dumps(what))
        with path.open("rb") as file, pytest.raises(ValueError, match=reason):
            read_metadata(file)

    refused({"a": 1}, "describes no tensors")
    refused(Path("/etc"), "describes no tensors")
    refused(len, "builtins.len is no part")
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    for place_of in metadata.storage_data.values():
        place_of.relative_path = "../../elsewhere"
    refused(metadata, "is no file of this checkpoint")
    metadata.state_dict_metadata[names[0]] = BytesStorageMetadata()
    refused(metadata, "BytesStorageMetadata is no part")
