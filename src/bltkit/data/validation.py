"""Validation batches: the documents that were held back, in a fixed order, shared by the ranks.

Beside the loader, which does the same for training. Notable: sums over all ranks equal one process's sums, and every
rank gets batches of the same shapes, so that ranks that compute together stay in step.
"""

from __future__ import annotations

from collections.abc import Iterator

from bltkit.data.batch import Batch, assemble
from bltkit.data.corpus import Corpus
from bltkit.data.packing import Pieces
from bltkit.data.parts import PartSize, RowPlan


def validation_batches(
    corpus: Corpus,
    row_bytes: int = 2048,
    batch_rows: int = 8,
    max_batches: int | None = None,
    rank: int = 0,
    num_ranks: int = 1,
    *,
    row_patches: int | None = None,
    part_size: PartSize | None = None,
) -> Iterator[Batch]:
    """The validation documents once, in a fixed shuffled order; `max_batches` takes the first ones, always the same.

    batch_rows: of all ranks together; the last batch may have fewer rows. Source weights play no part. A corpus
    without validation documents (a few bytes of text, or validation_fraction = 0) gives no batch.

    Of a batch of n rows every rank gets ceil(n / num_ranks). Where they do not come out even, the last ranks get rows
    of the batch again, without targets: they count for nothing in `text_bytes`, `num_targets` and the loss.
    """
    if batch_rows < 1:
        raise ValueError(f"data.batch_rows: {batch_rows}; use at least 1")
    assert 0 <= rank < num_ranks, (rank, num_ranks)
    plan = RowPlan.validation(corpus, row_bytes, row_patches, part_size)
    return _batches(plan, batch_rows, max_batches, rank, num_ranks)


def _batches(plan: RowPlan, batch_rows: int, max_batches: int | None, rank: int, num_ranks: int) -> Iterator[Batch]:
    for number, rows in enumerate(_chunks(plan, batch_rows)):
        if number == max_batches:
            return
        share = -(-len(rows) // num_ranks)
        first = min(rank * share, len(rows))
        mine = rows[first : first + share]
        batch = assemble(plan.corpus, mine + rows[:1] * (share - len(mine)), plan.row_bytes)
        yield batch.without_targets(len(mine))


def _chunks(plan: RowPlan, batch_rows: int) -> Iterator[list[Pieces]]:
    rows: list[Pieces] = []
    for number in range(plan.num_parts(0)):
        part = plan.part(0, number)
        assert part is not None
        for index in range(len(part)):
            rows.append(part.row(index))
            if len(rows) == batch_rows:
                yield rows
                rows = []
    if rows:
        yield rows
