"""Documents -> pieces -> rows: which bytes share a row of the batch. Of the text only stored patch starts are read.

A document is BOS bytes EOS. One that is longer than a row is cut into pieces; each piece has BOS in front, so that a
row always begins with BOS and every byte is the target of exactly one prediction; EOS stands only at the document's
true end. A row has two budgets: ids, and (where the starts are stored) patches, so that all rows are the same work for
every stage of the model. A piece ends where either is used up. Pieces that leave no place for another are rows by
themselves; the others are packed by best fit into a bounded window of open rows. Nothing is dropped: what does not
fit a row opens another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bltkit.data.order import Indices, ranges

MIN_ROW_BYTES = 8
MIN_ROW_PATCHES = 3
"""BOS, a byte and EOS, each of which may be a patch: less could not hold the shortest document."""

_OPEN_ROWS = 256
_SMALLEST_PIECE = 3  # BOS, a byte, EOS
_SMALLEST_PATCHES = 2  # BOS is a patch of its own, and a piece's first byte opens one


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of documents; those of one document follow one another.

    start    int64 [N], the piece's first byte in the corpus
    length   int64 [N], its bytes of text (at least 1)
    ends     bool [N], does the document end here (then EOS follows)
    patches  int64 [N], patches that it opens, BOS's and EOS's included; None where they have no budget
    """

    start: Indices
    length: Indices
    ends: npt.NDArray[np.bool_]
    patches: Indices | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def size(self) -> Indices:
        """Row positions that each piece takes: BOS, its bytes, EOS where the document ends. int64 [N]."""
        return 1 + self.length + self.ends

    def take(self, chosen: Indices | slice) -> Pieces:
        """Some of the pieces, in the order of `chosen`."""
        patches = None if self.patches is None else self.patches[chosen]
        return Pieces(self.start[chosen], self.length[chosen], self.ends[chosen], patches)

    @classmethod
    def join(cls, parts: list[Pieces]) -> Pieces:
        """All pieces of `parts` (at least one), in order."""
        patches = [part.patches for part in parts if part.patches is not None]
        return cls(
            start=np.concatenate([part.start for part in parts]),
            length=np.concatenate([part.length for part in parts]),
            ends=np.concatenate([part.ends for part in parts]),
            patches=np.concatenate(patches) if patches else None,
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """Row r holds the pieces `pieces[bounds[r]:bounds[r + 1]]`, in that order."""

    pieces: Indices
    bounds: Indices

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, index: int) -> Indices:
        """The pieces of one row."""
        return self.pieces[self.bounds[index] : self.bounds[index + 1]]

    def take(self, rows: Indices) -> Rows:
        """Some of the rows, in the order of `rows`."""
        counts = np.diff(self.bounds)[rows]
        return Rows(self.pieces[ranges(self.bounds[rows], counts)], _bounds(counts))


def cut(starts: Indices, stops: Indices, row_bytes: int) -> Pieces:
    """Cuts documents into pieces that fit a row. Document d is bytes starts[d] .. stops[d] - 1, never empty.

    All pieces of a document but its last fill a row. If only EOS were left for the last one, it gets the last byte
    too: BOS EOS alone would teach that a document may be empty.
    """
    payload = row_bytes - 1  # what follows BOS
    lengths = stops - starts
    count = (lengths + 1 + payload - 1) // payload  # EOS takes a place, too
    first = _bounds(count)
    document = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(first[-1]) - first[document]
    ends = number == count[document] - 1
    begin = number * payload
    begin -= ends & (begin == lengths[document])  # only EOS was left
    finish = np.append(begin[1:], 0)
    finish[ends] = lengths[document][ends]
    return Pieces(start=starts[document] + begin, length=finish - begin, ends=ends)


def cut_patches(
    starts: Indices,
    stops: Indices,
    row_bytes: int,
    row_patches: int,
    opens: npt.NDArray[np.bool_],
    num_opens: Indices,
) -> Pieces:
    """As `cut`, with a second budget: a piece ends also where the next byte would open patch row_patches + 1.

    opens: bool [bytes of the corpus], does the byte (or EOS) after this one open a patch.
    num_opens: int64 [documents], how many of each document's are True; a document that fits by that number is not
        looked at.
    """
    whole = (stops - starts + 2 <= row_bytes) & (num_opens + 2 <= row_patches)
    long = np.flatnonzero(~whole)
    parts = [Pieces(starts[whole], (stops - starts)[whole], np.ones(whole.sum(), np.bool_), num_opens[whole] + 2)]
    parts += [_cut_one(int(starts[d]), int(stops[d]), row_bytes, row_patches, opens) for d in long]
    if len(parts) == 1:
        return parts[0]
    pieces = Pieces.join(parts)
    document = np.concatenate([np.flatnonzero(whole), np.repeat(long, [len(part) for part in parts[1:]])])
    return pieces.take(np.argsort(document, kind="stable"))


def _cut_one(start: int, stop: int, row_bytes: int, row_patches: int, opens: npt.NDArray[np.bool_]) -> Pieces:
    """One document piece by piece, greedily. Its ids after BOS are numbered 0 .. length - 1, and `length` is EOS."""
    at = np.flatnonzero(opens[start:stop])  # the id after each of these opens a patch
    length = stop - start
    begins, opened = [0], []
    while True:
        begin = begins[-1]
        rank = int(np.searchsorted(at, begin))
        end = begin + row_bytes - 1
        last = rank + row_patches - _SMALLEST_PATCHES  # the one opening that is too many
        if last < len(at):
            end = min(end, int(at[last]) + 1)
        if end > length:
            opened.append(_SMALLEST_PATCHES + len(at) - rank)
            break
        end -= end == length  # only EOS was left
        opened.append(_SMALLEST_PATCHES + int(np.searchsorted(at, end - 1)) - rank)
        begins.append(end)
    ends = np.zeros(len(begins), dtype=np.bool_)
    ends[-1] = True
    begin_array = np.array(begins, dtype=np.int64)
    return Pieces(start + begin_array, np.diff(np.append(begin_array, length)), ends, np.array(opened, dtype=np.int64))


def pack(sizes: Indices, row_bytes: int, patches: Indices | None = None, row_patches: int = 0) -> Rows:
    """Packs pieces 0 .. N - 1 (shuffled by the caller) of `sizes` [N] and `patches` [N] into rows that hold both.

    Best fit: of the open rows that have room a piece goes into the one with the least, or it opens a row; beyond 256
    open rows the fullest is closed. A row's room is the smaller of its two free shares. Deterministic,
    O(N log 256) with one budget. Rows come in the order of their opening.
    """
    if patches is None:
        patches, row_patches = sizes, row_bytes
    rows: list[list[int]] = []
    free: list[tuple[int, int, int, int]] = []  # (room, free ids, free patches, row) of the open rows, ascending
    for piece, (size, opened) in enumerate(zip(sizes.tolist(), patches.tolist(), strict=True)):
        # Shares of the budgets, as integers over the common denominator row_bytes * row_patches.
        at = bisect_left(free, (min(size * row_patches, opened * row_bytes), -1, -1, -1))
        while at < len(free) and (free[at][1] < size or free[at][2] < opened):
            at += 1
        if at < len(free):
            _, ids, slots, row = free.pop(at)
            rows[row].append(piece)
        else:
            ids, slots, row = row_bytes, row_patches, len(rows)
            rows.append([piece])
        ids, slots = ids - size, slots - opened
        if ids >= _SMALLEST_PIECE and slots >= _SMALLEST_PATCHES:
            insort(free, (min(ids * row_patches, slots * row_bytes), ids, slots, row))
            if len(free) > _OPEN_ROWS:
                free.pop(0)
    counts = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    flat = np.fromiter((piece for row in rows for piece in row), dtype=np.int64, count=len(sizes))
    return Rows(flat, _bounds(counts))


def pack_pieces(pieces: Pieces, row_bytes: int, row_patches: int | None) -> Rows:
    """All pieces in rows; those that leave no place for another stay alone, without a look at the open rows."""
    size = pieces.size
    full = row_bytes - size < _SMALLEST_PIECE  # most pieces of long documents
    if row_patches is None:
        rest = np.flatnonzero(~full)
        packed = pack(size[rest], row_bytes)
    else:
        assert pieces.patches is not None
        full |= row_patches - pieces.patches < _SMALLEST_PATCHES
        rest = np.flatnonzero(~full)
        packed = pack(size[rest], row_bytes, pieces.patches[rest], row_patches)
    alone = np.flatnonzero(full)
    return replace(
        packed,
        pieces=np.concatenate([alone, rest[packed.pieces]]),
        bounds=np.concatenate([np.arange(len(alone)), packed.bounds + len(alone)]),
    )


def _bounds(counts: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
