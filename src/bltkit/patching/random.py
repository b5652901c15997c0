"""Borders that mean nothing, at a given rate: what any other rule has to be better than."""

import math
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeInt
from torch import Tensor

from bltkit.patching.rule import PatchingRule
from bltkit.vocab import PAD

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit factors, as splitmix64 has them."""


class RandomRule(PatchingRule):
    """Each byte opens a patch with probability 1 / k, whatever the others do: lengths are geometric.

    Drawn by a hash of the seed, the position and the last bytes: the same text in the same place is always cut alike,
    in any batch or stream, and no two texts are.
    """

    kind: Literal["random"] = "random"
    k: float = Field(ge=1, examples=[1.0, 2.5, 4.5])
    """Mean patch size in bytes."""
    seed: NonNegativeInt = Field(default=0, examples=[0, 7])
    """Other seeds give other borders."""

    lookback: ClassVar[int] = 7

    @property
    def mean_patch_bytes(self) -> float:
        """k; with `max_patch_bytes` = m what cuts after every m bytes leave of it, k (1 - (1 - 1/k)^m)."""
        if self.max_patch_bytes is None:
            return self.k
        return self.k * (1 - (1 - 1 / self.k) ** self.max_patch_bytes)

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        mixed = _mixed(position + (self.seed % 2**31 << 32))
        for back in range(self.lookback + 1):
            end = ids.shape[1] - back
            own = ids[:, end - position.shape[1] : end].where(position >= back, PAD)
            mixed = _mixed(mixed + own)
        # The upper 31 bits, of which every value is as likely.
        return ((mixed >> 32) & 0x7FFFFFFF) < math.ceil(2**31 / self.k)


def _mixed(x: Int64[Tensor, "B S"]) -> Int64[Tensor, "B S"]:
    """splitmix64, in arithmetic that wraps."""
    x = x + _ODD[0]
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _ODD[1]
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _ODD[2]
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
