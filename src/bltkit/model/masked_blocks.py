"""Block diffusion (BLT-D, Fast BLT 3): blocks of bytes that the decoder fills in beside the clean row that it predicts.

A block begins where a patch does. Its cells hold bytes or MASK, see each other in both directions and the clean bytes
in front of the block, and read the latent that is complete there; a cell predicts its own byte. Clean rows see no
block. So a block's cells never see a clean byte at or after its start, which would be the answer (the leak of the
figure in the paper, whose mask is plain lower-triangular).

Attention costs O(cells x window): blocks are worked off in tiles of a few blocks that begin in one stretch of the row
(`window_blocks.py`), against that stretch's keys and their own. The number of tiles follows from the shapes alone.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bltkit.model.attention import Rotation, RowAttention, sdpa
from bltkit.model.window_blocks import WindowBlocks
from bltkit.patches import Patches
from bltkit.vocab import BOS, PAD

TILE = 64
"""Cells of a tile, unless one block has more: shorter ones cost more copies of keys, longer ones more empty cells."""


@dataclass(frozen=True, eq=False)
class BlockRows:
    """N blocks of S cells beside each of B clean rows.

    ids: what the decoder is given in each cell; PAD in those that are not `inside`.
    first: position of each block's first byte, ascending along a row; blocks that a row does not need have no cell
        inside.
    latent: the patch whose latent a block reads: the one that is complete in front of it.
    inside: is there a byte of the block's document. Other cells are seen by nobody, and what comes out of them means
        nothing.
    """

    ids: Int64[Tensor, "B N S"]
    first: Int64[Tensor, "B N"]
    latent: Int64[Tensor, "B N"]
    inside: Bool[Tensor, "B N S"]

    @classmethod
    def of(cls, ids: Int64[Tensor, "B T"], patches: Patches, size: int) -> Self:
        """One block of `size` cells for every patch but those of a BOS, nothing masked. N = max_patches - 1.

        A block may reach past its patch's end, into the blocks behind it, but not past its document's.
        """
        first = patches.first_byte[:, 1:].clamp_max(ids.shape[1] - 1)
        used = torch.arange(1, patches.max_patches, device=ids.device) < patches.num_patches[:, None]
        return cls.at(ids, first, used, patches, size)

    @classmethod
    def at(
        cls,
        ids: Int64[Tensor, "B T"],
        first: Int64[Tensor, "B N"],
        used: Bool[Tensor, "B N"],
        patches: Patches,
        size: int,
    ) -> Self:
        """Blocks that begin at any bytes, ascending; those at a BOS have no cell inside."""
        cells = first[..., None] + torch.arange(size, device=ids.device)
        at = cells.clamp_max(ids.shape[1] - 1).flatten(1)
        documents = (ids == BOS).cumsum(-1)
        own = documents.gather(1, at).view(cells.shape) == documents.gather(1, first)[..., None]
        inside = own & (cells < patches.num_bytes[:, None, None])
        inside = inside & (used & (ids.gather(1, first) != BOS))[..., None]
        found = ids.gather(1, at).view(cells.shape).where(inside, PAD)
        latent = patches.byte_latent.gather(1, (first - 1).clamp_min(0)).clamp_min(0)
        return cls(found, first, latent, inside)

    @property
    def cells(self) -> Int64[Tensor, "B N S"]:
        """The position of each cell's byte."""
        return self.first[..., None] + torch.arange(self.ids.shape[2], device=self.ids.device)

    def with_ids(self, ids: Int64[Tensor, "B N S"]) -> "BlockRows":
        """The same blocks with other contents."""
        return BlockRows(ids, self.first, self.latent, self.inside)


@dataclass(frozen=True, eq=False)
class Tiles:
    """How blocks are grouped for attention: R tiles a row, each of `per_tile` slots for blocks of one stretch."""

    index: Int64[Tensor, " BRG"]
    """The block in each slot, of all B N; B N itself for an empty one."""
    slot: Int64[Tensor, " BN"]
    """The slot of each block."""
    stretch: Int64[Tensor, " BR"]
    """Of each tile: which of the rows' stretches of keys, in the order of `WindowBlocks.stretches`."""
    per_tile: int

    @classmethod
    def of(cls, rows: BlockRows, blocks: WindowBlocks) -> Self:
        """No more than ceil(N / per_tile) tiles and one for each stretch, whatever is where."""
        num_rows, num_blocks, size = rows.ids.shape
        device, per_tile = rows.ids.device, max(1, TILE // size)
        num_tiles = -(-num_blocks // per_tile) + blocks.count
        stretch = rows.first // blocks.size
        held = torch.zeros(num_rows, blocks.count, dtype=torch.long, device=device)
        held = held.scatter_add(1, stretch, torch.ones_like(stretch))
        tiles = -(-held // per_tile)
        first_tile, first_block = tiles.cumsum(1) - tiles, held.cumsum(1) - held
        rank = torch.arange(num_blocks, device=device) - first_block.gather(1, stretch)
        slot = first_tile.gather(1, stretch) * per_tile + rank
        row = torch.arange(num_rows, device=device)[:, None]
        index = torch.full((num_rows, num_tiles * per_tile), num_rows * num_blocks, device=device)
        index = index.scatter(1, slot, row * num_blocks + torch.arange(num_blocks, device=device))
        order = torch.arange(num_tiles, device=device).expand(num_rows, -1).contiguous()
        of_tile = torch.searchsorted(tiles.cumsum(1), order, right=True).clamp_max(blocks.count - 1)
        slot = slot + row * num_tiles * per_tile
        return cls(index.flatten(), slot.flatten(), (of_tile + row * blocks.count).flatten(), per_tile)

    def lay(self, x: Float[Tensor, "B NS H D"], size: int) -> Float[Tensor, "BR H GS D"]:
        """Rows of cells into tiles."""
        of_blocks = x.unflatten(1, (-1, size)).flatten(0, 1)
        laid: Tensor = _Place.apply(of_blocks, self.index, self.slot)  # type: ignore[no-untyped-call]
        return laid.unflatten(0, (-1, self.per_tile)).flatten(1, 2).transpose(1, 2)

    def rows(self, x: Float[Tensor, "BR H GS D"], num_rows: int) -> Float[Tensor, "B H NS D"]:
        """The way back."""
        slots = x.transpose(1, 2).unflatten(1, (self.per_tile, -1)).flatten(0, 1)
        found: Tensor = _Place.apply(slots, self.slot, self.index)  # type: ignore[no-untyped-call]
        return found.unflatten(0, (num_rows, -1)).flatten(1, 2).transpose(1, 2)

    def mask(
        self, rows: BlockRows, blocks: WindowBlocks, documents: Int64[Tensor, "B T"] | None, dtype: torch.dtype
    ) -> Float[Tensor, "BR 1 GS KGS"]:
        """0 where a cell sees a key, minus infinity elsewhere: the stretch's keys, then the tile's own cells."""
        device, size = rows.ids.device, rows.ids.shape[2]
        first = self._slots(rows.first.flatten())[..., None, None]  # [tiles, G, 1, 1]
        position = first + torch.arange(size, device=device)[:, None]
        keys = torch.arange(blocks.keys, device=device) - blocks.back * blocks.size
        key = (self.stretch % blocks.count)[:, None] * blocks.size + keys  # [tiles, K]
        at = key[:, None, None]
        seen = (at >= 0) & (at < first) & (at > position - blocks.window)
        if documents is not None:
            row = (self.stretch // blocks.count)[:, None]
            of_key = documents[row, key.clamp(0, documents.shape[1] - 1)]
            own = self._slots(documents.gather(1, rows.first).flatten())
            seen = seen & (of_key[:, None, None] == own[..., None, None])
        inside = self._slots(rows.inside.flatten(0, 1))  # [tiles, G, S]
        same = torch.eye(self.per_tile, dtype=torch.bool, device=device)[:, None, :, None]
        cells = same & inside[:, None, None]
        # A cell always sees itself: a row of scores that is masked whole would be no number.
        cells = cells | (same & torch.eye(size, dtype=torch.bool, device=device)[:, None])
        every = torch.cat((seen.flatten(1, 2), cells.flatten(1, 2).flatten(2)), -1)
        return torch.zeros(every.shape, dtype=dtype, device=device).masked_fill_(~every, -torch.inf)[:, None]

    def _slots(self, x: Tensor) -> Tensor:
        """[B N, ...] -> [tiles, G, ...], zeros in empty slots."""
        padded = torch.cat((x, x.new_zeros(1, *x.shape[1:])))
        return padded.index_select(0, self.index).unflatten(0, (-1, self.per_tile))


@dataclass(frozen=True, eq=False)
class BlockRowAttention:
    """`RowAttention` of rows behind which the cells of their blocks stand; differentiable."""

    clean: RowAttention
    rotation: Rotation
    """Of the cells, [B, 1, NS, d]."""
    rows: BlockRows
    blocks: WindowBlocks
    tiles: Tiles
    mask: Float[Tensor, "BR 1 GS KGS"]

    @classmethod
    def of(
        cls,
        clean: RowAttention,
        rows: BlockRows,
        documents: Int64[Tensor, "B T"] | None,
        head_dim: int,
        theta: float,
        x: Float[Tensor, "B TNS D"],
    ) -> Self:
        """documents: what attention stays within; x: of all rows, of which only shape, dtype and device count."""
        length = x.shape[1] - rows.ids[0].numel()
        blocks = clean.visible.blocks or WindowBlocks.of(length, clean.visible.window)
        tiles = Tiles.of(rows, blocks)
        rotation = Rotation.of(rows.cells.flatten(1)[:, None], head_dim, theta, x)
        return cls(clean, rotation, rows, blocks, tiles, tiles.mask(rows, blocks, documents, x.dtype))

    def __call__(self, layer: int, fused: Float[Tensor, "B N T D"]) -> Float[Tensor, "B H T D"]:
        """See `Attend`."""
        clean, rows, tiles = self.clean, self.rows, self.tiles
        num_rows, cells = len(fused), rows.ids[0].numel()
        of_clean, of_cells = fused.split((fused.shape[2] - cells, cells), 2)
        q, k, v, in_blocks = clean.turned(of_clean)
        found = clean.attend(q, k, v, in_blocks)
        turned = clean.heads + clean.kv_heads
        own_qk = self.rotation.turn(of_cells[:, :turned])
        own = (own_qk[:, : clean.heads], own_qk[:, clean.heads :], of_cells[:, turned:])
        own_q, own_k, own_v = (tiles.lay(each.transpose(1, 2), rows.ids.shape[2]) for each in own)
        keys, values = (
            torch.cat(((each if in_blocks else self._stretches(each)).index_select(0, tiles.stretch), mine), 2)
            for each, mine in ((k, own_k), (v, own_v))
        )
        of_blocks = sdpa(own_q, keys, values, self.mask.to(own_q.dtype))
        return torch.cat((found, tiles.rows(of_blocks, num_rows)), 2)

    def _stretches(self, x: Float[Tensor, "B G T D"]) -> Float[Tensor, "BC G K D"]:
        return self.blocks.stretches(self.blocks.lay(x.transpose(1, 2)))


class _Place(torch.autograd.Function):
    """(x [N, ...], index, inverse) -> [len(index), ...]: x[index], zeros where the index is N. Every part of x is
    placed at most once, so its gradient is a look-up as well, not the scatter that autograd would do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _look_up(x, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _look_up(grads[0], inverse), None, None


def _look_up(x: Tensor, index: Tensor) -> Tensor:
    return torch.cat((x, x.new_zeros(1, *x.shape[1:]))).index_select(0, index)
