"""Where a corpus' arrays lie: in memory, or as files that many processes map and that may be larger than memory.

Below the corpus. A folder holds one raw file for each array and `manifest.json`, which says what it was made of:
source configs, and size and time of every input file. Notable: documents go to disk as they are read; the folder
appears under its name only when it is whole; one process lays it down while others wait for its lock.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from io import BufferedWriter, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from bltkit.checkpoint import atomic_directory, write_atomic
from bltkit.data.sources import SourceConfig

FORMAT = 1
MANIFEST = "manifest.json"

Array = npt.NDArray[Any]


class Column:
    """An array that is appended to, then read. Values stand little-endian, one after another."""

    def __init__(self, file: BytesIO | BufferedWriter, dtype: str, path: Path | None) -> None:
        self.dtype = np.dtype(dtype)
        self._file, self._path = file, path

    def append(self, values: bytes | Array) -> None:
        """Adds values: an array, or the bytes of one."""
        self._file.write(values if isinstance(values, bytes) else np.ascontiguousarray(values, self.dtype).data)

    def close(self) -> None:
        """Everything appended is in the file."""
        if self._path is not None:
            self._file.close()

    def array(self) -> Array:
        """Everything that was appended, read-only; nothing may be appended any more."""
        if self._path is not None:
            self.close()
            return _map(self._path, self.dtype)
        assert isinstance(self._file, BytesIO)
        buffer = self._file.getbuffer()
        array = np.frombuffer(buffer, self.dtype) if len(buffer) else np.empty(0, self.dtype)
        array.flags.writeable = False
        return array


class Shelf:
    """The columns of a corpus that is being made: files in `folder`, or memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.columns: dict[str, Column] = {}

    def column(self, name: str, dtype: str) -> Column:
        """A new column."""
        assert name not in self.columns, name
        path = None if self.folder is None else self.folder / _file_name(name, dtype)
        file: BytesIO | BufferedWriter = BytesIO()
        if path is not None:
            file = path.open("wb")
        self.columns[name] = Column(file, dtype, path)
        return self.columns[name]

    def close(self) -> None:
        """Closes the columns' files."""
        for column in self.columns.values():
            column.close()

    def add(self, name: str, dtype: str, values: Array) -> Array:
        """A new column of all `values` at once; gives it back as it will be read."""
        column = self.column(name, dtype)
        column.append(values)
        return column.array()


def folder_of(directory: Path, sources: Sequence[SourceConfig], validation_fraction: float) -> Path:
    """The folder in `directory` for a corpus of these sources: other settings get another one."""
    settings = json.dumps([_configs(sources), validation_fraction], sort_keys=True)
    return directory / f"corpus-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"


def laid_down(
    folder: Path,
    sources: Sequence[SourceConfig],
    validation_fraction: float,
    build: Callable[[Shelf], Mapping[str, Any]],
) -> None:
    """Makes sure that `folder` holds the corpus of these sources as they are now.

    A folder whose manifest names the same settings and input files of the same size and time is left as it is; another
    is replaced. A source that has no files to look at (`inputs()` is None) is taken to be unchanged. `build` fills a
    shelf and returns what the manifest shall say besides.
    """
    if any(parent.is_file() for parent in folder.parents):
        raise ValueError(f"data.cache: {folder.parent} is not a folder; name one, it is made where it is missing")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        # Before reading: what changes meanwhile shows next time.
        made_of = _made_of(sources, validation_fraction)
        if folder.exists():
            if _is_made_of(folder, made_of):
                return
            # Renamed first: what bears the name is whole. Who has it mapped keeps its files.
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.tmp-old")))
        with atomic_directory(folder) as temporary:
            with closing(Shelf(temporary)) as shelf:
                rest = build(shelf)
            types = {name: column.dtype.str for name, column in shelf.columns.items()}
            manifest = {"format": FORMAT, **made_of, "columns": types, **rest}
            write_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())


def load(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The columns of a folder, memory-mapped read-only, and its manifest. `ValueError` where it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        types = manifest["columns"]
        columns = {name: _map(folder / _file_name(name, dtype), np.dtype(dtype)) for name, dtype in types.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data.cache: {folder} is damaged ({error}); remove it, it is made anew") from None
    return columns, manifest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; and what a killed one left half-made is removed."""
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        for rest in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(rest)
        yield


def _configs(sources: Sequence[SourceConfig]) -> list[dict[str, Any]]:
    return [source.model_dump(mode="json") for source in sources]


def _made_of(sources: Sequence[SourceConfig], validation_fraction: float) -> dict[str, Any]:
    inputs = [source.inputs() for source in sources]
    return {
        "sources": _configs(sources),
        "validation_fraction": validation_fraction,
        "inputs": [None if files is None else [list(file) for file in files] for files in inputs],
    }


def _is_made_of(folder: Path, made_of: Mapping[str, Any]) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return manifest.get("format") == FORMAT and all(manifest.get(key) == value for key, value in made_of.items())


def _file_name(name: str, dtype: str) -> str:
    return f"{name}.{np.dtype(dtype).str.lstrip('<>|=')}"


def _map(path: Path, dtype: np.dtype[Any]) -> Array:
    # A plain array over the map: np.memmap's own methods cost microseconds. An empty file cannot be mapped.
    return np.asarray(np.memmap(path, dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)
