"""The record of an item: what was asked and answered, what it was worth. A journal while a task runs, a file after."""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from bltkit.checkpoint import write_atomic
from bltkit.eval.requests import Answer, Coded, Compression, Continuation, Likelihood, Request, Scored, Written
from bltkit.eval.tasks.task import Grade, Item, Numbers
from bltkit.files.json_lines import append_lines, read_lines

_SECONDS = 2.0
"""Between two writings of a journal: what an interruption costs at most."""


@dataclass(frozen=True)
class Record:
    """An item and what became of it. asked: SHA-256 of its requests, as hex."""

    id: str
    groups: dict[str, str]
    metrics: dict[str, FiniteFloat | tuple[FiniteFloat, ...]]
    shown: dict[str, Any]
    asked: str
    item: str
    """SHA-256 of its fields and groups, as hex: the gold, too, may change under a record."""
    cut: NonNegativeInt
    """How many of its requests lost the beginning of their context."""
    requests: list[dict[str, Any]]
    answers: list[dict[str, Any]]

    @classmethod
    def of(cls, item: Item, requests: Sequence[Request], answers: Sequence[Answer], grade: Grade) -> "Record":
        """The record of a graded item."""
        cut = sum(answer.cut > 0 for answer in answers if not isinstance(answer, Coded))
        return cls(
            item.id,
            dict(item.groups),
            dict(grade.metrics),
            dict(grade.shown),
            hash_of(requests),
            hash_of_item(item),
            cut,
            _requests(requests),
            [_answer(answer) for answer in answers],
        )

    @classmethod
    def read(cls, line: dict[str, Any], where: str) -> "Record":
        """Back from JSON. Raises ValueError for a line that is none of ours, such as a metric that is no number."""
        try:
            return _LINE.validate_python(line)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise ValueError(f"{where} is no record of an evaluation ({reason}); take another --out") from None

    @property
    def contributions(self) -> dict[str, Numbers]:
        """To each metric's sums; a plain number is averaged."""
        return {name: v if isinstance(v, tuple) else (v, 1.0) for name, v in self.metrics.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.__dict__


_LINE = TypeAdapter(Record)


@dataclass
class Journal:
    """Records of a task on their way to a file: appended as they come, in whatever order, and sorted at the end."""

    path: Path
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def known(self) -> dict[str, Record]:
        """What an earlier run left, by item; the later of two."""
        lines = enumerate(read_lines(self.path), 1)
        records = (Record.read(line, f"{self.path}, line {number}") for number, line in lines)
        return {record.id: record for record in records}

    def add(self, record: Record) -> None:
        """On disk two seconds later at most, while more come."""
        self._waiting.append(record.to_json())
        if time.monotonic() - self._written >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """On disk when this returns."""
        if self._waiting:
            append_lines(self.path, self._waiting)
        self._waiting, self._written = [], time.monotonic()

    def finish(self, records: Iterable[Record]) -> None:
        """The file as it stays: these records in this order."""
        self._waiting = []
        write_atomic(
            self.path, b"".join(json.dumps(record.to_json(), allow_nan=False).encode() + b"\n" for record in records)
        )


def hash_of(requests: Sequence[Request]) -> str:
    """SHA-256, as hex, of what is asked: two runs with the same one asked the same."""
    found = hashlib.sha256()
    for request in requests:
        if isinstance(request, Likelihood):
            parts: tuple[Any, ...] = (request.context.hex(), request.continuation.hex())
        elif isinstance(request, Continuation):
            stop = [one.hex() for one in request.stop]
            parts = (request.context.hex(), request.max_bytes, stop, request.temperature, request.seed)
        else:
            parts = (request.text.hex(),)
        found.update(json.dumps([type(request).__name__, *parts]).encode() + b"\n")
    return found.hexdigest()


def hash_of_item(item: Item) -> str:
    """SHA-256, as hex, of what an item is: grades are worked out from it beside the answers."""
    said = json.dumps([dict(item.fields), dict(item.groups)], sort_keys=True, default=repr)
    return hashlib.sha256(said.encode()).hexdigest()


def _requests(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """A context that equals that of the request before is left out; of whole texts only the beginning is kept."""
    found: list[dict[str, Any]] = []
    before: bytes | None = None
    for request in requests:
        if isinstance(request, Compression):
            found.append({"text": _text(request.text[:200]), "bytes": len(request.text)})
            continue
        entry: dict[str, Any] = {} if request.context == before else {"context": _text(request.context)}
        before = request.context
        if isinstance(request, Likelihood):
            entry["continuation"] = _text(request.continuation)
        else:
            entry |= {"max_bytes": request.max_bytes, "stop": [_text(one) for one in request.stop]}
            if request.temperature:
                entry |= {"temperature": request.temperature, "seed": request.seed}
        found.append(entry)
    return found


def _answer(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Scored):
        return {"logprob": answer.logprob, "greedy": answer.greedy, "cut": answer.cut}
    if isinstance(answer, Written):
        return {"text": _text(answer.data), "finish": answer.finish, "cut": answer.cut}
    return {"nats": answer.nats, "bytes": answer.num_bytes}


def _text(data: bytes) -> str:
    """Bytes that are not UTF-8 are escaped as U+DC80 .. U+DCFF, and can be got back."""
    return data.decode("utf-8", "surrogateescape")
