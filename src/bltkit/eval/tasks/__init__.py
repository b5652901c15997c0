"""Evaluation tasks (seam 6). A new task is its own file and a line in `TASKS`."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from bltkit.config import nearest, parse, parse_value
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.registry import Registry

TASKS = Registry(
    "task",
    Task,
    "bltkit.eval.tasks.arc:ArcEasy",
    "bltkit.eval.tasks.arc:ArcChallenge",
    "bltkit.eval.tasks.piqa:Piqa",
    "bltkit.eval.tasks.openbookqa:OpenBookQa",
    "bltkit.eval.tasks.hellaswag:HellaSwag",
    "bltkit.eval.tasks.winogrande:Winogrande",
    "bltkit.eval.tasks.boolq:BoolQ",
    "bltkit.eval.tasks.mmlu:Mmlu",
    "bltkit.eval.tasks.lambada:Lambada",
    "bltkit.eval.tasks.blimp:Blimp",
    "bltkit.eval.tasks.gsm8k:Gsm8k",
    "bltkit.eval.tasks.humaneval:HumanEval",
    "bltkit.eval.tasks.mbpp:Mbpp",
    "bltkit.eval.tasks.cute:Cute",
    "bltkit.eval.tasks.g2p:G2p",
    "bltkit.eval.tasks.translation:Translation",
    "bltkit.eval.tasks.arithmetic:Arithmetic",
    "bltkit.eval.tasks.utf8:Utf8Task",
    "bltkit.eval.tasks.bpb:BitsPerByte",
    "bltkit.eval.tasks.paired:PairedTexts",
)
"""Every task by its kind."""

Tasks = Annotated[Task, TASKS]
"""Any task; as the type of a config field it reads `{kind = "hellaswag", shots = 5}`."""


def parse_task(text: str) -> Task:
    """`NAME`, or `NAME:` and, between commas, parts and `field=value`: `cute:spell,shots=2`, `mmlu:astronomy`.

    Raises ValueError with one line for a name, a field or a value that is not known.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in TASKS:
        raise ValueError(f"no task {name!r}{nearest(name, list(TASKS))}")
    fields: dict[str, Any] = {}
    parts: list[str] = []
    for word in filter(None, _words(rest)):
        key, equals, value = word.partition("=")
        if not equals:
            parts.append(word)
        elif key.strip() in fields:
            raise ValueError(f"task {text}: {key.strip()} is given twice")
        else:
            fields[key.strip()] = parse_value(value.strip())
    found: Task = parse(TASKS[name], {**fields, **({"part": tuple(parts)} if parts else {})}, f"task {name}")
    return found


def _words(text: str) -> list[str]:
    """What commas separate, those in square brackets excepted: `samples=10,k=[1,10]` has two."""
    return [word.strip() for word in re.split(r",(?![^\[\]]*\])", text)]


def parse_tasks(texts: Sequence[str]) -> tuple[Task, ...]:
    """Lists of tasks between commas. A word behind `NAME:` that is no task's name belongs to NAME.

    `cute:spell,shots=2,arc_easy` are two. Raises ValueError as `parse_task`.
    """
    found: list[str] = []
    for word in (word for text in texts for word in _words(text)):
        if found and ":" in found[-1] and word.partition(":")[0] not in TASKS:
            found[-1] += f",{word}"
        elif word:
            found.append(word)
    return tuple(map(parse_task, found))


__all__ = ["TASKS", "Grade", "Item", "Metric", "Task", "Tasks", "parse_task", "parse_tasks"]
