"""Evaluation tasks (seam 5), and the one line that registers each: its place in `Tasks`."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import Field

from bltkit.config import nearest, parse, parse_value
from bltkit.eval.tasks.arc import ArcChallenge, ArcEasy
from bltkit.eval.tasks.arithmetic import Arithmetic
from bltkit.eval.tasks.blimp import Blimp
from bltkit.eval.tasks.boolq import BoolQ
from bltkit.eval.tasks.bpb import BitsPerByte
from bltkit.eval.tasks.cute import Cute
from bltkit.eval.tasks.g2p import G2p
from bltkit.eval.tasks.gsm8k import Gsm8k
from bltkit.eval.tasks.hellaswag import HellaSwag
from bltkit.eval.tasks.humaneval import HumanEval
from bltkit.eval.tasks.lambada import Lambada
from bltkit.eval.tasks.mbpp import Mbpp
from bltkit.eval.tasks.mmlu import Mmlu
from bltkit.eval.tasks.openbookqa import OpenBookQa
from bltkit.eval.tasks.paired import PairedTexts
from bltkit.eval.tasks.piqa import Piqa
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.eval.tasks.translation import Translation
from bltkit.eval.tasks.utf8 import Utf8
from bltkit.eval.tasks.winogrande import Winogrande

Tasks = Annotated[
    ArcEasy
    | ArcChallenge
    | Piqa
    | OpenBookQa
    | HellaSwag
    | Winogrande
    | BoolQ
    | Mmlu
    | Lambada
    | Blimp
    | Gsm8k
    | HumanEval
    | Mbpp
    | Cute
    | G2p
    | Translation
    | Arithmetic
    | Utf8
    | BitsPerByte
    | PairedTexts,
    Field(discriminator="kind"),
]

TASKS: dict[str, type[Task]] = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Tasks)[0])}
"""By name."""


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
