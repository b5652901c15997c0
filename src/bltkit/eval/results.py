"""From the records of a task to its result: metrics, means over groups, and how sure they are."""

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

from bltkit.eval.records import Record
from bltkit.eval.statistics import Drawn, estimate, mean_of
from bltkit.eval.tasks.task import Task


def result_of(task: Task, records: Sequence[Record], seed: int) -> dict[str, Any]:
    """What the records say, as plain JSON values. seed: of the bootstrap."""
    main = next(iter(task.metrics))
    whole = _estimates(task, records, seed, "")
    levels = dict.fromkeys(level for record in records for level in record.groups)
    groups = {level: _grouped(task, records, seed, level) for level in levels}
    macro = None
    if task.level is not None and task.level in groups:
        by_name = {
            name: {group: own[name] for group, own in groups[task.level].items() if name in own}
            for name in task.metrics
        }
        macro = {name: mean_of(own).to_json() for name, own in by_name.items() if own}
    chosen = macro[main] if task.macro and macro is not None else whole[main].estimate.to_json()
    return {
        "task": str(task),
        "metric": main,
        **chosen,
        "mean_over": task.level if task.macro else "items",
        "better": task.metrics[main].better,
        "highest": task.metrics[main].highest,
        "metrics": {
            name: {
                **drawn.estimate.to_json(),
                "better": task.metrics[name].better,
                "highest": task.metrics[name].highest,
            }
            for name, drawn in whole.items()
        },
        "macro": None if macro is None else {"level": task.level, **macro},
        "groups": {
            level: {
                group: {name: drawn.estimate.to_json() for name, drawn in own.items()} for group, own in found.items()
            }
            for level, found in groups.items()
        },
        "prompt_hash": _prompt_hash(records),
        "shots": task.shots,
        "task_seed": task.seed,
        "cut_contexts": sum(record.cut for record in records),
    }


def _estimates(task: Task, records: Sequence[Record], seed: int, label: str) -> dict[str, Drawn]:
    found = {}
    for name, metric in task.metrics.items():
        items = [record.contributions[name] for record in records if name in record.metrics]
        if items:
            found[name] = estimate(metric, items, (seed, zlib.crc32(f"{task}/{name}/{label}".encode())))
    return found


def _grouped(task: Task, records: Sequence[Record], seed: int, level: str) -> dict[str, dict[str, Drawn]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if level in record.groups:
            groups.setdefault(record.groups[level], []).append(record)
    return {group: _estimates(task, own, seed, f"{level}/{group}") for group, own in sorted(groups.items())}


def _prompt_hash(records: Sequence[Record]) -> str:
    found = hashlib.sha256()
    for record in records:
        found.update(f"{record.id}\0{record.asked}\0".encode())
    return found.hexdigest()
