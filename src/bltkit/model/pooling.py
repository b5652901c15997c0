"""What stands beside and in place of cross-attention: a patch's bytes made one vector, and a latent added to its bytes.

Of BLT itself this is the maximum, from which a patch's queries are made (BLT 3.2.2). Without cross-attention it is how
earlier byte models do it: MegaByte puts a patch's bytes side by side, SpaceByte takes the state of its last one, and
both add what the global model makes of it to the bytes that follow.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bltkit.model.config import BltConfig
from bltkit.model.one_segment import OneSegment
from bltkit.model.segment_ops import Latents, RowsOfLatents, Segments

Pooling = Callable[[Tensor, Segments | OneSegment], Tensor]
"""(states [N, D] of all bytes, patches) -> [BP, W]."""


def pooling(config: BltConfig) -> Pooling:
    """What a patch's vectors are a projection of; W = `BltConfig.pooled_width`."""
    ways: dict[str, Pooling] = {"max": _maximum, "mean": _mean, "last": partial(_last, config.pooled_bytes)}
    return ways[config.pooling]


def _maximum(states: Tensor, patches: Segments | OneSegment) -> Tensor:
    return patches.maximum(states)


def _mean(states: Tensor, patches: Segments | OneSegment) -> Tensor:
    return patches.mean(states)


def _last(count: int, states: Tensor, patches: Segments | OneSegment) -> Tensor:
    return patches.last(states, count).flatten(1)


class AddedLatent(nn.Module):
    """h <- h + v of the patch that a byte may see, in front of the decoder; in `CrossAttention`'s place, no weights."""

    def reset_parameters(self, index: int, generator: torch.Generator | None = None) -> None:
        """Nothing: the vectors are the decoder's projection of the latents."""

    def patch_keys_values(self, vectors: Float[Tensor, "B P 1 D"]) -> tuple[Float[Tensor, "B P D"]]:
        """What bytes read of each patch: its one vector."""
        return (vectors[:, :, 0],)

    def no_patch(self, rows: int, k: int, like: Tensor) -> tuple[Float[Tensor, "R 1 D"]]:
        """In its place where there is no patch yet. like: of the vectors' width, dtype and device."""
        assert k == 1
        return (like.new_zeros(rows, 1, len(like)),)

    def read(
        self,
        h: Float[Tensor, "B T D"],
        kept: tuple[Float[Tensor, "B Tk D"]],
        latents: Latents | RowsOfLatents | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Arguments as for `CrossAttention.read`."""
        (vectors,) = kept
        return h + (vectors if latents is None else latents.spread(vectors)).to(h.dtype)
