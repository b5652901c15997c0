"""The local encoder: bytes -> patches (BLT 3.2, docs/model.md 6). Few layers over bytes, then pooling by attention,
or without."""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import BltConfig
from bltkit.model.cross import CrossAttention
from bltkit.model.fused_linear import Linear
from bltkit.model.layers import Transformer, truncated_normal
from bltkit.model.one_segment import OneSegment
from bltkit.model.pooling import pooling
from bltkit.model.segment_ops import Segments
from bltkit.patches import Patches


class LocalEncoder(nn.Module):
    """x [B, T, D] -> byte states h [B, T, D] and patch vectors z [B, P, k, D]."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.k = config.cross_attn_k
        self.stack = Transformer(config.encoder)
        self.pooling = pooling(config)
        self.patch_projection = Linear(config.pooled_width, config.patch_width)
        self.cross = nn.ModuleList(
            CrossAttention(config.encoder, config.quirks.doubled_residual) for _ in range(config.num_encoder_cross)
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as docs/model.md 9 says."""
        self.stack.reset_parameters(generator)
        truncated_normal(self.patch_projection.weight, self.patch_projection.in_features**-0.5, generator)
        for i, block in enumerate(self.cross):
            cast(CrossAttention, block).reset_parameters(i, generator)

    def forward(
        self, x: Float[Tensor, "B T D"], patches: Patches, documents: Int64[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P k D"]]:
        """Byte states go to the decoder as they are; patch vectors go to the latent transformer."""
        outputs = self.stack(x, documents)
        return outputs[-1], self.pool(self.pooled_from(outputs), Segments.of(patches))

    def pooled_from(self, outputs: list[Float[Tensor, "B T D"]]) -> tuple[Float[Tensor, "B T D"], ...]:
        """The layer outputs that pooling reads: one for each cross-attention block, and one at least."""
        return tuple(outputs[-max(1, len(self.cross)) :])

    def pool(
        self, states: tuple[Float[Tensor, "B T D"], ...], segments: Segments | OneSegment
    ) -> Float[Tensor, "B P k D"]:
        """k vectors per patch: the maximum over its bytes (or what `pooling` says), projected, then attending to its
        bytes."""
        first = states[0]
        pooled = self.pooling(first.flatten(0, 1), segments).unflatten(0, (len(first), -1))
        z: Tensor = self.patch_projection(pooled).unflatten(-1, (self.k, -1))
        for block, h in zip(self.cross, states, strict=False):  # there may be no block
            z = cast(CrossAttention, block).pool(z, h, segments)
        return z
