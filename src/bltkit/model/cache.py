"""Keys and values of past positions, as values: appending gives a new cache and leaves the old one as it was.

Storage is append-only and shared: a cache sees a stretch [start, stop) of a buffer, and only a cache that ends where
the buffer's written part ends may write behind it; any other (after a fork or a roll-back) copies first. So a step
costs no copy, and yet a cache that somebody kept never changes.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

MIN_CAPACITY = 64
"""Positions of the smallest buffer."""


@dataclass(eq=False)
class _Buffer:
    keys: Tensor
    values: Tensor
    used: int


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of one layer, [B, G, n, D] each, n = `len()`."""

    _buffer: _Buffer | None = field(default=None, repr=False)
    _start: int = 0
    _stop: int = 0

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def keys(self) -> Float[Tensor, "B G n D"]:
        """Keys, oldest first."""
        assert self._buffer is not None
        return self._buffer.keys[:, :, self._start : self._stop]

    @property
    def values(self) -> Float[Tensor, "B G n D"]:
        """Values, oldest first."""
        assert self._buffer is not None
        return self._buffer.values[:, :, self._start : self._stop]

    @property
    def num_bytes(self) -> int:
        """Memory that attention reads from this cache, in bytes."""
        if self._buffer is None:
            return 0
        rows, heads, _, dim = self._buffer.keys.shape
        return 2 * rows * heads * dim * len(self) * self._buffer.keys.element_size()

    def append(self, keys: Float[Tensor, "B G S D"], values: Float[Tensor, "B G S D"]) -> "KVCache":
        """A cache with S more positions. Not differentiable: it writes into a buffer."""
        more, buffer = keys.shape[2], self._buffer
        if buffer is None or self._stop != buffer.used or self._stop + more > buffer.keys.shape[2]:
            buffer = self._copy(keys, values, len(self) + more)
            start, stop = 0, len(self)
        else:
            start, stop = self._start, self._stop
        buffer.keys[:, :, stop : stop + more] = keys
        buffer.values[:, :, stop : stop + more] = values
        buffer.used = stop + more
        return KVCache(buffer, start, stop + more)

    def keep_last(self, count: int) -> "KVCache":
        """A cache that sees only the last `count` positions."""
        kept = KVCache(self._buffer, max(self._start, self._stop - count), self._stop)
        if self._buffer is None or self._buffer.keys.shape[2] <= 4 * max(len(kept), MIN_CAPACITY):
            return kept
        # A window must not keep a long prefill's buffer alive.
        return KVCache(kept._copy(kept.keys, kept.values, len(kept)), 0, len(kept))

    def _copy(self, keys: Tensor, values: Tensor, needed: int) -> _Buffer:
        rows, heads, _, dim = keys.shape
        # Twice what is needed: the copies of a growing or sliding cache then cost O(1) a position.
        shape = (rows, heads, max(2 * needed, MIN_CAPACITY), dim)
        buffer = _Buffer(keys.new_empty(shape), values.new_empty(shape), len(self))
        if len(self):
            buffer.keys[:, :, : len(self)] = self.keys
            buffer.values[:, :, : len(self)] = self.values
        return buffer


@dataclass(frozen=True, eq=False)
class StackCache:
    """The state of a transformer stack: a cache per layer, the next position, and the keys' segments if masked."""

    layers: tuple[KVCache, ...]
    position: int = 0
    segments: Int64[Tensor, "B n"] | None = None

    @classmethod
    def empty(cls, num_layers: int) -> "StackCache":
        """No positions seen yet."""
        return cls(tuple(KVCache() for _ in range(num_layers)))

    @property
    def num_bytes(self) -> int:
        """Memory that one step's attention reads, in bytes."""
        return sum(layer.num_bytes for layer in self.layers)

    def with_segments(self, new: Int64[Tensor, "B S"] | None) -> Int64[Tensor, "B K"] | None:
        """The segments of the cached keys and of the new positions behind them."""
        if new is None or self.segments is None:
            return new
        return torch.cat((self.segments, new), 1)
