"""The loader: corpus -> batches of ids and targets, for ever, with a position that is a value.

The last station before the model. An epoch's order is a function of (seed, epoch) alone, so a position is
three integers: resuming recomputes the epoch's order and jumps, and continues bit for bit as if nothing had
happened. The position counts rows of the whole run and not batches of a rank, so it also holds when batch
size or number of ranks change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from bltkit.data.corpus import Corpus
from bltkit.data.packing import Indices, Pieces, Rows, cut, pack, ranges, shuffle
from bltkit.vocab import BOS, EOS, OFFSET, PAD

IGNORE = -100
"""The target of a position that predicts nothing; the default `ignore_index` of torch's cross-entropy."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B packed rows of T ids.

    ids          Int64 [B, T], documents as BOS bytes EOS one after another, then PAD
    targets      Int64 [B, T], targets[:, t] = ids[:, t + 1]; -100 where that is PAD or BOS or beyond the row
    num_bytes    Int64 [B], row positions before the padding (BOS and EOS count)
    text_bytes   targets that are bytes of text, in all rows: what bits per byte divides by
    num_targets  targets that are not -100: text_bytes plus the EOS
    """

    ids: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    num_bytes: Int64[Tensor, " B"]
    text_bytes: int
    num_targets: int

    @classmethod
    def from_ids(cls, ids: Int64[Tensor, "B T"]) -> Batch:
        """The batch of rows `ids` (on the CPU), which hold padding only at their ends."""
        targets = torch.full_like(ids, IGNORE)
        targets[:, :-1] = ids[:, 1:]
        targets[(targets == PAD) | (targets == BOS)] = IGNORE
        return cls(
            ids=ids,
            targets=targets,
            num_bytes=(ids != PAD).sum(-1),
            text_bytes=int((targets >= OFFSET).sum()),
            num_targets=int((targets != IGNORE).sum()),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; the counts stay plain integers, so nothing waits for the device."""
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in ("ids", "targets", "num_bytes")}
        return replace(self, **move)


class Loader:
    """Batches of training rows, epoch after epoch. An iterator; `state` is the position of the next batch.

    Rows of successive epochs follow one another without a gap, so every batch has exactly `batch_rows`
    rows. Of each num_ranks * batch_rows rows, rank r takes the r-th `batch_rows`.
    """

    def __init__(
        self,
        corpus: Corpus,
        row_bytes: int = 2048,
        batch_rows: int = 8,
        seed: int = 0,
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        _check_shape(row_bytes, batch_rows)
        if seed < 0:
            raise ValueError(f"trainer.seed: {seed} is negative; use 0 or more")
        assert 0 <= rank < num_ranks, (rank, num_ranks)
        if not len(corpus.train):
            raise ValueError("data: no training documents; lower data.validation_fraction or add documents")
        self.corpus, self.row_bytes, self.batch_rows, self.seed = corpus, row_bytes, batch_rows, seed
        self._rank, self._num_ranks = rank, num_ranks
        self._pieces = cut(corpus.offsets, row_bytes)
        self._epoch, self._row = 0, 0
        self._rows = self._epoch_rows(0)

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0."""
        return self._epoch

    @property
    def rows_in_epoch(self) -> int:
        """Rows of the current epoch, over all ranks."""
        return len(self._rows)

    @property
    def state(self) -> dict[str, Any]:
        """The position of the next batch; the same on every rank. Plain JSON values."""
        return {
            "epoch": self._epoch,
            "row": self._row,
            "seed": self.seed,
            "row_bytes": self.row_bytes,
            "fingerprint": self.corpus.fingerprint,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Jumps to a position that `state` gave. `ValueError` if it belongs to other data or order."""
        if state["fingerprint"] != self.corpus.fingerprint:
            raise ValueError(
                f"data.sources: the saved position belongs to another corpus ({state['fingerprint'][:12]}, "
                f"this one is {self.corpus.fingerprint[:12]}): files, weights or validation_fraction "
                "changed; set them back, or start a new run"
            )
        for name, where in (("row_bytes", "data.row_bytes"), ("seed", "trainer.seed")):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{where}: {getattr(self, name)}, but the saved position was made with {state[name]}; "
                    "set it back, or start a new run"
                )
        epoch, row = int(state["epoch"]), int(state["row"])
        if epoch < 0:
            raise ValueError(f"loader state: epoch {epoch} is negative")
        rows = self._rows if epoch == self._epoch else self._epoch_rows(epoch)
        if not 0 <= row <= len(rows):
            raise ValueError(f"loader state: row {row} is not in epoch {epoch} of {len(rows)} rows")
        self._epoch, self._row, self._rows = epoch, row, rows

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        first = self._rank * self.batch_rows
        rows = [self._next_row() for _ in range(self.batch_rows * self._num_ranks)]
        return _assemble(self.corpus, self._pieces, rows[first : first + self.batch_rows], self.row_bytes)

    def _next_row(self) -> Indices:
        while self._row == len(self._rows):  # small fractional weights can leave an epoch empty
            self._rows = self._epoch_rows(self._epoch + 1)
            self._epoch, self._row = self._epoch + 1, 0
        row = self._rows.row(self._row)
        self._row += 1
        return row

    def _epoch_rows(self, epoch: int) -> Rows:
        pieces = self._pieces.of_documents(self.corpus.visits(epoch))
        return _shuffled_rows(self._pieces, pieces, self.row_bytes, self.seed, epoch)


def validation_batches(
    corpus: Corpus, row_bytes: int = 2048, batch_rows: int = 8, max_batches: int | None = None
) -> Iterator[Batch]:
    """The validation documents once, in a fixed shuffled order; `max_batches` takes the first ones, always
    the same.

    The last batch may have fewer rows. Source weights play no part. A corpus without validation documents
    (a single document, or validation_fraction = 0) gives no batch.
    """
    _check_shape(row_bytes, batch_rows)
    pieces = cut(corpus.offsets, row_bytes)
    rows = _shuffled_rows(pieces, pieces.of_documents(corpus.validation), row_bytes, 0, 0)
    stop = len(rows) if max_batches is None else min(len(rows), max_batches * batch_rows)
    for start in range(0, stop, batch_rows):
        chosen = [rows.row(index) for index in range(start, min(start + batch_rows, stop))]
        yield _assemble(corpus, pieces, chosen, row_bytes)


def _shuffled_rows(pieces: Pieces, chosen: Indices, row_bytes: int, seed: int, epoch: int) -> Rows:
    """Shuffles pieces, packs them, and shuffles the rows: packing leaves the emptier ones to the end."""
    order = chosen[shuffle(len(chosen), seed, epoch, 0)]
    sizes = pieces.size[order]
    full = sizes == row_bytes  # rows by themselves, most of them in long documents: no loop over those
    rest = pack(order[~full], sizes[~full], row_bytes)
    flat = np.concatenate([order[full], rest.pieces])
    num_full = int(full.sum())
    bounds = np.concatenate([np.arange(num_full), rest.bounds + num_full])
    rows = shuffle(len(bounds) - 1, seed, epoch, 1)
    counts = np.diff(bounds)[rows]
    return Rows(flat[ranges(bounds[rows], counts)], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _assemble(corpus: Corpus, pieces: Pieces, rows: Sequence[Indices], row_bytes: int) -> Batch:
    ids = np.full((len(rows), row_bytes), PAD, dtype=np.int64)
    for row, members in zip(ids, rows, strict=True):
        at = 0
        for piece in members:
            start, length = pieces.start[piece], pieces.length[piece]
            row[at] = BOS
            row[at + 1 : at + 1 + length] = corpus.data[start : start + length]
            row[at + 1 : at + 1 + length] += OFFSET
            at += 1 + length
            if pieces.ends[piece]:
                row[at] = EOS
                at += 1
    return Batch.from_ids(torch.from_numpy(ids))


def _check_shape(row_bytes: int, batch_rows: int) -> None:
    if row_bytes < 8:
        raise ValueError(f"data.row_bytes: {row_bytes} is too short; use at least 8")
    if batch_rows < 1:
        raise ValueError(f"data.batch_rows: {batch_rows}; use at least 1")
