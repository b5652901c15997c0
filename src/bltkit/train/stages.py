"""Rows of one size after another: short ones at the beginning of a run, long ones at its end (`data.stages`).

A loader has rows of one size; here the next takes over from it where the schedule says so. What is saved is the
position of the loader in use, so a run resumes in any stage, and the stage follows from the step.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bltkit.data import Batch, Corpus, DataConfig, Loader
from bltkit.data.batch import Waste
from bltkit.data.corpus import RowShape
from bltkit.data.parts import PartSize

_PARTS = 16
"""Parts of an epoch in a run with stages: rows are cut part by part, so what is left of one is left out when a stage
begins, a thirty-second of an epoch on average."""


def part_size(corpus: Corpus, data: DataConfig) -> PartSize | None:
    """How much of the corpus is cut into rows at once; None for the loader's default."""
    if not data.stages:
        return None
    visited = sum((stats.num_bytes - stats.validation_bytes) * stats.weight for stats in corpus.stats)
    return PartSize(text_bytes=max(1, -(-int(visited) // _PARTS)))


class StagedLoader:
    """Batches of training rows, for ever; `move_to` begins the stage of a step."""

    def __init__(self, data: DataConfig, loader_of: Callable[[RowShape], Loader]) -> None:
        """Stands at the first batch of the first stage. Raises ValueError for a stage whose rows cannot be."""
        self._data, self._loader_of = data, loader_of
        for shape in data.shapes[1:]:
            loader_of(shape)  # what cannot be shows before the first step
        self._shape = data.shapes[0]
        self._loader = loader_of(self._shape)

    @property
    def state(self) -> dict[str, Any]:
        """The position of the next batch, as plain JSON values."""
        return self._loader.state

    @property
    def epoch(self) -> int:
        """The epoch of the last row."""
        return self._loader.epoch

    @property
    def waste(self) -> Waste:
        """Padding in this stage since this process began."""
        return self._loader.waste

    def move_to(self, step: int, schedule_steps: int) -> None:
        """Continue with the rows of update number `step` (from 0)."""
        shape = self._data.shape_at(step, schedule_steps)
        if shape != self._shape:
            before = self._loader
            self._take(shape)
            self._loader.follow(before)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Jump to a position that `state` gave. Raises ValueError where it belongs to other data or rows."""
        for shape in self._data.shapes:
            if (shape.row_bytes, shape.row_patches) == (state["row_bytes"], state["row_patches"]):
                self._take(shape)
                break
        self._loader.restore(state)

    def close(self) -> None:
        """End the workers; the next batch starts them again."""
        self._loader.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._loader)

    def _take(self, shape: RowShape) -> None:
        if shape != self._shape:
            self._loader.close()
            self._loader, self._shape = self._loader_of(shape), shape
