"""Runs compared item by item: how much better one is than another on what both answered, and how sure that is.

Items are compared where they are the same question with the same right answer. Settings that differ on purpose (noise,
shots, the limit, the model's window, the strategy) are named beside the difference; items that were asked otherwise
without such a setting, or whose right answers differ, are refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bltkit.eval.report.differences import Difference, paired
from bltkit.eval.report.stored_runs import StoredEntry, StoredRun, TaskResult, item_value, read_run, right
from bltkit.eval.report.words import counted, interval, signed

MAX_RUNS = 8


@dataclass(frozen=True)
class TaskPair:
    """A task in the first run and in another.

    reasons: why the two are not compared; then nothing else is known but how many items are common.
    settings: what differs between the two runs by setting, and does not keep them from being compared.
    unknown: metrics of both without a difference, because nobody here knows what value their sums make.
    first_better, other_better: ids of items, by the main metric; alike: how many are neither, and both_right of these.
    """

    task: str
    other: int
    common: int
    only_first: int
    only_other: int
    reasons: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    unknown: tuple[str, ...] = ()
    first_better: tuple[str, ...] = ()
    other_better: tuple[str, ...] = ()
    alike: int = 0
    both_right: int | None = None


@dataclass(frozen=True)
class RunComparison:
    """Runs, what they are called here, and each of the others against the first, task by task."""

    runs: tuple[StoredRun, ...]
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    pairs: tuple[TaskPair, ...] = field(default=())

    def of(self, other: int) -> list[TaskPair]:
        """One run's pairs with the first."""
        return [pair for pair in self.pairs if pair.other == other]

    def summary(self) -> str:
        """A line for each difference, or the reasons for none."""
        lines = [
            f"{label} and {self.labels[0]}: no task in common"
            for other, label in enumerate(self.labels)
            if other and not self.of(other)
        ]
        for pair in self.pairs:
            where = f"{pair.task}, {self.labels[pair.other]} less {self.labels[0]}"
            lines += [f"{where}: not compared, {reason}" for reason in pair.reasons]
            lines += [f"{where}: {setting}" for setting in pair.settings]
            for one in pair.differences:
                name = one.metric if one.level is None else f"{one.metric} by {one.level}"
                ends = one.method if one.interval is None else interval(one.interval, one.highest, sign=True)
                gain = signed(one.value, one.highest)
                lines.append(f"{where}: {name} {gain}, {ends}, {one.statement}, {counted(one.n, 'item')}")
        return "".join(f"{line}\n" for line in lines).replace("\u2212", "-")

    def to_json(self) -> dict[str, Any]:
        """Plain values: the runs, and for each task and other run the differences, or the reasons for none."""
        return {
            "runs": [
                {"label": label, "directory": str(run.directory), "model": run.results.model.model_dump()}
                for label, run in zip(self.labels, self.runs, strict=True)
            ],
            "pairs": [
                {
                    "task": pair.task,
                    "first": self.labels[0],
                    "other": self.labels[pair.other],
                    "common": pair.common,
                    "not_compared": list(pair.reasons),
                    "settings": list(pair.settings),
                    "first_better": len(pair.first_better),
                    "other_better": len(pair.other_better),
                    "alike": pair.alike,
                    "unknown": list(pair.unknown),
                    "differences": [
                        {
                            "metric": one.metric,
                            "macro": one.level,
                            "n": one.n,
                            "first": one.first,
                            "other": one.other,
                            "difference": one.value,
                            "interval": None if one.interval is None else list(one.interval),
                            "interval_method": one.method,
                            "statement": one.statement,
                        }
                        for one in pair.differences
                    ],
                }
                for pair in self.pairs
            ],
        }


def compare(directories: Sequence[Path]) -> RunComparison:
    """Read evaluations and compare each with the first.

    Raises ValueError for fewer than two or more than MAX_RUNS, the same one twice, and a directory that holds none.
    """
    if not 2 <= len(directories) <= MAX_RUNS:
        raise ValueError(f"{len(directories)} evaluations given; a comparison takes 2 to {MAX_RUNS}")
    runs = tuple(read_run(Path(one)) for one in directories)
    labels = _labels(runs)
    tasks = tuple(dict.fromkeys(task for run in runs for task in run.results.results))
    pairs = [
        _pair(runs[0], run, task, at)
        for at, run in enumerate(runs[1:], 1)
        for task in tasks
        if task in runs[0].results.results and task in run.results.results
    ]
    return RunComparison(runs, labels, tasks, tuple(pairs))


def _labels(runs: Sequence[StoredRun]) -> tuple[str, ...]:
    """The models' names, with as much behind them as it takes to tell them apart."""
    places = [run.directory.resolve() for run in runs]
    if len(set(places)) < len(places):
        twice = next(run.directory for run, place in zip(runs, places, strict=True) if places.count(place) > 1)
        raise ValueError(f"{twice} is given twice; name different evaluations")
    names = [run.results.model.name for run in runs]
    noisy = [
        name + (f", {run.results.noise}" if run.results.noise else "") for name, run in zip(names, runs, strict=True)
    ]
    placed = [f"{name} ({run.directory.name})" for name, run in zip(noisy, runs, strict=True)]
    full = [f"{name} ({place})" for name, place in zip(noisy, places, strict=True)]
    return tuple(next(some for some in (names, noisy, placed, full) if len(set(some)) == len(some)))


def _pair(first: StoredRun, other: StoredRun, task: str, at: int) -> TaskPair:
    one, two = first.results.results[task], other.results.results[task]
    mine, theirs = first.entries[task], other.entries[task]
    ids = [item for item in mine if item in theirs]
    counts = (len(ids), len(mine) - len(ids), len(theirs) - len(ids))
    asked_alike = _noise(first) == _noise(other) and one.shots == two.shots
    reasons = _refused(mine, theirs, ids, asked_alike)
    if reasons:
        return TaskPair(task, at, *counts, reasons)
    settings = _settings(first, other, one, two, counts)
    differences = paired(one, mine, theirs, ids, two.metrics)
    sign = 1 if one.better == "higher" else -1
    values = [(item, _value(mine, item, one.metric), _value(theirs, item, one.metric)) for item in ids]
    known = [(item, sign * b - sign * a) for item, a, b in values if a is not None and b is not None]
    best = [right(mine[item].metrics.get(one.metric), one.better, one.highest) for item, gain in known if gain == 0]
    return TaskPair(
        task,
        at,
        *counts,
        settings=settings,
        differences=differences,
        unknown=tuple(
            name for name in one.metrics if name in two.metrics and name not in {done.metric for done in differences}
        ),
        first_better=tuple(item for item, gain in known if gain < 0),
        other_better=tuple(item for item, gain in known if gain > 0),
        alike=len(best),
        both_right=None if None in best else sum(map(bool, best)),
    )


def _value(entries: Mapping[str, StoredEntry], item: str, metric: str) -> float | None:
    return item_value(entries[item].metrics.get(metric))


def _settings(
    first: StoredRun, other: StoredRun, one: TaskResult, two: TaskResult, counts: tuple[int, int, int]
) -> tuple[str, ...]:
    """What was set differently, as far as the results say; results of version 0.1.0 name no window and no strategy."""
    said = []
    noises = _noise(first), _noise(other)
    if noises[0] != noises[1]:
        said.append(f"noise differs: {noises[0]} and {noises[1]}; `blt study robustness` measures it at intensities")
    if one.shots != two.shots:
        said.append(f"shots differ: {one.shots} and {two.shots}")
    windows = [None if task.window is None else f"{task.window.size:,} {task.window.unit}" for task in (one, two)]
    if windows[0] != windows[1] and None not in windows:
        cuts = f"{one.cut_contexts:,} and {two.cut_contexts:,} contexts are cut"
        said.append(f"the models are shown {windows[0]} and {windows[1]} at once, {cuts}")
    strategies = first.results.model.strategy, other.results.model.strategy
    if strategies[0] != strategies[1] and None not in strategies:
        said.append(f"the strategy differs: {strategies[0]} and {strategies[1]}")
    common, *only = counts
    if any(only):
        limits = ["none" if run.results.limit is None else f"{run.results.limit:,}" for run in (first, other)]
        why = f" (limits {limits[0]} and {limits[1]})" if limits[0] != limits[1] else ""
        said.append(f"{counted(common, 'item')} of both are compared, {only[0]:,} and {only[1]:,} are in one only{why}")
    return tuple(said)


def _noise(run: StoredRun) -> str:
    covered = f" (items covered by {run.results.covered})" if run.results.covered else ""
    return (run.results.noise or "none") + covered


def _refused(
    mine: Mapping[str, StoredEntry], theirs: Mapping[str, StoredEntry], ids: Sequence[str], asked_alike: bool
) -> tuple[str, ...]:
    """Why the common items are not the same ones. asked_alike: no setting explains that a prompt differs."""
    if not ids:
        return ("no item is in both",)
    other_prompts = [item for item in ids if mine[item].asked != theirs[item].asked]
    if asked_alike and other_prompts:
        return (
            f"prompts or data differ: {len(other_prompts):,} of {len(ids):,} common items were asked otherwise, "
            f"such as {_named(other_prompts)}",
        )
    # A changed prompt is expected then; a changed answer shows that the item is another one.
    other_gold = [item for item in other_prompts if mine[item].gold != theirs[item].gold]
    if other_gold:
        return (
            f"data differ: {len(other_gold):,} of {len(ids):,} common items have another right answer, "
            f"such as {_named(other_gold)}",
        )
    return ()


def _named(items: Sequence[str]) -> str:
    """The first few items, by name."""
    return ", ".join(repr(item)[:60] for item in items[:3])
