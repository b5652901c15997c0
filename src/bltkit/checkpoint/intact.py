"""Is a checkpoint's file what was written: sizes, which loading always compares, and SHA-256, on request.

bltkit.json lists every other file of its directory and seals itself. What older versions wrote lists the weights alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bltkit.checkpoint.manifest import FORMAT, MANIFEST, FileEntry
from bltkit.checkpoint.weights import read_json
from bltkit.config import parse
from bltkit.files import check_seal, require_regular

Tell = Callable[[int, int], None]
"""Told (bytes read, bytes in all)."""

_PIECE_BYTES = 1 << 22
_EDITABLE = frozenset({"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"})
"""Compared by content when loading, and not by size: other programs write them again with keys of their own."""


def sha256(path: Path, tell: Callable[[int], None] = lambda num_bytes: None) -> str:
    """Of the file's content, in hexadecimal. tell: told the bytes read since it was last told. Raises as
    `require_regular` does.
    """
    require_regular(path)
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
            tell(len(piece))
    return state.hexdigest()


def entry_of(path: Path) -> FileEntry:
    """The entry of a file as it is now."""
    return FileEntry(sha256=sha256(path), bytes=require_regular(path))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The JSON object of bltkit.json. Raises ValueError for a format that is newer than this version."""
    path = directory / MANIFEST
    data = read_json(path)
    number = data.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(f"{path} has format {number}, but this bltkit reads up to {FORMAT}; upgrade bltkit")
    return data


def listed_files(directory: Path) -> dict[str, FileEntry]:
    """The files that bltkit.json lists; none where there is no bltkit.json.

    Raises ValueError where it is damaged, or names a file outside its directory.
    """
    path = directory / MANIFEST
    if not path.exists() and not path.is_symlink():
        return {}
    data = read_manifest(directory)
    check_seal(data, str(path))
    files: dict[str, FileEntry] = parse(dict[str, FileEntry], data.get("files", {}), f"{path}: files")
    check_names(directory, files)
    return files


def check_names(directory: Path, files: Mapping[str, FileEntry]) -> None:
    """Raises ValueError for a listed name that leads out of the directory."""
    for name in files:
        if not _is_plain(name):
            raise ValueError(f"{directory / MANIFEST} lists {name!r}; expected names of files in the same directory")


def check_sizes(directory: Path, files: Mapping[str, FileEntry]) -> None:
    """Raises ValueError for a listed file that is missing, no regular file, or of another size."""
    for name, entry in files.items():
        if (reason := _size_damage(directory, name, entry)) is not None:
            raise ValueError(reason)


def check_contents(directory: Path, files: Mapping[str, FileEntry]) -> None:
    """Raises ValueError for a listed file whose content is another than it was. Reads all of them."""
    for line in damages(directory, files):
        raise ValueError(line)


def damages(directory: Path, files: Mapping[str, FileEntry], tell: Tell = lambda done, total: None) -> Iterator[str]:
    """One line for each listed file that is missing, damaged or changed. Reads all of them."""
    total, done = sum(entry.bytes for entry in files.values()), 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        tell(done, total)

    for name, entry in files.items():
        path = directory / name
        try:
            reason = _size_damage(directory, name, entry, exact=True)
            if reason is None and (found := sha256(path, count)) != entry.sha256:
                reason = f"{path} is damaged or changed: its sha256 is {found}, {MANIFEST} says {entry.sha256}"
        except OSError as error:
            reason = f"{path} cannot be read ({error.strerror or error})"
        if reason is not None:
            yield reason


def _size_damage(directory: Path, name: str, entry: FileEntry, exact: bool = False) -> str | None:
    path = directory / name
    try:
        size = require_regular(path)
    except FileNotFoundError:
        return f"{path} is missing, but {MANIFEST} lists it; the checkpoint is incomplete"
    except ValueError as error:
        return str(error)
    if size == entry.bytes or (name in _EDITABLE and not exact):
        return None
    return f"{path} is damaged or changed: it has {size} bytes, {MANIFEST} says {entry.bytes}; fetch or copy it again"


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}
