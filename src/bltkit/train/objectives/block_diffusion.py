"""Block diffusion beside the next byte (BLT-D, Fast BLT 3): the decoder learns to fill in a block of bytes at once.

loss = sum of next-byte nats + weight x sum over masked cells of nats / p, both divided by the number of next-byte
targets. p is the probability that a cell of its block was masked; 1/p makes the second sum an upper bound on the nats
of a block's bytes, whatever was masked (MDLM). The paper adds the two with weight 1, which lets the B - 1 further cells
of every block outweigh the next byte: with blocks of 8 and patches of 4 bytes two to one.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from bltkit.data import IGNORE, Batch
from bltkit.model import Blt
from bltkit.model.masked_blocks import BlockRows
from bltkit.patches import Patches
from bltkit.train.objectives.objective import BaseObjective, Losses, next_byte_nats
from bltkit.vocab import MASK

FLOOR = 1e-3
"""Least probability of a mask: p = (1 - FLOOR) t + FLOOR with t uniform (LLaDA's), so that 1/p stays finite."""


class BlockDiffusion(BaseObjective):
    """Next byte plus the masked bytes of one block a patch."""

    models: ClassVar[tuple[str, ...]] = ("blt",)

    kind: Literal["block-diffusion"] = "block-diffusion"
    parts: ClassVar[tuple[str, ...]] = ("masked",)
    block: int = Field(default=8, ge=2, le=64)
    """B: bytes of a block, and the most that decoding may ask for at once."""
    weight: NonNegativeFloat = 0.25
    """Of the masked bytes' sum. The paper's is 1; 0.25 keeps the next byte within 2 % of a plain model's bits, for
    blocks of 4, 8 and 16 (docs/fast-decoding.md)."""
    t: Literal["example", "block"] = "example"
    """Is the mask's probability drawn once a row (the paper's wording) or for every block: gradients vary less."""
    starts: Literal["patches", "anywhere"] = "patches"
    """Where blocks begin: at patches (the paper's), or, as many of them, at random bytes, as a draft may."""

    @property
    def cells(self) -> int:
        """The block."""
        return self.block

    def loss(self, model: nn.Module, batch: Batch, patches: Patches | None, seed: int) -> Losses:
        """What is masked follows from `seed` and the row's ids."""
        assert isinstance(model, Blt) and patches is not None
        blocks = self.blocks(batch.ids, patches, seed)
        hidden, probability = self.masks(batch.ids, blocks, seed)
        logits = model(batch.ids, patches, blocks.with_ids(blocks.ids.masked_fill(hidden, MASK)))
        length = batch.ids.shape[1]
        total, text = next_byte_nats(logits[:, :length], batch.targets)
        targets = _targets(batch.targets, blocks).where(hidden, IGNORE)
        each = F.cross_entropy(
            logits[:, length:].flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORE
        )
        masked = (each.view(hidden.shape) / probability).sum()
        found = each.detach().sum(), (targets != IGNORE).sum().to(each.dtype)
        return Losses(total + self.weight * masked, text, (found,))

    def blocks(self, ids: Int64[Tensor, "B T"], patches: Patches, seed: int) -> BlockRows:
        """The blocks of each row, nothing masked."""
        if self.starts == "patches":
            return BlockRows.of(ids, patches, self.block)
        # One in each of as many equal stretches of the row as there may be patches: ascending without a sort.
        count, length = patches.max_patches - 1, patches.num_bytes[:, None]
        stretch = torch.arange(count, device=ids.device)
        place = _uniform(_salt(ids, seed)[:, None], stretch + (2 << 40)) + stretch
        first = (place * length / max(1, count)).long().clamp_max(length - 1)
        used = first.diff(dim=1, prepend=torch.zeros_like(first[:, :1])) > 0
        return BlockRows.at(ids, first, used, patches, self.block)

    def masks(
        self, ids: Int64[Tensor, "B T"], blocks: BlockRows, seed: int
    ) -> tuple[Bool[Tensor, "B N S"], Float[Tensor, "B N S"]]:
        """Which cells are hidden, and the probability with which each was."""
        salt, (_, count, size) = _salt(ids, seed), blocks.ids.shape
        draws = torch.arange(count if self.t == "block" else 1, device=ids.device)
        t = _uniform(salt[:, None], draws + (1 << 40))
        probability = ((1 - FLOOR) * t + FLOOR)[..., None].expand(-1, count, size)
        numbers = torch.arange(count * size, device=ids.device).view(count, size)
        noise = _uniform(salt[:, None, None], numbers)
        return blocks.inside & (noise < probability), probability


def _targets(targets: Int64[Tensor, "B T"], blocks: BlockRows) -> Int64[Tensor, "B N S"]:
    """Each cell's own byte, where the row asks for it as a next byte."""
    before = (blocks.cells - 1).clamp(0, targets.shape[1] - 1)
    return targets.gather(1, before.flatten(1)).view(before.shape)


def _salt(ids: Int64[Tensor, "B T"], seed: int) -> Int64[Tensor, " B"]:
    """A number of each row's ids and of the seed: draws of rows and steps have nothing to do with each other."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    return _mixed(_mixed(ids + (columns << 9)).sum(-1) + _mixed(torch.tensor(seed, device=ids.device)))


def _uniform(salt: Int64[Tensor, "*S"], numbers: Int64[Tensor, "*N"]) -> Float[Tensor, "*M"]:
    """In [0, 1), by counters: no state, the same on every device."""
    bits = _mixed(salt + _mixed(numbers))
    return ((bits >> 40) & 0xFFFFFF).float() / float(1 << 24)


def _mixed(x: Int64[Tensor, "*S"]) -> Int64[Tensor, "*S"]:
    """SplitMix64's finaliser in wrapping 64-bit arithmetic."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
