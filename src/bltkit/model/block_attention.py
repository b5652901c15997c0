"""Attention of blocks after cached bytes, for a decoder that fills in masked bytes (BLT-D, Fast BLT 2).

The layout of training (`masked_blocks.py`) for one block per row: masked bytes stand at positions from
the block's start, see one another in both directions, and the cached clean bytes in front of the block within the
window of their own position. Every pass overwrites their keys and values in a slot after the cached ones, and none
are kept: this copies nothing, where concatenation would copy the whole cache in every layer. Masks and rotations are
computed once per block, not once per pass.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bltkit.model.attention import Rotation, sdpa
from bltkit.model.cache import Slot, StackCache
from bltkit.model.config import StackConfig


class BlockAttention:
    """Attention of one block of `size` cells in each of R rows; an `Attend` for any number of passes over it.

    A cache with a window keeps window - 1 keys behind the row's end. So where `hidden` is not 0, the first cells miss
    up to that many of the oldest keys that they had in training.
    """

    def __init__(
        self,
        config: StackConfig,
        cache: StackCache,
        size: int,
        like: Tensor,
        hidden: Sequence[int] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """config: of the stack. like: of the activations' dtype and device.

        hidden: of each row, the newest cached positions that the block covers itself: it begins there, and does not
            see them; none when absent.
        sizes: of each row, the cells in use; the others are seen by nobody, and see themselves alone beside the
            cache. All when absent.
        """
        self.heads, self.kv_heads = config.heads, config.num_kv_heads
        rows, device = len(cache.stops), like.device
        hidden = [0] * rows if hidden is None else list(hidden)
        sizes = [size] * rows if sizes is None else list(sizes)
        self.slot: Slot = cache.slot(size, 2 * self.kv_heads, config.head_dim, like)
        cache = self.slot.cache  # perhaps a copy, whose columns are others
        self.firsts = tuple(position - n for position, n in zip(cache.positions, hidden, strict=True))
        cells = torch.arange(size, device=device)
        if len(set(self.firsts)) == 1:
            positions = cells + self.firsts[0]
        else:
            positions = torch.tensor(self.firsts, device=device)[:, None, None] + cells
        self.rotation = Rotation.of(positions, config.head_dim, config.rope_theta, like)
        reaches = config.window is None or max(cache.lengths) + size <= config.window
        plain = reaches and self.slot.aligned and not any(hidden) and min(sizes) == size
        self.mask = None if plain else _mask(self.slot, hidden, sizes, like)

    def __call__(self, layer: int, fused: Float[Tensor, "R N S D"]) -> Float[Tensor, "R H S D"]:
        """See `Attend`."""
        self.rotation.turn_(fused[:, : self.heads + self.kv_heads])
        k, v = self.slot.write(layer, fused[:, self.heads :]).chunk(2, 1)
        return sdpa(fused[:, : self.heads], k, v, self.mask)


def _mask(slot: Slot, hidden: Sequence[int], sizes: Sequence[int], like: Tensor) -> Float[Tensor, "R 1 S K"]:
    """0 where a cell sees a column of [first, end), minus infinity elsewhere: as it is added, in every pass."""
    cache, size, device = slot.cache, slot.size, like.device
    numbers = torch.tensor([cache.starts, cache.stops, list(hidden), list(sizes)], device=device)
    start, stop, covered, inside = numbers[:, :, None, None]
    cell = torch.arange(size, device=device)[:, None]
    # Columns count positions: where `stop` stands, the first position behind the cache would.
    key = torch.arange(slot.first, slot.end, device=device)
    seen = (key >= start) & (key < stop - covered)
    if cache.window is not None:
        seen = seen & (key > stop - covered + cell - cache.window)
    # A cell always sees itself: a row of scores that is masked whole would be no number.
    own = key - stop
    seen = seen | ((own >= 0) & ((own < inside) | (own == cell)))
    return torch.zeros(seen.shape, dtype=like.dtype, device=device).masked_fill_(~seen, -torch.inf)[:, None]
