"""Files and directories that appear whole or not at all: written beside their place, synced, then renamed into it.

A killed process can leave a hidden `.NAME.tmp-*` sibling behind, never a half-written target.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bltkit.checkpoint.card_mark import CARD, is_generated
from bltkit.files import LOCK_FILES, needs_space

CHECKPOINT_FILES = (
    "config.json",
    "bltkit.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What a directory may hold to be replaced, beside a model card that nobody has edited: nobody's other files are ever
deleted."""


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write one file; readers see the old content or the new one, also after a crash.

    Raises OSError, which names path and size where the disk is full.
    """
    path = Path(os.path.realpath(path))
    temporary = _sibling(path, "tmp")
    try:
        with needs_space(path, len(data)):
            temporary.write_bytes(data)
            _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory to write into; when the block ends it becomes `path`, and on any error it is removed.

    An existing directory is replaced only with overwrite=True, and only if it holds nothing but a checkpoint; until
    the new one is complete the old one stays. A directory that holds nothing but a lock's files counts as empty. A
    symlink is followed. Raises ValueError or OSError.
    """
    path = Path(os.path.realpath(path))
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "tmp")
    try:
        temporary.mkdir()
        yield temporary
        sync_tree(temporary)
        refuse_existing(path, overwrite=overwrite)  # something may have come there meanwhile
        _put(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def sync_tree(path: Path) -> None:
    """Have everything below a directory on disk, also if the power fails afterwards. Raises OSError."""
    for folder, _, files in os.walk(path):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _put(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    # A directory cannot be renamed over a full one: for an instant there is none, and on failure the old returns.
    old = _sibling(path, "old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """Raises ValueError where `atomic_directory` would not write, as it does itself when it begins."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file; a checkpoint is a directory")
    entries = sorted(entry for entry in path.iterdir() if entry.name not in LOCK_FILES)
    if entries and not overwrite:
        raise ValueError(f"{path} exists already; choose another directory or ask for it to be overwritten")
    for entry in entries:
        part = any(map(entry.match, CHECKPOINT_FILES)) or (
            entry.name == CARD and entry.is_file() and is_generated(entry)
        )
        if entry.is_symlink() or entry.is_dir() or not part:
            raise ValueError(
                f"{path} is not overwritten: it holds {entry.name}, which is no part of a checkpoint; "
                "move that away or choose another directory"
            )


def _sibling(path: Path, label: str) -> Path:
    return path.with_name(f".{path.name}.{label}-{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
