"""A batch: packed rows of ids with their targets and, where they are stored, the patches' starts.

What the loader hands to the trainer. Assembled for a whole batch at once by index arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from bltkit.data.corpus import Corpus
from bltkit.data.order import Indices, ranges
from bltkit.data.packing import Pieces
from bltkit.vocab import BOS, EOS, OFFSET, PAD

IGNORE = -100
"""The target of a position that predicts nothing; the default `ignore_index` of torch's cross-entropy."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B packed rows of T ids.

    ids          Int64 [B, T], documents as BOS bytes EOS one after another, then PAD
    targets      Int64 [B, T], targets[:, t] = ids[:, t + 1]; -100 where that is PAD or BOS or beyond the row, and
                 where it is not to be learned (`Document.learned`)
    num_bytes    Int64 [B], row positions before the padding (BOS and EOS count)
    text_bytes   targets that are bytes of text, in all rows: what bits per byte divides by
    num_targets  targets that are not -100: text_bytes plus the EOS
    padding      positions wasted, in all rows
    opens        Bool [B, T], does the next column open a patch: True at BOS, stored at bytes of text, False at EOS and
                 padding; None where no starts are stored and none were computed
    """

    ids: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    num_bytes: Int64[Tensor, " B"]
    text_bytes: int
    num_targets: int
    padding: int
    opens: Bool[Tensor, "B T"] | None = None

    @classmethod
    def from_ids(
        cls,
        ids: Int64[Tensor, "B T"],
        learned: Bool[Tensor, "B T"] | None = None,
        opens: Bool[Tensor, "B T"] | None = None,
    ) -> Batch:
        """The batch of rows `ids` (on the CPU), which hold padding only at their ends.

        learned: is this id one that the loss asks for; None: all bytes and every EOS.
        """
        wanted = (ids != PAD) & (ids != BOS)
        if learned is not None:
            wanted &= learned
        targets = torch.full_like(ids, IGNORE)
        targets[:, :-1] = ids[:, 1:].where(wanted[:, 1:], IGNORE)
        num_bytes = (ids != PAD).sum(-1)
        return cls(
            ids=ids,
            targets=targets,
            num_bytes=num_bytes,
            text_bytes=int((targets >= OFFSET).sum()),
            num_targets=int((targets != IGNORE).sum()),
            padding=ids.numel() - int(num_bytes.sum()),
            opens=opens,
        )

    @property
    def starts(self) -> Bool[Tensor, "B T1"] | None:
        """Does the column open a patch, and behind each row's own ids does the unseen byte: what
        `Patches.from_starts` takes beside `num_bytes`. None without `opens`.
        """
        if self.opens is None:
            return None
        starts = torch.cat([torch.ones_like(self.opens[:, :1]), self.opens], 1)
        starts[:, :-1] |= self.ids == BOS
        return starts

    @property
    def num_patches(self) -> Int64[Tensor, " B"] | None:
        """Patches that open within each row; None without `opens`."""
        starts = self.starts
        if starts is None:
            return None
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (starts[:, :-1] & (columns < self.num_bytes[:, None])).sum(-1)

    def without_targets(self, first: int) -> Batch:
        """The same rows, from row `first` on with nothing to learn: those count for nothing but padding."""
        if first == len(self.ids):
            return self
        targets = self.targets.clone()
        targets[first:] = IGNORE
        return replace(
            self,
            targets=targets,
            text_bytes=int((targets >= OFFSET).sum()),
            num_targets=int((targets != IGNORE).sum()),
            padding=self.padding + int(self.num_bytes[first:].sum()),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; the counts stay plain integers, so nothing waits for the device."""
        tensors = {name: getattr(self, name) for name in ("ids", "targets", "num_bytes", "opens")}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Waste:
    """What fixed shapes cost: positions and patch slots of batches, and how many of them hold nothing.

    patch_slots: rows times the patch budget, or times the batch's longest row where there is none; 0 without starts.
    """

    positions: int = 0
    padding: int = 0
    patch_slots: int = 0
    patch_padding: int = 0

    @classmethod
    def of(cls, batch: Batch, row_patches: int | None) -> Waste:
        """The waste of one batch."""
        patches = batch.num_patches
        if patches is None:
            return cls(batch.ids.numel(), batch.padding)
        slots = len(patches) * (int(patches.max()) if row_patches is None else row_patches)
        return cls(batch.ids.numel(), batch.padding, slots, slots - int(patches.sum()))

    def __add__(self, other: Waste) -> Waste:
        return Waste(
            self.positions + other.positions,
            self.padding + other.padding,
            self.patch_slots + other.patch_slots,
            self.patch_padding + other.patch_padding,
        )

    @property
    def bytes(self) -> float:
        """Share of positions that are padding, 0 to 1."""
        return self.padding / max(1, self.positions)

    @property
    def patches(self) -> float | None:
        """Share of patch slots that stay empty, 0 to 1; None without starts."""
        return self.patch_padding / self.patch_slots if self.patch_slots else None


def assemble(corpus: Corpus, rows: list[Pieces], row_bytes: int) -> Batch:
    """The batch of some rows (at least one), each given as the pieces that it holds.

    Raises ValueError where the mapped corpus is damaged.
    """
    pieces = Pieces.join(rows)
    corpus.verify(pieces.start, pieces.length)
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    size = pieces.size
    column = np.cumsum(size) - size
    column -= np.repeat(column[np.cumsum(counts) - counts], counts)  # within its row
    begin = np.repeat(np.arange(len(rows)) * row_bytes, counts) + column
    place, text = ranges(begin + 1, pieces.length), ranges(pieces.start, pieces.length)
    stop = (begin + 1 + pieces.length)[pieces.ends]
    ids = np.full(len(rows) * row_bytes, PAD, dtype=np.int64)
    ids[begin] = BOS
    ids[place] = corpus.data[text]
    ids[place] += OFFSET
    ids[stop] = EOS
    learned = opens = None
    if corpus.learned is not None:
        learned = np.zeros(len(ids), dtype=np.bool_)
        learned[place] = corpus.learned[text]
        learned[stop] = corpus.learned[_last(pieces)]
    if corpus.opens is not None:
        opens = np.zeros(len(ids), dtype=np.bool_)
        opens[begin] = True
        opens[place] = corpus.opens[text]
    shape = (len(rows), row_bytes)
    return Batch.from_ids(
        torch.from_numpy(ids).view(shape),
        None if learned is None else torch.from_numpy(learned).view(shape),
        None if opens is None else torch.from_numpy(opens).view(shape),
    )


def _last(pieces: Pieces) -> Indices:
    return (pieces.start + pieces.length - 1)[pieces.ends]
