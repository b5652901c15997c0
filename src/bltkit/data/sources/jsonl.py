"""JSON lines, plain or compressed (.jsonl, .jsonl.gz, .jsonl.zst): one field of each line is a document.

Read as a stream: memory holds one line, whatever the file's size. A broken line, a missing field and a file
that was cut short are errors that name the file and the line, or are counted and passed over (`broken`); only
blank lines are passed over without a word.
"""

from __future__ import annotations

import gzip
import json
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

from bltkit.data.sources.paths import FileSource, expand
from bltkit.data.sources.records import Metadata, choose_metadata, find, text_bytes
from bltkit.data.sources.source import Document, Faults

_CHUNK_BYTES = 1 << 16


class JsonLines(FileSource):
    """What sources of JSON lines share. A subclass says by `document` what one object becomes."""

    @abstractmethod
    def document(self, record: dict[str, Any], where: str) -> Document:
        """One line's object -> its document, named `where` (`file:line`).

        `ValueError` whose message begins with `where` for an object that is none; `broken` judges it.
        """
        raise NotImplementedError

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        for path in expand(self.paths):
            try:
                for number, line in enumerate(_lines(path), start=1):
                    if line.strip():
                        where = f"{path}:{number}"
                        try:
                            document = self.document(_object(line, where), where)
                        except ValueError as error:
                            self.pass_over(error, faults)
                        else:
                            yield document
            except _BrokenFile as error:
                self.pass_over(error, faults)  # what was read of it stays


class JsonlSource(JsonLines):
    """Lines of JSON objects. `field` is the key of the text, with dots through nested objects (`doc.text`);
    `metadata` names the fields to carry along, or is "all".
    """

    kind: Literal["jsonl"] = "jsonl"
    field: str = "text"
    """Key of the text, with dots through nested objects."""
    metadata: Metadata = ()
    """Fields to carry along, or "all"."""

    def document(self, record: dict[str, Any], where: str) -> Document:
        data = text_bytes(find(record, self.field, where), self.field, where)
        return Document(where, data, choose_metadata(record, self.field, self.metadata))


class _BrokenFile(ValueError):
    """The file cannot be read on from here."""


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; a thousand brackets
        raise ValueError(f"{where}: not a line of JSON ({error}); repair or remove the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object is wanted, here is a {type(record).__name__}")
    return record


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
    try:
        suffix = path.suffix.lower()
        if suffix in (".gz", ".zst") and path.is_file() and not path.stat().st_size:
            raise _BrokenFile(f"{path}: no byte where a compressed file should be; fetch it again")
        if suffix == ".zst":
            yield from _zstd_chunks(path)
            return
        with gzip.open(path, "rb") if suffix == ".gz" else path.open("rb") as file:
            while chunk := _read(file, path):
                yield chunk
    except OSError as error:
        raise _BrokenFile(f"{path}: cannot be read ({error.strerror or error}); see its permissions") from None


def _read(file: BufferedIOBase, path: Path) -> bytes:
    try:
        return file.read(_CHUNK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _BrokenFile(f"{path}: broken gzip file ({error}); fetch it again") from None


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
                    raise _BrokenFile(f"{path}: broken zstd file ({error}); fetch it again") from None
                if chunk:
                    yield chunk
                complete, block = stream.eof, stream.unused_data
                if complete:
                    stream = decompressor.decompressobj()  # a file may hold several frames
    if not complete:
        raise _BrokenFile(f"{path}: the zstd file ends in the middle of a frame; fetch it again")
