"""JSON lines, plain or compressed (.jsonl, .jsonl.gz, .jsonl.zst): one field of each line is a document.

Read as a stream: memory holds one line, whatever the file's size. A broken line, a missing field and a file
that was cut short are errors that name the file and the line; nothing is skipped silently except blank
lines.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

from bltkit.data.sources.paths import Paths, expand
from bltkit.data.sources.source import Document, SourceConfig
from bltkit.vocab import to_bytes

_CHUNK_BYTES = 1 << 16


class JsonlSource(SourceConfig):
    """Lines of JSON objects; `field` is the key of the text."""

    kind: Literal["jsonl"] = "jsonl"
    paths: Paths
    field: str = "text"

    @property
    def label(self) -> str:
        return ", ".join(self.paths)

    def documents(self) -> Iterator[Document]:
        for path in expand(self.paths):
            for number, line in enumerate(_lines(path), start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield Document(where, _text(line, self.field, where))


def _text(line: bytes, field: str, where: str) -> bytes:
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise ValueError(f"{where}: not a line of JSON ({error}); repair or remove the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object is wanted, here is a {type(record).__name__}")
    if field not in record:
        keys = ", ".join(sorted(record)[:8]) or "none"
        raise ValueError(f"{where}: no field {field!r}; set the source's `field` to one of its keys: {keys}")
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} is a {type(value).__name__}, a string is wanted")
    return to_bytes(value)  # JSON can hold lone surrogates ("\ud800"), which plain UTF-8 cannot


def _lines(path: Path) -> Iterator[bytes]:
    """The file's lines without their line feeds, decompressed by the file's suffix."""
    rest: list[bytes] = []
    for chunk in _chunks(path):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield b"".join(rest)


def _chunks(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _zstd_chunks(path)
        return
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := _read(file, path):
            yield chunk


def _read(file: BufferedIOBase, path: Path) -> bytes:
    try:
        return file.read(_CHUNK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); fetch it again") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # decompressobj and not stream_reader: the latter takes a file that was cut short for a complete one.
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    stream = decompressor.decompressobj()
    complete = True
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            while block:
                try:
                    chunk = stream.decompress(block)
                except zstandard.ZstdError as error:
                    raise ValueError(f"{path}: broken zstd file ({error}); fetch it again") from None
                if chunk:
                    yield chunk
                complete, block = stream.eof, stream.unused_data
                if complete:
                    stream = decompressor.decompressobj()  # a file may hold several frames
    if not complete:
        raise ValueError(f"{path}: the zstd file ends in the middle of a frame; fetch it again")
