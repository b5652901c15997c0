"""The run directory: complete checkpoints `step-XXXXXXXX`, and `latest`, a link that moves in one rename.

The names of a checkpoint's files stand in the directory itself as links through `latest`, so that a run directory is
a checkpoint too. A step is written under a temporary name and renamed when all of it is on disk, and renamed again
before it is removed: what carries the name `step-...` is complete, whenever a process was killed. Several processes
share the directory; the main one makes, renames and removes.
"""

import json
import os
import re
import secrets
import shutil
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.checkpoint.atomic import CHECKPOINT_FILES
from bltkit.checkpoint.checksums import CHECKSUMS, POSITION, write_checksums
from bltkit.files import read_json_object
from bltkit.files.lock import LOCK_FILES
from bltkit.train.state import STATE

CONFIG = "config.json"
"""A checkpoint that has it can be loaded as a model; every one can be gone on from."""
CORPUS = "corpus"
"""Where the processes of a run share its data."""
IDENTITY = "run.json"
"""The run's own number, which its checkpoints carry as well: one of another run is none of this one."""

_STEP = re.compile(r"step-(\d{8})")
_WRITTEN = re.compile(r"\..+\.tmp-[0-9a-f]{8}")
"""Names that `write_atomic` gives."""


def is_step(name: str) -> bool:
    """Is this the name of a complete checkpoint."""
    return _STEP.fullmatch(name) is not None


def new_identity() -> str:
    """A number for a run that begins."""
    return secrets.token_hex(8)


class RunDirectory:
    """The files of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def in_use(self) -> bool:
        """Is there anything that a run, or someone else, would miss."""
        return self.path.exists() and (
            not self.path.is_dir() or any(entry.name not in LOCK_FILES | {CORPUS} for entry in self.path.iterdir())
        )

    def in_the_way(self) -> Path | None:
        """A file that a checkpoint of this run would replace, though no run has put it there."""
        names = (*CHECKPOINT_FILES, "latest")
        return next((file for name in names for file in self.path.glob(name) if not file.is_symlink()), None)

    def identity(self) -> str | None:
        """The run's number; None where none is written. Raises ValueError for a file that says nothing."""
        path = self.path / IDENTITY
        try:
            number = read_json_object(path).get("run")
        except FileNotFoundError:
            return None
        if not isinstance(number, str) or not number:
            raise ValueError(f"{path} names no run; remove it to take the checkpoints as this run's")
        return number

    def identify(self, number: str) -> None:
        """Write the run's number down. Raises OSError."""
        if not (self.path / IDENTITY).exists() or self.identity() != number:
            write_atomic(self.path / IDENTITY, json.dumps({"run": number}).encode() + b"\n")

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(entry for entry in self.path.glob("step-*") if is_step(entry.name))

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def unfinished(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it bears its name."""
        return self.path / f".step-{step:08d}.tmp"

    def begin(self, step: int) -> None:
        """Make the directory that `unfinished` names, empty."""
        directory = self.unfinished(step)
        if os.path.lexists(directory):
            _remove(directory)
        directory.mkdir(parents=True)

    def complete(self, step: int, keep: int, keep_every: int | None) -> Path:
        """Give a written checkpoint its name, move `latest` to it, and remove all but the newest `keep`.

        keep_every: steps of which this is a divisor stay for good.
        """
        target = self.path / f"step-{step:08d}"
        if os.path.lexists(target):  # the same step again: a run that was resumed from an earlier one
            _remove(self._doomed(target))
        self.unfinished(step).rename(target)
        self.publish(target)
        for old in self.steps()[:-keep]:
            if keep_every is None or int(old.name.removeprefix("step-")) % keep_every:
                _remove(self._doomed(old))
        return target

    def publish(self, step: Path) -> None:
        """Make the run directory stand for the checkpoint `step`."""
        self._link("latest", step.name)
        own = {file.name for file in step.iterdir()} - {STATE, POSITION, CHECKSUMS}
        for name in own:
            self._link(name, f"latest/{name}")
        for link in self.path.iterdir():  # of an earlier checkpoint that had more files
            if link.is_symlink() and link.name not in own | {"latest"} and link.readlink().parts[0] == "latest":
                link.unlink()

    def add(self, step: int) -> None:
        """Move the files that were written for a complete checkpoint into it."""
        source, target = self.unfinished(step), self.path / f"step-{step:08d}"
        for file in sorted(source.iterdir(), key=lambda file: file.name == CONFIG):  # with that one it is a model
            file.replace(target / file.name)
        source.rmdir()
        write_checksums(target, step, self.identity())
        self.publish(target)

    def set_aside(self, step: Path) -> Path:
        """Give a damaged checkpoint a name under which it is neither gone on from nor removed."""
        target, number = self.path / f"damaged-{step.name}", 1
        while os.path.lexists(target):
            number += 1
            target = self.path / f"damaged-{step.name}-{number}"
        return step.rename(target)

    def clean(self) -> None:
        """Remove what a killed process left half-written or half-removed."""
        for rest in self.path.glob(".step-*"):
            _remove(rest)
        for rest in self.path.glob(".*.tmp*"):  # a run's directory may be somebody's home
            if _WRITTEN.fullmatch(rest.name) or (rest.is_symlink() and rest.suffix == ".tmp"):
                rest.unlink()

    def _doomed(self, step: Path) -> Path:
        return step.rename(self.path / f".{step.name}.old")

    def _link(self, name: str, target: str) -> None:
        if (self.path / name).is_symlink() and str((self.path / name).readlink()) == target:
            return
        temporary = self.path / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.path / name)


def _remove(path: Path) -> None:
    """A directory with all that is in it; of a link, which somebody put in a step's place, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
