"""Evaluation: tasks to requests, a subject's answers to records, records to results.

Everything that all tasks share is here: noise, limits, what is asked in one go, the journal that a broken-off run
resumes from, and statistics. A result is a function of the subject, the task and the settings.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from bltkit.checkpoint import write_atomic
from bltkit.eval.aggregate import is_result, result_of
from bltkit.eval.dataset_source import Place
from bltkit.eval.item_log import Journal, Record, hash_of, hash_of_item
from bltkit.eval.noise import Noise, Paired
from bltkit.eval.requests import Answer, Coded, Compression, Continuation, Request, Scored
from bltkit.eval.subjects.subject import Subject, strategy_name, window_of
from bltkit.eval.tasks.task import Grade, Item, Task
from bltkit.files import LOCK_FILES, read_json_object, writer_lock

FORMAT = 1
RESULTS, RUN, RECORDS = "results.json", "run.json", "records"
CHUNK_BYTES = 32 << 20
"""Of requests that a subject is asked at once: it may answer them in any order, sharing what they share."""

_NAME = 100
"""Bytes of a file's name that a task's may take."""

Progress = Callable[[int, int], None]
"""Told (items done, items in all)."""
Answered: TypeAlias = tuple[int, list[Answer]]
"""The place of an item, and the answers to its requests."""


@dataclass(frozen=True)
class Settings:
    """What decides the numbers beside subject and tasks.

    limit: the first so many items of each group of a task's level, of the task where it has none.
    noise: damages the fields that a task names. covered: only items that this one covers count (by default `noise`).
    seed: of the bootstrap.
    """

    limit: int | None = None
    noise: Noise | None = None
    covered: Noise | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit = {self.limit}: give at least 1 item, or leave it out for all")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: give 0 or more")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        noise, covered = (None if one is None else str(one) for one in (self.noise, self.covered))
        found = {"seed": self.seed, "limit": self.limit, "noise": noise, "covered": covered}
        # A file changes under its name.
        pairs = [one.fingerprint for one in (self.noise, self.covered) if isinstance(one, Paired)]
        return found | ({"pairs": pairs[0]} if pairs else {})


@dataclass(frozen=True)
class Evaluation:
    """Results by task, as plain JSON values, and what they are of."""

    model: Mapping[str, Any]
    settings: Settings
    results: Mapping[str, Mapping[str, Any]]
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "format": FORMAT,
            "model": dict(self.model),
            **self.settings.to_json(),
            "command": self.command,
            "results": {name: dict(result) for name, result in self.results.items()},
        }


@dataclass(frozen=True, eq=False)
class _Work:
    """A task with its items, damaged, and what is asked about each."""

    task: Task
    items: Sequence[Item]
    requests: Sequence[tuple[Request, ...]]
    left_out: int
    """Items that the noise does not cover."""


def evaluate(
    subject: Subject,
    tasks: Sequence[Task],
    place: Place,
    *,
    settings: Settings | None = None,
    out: Path | None = None,
    resume: bool = False,
    execute: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a subject on tasks.

    out: a directory for results.json and an item's record each; with `resume` what it holds is not asked again. One
        process at a time writes into it.
    execute: the user's consent that tasks run programs which the model wrote, in a sandbox.

    Raises ValueError, before anything is asked, for data that are missing or malformed, for a task twice, one that
    needs consent and has none, and for an `out` that exists without `resume`, is of another evaluation, or that another
    process (named by number and host) writes into.
    """
    with _held(out):
        return _evaluate(subject, tasks, place, settings or Settings(), out, resume, execute, command, progress)


@contextmanager
def _held(out: Path | None) -> Iterator[None]:
    """The lock of an evaluation's directory. One that is made for it goes again where nothing is written into it."""
    if out is None or (os.path.lexists(out) and not (out / RUN).exists() and not _is_empty(out)):
        yield  # `_open_out` refuses it
        return
    with writer_lock(out, logging.getLogger(__name__).warning):
        yield


def _is_empty(out: Path) -> bool:
    """True for a directory that holds nothing but a lock's files."""
    return out.is_dir() and all(entry.name in LOCK_FILES for entry in out.iterdir())


def _evaluate(
    subject: Subject,
    tasks: Sequence[Task],
    place: Place,
    settings: Settings,
    out: Path | None,
    resume: bool,
    execute: bool,
    command: str,
    progress: Progress | None,
) -> Evaluation:
    names = [str(task) for task in tasks]
    if not names:
        raise ValueError("no task is named; `blt eval --tasks list` shows them all")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"task {twice} is given twice; leave one out")
    for task in tasks:
        if task.executes and not execute:
            raise ValueError(
                f"task {task} runs programs that the model writes; say --allow-code-execution to run them in a sandbox"
            )
        task.prepare()
    model = {"name": subject.name, "kind": subject.kind, "fingerprint": subject.fingerprint}
    window = window_of(subject)
    work = [_work(task, place, settings) for task in tasks]
    if out is not None:
        _open_out(out, {"format": FORMAT, "model": model, **settings.to_json()}, resume)
    kept = _kept_results(out) if out is not None and resume else {}
    total, done = sum(len(one.items) for one in work), 0
    results: dict[str, Mapping[str, Any]] = {}
    for name, one in zip(names, work, strict=True):
        journal = None if out is None else Journal(out / RECORDS / f"{file_name(name)}.jsonl")
        began, before = time.perf_counter(), done
        records: dict[str, Record] = {}
        for record in _records(subject, one, journal):
            records[record.id] = record
            done = before + len(records)
            if progress is not None:
                progress(done, total)
        ordered = [records[item.id] for item in one.items]
        if journal is not None:
            journal.finish(ordered)
        seconds = round(time.perf_counter() - began, 3)
        results[name] = {
            **result_of(one.task, ordered, [one.task.chance(item) for item in one.items], settings.seed),
            **_context_figures(one.requests),
            "window": None if window is None else asdict(window),
            "left_out": one.left_out,
            "bytes": sum(_size(request) for own in one.requests for request in own),
            "seconds": seconds,
        }
        if journal is not None:
            results[name] = {**results[name], "records": f"{RECORDS}/{journal.path.name}"}
    # The fingerprint covers the strategy, so run.json, which `--resume` compares, need not name it.
    evaluation = Evaluation({**model, "strategy": strategy_name(subject)}, settings, results, command)
    if out is not None:
        evaluation = replace(evaluation, results={**kept, **results})
        write_atomic(out / RESULTS, json.dumps(evaluation.to_json(), indent=1, allow_nan=False).encode() + b"\n")
    return evaluation


def file_name(name: str) -> str:
    """A task's name as that of a file: another for each, whatever it holds and however long it is."""
    plain = "".join(one if one.isalnum() or one in "_.-" else "-" for one in name)
    if plain == name.replace(":", "-", 1) and name.find("-") == -1 and len(plain.encode()) <= _NAME:
        return plain
    short = plain.encode()[:_NAME].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _open_out(out: Path, run: dict[str, Any], resume: bool) -> None:
    if out.exists() and not _is_empty(out):
        if not resume:
            raise ValueError(f"--out {out} exists already; say --resume to go on with it, or choose another directory")
        if not (out / RUN).is_file():
            raise ValueError(f"--out {out} holds no evaluation to resume: no {RUN}; choose another directory")
        try:
            there = read_json_object(out / RUN)
        except ValueError as error:
            raise ValueError(f"--out {out} holds no evaluation to resume: {error}; choose another directory") from None
        for name, value in run.items():
            if there.get(name) != value:
                raise ValueError(
                    f"--out {out} is of another evaluation: {name} was {json.dumps(there.get(name))}, and is "
                    f"{json.dumps(value)} now; choose another directory"
                )
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    write_atomic(out / RUN, json.dumps(run, indent=1).encode() + b"\n")


def _kept_results(out: Path) -> dict[str, Any]:
    """Of tasks that an earlier run into the same directory finished."""
    path = out / RESULTS
    if not path.exists():
        return {}
    try:
        results = read_json_object(path, finite=True).get("results")
        if not isinstance(results, dict) or not all(map(is_result, results.values())):
            raise ValueError(f"{path}: holds no results")
    except ValueError as error:
        raise ValueError(f"{error}; remove it and resume with all tasks: their items' records stay") from None
    return results


def _work(task: Task, place: Place, settings: Settings) -> _Work:
    items, requests, left_out = [], [], 0
    taken: dict[str, int] = {}
    seen: set[str] = set()
    for item in task.items(place):
        if item.id in seen:
            raise ValueError(f"task {task}: its data hold item {item.id!r} twice; leave one out")
        seen.add(item.id)
        group = item.groups[task.level] if task.level is not None else ""
        if settings.limit is not None and taken.get(group, 0) >= settings.limit:
            continue
        covering, texts = settings.covered or settings.noise, list(_damaged_texts(task, item))
        if covering is not None and not all(map(covering.covers, texts)):
            left_out += 1
            continue
        taken[group] = taken.get(group, 0) + 1
        damaged = item if settings.noise is None else _damaged(task, item, settings.noise)
        items.append(damaged)
        requests.append(task.requests(damaged))
    if not items:
        reason = f"the noise covers none of its {left_out} items" if left_out else "its data hold no items"
        raise ValueError(f"task {task}: {reason}; give other data, or leave the task out")
    return _Work(task, items, requests, left_out)


def _damaged_texts(task: Task, item: Item) -> Iterator[str]:
    for name in task.damaged:
        value = item[name]
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"task {task}, item {item.id}: {name} = {value!r:.80} is no text, nor a list of texts")
        yield from texts


def _damaged(task: Task, item: Item, noise: Noise) -> Item:
    fields = dict(item.fields)
    for name in task.damaged:
        value, key = fields[name], f"{task.kind}/{item.id}/{name}"
        if isinstance(value, str):
            fields[name] = noise.apply(value, key)
        else:
            fields[name] = [noise.apply(one, f"{key}/{place}") for place, one in enumerate(value)]
    return replace(item, fields=fields)


def _records(subject: Subject, work: _Work, journal: Journal | None) -> Iterator[Record]:
    """The record of every item, as it comes: first those of the journal that asked the same."""
    known = {} if journal is None else journal.known()
    missing = []
    for at, (item, requests) in enumerate(zip(work.items, work.requests, strict=True)):
        record = known.get(item.id)
        if record is not None and record.asked == hash_of(requests) and record.item == hash_of_item(item):
            yield record
        else:
            missing.append(at)
    try:
        with closing(_answered(subject, work, missing)) as answered, closing(_graded(work, answered)) as graded:
            for (at, answers), grade in graded:
                record = Record.of(work.items[at], work.requests[at], answers, grade)
                if journal is not None:
                    journal.add(record)
                yield record
    finally:
        if journal is not None:
            journal.flush()


def _answered(subject: Subject, work: _Work, missing: Sequence[int]) -> Generator[Answered, None, None]:
    for chunk in _chunks(missing, work.requests):
        owners = [(at, place) for at in chunk for place in range(len(work.requests[at]))]
        answers: dict[int, dict[int, Answer]] = {at: {} for at in chunk}
        with closing(_asked(subject, [work.requests[at][place] for at, place in owners])) as found:
            for number, answer in found:
                at, place = owners[number]
                answers[at][place] = answer
                if len(answers[at]) == len(work.requests[at]):
                    own = answers.pop(at)
                    yield at, [own[place] for place in range(len(own))]
        assert not answers, f"no answer to {len(answers)} items"


def _asked(subject: Subject, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
    for number, answer in subject.answers(requests):
        figure = answer.logprob if isinstance(answer, Scored) else answer.nats if isinstance(answer, Coded) else 0.0
        if not math.isfinite(figure):
            raise ValueError(f"{subject.name} gives no finite probabilities; `blt check` looks for the cause in a BLT")
        yield number, answer


def _graded(work: _Work, answered: Iterable[Answered]) -> Generator[tuple[Answered, Grade], None, None]:
    """As they come. Programs are run several at a time, one a processor, while the model writes the next ones."""
    if not work.task.executes:
        for one in answered:
            yield one, work.task.grade(work.items[one[0]], one[1])
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running: dict[Future[Grade], Answered] = {}
        try:
            for one in answered:
                running[pool.submit(work.task.grade, work.items[one[0]], one[1])] = one
                for future in [future for future in running if future.done()]:
                    yield running.pop(future), future.result()
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _chunks(items: Sequence[int], requests: Sequence[Sequence[Request]]) -> Iterator[list[int]]:
    chunk: list[int] = []
    size = 0
    for at in items:
        chunk.append(at)
        size += sum(map(_size, requests[at]))
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _context_figures(requests: Iterable[Sequence[Request]]) -> dict[str, int]:
    """How many requests have a context that can be cut, and the bytes that the longest needs with what follows it."""
    asked = [one for several in requests for one in several if not isinstance(one, Compression)]
    longest = max(
        (
            len(one.context) + (one.max_bytes if isinstance(one, Continuation) else len(one.continuation))
            for one in asked
        ),
        default=0,
    )
    return {"contexts": len(asked), "longest_bytes": longest}


def _size(request: Request) -> int:
    if isinstance(request, Compression):
        return len(request.text)
    return len(request.context) + (0 if isinstance(request, Continuation) else len(request.continuation))
