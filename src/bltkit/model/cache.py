"""Keys and values of past positions of R rows, as values: growing a cache leaves the old one as it was.

Storage is shared and append-only: a cache sees columns [start, stop) of each row. What a pass computes is written
behind them, in place, and belongs to no cache until `Slot.keep` says how much of it counts: a step costs no copy, a
rejected draft costs nothing, and rows may keep different amounts. A cache that does not end where its storage does
(somebody else went on from the same point) is copied first, so what somebody kept never changes.

A batch's caches have spare lanes (`closed_up`, `entered`, `with_room`): rows come, go and slide in place, which costs
what one row's copy does. Caches from before such a move are `stale`: they refuse to be used, and never show what is
not theirs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from bltkit.model.storage import MIN_CAPACITY, Storage

EARLY = 16
"""Free columns below which a cache may be given new storage before it needs it,"""
MOST_GROWN = 4
"""and caches that are, at a time."""

MIN_LANES = 8
"""Lanes of the smallest storage whose rows may move."""


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
    _storage: Storage | None = field(default=None, repr=False)
    _written_by: object = field(default=None, repr=False)
    """Of a cache that counts columns not kept: the token of the slot that wrote them."""
    _generation: int = field(default=0, repr=False)
    """Of the storage when the cache was made."""

    @classmethod
    def empty(cls, num_layers: int, window: int | None = None, rows: int = 1) -> Self:
        """No positions seen yet."""
        zeros = (0,) * rows
        return cls(num_layers, window, zeros, zeros, zeros)

    @property
    def parts(self) -> tuple["StackCache", ...]:
        """The caches that it consists of: itself."""
        return (self,)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions kept of each row."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    @property
    def stale(self) -> bool:
        """Have rows moved in the storage since: the cache can no longer be used."""
        return self._storage is not None and self._storage.generation != self._generation

    @property
    def num_bytes(self) -> int:
        """Memory that one step's attention reads, in bytes."""
        if self._storage is None:
            return 0
        layers, _, heads, _, dim = self._storage.block.shape
        return layers * sum(self.lengths) * heads * dim * self._storage.block.element_size()

    @property
    def storage_bytes(self) -> int:
        """Memory that is held for it, spare room included, in bytes."""
        return storage_bytes([self])

    def slot(self, size: int, heads: int, dim: int, like: Tensor) -> "Slot":
        """Room for `size` further positions of every row: 2G = `heads` vectors of `dim` in each layer."""
        cache, storage = self, self._storage
        if storage is None or not self._may_write(storage) or max(self.stops) + size > storage.columns:
            lanes = storage.lanes if storage is not None and storage.movable else None
            cache = self._copied(range(len(self.stops)), size, heads, dim, like, lanes)
        return Slot(cache, size)

    def select(self, rows: Sequence[int]) -> "StackCache":
        """These rows in this order, any of them also several times, with storage of their own."""
        if self._storage is None:
            zeros = (0,) * len(rows)
            return replace(self, starts=zeros, stops=zeros, positions=tuple(self.positions[row] for row in rows))
        block = self._storage.block
        return self._copied(rows, 1, block.shape[2], block.shape[4], block)

    @classmethod
    def join(cls, caches: Sequence["StackCache"], lanes: int | None = None) -> "StackCache":
        """The rows of all caches, of one stack, under one another.

        lanes: of a storage in which rows may move; without, it has as many as there are rows.
        """
        filled = [cache._storage for cache in caches if cache._storage is not None]
        positions = tuple(position for cache in caches for position in cache.positions)
        first = replace(caches[0], starts=(0,) * len(positions), stops=(0,) * len(positions), positions=positions)
        if not filled:
            return replace(first, _storage=None)
        block = filled[0].block
        lengths = [length for cache in caches for length in cache.lengths]
        joined = first._new_storage(max(lengths), 1, block.shape[2], block.shape[4], block, lanes)
        row = 0
        for cache in caches:
            for source_row in range(len(cache.stops)):
                joined._fill(row, cache, source_row)
                row += 1
        return joined._of_lengths(lengths)

    @classmethod
    def apart(cls, caches: Sequence["StackCache"]) -> list["StackCache"]:
        """The caches, of which no two share storage, so that one pass may write behind all of them: copies where they
        do, as rows that went on from one prompt."""
        seen: set[int] = set()
        parts = []
        for cache in caches:
            shared = cache._storage is not None and id(cache._storage) in seen
            parts.append(cache.select(range(len(cache.stops))) if shared else cache)
            seen.add(id(parts[-1]._storage))
        return parts

    @classmethod
    def grown_early(cls, caches: tuple["StackCache", ...]) -> tuple["StackCache", ...]:
        """The caches, of which a few that will have to be copied soon are copied now: rows that began together would
        all be in the same round."""
        grown, count = list(caches), 0
        for at, cache in enumerate(caches):
            if count < MOST_GROWN and cache._storage is not None and cache._tight(cache._storage):
                grown[at] = cache.select(range(len(cache.stops)))
                count += 1
        return tuple(grown) if count else caches

    def _tight(self, storage: Storage) -> bool:
        return max(self.stops) + EARLY > storage.columns or not self._may_write(storage)

    def forget(self, rows: Sequence[int], skipped: int = 0) -> "StackCache":
        """Without what these rows have seen. Their next position is `skipped` further on."""
        starts, positions = list(self.starts), list(self.positions)
        for row in rows:
            starts[row], positions[row] = self.stops[row], positions[row] + skipped
        return replace(self, starts=tuple(starts), positions=tuple(positions))

    def closed_up(self, order: Sequence[int], lanes: int = MIN_LANES) -> "StackCache":
        """Fewer rows, moved in place: row order[i] becomes row i, which is i itself or comes from behind the others.

        lanes: that storage has at least.

        Caches from before are stale, unless the storage's rows may not move, or most of it is spare: then this is a
        copy, whose rows may move.
        """
        if self._storage is None:
            return self.select(order)
        storage, enough = self._storage, max(lanes, 2 * len(order))
        if not self._may_move(storage) or 2 * enough <= storage.lanes:
            block = storage.block
            return self._copied(order, 1, block.shape[2], block.shape[4], block, enough)
        generation, first = storage.moved(), min(self.starts[row] for row in order)
        for to, row in enumerate(order):
            if to != row:
                assert row >= len(order), "rows that stay keep their places, but for those from behind"
                storage.move(to, row, first)
        starts, stops, positions = (tuple(x[r] for r in order) for x in (self.starts, self.stops, self.positions))
        return replace(self, starts=starts, stops=stops, positions=positions, _generation=generation)

    def entered(self, other: "StackCache", lanes: int = MIN_LANES) -> "StackCache":
        """With the rows of `other` after its own, copied into spare lanes so that they end where the others do.

        lanes: that new storage has at least.

        Caches from before are stale, unless there is no room for them: then this is a copy with spare lanes.
        """
        storage, source = self._storage, other._storage
        rows, stop = len(self.stops) + len(other.stops), max(self.stops)
        room = storage is not None and rows <= storage.lanes and max(other.lengths) <= stop
        if storage is None or source is None or not room or not self._may_move(storage):
            return StackCache.join([self, other], lanes if rows <= lanes else 2 * rows)
        generation, lengths = storage.moved(), other.lengths
        for row, (start, length) in enumerate(zip(other.starts, lengths, strict=True)):
            lane = len(self.stops) + row
            storage.clear(lane)
            storage.fill(lane, stop, source, row, start, length)
            storage.used[lane] = stop
        return replace(
            self,
            starts=(*self.starts, *(stop - length for length in lengths)),
            stops=(*self.stops, *[stop] * len(lengths)),
            positions=self.positions + other.positions,
            _generation=generation,
        )

    def crowded(self, size: int) -> bool:
        """Are there fewer than `size` free columns in storage in which rows may move."""
        storage = self._storage
        return storage is not None and storage.movable and max(self.stops) + size > storage.columns

    def with_room(self, size: int) -> "StackCache":
        """With `size` free columns, where rows may move: all slide back in place, and then end at the same column.

        A window slides so once in as many positions as it has, which costs what copying its keys does.
        """
        storage = self._storage
        if storage is None or not self.crowded(size):
            return self
        lengths, rows = self.lengths, len(self.stops)
        stop, _ = layout(max(lengths), size, self.window, True)
        if not self._may_move(storage) or stop + size > storage.columns:
            block = storage.block
            return self._copied(range(rows), size, block.shape[2], block.shape[4], block, storage.lanes)
        generation = storage.moved()
        if len(set(self.starts)) == len(set(self.stops)) == 1 and stop <= self.starts[0]:
            storage.fill_all(stop, storage, rows, self.starts[0], lengths[0])
        else:
            for row, (start, length) in enumerate(zip(self.starts, lengths, strict=True)):
                apart = stop <= start or start + length <= stop - length
                part = storage if apart else Storage(storage.block[:, :rows].narrow(1, row, 1).clone(), [0])
                storage.fill(row, stop, part, row if apart else 0, start, length)
        for row in range(rows):
            storage.used[row] = stop
        return replace(self, _generation=generation)._of_lengths(lengths, stop)

    def _may_write(self, storage: Storage) -> bool:
        if self.stale:
            raise RuntimeError("rows of this cache have moved since; go on from the newest session of the batch")
        if self._written_by is not None:
            assert storage.writer is self._written_by, "another pass has overwritten this draft"
            return True
        return self.stops == tuple(storage.used[: len(self.stops)])

    def _may_move(self, storage: Storage) -> bool:
        assert self._written_by is None, "drafts do not move"
        return self._may_write(storage) and storage.movable

    def _copied(
        self, rows: Sequence[int], size: int, heads: int, dim: int, like: Tensor, lanes: int | None = None
    ) -> "StackCache":
        lengths = self.lengths
        chosen = [lengths[row] for row in rows]
        copied = replace(self, positions=tuple(self.positions[row] for row in rows))
        copied = copied._new_storage(max(chosen), size, heads, dim, like, lanes)
        if self._storage is not None:
            for new, row in enumerate(rows):
                copied._fill(new, self, row)
        return copied._of_lengths(chosen)

    def _of_lengths(self, lengths: Sequence[int], stop: int | None = None) -> "StackCache":
        """The rows end at column `stop`, or where they do, and are so long."""
        stops = self.stops if stop is None else (stop,) * len(lengths)
        return replace(self, starts=tuple(end - n for end, n in zip(stops, lengths, strict=True)), stops=stops)

    def _new_storage(
        self, longest: int, size: int, heads: int, dim: int, like: Tensor, lanes: int | None = None
    ) -> "StackCache":
        """All rows end at one column, so that rows of one length are seen as one block."""
        rows = len(self.positions)
        stop, columns = layout(longest, size, self.window, lanes is not None)
        # One block for all layers: large enough that the system takes it back when the cache outgrows it.
        shape = (self.num_layers, lanes or rows, heads, columns, dim)
        storage = Storage.zeros(shape, like, stop, rows, movable=lanes is not None)
        storage.writer = self._written_by
        return replace(self, starts=(stop,) * rows, stops=(stop,) * rows, _storage=storage, _generation=0)

    def _fill(self, row: int, source: "StackCache", source_row: int) -> None:
        """Copies a row of `source` in front of column `stops[row]`."""
        if source._storage is None:
            return
        assert self._storage is not None
        if source.stale:
            raise RuntimeError("rows of this cache have moved since; go on from the newest session of the batch")
        start = source.starts[source_row]
        length = source.stops[source_row] - start
        self._storage.fill(row, self.stops[row], source._storage, source_row, start, length)


def layout(longest: int, size: int, window: int | None, movable: bool) -> tuple[int, int]:
    """The column at which rows of new storage end, the longest of which has so many positions, and its columns.

    size: positions that the next pass adds. More room is taken: the copies of a growing or sliding cache then cost O(1)
    a position. movable: rows may come in, longer ones too, so there is room in front of them as well.
    """
    if not movable:
        spare = longest + size if window is not None else (longest + size) // 2
        return longest, max(longest + size + spare, MIN_CAPACITY)
    if window is None:
        stop = longest + longest // 2 + MIN_CAPACITY
        return stop, stop + size + stop // 2 + MIN_CAPACITY
    stop = max(longest, window - 1)
    return stop, 2 * stop + size + MIN_CAPACITY


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
        self._rows = len(cache.stops)
        self._kept = (0,) * len(cache.stops)
        self.even = len(set(cache.stops)) == 1
        """Do the rows write to the same columns."""
        self.first, self.end = min(cache.starts), max(cache.stops) + size
        """Columns [first, end) hold all that any row sees."""
        self._storage.written = max(self._storage.written, self.end)

    @property
    def aligned(self) -> bool:
        """Do all rows see the same columns."""
        return self.even and len(set(self.cache.starts)) == 1

    def write(self, layer: int, kv: Float[Tensor, "R G2 S D"]) -> Float[Tensor, "R G2 n D"]:
        """Puts down the new keys and values; returns the columns [first, end)."""
        stored = self._storage.layers[layer]
        if self.even:
            stored[: self._rows, :, self.end - self.size : self.end] = kv
        else:
            lanes, columns = self._scattered
            stored[lanes, :, columns] = kv.transpose(1, 2)
        return stored[: self._rows, :, self.first : self.end]

    def keep(self, counts: Sequence[int]) -> StackCache:
        """The cache with the first counts[r] of the new positions of each row."""
        cache, storage = self.cache, self._storage
        stops = tuple(stop + count for stop, count in zip(cache.stops, counts, strict=True))
        mine = storage.writer is self._token
        assert mine or all(n <= k for n, k in zip(counts, self._kept, strict=True)), "another pass wrote over these"
        if mine:
            for row, stop in enumerate(stops):
                storage.used[row] = max(storage.used[row], stop)
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
        place = (self._storage, written_by, cache._generation)
        return StackCache(cache.num_layers, cache.window, starts, stops, positions, *place)

    def places(self) -> Iterator[int]:
        """Six numbers a row, for code that reads and writes keys and values by itself: address of the first layer's
        lane, elements from layer to layer and from head to head, first column in use, first new column, position of
        the first new key."""
        block, cache = self._storage.block, self.cache
        layer, lane, head, _, _ = block.stride()
        address, step = block.data_ptr(), lane * block.element_size()
        for start, stop, position in zip(cache.starts, cache.stops, cache.positions, strict=True):
            yield from (address, layer, head, start, stop, position)
            address += step

    @cached_property
    def _scattered(self) -> tuple[Tensor, Tensor]:
        """Lanes and columns that are written to, where rows do not write to the same columns."""
        device = self._storage.block.device
        columns = torch.tensor(self.cache.stops, device=device)[:, None] + torch.arange(self.size, device=device)
        return torch.arange(self._rows, device=device)[:, None], columns
