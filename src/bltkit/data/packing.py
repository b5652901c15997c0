"""Documents -> pieces -> rows: which bytes share a row of the batch. Index arithmetic only, no text is
touched.

A document is BOS bytes EOS. One that is longer than a row is cut into pieces; each piece has BOS in front,
so that a row always begins with BOS and every byte is the target of exactly one prediction; EOS stands only
at the document's true end. Full pieces are rows by themselves; the others are packed by best fit into a
bounded window of open rows. Nothing is dropped: what does not fit a row opens another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_OPEN_ROWS = 256
_SMALLEST_PIECE = 3  # BOS, a byte, EOS


def ranges(starts: Indices, counts: Indices) -> Indices:
    """counts[0] integers from starts[0] on, counts[1] from starts[1] on, and so on. int64 [sum of counts]."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum(), dtype=np.int64) + np.repeat(starts - ends + counts, counts)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Every piece of every document, in document order.

    start   int64 [N], the piece's first byte in the corpus
    length  int64 [N], its bytes of text (at least 1)
    ends    bool [N], does the document end here (then EOS follows)
    first   int64 [documents + 1], pieces of document d are first[d] .. first[d + 1] - 1
    """

    start: Indices
    length: Indices
    ends: npt.NDArray[np.bool_]
    first: Indices

    @property
    def size(self) -> Indices:
        """Row positions that each piece takes: BOS, its bytes, EOS where the document ends. int64 [N]."""
        return 1 + self.length + self.ends

    def of_documents(self, documents: Indices) -> Indices:
        """The indices of the documents' pieces, in order; a document named twice gives them twice."""
        count = np.diff(self.first)[documents]
        return ranges(self.first[documents], count)


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


def cut(offsets: Indices, row_bytes: int) -> Pieces:
    """Cuts documents into pieces that fit a row. Document d is offsets[d] .. offsets[d + 1], never empty.

    All pieces of a document but its last fill a row. If only EOS were left for the last one, it gets the
    last byte too: BOS EOS alone would teach that a document may be empty.
    """
    payload = row_bytes - 1  # what follows BOS
    lengths = np.diff(offsets)
    count = (lengths + 1 + payload - 1) // payload  # EOS takes a place, too
    first = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    document = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(first[-1]) - first[document]
    ends = number == count[document] - 1
    begin = number * payload
    begin -= ends & (begin == lengths[document])  # only EOS was left
    finish = np.append(begin[1:], 0)
    finish[ends] = lengths[document][ends]
    return Pieces(start=offsets[document] + begin, length=finish - begin, ends=ends, first=first)


def pack(pieces: Indices, sizes: Indices, row_bytes: int) -> Rows:
    """Packs `pieces` (indices, shuffled by the caller) of `sizes` [the same length] into rows of `row_bytes`.

    Best fit: a piece goes into the open row whose free space it leaves smallest, or opens a row; beyond 256
    open rows the fullest is closed. Deterministic, O(N log 256). Rows come in the order of their opening.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free positions, row) of the open rows, ascending
    for piece, size in zip(pieces.tolist(), sizes.tolist(), strict=True):
        at = bisect_left(free, (size, -1))
        if at < len(free):
            left, row = free.pop(at)
            rows[row].append(piece)
        else:
            left, row = row_bytes, len(rows)
            rows.append([piece])
        if left - size >= _SMALLEST_PIECE:
            insort(free, (left - size, row))
            if len(free) > _OPEN_ROWS:
                free.pop(0)
    counts = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    flat = np.fromiter((piece for row in rows for piece in row), dtype=np.int64, count=len(pieces))
    return Rows(flat, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def shuffle(count: int, *key: int) -> Indices:
    """A permutation of 0 .. count - 1 that is a function of `key` (integers >= 0).

    Sorts raw output: numpy promises that this never changes, and does not promise it of `permutation`.
    """
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64)
