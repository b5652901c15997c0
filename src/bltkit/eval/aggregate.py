"""From the records of a task to its result: metrics, means over groups, their intervals, and what guessing scores."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bltkit.eval.item_log import Record
from bltkit.eval.statistics import NO_ITEMS, Drawn, Estimate, estimate, mean_of
from bltkit.eval.tasks.task import Task

Chance = Mapping[str, float | None]
"""What guessing scores on an item, by metric (`Task.chance`)."""


@dataclass(frozen=True)
class _Measured:
    """A metric over some items, and the chance level of the same items."""

    drawn: Drawn
    chance: float | None

    def to_json(self) -> dict[str, Any]:
        return {**self.drawn.estimate.to_json(), "chance": self.chance}


def result_of(task: Task, records: Sequence[Record], chances: Sequence[Chance], seed: int) -> dict[str, Any]:
    """The result of a task as plain JSON values.

    chances: of each record's item, in the same order. seed: of the bootstrap.
    """
    main = next(iter(task.metrics))
    items = list(zip(records, chances, strict=True))
    whole = _estimates(task, items, seed, "")
    levels = dict.fromkeys(level for record in records for level in record.groups)
    groups = {level: _grouped(task, items, seed, level) for level in levels}
    macro = None
    if task.level is not None and task.level in groups:
        by_name = {
            name: [measured[name] for measured in groups[task.level].values() if name in measured]
            for name in task.metrics
        }
        macro = {name: _macro(measured) for name, measured in by_name.items() if measured}
    chosen = whole[main].to_json() if main in whole else {**NO_ITEMS.to_json(), "chance": None}
    if task.macro and macro is not None and main in macro:
        chosen = macro[main]
    return {
        "task": str(task),
        "metric": main,
        **chosen,
        "mean_over": task.level if task.macro else "items",
        "better": task.metrics[main].better,
        "highest": task.metrics[main].highest,
        "metrics": {
            name: {
                **measured.to_json(),
                "better": task.metrics[name].better,
                "highest": task.metrics[name].highest,
            }
            for name, measured in whole.items()
        },
        "macro": None if macro is None else {"level": task.level, **macro},
        "groups": {
            level: {
                group: {name: one.to_json() for name, one in measured.items()} for group, measured in by_group.items()
            }
            for level, by_group in groups.items()
        },
        "prompt_hash": _prompt_hash(records),
        "shots": task.shots,
        "task_seed": task.seed,
        "cut_contexts": sum(record.cut for record in records),
        "cut_items": sum(record.cut > 0 for record in records),
    }


def is_result(value: Any) -> bool:
    """Whether a value out of results.json has what a table shows of a result."""
    if not isinstance(value, Mapping):
        return False
    ends = value.get("interval")
    figures = [value.get("value"), *(ends if isinstance(ends, list) else [])]
    return (
        isinstance(value.get("n"), int)
        and isinstance(value.get("metric"), str)
        and (ends is None or (isinstance(ends, list) and len(ends) == 2))
        and all(figure is None or isinstance(figure, int | float) for figure in figures)
    )


def cut_warning(name: str, result: Mapping[str, Any]) -> str | None:
    """One line where contexts of a task were cut, with the remedy; None where none was.

    result: a task's part of results.json; name: what the task is called in the line.
    """
    cut = result["cut_contexts"]
    if not cut:
        return None
    window, contexts = result.get("window"), result.get("contexts")
    counted = f"{cut:,} of {contexts:,} contexts" if contexts else f"{cut:,} contexts"
    said = f"warning: {name}: {counted} lost their beginning"
    if window is None:
        return said
    said += f", the model is shown {window['size']:,} {window['unit']} at once"
    remedies = [f"--context {result['longest_bytes']} shows all of the longest"] if window["unit"] == "bytes" else []
    remedies += ["fewer shots shorten them"] if result.get("shots") else []
    return f"{said}; {', '.join(remedies)}" if remedies else f"{said}, which is its limit"


def mean_chance(chances: Iterable[float | None]) -> float | None:
    """The mean; None where there is nothing to average, or a part of it has no chance level."""
    levels = list(chances)
    with_level = [level for level in levels if level is not None]
    return sum(with_level) / len(levels) if levels and len(with_level) == len(levels) else None


def _macro(groups: Sequence[_Measured]) -> dict[str, Any]:
    mean: Estimate = mean_of({str(at): group.drawn for at, group in enumerate(groups)})
    return {**mean.to_json(), "chance": mean_chance(group.chance for group in groups)}


def _estimates(task: Task, items: Sequence[tuple[Record, Chance]], seed: int, label: str) -> dict[str, _Measured]:
    estimates = {}
    for name, metric in task.metrics.items():
        graded = [(record, chance) for record, chance in items if name in record.metrics]
        if graded:
            drawn = estimate(
                metric,
                [record.contributions[name] for record, _ in graded],
                (seed, zlib.crc32(f"{task}/{name}/{label}".encode())),
            )
            estimates[name] = _Measured(drawn, mean_chance(chance.get(name) for _, chance in graded))
    return estimates


def _grouped(
    task: Task, items: Sequence[tuple[Record, Chance]], seed: int, level: str
) -> dict[str, dict[str, _Measured]]:
    groups: dict[str, list[tuple[Record, Chance]]] = {}
    for record, chance in items:
        if level in record.groups:
            groups.setdefault(record.groups[level], []).append((record, chance))
    return {group: _estimates(task, members, seed, f"{level}/{group}") for group, members in sorted(groups.items())}


def _prompt_hash(records: Sequence[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.id}\0{record.asked}\0".encode())
    return digest.hexdigest()
