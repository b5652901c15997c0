"""Where a corpus' arrays lie: in memory, or as files that many processes map and that may be larger than memory.

Below the corpus. A folder holds one raw file for each array and `manifest.json`, which says what it was made of:
source configs, and size and time of every input file. Notable: documents go to disk as they are read; the folder
appears under its name only when it is whole; one process lays it down while others wait for its lock. What is mapped
is compared with checksums (`bltkit.data.checksummed_blocks`), which folders that version 0.1.0 laid down do not have.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from io import BufferedWriter, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from bltkit.checkpoint import atomic_directory, write_atomic
from bltkit.data.checksummed_blocks import ChecksummedBlocks, Checksums, checksum_file
from bltkit.data.sources import SourceConfig
from bltkit.files import check_seal, needs_space, read_json, require_regular, sealed

FORMAT = 1
MANIFEST = "manifest.json"

Array = npt.NDArray[Any]


class Column:
    """An array that is appended to, then read. Values stand little-endian, one after another."""

    def __init__(self, file: BytesIO | BufferedWriter, dtype: str, path: Path | None) -> None:
        self.dtype = np.dtype(dtype)
        self.checksums = Checksums()
        """Of what was appended; kept for files only."""
        self._file, self._path = file, path

    def append(self, values: bytes | Array) -> None:
        """Adds values: an array, or the bytes of one. Raises OSError that names the file where the disk is full."""
        plain = memoryview(values) if isinstance(values, bytes) else np.ascontiguousarray(values, self.dtype).data
        data = plain.cast("B") if plain.nbytes else memoryview(b"")
        if self._path is None:
            self._file.write(data)
            return
        self.checksums.update(data)
        try:
            self._file.write(data)
        except OSError:
            self._explain_full_disk()
            raise

    def close(self) -> None:
        """Everything appended is in the file. Raises OSError as `append` does."""
        if self._path is not None and not self._file.closed:
            try:
                self._file.close()
            except OSError:
                self._explain_full_disk()
                raise

    def _explain_full_disk(self) -> None:
        """Raise the error at hand with path and size, where it is of a full disk."""
        assert self._path is not None
        error = sys.exception()
        assert error is not None
        with needs_space(self._path, self.checksums.num_bytes, ask_first=False):
            raise error

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
            checksums = {}
            for name, column in shelf.columns.items():
                file = _file_name(name, column.dtype.str)
                checksums[file] = column.checksums.entry
                write_atomic(temporary / checksum_file(file), column.checksums.tobytes())
            manifest = {"format": FORMAT, **made_of, "columns": types, "checksums": checksums, **rest}
            content = sealed(json.loads(json.dumps(manifest)))
            write_atomic(temporary / MANIFEST, json.dumps(content, indent=1).encode())


def load(folder: Path) -> tuple[dict[str, Array], dict[str, Any], ChecksummedBlocks | None]:
    """The columns of a folder, memory-mapped read-only, its manifest and the checksums of its blocks, if it has any.

    Columns with a value for each document are compared with their checksums here, those with one for each byte of text
    are left to `ChecksummedBlocks.check`. Raises ValueError where the folder is damaged.
    """
    try:
        manifest = _read_manifest(folder)
        files = {name: (_file_name(name, dtype), np.dtype(dtype)) for name, dtype in manifest["columns"].items()}
        columns = {name: _map(folder / file, dtype) for name, (file, dtype) in files.items()}
        if "checksums" not in manifest:
            return columns, manifest, None
        blocks = ChecksummedBlocks.open(
            folder, manifest["checksums"], {files[name][0]: columns[name] for name in files}
        )
        for file, dtype in files.values():
            if dtype.itemsize > 1 and file.partition(".")[0] != "digests":  # those are of use when it is made
                blocks.check_all(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"data.cache: {folder} is damaged ({error}); remove it; the next run recreates it") from None
    return columns, manifest, blocks


def damages(folder: Path, tell: Callable[[int, int], None] = lambda done, total: None) -> Iterator[str]:
    """One line for each damaged file of a folder, or for a folder that has no checksums. Reads everything.

    tell: told (bytes read, bytes in all).
    """
    try:
        manifest = _read_manifest(folder)
        files = {_file_name(name, dtype): np.dtype(dtype) for name, dtype in manifest["columns"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{folder}: {error}; remove the folder; the next run recreates it"
        return
    if "checksums" not in manifest:
        return
    sizes = {file: int(entry["bytes"]) for file, entry in manifest["checksums"].items()}
    done = 0
    for file, dtype in files.items():
        try:
            array = _map(folder / file, dtype)
            ChecksummedBlocks.open(folder, {file: manifest["checksums"][file]}, {file: array}).check_all(file)
        except (OSError, ValueError, KeyError) as error:
            yield f"{error}; remove the folder; the next run recreates it"
        done += sizes.get(file, 0)
        tell(done, sum(sizes.values()))


def has_checksums(folder: Path) -> bool:
    """False for what version 0.1.0 laid down. Raises ValueError where the manifest cannot be read."""
    return "checksums" in _read_manifest(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    require_regular(path)
    manifest = read_json(path, escaped_bytes=True)
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} holds no JSON object")
    if not check_seal(manifest, str(path)) and "checksums" in manifest:
        raise ValueError(f"{path} is damaged: it has checksums, but no digest of its own")
    return manifest


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
        manifest = _read_manifest(folder)
    except (OSError, ValueError):
        return False
    return manifest.get("format") == FORMAT and all(manifest.get(key) == value for key, value in made_of.items())


def _file_name(name: str, dtype: str) -> str:
    return f"{name}.{np.dtype(dtype).str.lstrip('<>|=')}"


def _map(path: Path, dtype: np.dtype[Any]) -> Array:
    # A plain array over the map: np.memmap's own methods cost microseconds. An empty file cannot be mapped.
    return np.asarray(np.memmap(path, dtype, mode="r")) if require_regular(path) else np.empty(0, dtype)
