"""JSON lines, plain or compressed by gzip, zstd, xz or bzip2: one field of each line is a document.

Read as a stream: memory holds one line, whatever the file's size or what it decompresses to. A broken line, a missing
field, half a surrogate pair and a file that was cut short are errors that name the file and the line, or are counted
and passed over (`broken`); only blank lines are passed over without a word.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from bltkit.data.sources.paths import FileSource, expand
from bltkit.data.sources.records import Metadata, choose_metadata, find, text_bytes
from bltkit.data.sources.source import Document, Faults
from bltkit.files import BrokenFile, lines, parse_json
from bltkit.files.compressed import SUFFIXES


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
            name = str(path)
            try:
                for number, line in enumerate(lines(path), start=1):
                    if line.strip():
                        where = f"{name}:{number}"
                        try:
                            document = self.document(_object(line, where), where)
                        except ValueError as error:
                            self.pass_over(error, faults)
                        else:
                            yield document
            except BrokenFile as error:
                self.pass_over(error, faults)  # what was read of it stays


class JsonlSource(JsonLines):
    """Lines of JSON objects. `field` is the key of the text, with dots through nested objects (`doc.text`);
    `metadata` names the fields to carry along, or is "all".
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", *(f".jsonl{suffix}" for suffix in SUFFIXES))

    kind: Literal["jsonl"] = "jsonl"
    field: str = "text"
    """Key of the text, with dots through nested objects."""
    metadata: Metadata = ()
    """Fields to carry along, or "all"."""

    def document(self, record: dict[str, Any], where: str) -> Document:
        data = text_bytes(find(record, self.field, where), self.field, where)
        return Document(where, data, choose_metadata(record, self.field, self.metadata))


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = parse_json(line, where)
    except ValueError as error:
        raise ValueError(f"{error}; repair or remove the line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object is wanted, here is a {type(record).__name__}")
    return record
