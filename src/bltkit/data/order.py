"""The order of an epoch: which document a visit is, and permutations that are functions of a key.

Between the corpus and packing. Notable: both work by index. What document stands at place 10^9 of an epoch is
computed for that place alone, so a part of an epoch costs what the part holds, whatever the corpus's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_SORTED_UP_TO = 1 << 20
_ROUNDS = 6


def ranges(starts: Indices, counts: Indices) -> Indices:
    """counts[0] integers from starts[0] on, counts[1] from starts[1] on, and so on. int64 [sum of counts]."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum(), dtype=np.int64) + np.repeat(starts - ends + counts, counts)


def shuffle(count: int, *key: int) -> Indices:
    """A permutation of 0 .. count - 1 that is a function of `key` (integers >= 0).

    Sorts raw output: numpy promises that this never changes, and does not promise it of `permutation`.
    """
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64)


def scatter(places: Indices, count: int, *key: int) -> Indices:
    """What a permutation of 0 .. count - 1, a function of `key`, has at `places`; no array of `count` is made.

    A Feistel network over the next even power of two (Luby and Rackoff 1988; the rounds mix with splitmix64's
    finaliser). What lands at or beyond `count` is sent through again until it lands below: the walk stays on its
    cycle, so the result is a permutation, too (Black and Rogaway 2002).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = np.random.PCG64(np.random.SeedSequence(key)).random_raw(_ROUNDS)
    value = places.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):
        left, right = value[outside] >> shift, value[outside] & mask
        for one in keys:
            left, right = right, left ^ (_mix(right ^ one) & mask)
        value[outside] = (left << shift) | right
        outside = outside[value[outside] >= count]
    return value.astype(np.int64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(first: int, last: int, count: int, *key: int) -> Indices:
    """Places first .. last - 1 of a permutation of 0 .. count - 1 that is a function of `key`.

    Sorted random numbers where they fit in memory easily; a large permutation is computed place by place.
    """
    if count <= _SORTED_UP_TO:
        return shuffle(count, *key)[first:last]
    return scatter(np.arange(first, last, dtype=np.int64), count, *key)


@dataclass(frozen=True, eq=False)
class Visits:
    """The visits of one epoch, numbered 0 .. len - 1: block after block, a document's visits side by side.

    blocks  (documents, times): each of `documents` (int64 [*], ascending, may be a memory map) is visited `times`
            times in a row
    bounds  int64 [blocks + 1], visits before each block
    """

    blocks: tuple[tuple[Indices, int], ...]
    bounds: Indices

    @classmethod
    def of(cls, blocks: tuple[tuple[Indices, int], ...]) -> Visits:
        """The visits of `blocks`, one block after another."""
        counts = [len(documents) * times for documents, times in blocks]
        return cls(blocks, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64))

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def documents(self, visits: Indices) -> Indices:
        """The document of each of these visits. int64 [the same length]."""
        block = np.searchsorted(self.bounds, visits, side="right") - 1
        found = np.empty_like(visits)
        for number, (documents, times) in enumerate(self.blocks):
            mine = block == number
            found[mine] = documents[(visits[mine] - self.bounds[number]) // times]
        return found
