"""Small rows of every task, written for this project, and what a model that knows everything answers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bltkit.eval.dataset_source import Place
from bltkit.eval.tasks import TASKS, Item
from tests import eval_rows_choices, eval_rows_paired, eval_rows_programs, eval_rows_writing

_PIECES = (eval_rows_choices, eval_rows_writing, eval_rows_programs, eval_rows_paired)

_ROWS = {kind: files for piece in _PIECES for kind, files in piece.ROWS.items()}
ROWS: dict[str, Mapping[str, str]] = {kind: _ROWS.get(kind) or task.example() for kind, task in TASKS.items()}
"""By kind: file name -> content, in the task's local format; a task may bring its own (`Task.example`)."""

PUBLISHED = frozenset(_ROWS) - {"bpb", "paired"}
"""Tasks with a published set, of which the larger reference data hold a part; or that need none."""

_TRUTHS = {kind: truth for piece in _PIECES for kind, truth in piece.TRUTHS.items()}
TRUTHS: dict[str, Callable[[Item], list[Any]]] = {
    kind: _TRUTHS.get(kind) or (lambda item, task=task: list(task().truths(item))) for kind, task in TASKS.items()
}
"""By kind: from an item's raw fields the right answers to its requests, in order: what a generation writes (as bytes
where that is no text of its own), and whether a continuation or text is the right one."""


def place_of(directory: Path, *kinds: str) -> Place:
    """A place with the rows of these kinds."""
    for kind in kinds:
        for name, text in ROWS[kind].items():
            path = directory / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text, encoding="utf-8")
    return Place.of([directory])
