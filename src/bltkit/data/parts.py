"""The sequence of rows of a run: epoch after epoch, part after part, and a position in it that is a value.

Between packing and the loader. An epoch's documents are shuffled as a whole and cut into parts; one part is packed
at a time, so that memory and the wait before the first row do not grow with the corpus. Notable: what a part holds
is a function of corpus, seed, budgets and its number alone, and a position counts rows of the whole run, not batches
of a rank: resuming packs one part and jumps, whatever the number of ranks or workers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from bltkit.data.corpus import Corpus
from bltkit.data.order import Visits, shuffle, shuffled
from bltkit.data.packing import (
    MIN_ROW_BYTES,
    MIN_ROW_PATCHES,
    Pieces,
    Rows,
    cut,
    cut_patches,
    pack_pieces,
)

_PREPARED_FROM = 2048
"""Pieces of a part from which on the next one is packed in a thread: a few milliseconds of work."""


class Position(NamedTuple):
    """The next row: the row-th of a part of an epoch. `row` may be the part's number of rows: its end."""

    epoch: int
    part: int
    row: int


class PartSize(NamedTuple):
    """Bounds of the packing work that is done at once: a second or two, and some 100 MB.

    documents: of a part, at most. text_bytes: of a part, about (parts are equal shares of an epoch's visits).
    """

    documents: int = 1_000_000
    text_bytes: int = 1 << 30


@dataclass(frozen=True, eq=False)
class Part:
    """The packed rows of one part."""

    pieces: Pieces
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Pieces:
        """The pieces of one row, in the order in which they stand there."""
        return self.pieces.take(self.rows.row(index))


@dataclass(frozen=True, eq=False)
class RowPlan:
    """How visits become rows. `visits(epoch)` gives the documents of an epoch; `row_patches` needs `corpus.opens`."""

    corpus: Corpus
    visits: Callable[[int], Visits]
    visited_bytes: int
    """Text of an epoch, about."""
    row_bytes: int
    row_patches: int | None
    seed: int
    size: PartSize

    @classmethod
    def training(
        cls, corpus: Corpus, row_bytes: int, row_patches: int | None, seed: int, size: PartSize | None = None
    ) -> RowPlan:
        """The training documents, as often as their sources' weights say. `ValueError` for budgets that cannot be."""
        _check_budgets(corpus, row_bytes, row_patches)
        visited = sum((one.num_bytes - one.validation_bytes) * one.weight for one in corpus.stats)
        return cls(corpus, corpus.visits, int(visited), row_bytes, row_patches, seed, size or PartSize())

    @classmethod
    def validation(
        cls, corpus: Corpus, row_bytes: int, row_patches: int | None, size: PartSize | None = None
    ) -> RowPlan:
        """The validation documents, each once, whatever its source's weight. `ValueError` as above."""
        _check_budgets(corpus, row_bytes, row_patches)
        visits = Visits.of(((corpus.validation, 1),))
        held = sum(one.validation_bytes for one in corpus.stats)
        # Small parts: validation often ends after a few batches, and begins anew each time.
        size = size or PartSize(1 << 16, 1 << 25)
        return cls(corpus, lambda epoch: visits, held, row_bytes, row_patches, 0, size)

    def num_parts(self, epoch: int) -> int:
        """Parts of an epoch; 0 where nothing is visited in it (small weights)."""
        return self._num_parts(len(self.visits(epoch)))

    def _num_parts(self, visits: int) -> int:
        wanted = max(-(-visits // self.size.documents), -(-self.visited_bytes // self.size.text_bytes))
        return min(visits, wanted)

    def part(self, epoch: int, number: int) -> Part | None:
        """Packs one part; None beyond the epoch's last.

        Rows are shuffled after packing: packing puts the full ones in front and leaves the emptier ones to the end.
        """
        visits = self.visits(epoch)
        parts = self._num_parts(len(visits))
        if number >= parts:
            return None
        first, last = len(visits) * number // parts, len(visits) * (number + 1) // parts
        documents = visits.documents(shuffled(first, last, len(visits), self.seed, epoch, 0))
        corpus = self.corpus
        starts, stops = corpus.offsets[documents], corpus.offsets[documents + 1]
        if self.row_patches is None:
            pieces = cut(starts, stops, self.row_bytes)
        else:
            assert corpus.opens is not None and corpus.num_opens is not None
            corpus.verify(starts, stops - starts)
            pieces = cut_patches(
                starts, stops, self.row_bytes, self.row_patches, corpus.opens, corpus.num_opens[documents]
            )
        rows = pack_pieces(pieces, self.row_bytes, self.row_patches)
        return Part(pieces, rows.take(shuffle(len(rows), self.seed, epoch, 1, number)))

    def after(self, position: Position) -> tuple[Position, Part | None]:
        """The beginning of the part after the position's, and that part; None where its epoch is empty."""
        epoch, number, _ = position
        part = self.part(epoch, number + 1)
        if part is not None:
            return Position(epoch, number + 1, 0), part
        return Position(epoch + 1, 0, 0), self.part(epoch + 1, 0)


class Walk:
    """Walks over the rows of a plan from a position on, for ever. Packs the next part while this one is used."""

    def __init__(self, plan: RowPlan, position: Position) -> None:
        """Raises `ValueError` for a position that the plan does not have."""
        self.plan, self.position = plan, position
        part = plan.part(position.epoch, position.part)
        rows = 0 if part is None else len(part)
        # An epoch without rows has the position of its beginning, too.
        if position.row > rows or (part is None and position.part > 0):
            raise ValueError(
                f"loader state: row {position.row} is not in part {position.part} of epoch {position.epoch}, "
                f"which has {rows} rows"
            )
        self._part, self._thread = part, ThreadPoolExecutor(1, "packing")
        self._next = self._prepare()

    def take(self, count: int) -> list[Pieces]:
        """The next `count` rows; the position moves behind them."""
        found = []
        for _ in range(count):
            part, row = self._advance(1)
            found.append(part.row(row - 1))
        return found

    def skip(self, count: int) -> None:
        """Moves the position by `count` rows."""
        while count > 0:
            before = self.position
            _, row = self._advance(count)
            count -= row - before.row if self.position[:2] == before[:2] else row

    def _advance(self, at_most: int) -> tuple[Part, int]:
        """Moves by 1 to `at_most` rows within one part; the part, and the position in it."""
        while self._part is None or self.position.row == len(self._part):
            following = self._next
            self.position, self._part = self.plan.after(self.position) if following is None else following.result()
            self._next = self._prepare()
        row = min(self.position.row + at_most, len(self._part))
        self.position = self.position._replace(row=row)
        return self._part, row

    def _prepare(self) -> Future[tuple[Position, Part | None]] | None:
        if self._part is None or len(self._part.pieces) < _PREPARED_FROM:
            return None
        return self._thread.submit(self.plan.after, self.position)


def _check_budgets(corpus: Corpus, row_bytes: int, row_patches: int | None) -> None:
    if row_bytes < MIN_ROW_BYTES:
        raise ValueError(f"data.row_bytes: {row_bytes} is too short; use at least {MIN_ROW_BYTES}")
    if row_patches is None:
        return
    if row_patches < MIN_ROW_PATCHES:
        raise ValueError(f"data.row_patches: {row_patches} is too few; use at least {MIN_ROW_PATCHES}")
    if corpus.opens is None:
        raise ValueError(
            f"data.row_patches: {row_patches}, but the sources store no patch starts to count; annotate them "
            '(`blt annotate`) and read them with kind = "annotated", or leave row_patches out'
        )
