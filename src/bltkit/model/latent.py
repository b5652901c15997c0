"""The global latent transformer: patches -> patches (BLT 3.1, docs/model.md 7). The heavy part, once per patch."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.cache import StackCache
from bltkit.model.config import BltConfig
from bltkit.model.fused_linear import Linear
from bltkit.model.layer_caches import LayerCaches, LayerSlots
from bltkit.model.layers import Transformer, truncated_normal


class LatentTransformer(nn.Module):
    """z [B, P, k, D] -> latents o [B, P, H]; causal over patches, no final norm."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        width = config.latent.width
        self.projection: nn.Module = nn.Identity() if config.patch_width == width else Linear(config.patch_width, width)
        self.stack = Transformer(config.latent)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as docs/model.md 9 says."""
        for weight in self.projection.parameters():
            truncated_normal(weight, weight.shape[1] ** -0.5, generator)
        self.stack.reset_parameters(generator)

    def forward(
        self, z: Float[Tensor, "B P k D"], documents: Int64[Tensor, "B P"] | None = None
    ) -> Float[Tensor, "B P H"]:
        """documents: the document of each patch."""
        return self.stack(self.projection(z.flatten(2)), documents)[-1]

    def extend(
        self, z: Float[Tensor, "R S k D"], caches: Sequence[LayerCaches]
    ) -> tuple[Float[Tensor, "R S H"], tuple[LayerSlots, ...]]:
        """`forward` for S further patches of every row. caches: as the stack's `empty_cache` gives them."""
        outputs, slots = self.stack.extend(self.projection(z.flatten(2)), cast(Sequence[StackCache], caches))
        return outputs[-1], slots
