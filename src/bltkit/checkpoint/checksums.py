"""What a training checkpoint holds, written down in `checksums.json`: its run and step, size and digest of each file.

A run is never resumed from files that are not these. The list carries its run, its step and a digest of its own, so
that neither one file of another step nor all files of another step or run together, under this step's name, pass for
this one. Files are read in pieces, several at once; nothing is parsed before its digest is known to be right.
"""

import errno
import hashlib
import json
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bltkit.checkpoint.atomic import write_atomic
from bltkit.files import read_json, require_regular

CHECKSUMS = "checksums.json"
FORMAT = 1

POSITION = "training.json"
"""Where a run stands; what has such a file is a training checkpoint. It says no `format` in what version 0.1.0 wrote,
which keeps no checksums either."""

_READERS = 4
"""Files that are read at once: one thread digests about a gigabyte a second, and waits for the disk besides."""


class DamagedCheckpointError(ValueError):
    """A checkpoint's files are not those that were written; `reason` says which, without the checkpoint's name."""

    def __init__(self, checkpoint: Path, reason: str) -> None:
        super().__init__(
            f"the training state in {checkpoint} is damaged ({reason}); "
            "remove that folder to go on from an earlier step"
        )
        self.checkpoint, self.reason = checkpoint, reason


def write_checksums(directory: Path, step: int, run: str | None = None) -> None:
    """Write down every file below `directory`, whose checkpoint is of `step`. run: the run's number. Raises OSError."""
    names = [str(file.relative_to(directory)) for file in sorted(directory.rglob("*")) if file.is_file()]
    with ThreadPoolExecutor(_READERS) as readers:
        entries = list(readers.map(lambda name: _entry(directory / name), (n for n in names if n != CHECKSUMS)))
    _write(directory, step, run, dict(zip((name for name in names if name != CHECKSUMS), entries, strict=True)))


def update_checksums(directory: Path, names: Iterable[str]) -> None:
    """Write down files that were changed on purpose as they are now; the entries of all others stay.

    A directory without a list keeps none. Raises DamagedCheckpointError for a list that is not whole, OSError.
    """
    checksums = read_checksums(directory)
    if checksums is not None:
        changed = {name: _entry(directory / name) for name in names}
        _write(directory, checksums["step"], checksums["run"], checksums["files"] | changed)


def _write(directory: Path, step: int, run: str | None, files: dict[str, Any]) -> None:
    content = {"format": FORMAT, "step": step} | ({} if run is None else {"run": run}) | {"files": files}
    data = json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n"
    write_atomic(directory / CHECKSUMS, data.encode())


def read_checksums(checkpoint: Path) -> dict[str, Any] | None:
    """The list of a checkpoint, known to be whole and of its step; None where there is none.

    Raises DamagedCheckpointError for a list that was changed or belongs to another step than the directory's name says.
    """
    if not checkpoint.is_dir():
        raise DamagedCheckpointError(checkpoint, "it is no directory")
    try:
        require_regular(checkpoint / CHECKSUMS)
        content = read_json(checkpoint / CHECKSUMS)
        recorded = content.pop("sha256")
        step, version, files = int(content["step"]), int(content["format"]), dict(content["files"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(checkpoint, f"{CHECKSUMS}: {_reason(error)}") from None
    if version > FORMAT:
        raise ValueError(
            f"{checkpoint / CHECKSUMS} has format {version}; this version reads up to {FORMAT}: update bltkit"
        )
    if recorded != _digest(content):
        raise DamagedCheckpointError(checkpoint, f"{CHECKSUMS} has another digest than it says")
    if (named := step_of(checkpoint)) is not None and named != step:
        raise DamagedCheckpointError(checkpoint, f"its files are those of step {step}")
    return {"step": step, "files": files, "run": content.get("run")}


def verify_file(checkpoint: Path, name: str, data: bytes, checksums: dict[str, Any]) -> None:
    """Raises DamagedCheckpointError where `data`, the content of a checkpoint's file, is not what was written."""
    entry = checksums["files"].get(name)
    if entry is None or entry.get("sha256") != hashlib.sha256(data).hexdigest():
        raise DamagedCheckpointError(checkpoint, f"{name} has another checksum than was written")


def verify_files(checkpoint: Path, checksums: dict[str, Any]) -> None:
    """Read every file of a checkpoint. Raises DamagedCheckpointError for the first that is not what was written."""
    for fault in damaged_files(checkpoint, checksums):
        raise DamagedCheckpointError(checkpoint, fault)


def damaged_files(
    checkpoint: Path, checksums: dict[str, Any], tell: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[str]:
    """A line for each file of a checkpoint that is not what was written, without the checkpoint's name.

    Reads all of them. tell: told the bytes of each file that was read. Raises OSError for what this user may not read.
    """

    def check(item: tuple[str, Any]) -> tuple[int, str | None]:
        name, entry = item
        path = checkpoint / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return 0, f"{name} is no file"
            if status.st_size != entry["bytes"]:
                return 0, f"{name} has {status.st_size} bytes of {entry['bytes']}"
            if _sha256(path) != entry["sha256"]:
                return status.st_size, f"{name} has another checksum than was written"
            return status.st_size, None
        except FileNotFoundError:
            return 0, f"{name} is missing"
        except (KeyError, TypeError):
            return 0, f"{CHECKSUMS} says nothing of {name}"
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return 0, f"{name} cannot be read ({error.strerror})"

    with ThreadPoolExecutor(_READERS) as readers:
        for num_bytes, fault in readers.map(check, sorted(checksums["files"].items())):
            tell(num_bytes)
            if fault is not None:
                yield fault


def training_checkpoints(directory: Path) -> list[Path]:
    """The directory itself, or the complete checkpoints of the run that lies in it, oldest first; [] for any other."""
    here = [directory] if step_of(directory) is not None else []
    steps = here or sorted(entry for entry in directory.glob("step-*") if step_of(entry) is not None)
    return [step for step in steps if (step / POSITION).exists() or (step / CHECKSUMS).exists()]


def step_of(checkpoint: Path) -> int | None:
    """The step that a directory's name says; None for another name. A link of another name is followed."""
    for path in (checkpoint, checkpoint.resolve()):
        prefix, _, digits = path.name.partition("-")
        if prefix == "step" and len(digits) == 8 and digits.isdecimal():
            return int(digits)
    return None


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    """Of the list itself: of its canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
