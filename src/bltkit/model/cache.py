"""Keys and values of past positions of R rows, as values: growing a cache leaves the old one as it was.

Storage is shared and append-only: a cache sees columns [start, stop) of each row. What a pass computes is written
behind them, in place, and belongs to no cache until `Slot.keep` says how much of it counts: a step costs no copy, a
rejected draft costs nothing, and rows may keep different amounts. A cache that does not end where its storage does
(somebody else went on from the same point) is copied first, so what somebody kept never changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

MIN_CAPACITY = 64
"""Columns of the smallest storage."""


@dataclass(eq=False)
class _Storage:
    """[layers, R, 2G, columns, D]: the keys of all heads, then their values."""

    block: Tensor
    used: list[int]
    """Columns of each row that a cache has kept; behind them stands what the latest pass wrote."""
    writer: object = None
    """The token of the latest slot given out: nobody else's unkept columns are still there. Not the slot itself: the
    two would hold each other, and memory would be given back only when Python looks for cycles."""

    def __post_init__(self) -> None:
        self.layers = list(self.block.unbind())

    @property
    def columns(self) -> int:
        return self.block.shape[3]


@dataclass(frozen=True, eq=False)
class StackCache:
    """The state of a transformer stack behind each of R rows.

    window: keys that a new position sees, itself included; no more than window - 1 are kept. None: all are.
    positions: RoPE position of each row's next key; it runs on where keys are forgotten.
    """

    num_layers: int
    window: int | None
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    positions: tuple[int, ...]
    _storage: _Storage | None = field(default=None, repr=False)
    _written_by: object = field(default=None, repr=False)
    """Of a cache that counts columns not kept: the token of the slot that wrote them."""

    @classmethod
    def empty(cls, num_layers: int, window: int | None = None, rows: int = 1) -> Self:
        """No positions seen yet."""
        zeros = (0,) * rows
        return cls(num_layers, window, zeros, zeros, zeros)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions kept of each row."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    @property
    def num_bytes(self) -> int:
        """Memory that one step's attention reads, in bytes."""
        if self._storage is None:
            return 0
        layers, _, heads, _, dim = self._storage.block.shape
        return layers * sum(self.lengths) * heads * dim * self._storage.block.element_size()

    @property
    def storage_bytes(self) -> int:
        """Memory that is held for it, spare columns included, in bytes."""
        return 0 if self._storage is None else self._storage.block.nbytes

    def slot(self, size: int, heads: int, dim: int, like: Tensor) -> "Slot":
        """Room for `size` further positions of every row: 2G = `heads` vectors of `dim` in each layer."""
        cache, storage = self, self._storage
        if storage is None or not self._may_write(storage) or max(self.stops) + size > storage.columns:
            cache = self._copied(range(len(self.stops)), size, heads, dim, like)
        return Slot(cache, size)

    def select(self, rows: Sequence[int]) -> "StackCache":
        """These rows in this order, any of them also several times, with storage of their own."""
        if self._storage is None:
            zeros = (0,) * len(rows)
            return replace(self, starts=zeros, stops=zeros, positions=tuple(self.positions[row] for row in rows))
        block = self._storage.block
        return self._copied(rows, 1, block.shape[2], block.shape[4], block)

    @classmethod
    def join(cls, caches: Sequence["StackCache"]) -> "StackCache":
        """The rows of all caches, of one stack, under one another."""
        filled = [cache._storage for cache in caches if cache._storage is not None]
        positions = tuple(position for cache in caches for position in cache.positions)
        first = replace(caches[0], starts=(0,) * len(positions), stops=(0,) * len(positions), positions=positions)
        if not filled:
            return first
        block = filled[0].block
        longest = max(length for cache in caches for length in cache.lengths)
        joined = first._new_storage(longest, 1, block.shape[2], block.shape[4], block)
        row = 0
        for cache in caches:
            for own in range(len(cache.stops)):
                joined._fill(row, cache, own)
                row += 1
        lengths = [length for cache in caches for length in cache.lengths]
        return replace(joined, starts=tuple(longest - length for length in lengths))

    def forget(self, rows: Sequence[int], skipped: int = 0) -> "StackCache":
        """Without what these rows have seen. Their next position is `skipped` further on."""
        starts, positions = list(self.starts), list(self.positions)
        for row in rows:
            starts[row], positions[row] = self.stops[row], positions[row] + skipped
        return replace(self, starts=tuple(starts), positions=tuple(positions))

    def _may_write(self, storage: _Storage) -> bool:
        if self._written_by is not None:
            assert storage.writer is self._written_by, "another pass has overwritten this draft"
            return True
        return all(stop == used for stop, used in zip(self.stops, storage.used, strict=True))

    def _copied(self, rows: Sequence[int], size: int, heads: int, dim: int, like: Tensor) -> "StackCache":
        lengths = self.lengths
        longest = max(lengths[row] for row in rows)
        copied = replace(self, positions=tuple(self.positions[row] for row in rows))
        copied = copied._new_storage(longest, size, heads, dim, like)
        if self._storage is not None:
            for new, row in enumerate(rows):
                copied._fill(new, self, row)
        return replace(copied, starts=tuple(longest - lengths[row] for row in rows))

    def _new_storage(self, longest: int, size: int, heads: int, dim: int, like: Tensor) -> "StackCache":
        """All rows end at column `longest`, so that rows of one length are seen as one block."""
        rows = len(self.positions)
        # More than is needed: the copies of a growing or sliding cache then cost O(1) a position.
        spare = longest + size if self.window is not None else (longest + size) // 2
        # One block for all layers: large enough that the system takes it back when the cache outgrows it.
        shape = (self.num_layers, rows, heads, max(longest + size + spare, MIN_CAPACITY), dim)
        stops, written_by = (longest,) * rows, self._written_by
        storage = _Storage(like.new_zeros(shape), [longest] * rows, written_by)
        return replace(self, starts=stops, stops=stops, _storage=storage)

    def _fill(self, row: int, source: "StackCache", source_row: int) -> None:
        """Copies a row of `source` in front of column `stops[row]`."""
        length = source.stops[source_row] - source.starts[source_row]
        if not length:
            return
        assert self._storage is not None and source._storage is not None
        to, of = self.stops[row] - length, source.starts[source_row]
        for new, old in zip(self._storage.layers, source._storage.layers, strict=True):
            new[row, :, to : to + length] = old[source_row, :, of : of + length]


def storage_bytes(caches: Iterable[StackCache]) -> int:
    """Memory that is held for all of these, spare columns included; shared storage counts once."""
    storages = {id(cache._storage): cache._storage for cache in caches if cache._storage is not None}
    return sum(storage.block.nbytes for storage in storages.values())


class Slot:
    """Room behind a cache for one pass of `size` positions a row; written to once in every layer."""

    def __init__(self, cache: StackCache, size: int) -> None:
        assert cache._storage is not None
        self.cache, self.size, self._storage = cache, size, cache._storage
        self._token = self._storage.writer = object()
        self._kept = (0,) * len(cache.stops)
        self.even = len(set(cache.stops)) == 1
        """Do the rows write to the same columns."""
        self.first, self.end = min(cache.starts), max(cache.stops) + size
        """Columns [first, end) hold all that any row sees."""
        self._columns = None if self.even else self._scattered()

    @property
    def aligned(self) -> bool:
        """Do all rows see the same columns."""
        return self.even and len(set(self.cache.starts)) == 1

    def write(self, layer: int, kv: Float[Tensor, "R G2 S D"]) -> Float[Tensor, "R G2 n D"]:
        """Puts down the new keys and values; returns the columns [first, end)."""
        stored = self._storage.layers[layer]
        if self._columns is None:
            stored[:, :, self.end - self.size : self.end] = kv
        else:
            stored[self._rows, :, self._columns] = kv.transpose(1, 2)
        return stored[:, :, self.first : self.end]

    def keep(self, counts: Sequence[int]) -> StackCache:
        """The cache with the first counts[r] of the new positions of each row."""
        cache, storage = self.cache, self._storage
        stops = tuple(stop + count for stop, count in zip(cache.stops, counts, strict=True))
        mine = storage.writer is self._token
        assert mine or all(n <= k for n, k in zip(counts, self._kept, strict=True)), "another pass wrote over these"
        if mine:
            storage.used = [max(used, stop) for used, stop in zip(storage.used, stops, strict=True)]
            self._kept = tuple(map(max, self._kept, counts))
        kept = self._seen(stops, counts)
        limit = 0 if cache.window is None else 4 * max(cache.window, MIN_CAPACITY)
        if limit and storage.columns > limit:
            # A window must not keep a long prompt's storage alive.
            return kept.select(range(len(stops)))
        return kept

    def drafted(self) -> StackCache:
        """The cache with all new positions, none of them kept: the next pass behind them overwrites nothing, any
        other pass does."""
        stops = tuple(stop + self.size for stop in self.cache.stops)
        return self._seen(stops, (self.size,) * len(stops), self._token)

    def _seen(self, stops: tuple[int, ...], counts: Sequence[int], written_by: object = None) -> StackCache:
        # Built outright: `replace` takes longer than all of the arithmetic, and every step does this in every stack.
        cache = self.cache
        starts = cache.starts
        if cache.window is not None:
            starts = tuple([max(start, stop - cache.window + 1) for start, stop in zip(starts, stops, strict=True)])
        positions = tuple([position + count for position, count in zip(cache.positions, counts, strict=True)])
        return StackCache(cache.num_layers, cache.window, starts, stops, positions, self._storage, written_by)

    def _scattered(self) -> Tensor:
        device = self._storage.block.device
        self._rows = torch.arange(len(self.cache.stops), device=device)[:, None]
        return torch.tensor(self.cache.stops, device=device)[:, None] + torch.arange(self.size, device=device)
