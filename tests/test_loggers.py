"""TensorBoard and W&B, both for real: what they hold after a run that was killed and resumed."""

import json
import math
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bltkit.train.loggers import WANDB, Sink, check_reports, named_figures, open_sinks

CONFIG = {"optim": {"lr": 0.5}, "model": {"kind": "cnn"}}


def test_names_and_what_is_left_out() -> None:
    row = {"step": 3, "loss": 1.5, "bytes_seen": 10, "validation_bits_per_byte": 2.0, "patch_bytes": None}
    assert named_figures(row | {"grad_norm": math.inf, "text": "x", "flag": True}) == {
        "train/loss": 1.5,
        "train/bytes_seen": 10.0,
        "validation/bits_per_byte": 2.0,
    }


@pytest.mark.parametrize(("report", "extra"), [("tensorboard", "plot"), ("wandb", "wandb")])
def test_a_missing_library_is_named_before_anything_is_written(
    report: Any, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, report, None)
    with pytest.raises(ValueError, match=rf"trainer\.report = .*pip install 'bltkit\[{extra}\]'") as caught:
        check_reports([report])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="pip install"), open_sinks([report], tmp_path, 0, CONFIG):
        pass
    assert not list(tmp_path.iterdir())


def run(out: Path, reports: list[Any], steps: range, loss: float) -> list[str]:
    """A run from `steps.start` to the last step: rows of losses, a validation at every fifth step."""
    with open_sinks(reports, out, steps.start - 1, CONFIG) as sinks:
        for step in steps:
            for sink in sinks:
                sink.write({"step": step, "loss": loss + step, "patch_bytes": None})
                if step % 5 == 0:
                    sink.write({"step": step, "validation_bits_per_byte": loss})
        return [sink.where for sink in sinks]


def scalars(out: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (where,) = run(tmp_path, ["tensorboard"], range(1, 8), 100.0)
    assert where == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    run(tmp_path, ["tensorboard"], range(4, 11), 200.0)  # a kill after step 7, the last checkpoint being step 3
    expected = [(step, (100.0 if step < 4 else 200.0) + step) for step in range(1, 11)]
    assert scalars(tmp_path, "train/loss") == expected
    assert scalars(tmp_path, "validation/bits_per_byte") == [(5, 200.0), (10, 200.0)]
    run(tmp_path, ["tensorboard"], range(1, 3), 300.0)  # starting over
    assert scalars(tmp_path, "train/loss") == [(1, 301.0), (2, 302.0)]


def test_tensorboard_is_on_disk_before_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with open_sinks(["tensorboard"], tmp_path, 0, CONFIG) as (sink,):
        sink.write({"step": 1, "loss": 2.0})
        assert scalars(tmp_path, "train/loss") == [(1, 2.0)]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads its variables once in a process; here, once in a test."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


def histories(out: Path) -> list[dict[int, dict[str, float]]]:
    """What each process told W&B, oldest first. W&B's own process writes a run's last records a little later."""
    until = time.monotonic() + 60
    files = sorted(out.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    while not all(any(record.WhichOneof("record_type") == "exit" for record in records(file)) for file in files):
        assert time.monotonic() < until, "W&B never ends its files"
        time.sleep(0.05)
    processes = []
    for file in files:
        rows = {}
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                rows[int(items["_step"])] = {
                    name: json.loads(value) for name, value in items.items() if not name.startswith("_")
                }
        processes.append(rows)
    return processes


def records(file: Path) -> list[Any]:
    """Of an offline run's file: a log of protobuf messages, in blocks of 32 KB as LevelDB writes them."""
    from wandb.proto import wandb_internal_pb2

    found, data, at, message = [], file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # a block's end is filled up
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            found.append(record)
            message = b""
    return found


def test_wandb_offline_is_told_each_step_once(tmp_path: Path, offline: None) -> None:
    (where,) = run(tmp_path, ["wandb"], range(1, 8), 100.0)
    assert where.startswith("wandb sync ") and Path(where.removeprefix("wandb sync ")).is_dir()
    name = json.loads((tmp_path / WANDB).read_text())["id"]
    run(tmp_path, ["wandb"], range(4, 11), 200.0)
    assert json.loads((tmp_path / WANDB).read_text()) == {"id": name, "sent": {"train": 10, "validation": 10}}
    first, second = histories(tmp_path)
    assert first == {
        step: {"train/loss": 100.0 + step} | ({"validation/bits_per_byte": 100.0} if step == 5 else {})
        for step in range(1, 8)
    }
    assert second == {
        step: {"train/loss": 200.0 + step} | ({"validation/bits_per_byte": 200.0} if step == 10 else {})
        for step in range(8, 11)
    }
    assert all(name in file.name for file in tmp_path.glob("wandb/offline-run-*"))


def test_wandb_gets_the_validation_that_a_kill_kept_back(tmp_path: Path, offline: None) -> None:
    """A kill between the two rows of a step."""
    run(tmp_path, ["wandb"], range(1, 5), 100.0)
    with open_sinks(["wandb"], tmp_path, 4, CONFIG) as (sink,):
        sink.write({"step": 5, "loss": 3.0})
    run(tmp_path, ["wandb"], range(3, 7), 200.0)
    assert histories(tmp_path)[2] == {5: {"validation/bits_per_byte": 200.0}, 6: {"train/loss": 206.0}}


def test_wandb_without_a_key_says_what_to_do(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"WANDB_MODE=offline") as caught, open_sinks(["wandb"], tmp_path, 0, CONFIG):
        pass
    assert "wandb login" in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_note_of_the_wandb_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / WANDB).write_text('{"id": 3')
    with (
        pytest.raises(ValueError, match=r"wandb\.json is damaged .*; remove it"),
        open_sinks(["wandb"], tmp_path, 0, {}),
    ):
        pass


def test_any_object_with_three_members_is_a_sink() -> None:
    class Kept:
        where = "here"

        def write(self, row: Any) -> None:
            pass

        def close(self) -> None:
            pass

    assert isinstance(Kept(), Sink) and not isinstance([], Sink)
