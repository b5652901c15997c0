"""Patches of a fixed size: every k bytes (MegaByte's rule), or every byte. No scores are read (docs/model.md 4.2)."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from bltkit.patching.rule import PatchingRule


class StrideRule(PatchingRule):
    """Byte 0 (BOS), then bytes 1 + floor(i k), i = 0, 1, ... of each document open a patch.

    k is a real number: 4.5 gives patches of 4 and 5 bytes in turn. i k is computed in float64.
    """

    kind: Literal["stride"] = "stride"
    k: float = Field(ge=1, examples=[1.0, 1.7, 3.0, 4.1, 4.5])
    """Mean patch size in bytes."""

    @property
    def mean_patch_bytes(self) -> float:
        """k, or what cuts of its patches after every `max_patch_bytes` bytes leave of it."""
        if self.max_patch_bytes is None:
            return self.k
        short = math.floor(self.k)
        share_long = self.k - short  # of patches that have one byte more
        pieces = [math.ceil(length / self.max_patch_bytes) for length in (short, short + 1)]
        return self.k / (pieces[0] * (1 - share_long) + pieces[1] * share_long)

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        # Byte t+1 opens a patch where t = floor(i k) for some i, and that i can only be one of these two.
        below = torch.floor(position.double() / self.k)
        return (torch.floor(below * self.k) == position) | (torch.floor((below + 1) * self.k) == position)


class ByteRule(PatchingRule):
    """Every byte is a patch: the upper bound of what patching can cost."""

    kind: Literal["byte"] = "byte"

    @property
    def mean_patch_bytes(self) -> float:
        """1."""
        return 1.0

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        return torch.ones_like(position, dtype=torch.bool)
