"""What `blt eval --out` wrote, read back: `results.json` as values, the records of every item as an index of the files.

Records hold every prompt, many megabytes of them; of an item only what is counted stays in memory, and a shown one is
read from its place in the file again.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ConfigDict, model_validator

from bltkit.config import Config, parse
from bltkit.files import parse_json

RESULTS = "results.json"
RECORDS = "records"
FORMAT = 1

Contribution: TypeAlias = float | tuple[float, ...]
"""Of an item to a metric: a number, or sums that the metric makes its value of."""


class _Stored(Config):
    """Part of a file that later versions may add to; a figure may be missing or not finite."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


class _Estimated(_Stored):
    """A value, how sure it is, and what guessing scores.

    interval_method: how the interval is computed, or why there is none; None in results of version 0.1.0, as `chance`.
    """

    n: int
    value: float | None
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    interval_method: str | None = None
    chance: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_false_certainty(cls, data: Any) -> Any:
        """Version 0.1.0 wrote an interval without width, and no error, where the items show no spread."""
        if not isinstance(data, Mapping) or data.get("interval_method") is not None:
            return data
        ends = data.get("interval")
        if isinstance(ends, list | tuple) and len(ends) == 2 and ends[0] == ends[1]:
            return {**data, "stderr": None, "interval": None}
        return data


class Figure(_Estimated):
    """An estimate of a metric over some items."""


class MetricFigure(Figure):
    """Over all items. better: higher or lower; highest: the scale's top, where there is one."""

    better: str = "higher"
    highest: float | None = None


class Macro(_Stored):
    """The mean over the groups of a level."""

    level: str
    metrics: Mapping[str, Figure]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "metrics" in data:
            return data
        return {"level": data.get("level"), "metrics": {name: one for name, one in data.items() if name != "level"}}


class StoredContextWindow(_Stored):
    """How much of a text the model is shown at once."""

    size: int
    unit: str


class TaskResult(_Estimated):
    """All about one task; the estimate is that of its main metric."""

    task: str
    metric: str
    mean_over: str = "items"
    better: str = "higher"
    highest: float | None = None
    metrics: Mapping[str, MetricFigure]
    macro: Macro | None = None
    groups: Mapping[str, Mapping[str, Mapping[str, Figure]]] = {}
    prompt_hash: str
    shots: int | None = None
    task_seed: int | None = None
    cut_contexts: int = 0
    contexts: int | None = None
    window: StoredContextWindow | None = None
    left_out: int = 0
    seconds: float | None = None
    bytes: int | None = None
    records: str | None = None

    @model_validator(mode="after")
    def _main_is_there(self) -> "TaskResult":
        if self.metric not in self.metrics:
            raise ValueError(f"its main metric {self.metric!r} is none of its metrics ({', '.join(self.metrics)})")
        return self


class Model(_Stored):
    """What was evaluated."""

    name: str
    kind: str
    fingerprint: str
    strategy: str | None = None


class Results(_Stored):
    """The whole of results.json."""

    format: int
    model: Model
    seed: int
    limit: int | None = None
    noise: str | None = None
    covered: str | None = None
    command: str | None = None
    commit: str | None = None
    results: Mapping[str, TaskResult]


@dataclass(frozen=True)
class StoredEntry:
    """What is counted of an item.

    asked: SHA-256 of its requests. gold: of its right answer, None where the record shows none. margin: gold above the
    best other, in nats.
    """

    metrics: Mapping[str, Contribution]
    groups: Mapping[str, str]
    asked: str
    gold: bytes | None
    margin: float | None
    start: int
    size: int


@dataclass(frozen=True)
class StoredRecord:
    """An item as its line in the file has it."""

    id: str
    groups: Mapping[str, str]
    metrics: Mapping[str, Contribution]
    shown: Mapping[str, Any]
    asked: str
    requests: tuple[Mapping[str, Any], ...]
    answers: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class StoredRun:
    """An evaluation's directory."""

    directory: Path
    results: Results

    @cached_property
    def entries(self) -> Mapping[str, Mapping[str, StoredEntry]]:
        """By task and item. Raises ValueError where records are missing, malformed or fewer than the results say."""
        return {task: self._index(task, result) for task, result in self.results.results.items()}

    def record(self, task: str, item: str) -> StoredRecord:
        """One item's, from the file."""
        entry = self.entries[task][item]
        with self._place(task).open("rb") as file:
            file.seek(entry.start)
            return _record(_parse(file.read(entry.size), str(file.name)))

    def _index(self, task: str, result: TaskResult) -> Mapping[str, StoredEntry]:
        path = self._place(task)
        if not path.is_file():
            raise ValueError(f"{path}: missing; the evaluation was broken off, run it again with --resume")
        entries: dict[str, StoredEntry] = {}
        for number, start, line in _lines(path):
            where = f"{path}, line {number}"
            data = _parse(line, where)
            try:
                record = _record(data)
                entry = _entry(record, start, len(line))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                raise ValueError(f"{where}: not an item's record; run the evaluation again") from None
            if record.id in entries:
                raise ValueError(f"{path}, line {number}: item {record.id!r} is there twice; run the evaluation again")
            entries[record.id] = entry
        graded = sum(result.metric in entry.metrics for entry in entries.values())
        if graded != result.n:
            raise ValueError(
                f"{path}: {graded} items, {RESULTS} counts {result.n}; the evaluation was broken off or still runs, "
                "finish it with --resume"
            )
        return entries

    def _place(self, task: str) -> Path:
        return self.directory / RECORDS / Path(self.results.results[task].records or f"{task}.jsonl").name


def read_run(directory: Path) -> StoredRun:
    """An evaluation's directory. Raises ValueError where it is none, or is not finished."""
    path = directory / RESULTS
    if not path.is_file():
        what = "no such directory" if not directory.is_dir() else f"no {RESULTS} in it"
        raise ValueError(f"{directory}: {what}; name one that `blt eval --out` wrote to its end")
    data = _parse(path.read_bytes(), str(path), finite=False)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ValueError(f"{path}: format {found!r}, this version reads {FORMAT}; run the evaluation again")
    results: Results = parse(Results, data, str(path))
    if not results.results:
        raise ValueError(f"{path}: holds no task's result; name an evaluation of at least one task")
    return StoredRun(directory, results)


def item_value(contribution: Contribution | None) -> float | None:
    """A contribution as one number: itself, or above / below of a pair; None where it has no such thing."""
    if contribution is None:
        return None
    if isinstance(contribution, tuple):
        if len(contribution) != 2 or not contribution[1]:
            return None
        contribution = contribution[0] / contribution[1]
    return contribution if math.isfinite(contribution) else None


def right(contribution: Contribution | None, better: str, highest: float | None) -> bool | None:
    """Is an item as good as can be; None where its metric has no such state."""
    value = item_value(contribution)
    if value is None or highest is None:
        return None
    return value >= highest if better == "higher" else value <= 0


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, place in the file, line) of every complete line."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, start, line
            start += len(line)


def _parse(data: bytes, where: str, *, finite: bool = True) -> Any:
    try:
        return parse_json(data, where, finite=finite, escaped_bytes=True)
    except ValueError as error:
        raise ValueError(f"{error}; run the evaluation again") from None


def _record(data: Mapping[str, Any]) -> StoredRecord:
    metrics = {name: _contribution(value) for name, value in data["metrics"].items() if value is not None}
    groups = {str(level): str(group) for level, group in data["groups"].items()}
    shown = data["shown"]
    if not isinstance(data["id"], str) or not isinstance(data["asked"], str) or not isinstance(shown, Mapping):
        raise ValueError("id, asked or shown")
    return StoredRecord(
        data["id"], groups, metrics, shown, data["asked"], tuple(data["requests"]), tuple(data["answers"])
    )


def _contribution(value: Any) -> Contribution:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _entry(record: StoredRecord, start: int, size: int) -> StoredEntry:
    gold = record.shown.get("gold")
    digest = None if gold is None else hashlib.sha256(json.dumps(gold, sort_keys=True).encode()).digest()
    return StoredEntry(record.metrics, record.groups, record.asked, digest, _margin(record.shown), start, size)


def _margin(shown: Mapping[str, Any]) -> float | None:
    """How much likelier the right choice is than the best other one, in nats."""
    gold, logprobs = shown.get("gold"), shown.get("logprobs")
    if (
        not isinstance(gold, int)
        or not isinstance(logprobs, list)
        or len(logprobs) < 2
        or not 0 <= gold < len(logprobs)
    ):
        return None
    found = float(logprobs[gold] - max(value for at, value in enumerate(logprobs) if at != gold))
    return found if math.isfinite(found) else None
