"""The local decoder: patches -> bytes (BLT 3.3, spec 7). Each byte state reads one latent in front of every layer."""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.cache import StackCache
from bltkit.model.config import BltConfig
from bltkit.model.cross import CrossAttention
from bltkit.model.layers import Before, Linear, RMSNorm, Transformer, truncated_normal
from bltkit.vocab import VOCAB_SIZE

PatchKV = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of patches, [B, P, k, H, d] each, for every cross-attention block."""


class LocalDecoder(nn.Module):
    """Byte states h [B, T, D] and latents o [B, P, H] -> logits [B, T, 260] of the next byte."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.k = config.cross_attn_k
        self.patch_projection = Linear(config.latent.width, config.patch_width)
        self.cross = nn.ModuleList(
            CrossAttention(config.decoder, config.quirks.doubled_residual) for _ in range(config.num_decoder_cross)
        )
        self.stack = Transformer(config.decoder)
        self.norm = RMSNorm(config.decoder.width, config.decoder.norm_eps)
        self.head = Linear(config.decoder.width, VOCAB_SIZE)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as spec 8 says."""
        for projection in (self.patch_projection, self.head):
            truncated_normal(projection.weight, projection.in_features**-0.5, generator)
        for i, block in enumerate(self.cross):
            cast(CrossAttention, block).reset_parameters(i, generator)
        self.stack.reset_parameters(generator)
        nn.init.ones_(self.norm.weight)

    def forward(
        self,
        h: Float[Tensor, "B T D"],
        latents: Float[Tensor, "B P H"],
        byte_latent: Int64[Tensor, "B T"],
        documents: Int64[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """byte_latent: the one latent that each byte sees."""
        read = self._reading(self.patch_keys_values(latents), byte_latent)
        return self._logits(self.stack(h, documents, read)[-1])

    def extend(
        self,
        h: Float[Tensor, "B S D"],
        patch_kv: PatchKV,
        byte_latent: Int64[Tensor, "B S"],
        cache: StackCache,
        documents: Int64[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B S V"], StackCache]:
        """`forward` for S further bytes; byte_latent counts within `patch_kv`."""
        outputs, cache = self.stack.extend(h, cache, documents, self._reading(patch_kv, byte_latent))
        return self._logits(outputs[-1]), cache

    def patch_keys_values(self, latents: Float[Tensor, "B P H"]) -> PatchKV:
        """What the bytes read of each patch: its k vectors as keys and values of every block."""
        vectors = self.patch_projection(latents).unflatten(-1, (self.k, -1))
        return tuple(cast(CrossAttention, block).patch_keys_values(vectors) for block in self.cross)

    def _reading(self, patch_kv: PatchKV, byte_latent: Tensor) -> Before:
        def before(i: int, h: Tensor) -> Tensor:
            if i >= len(self.cross):
                return h
            return cast(CrossAttention, self.cross[i]).read(h, patch_kv[i], byte_latent)

        return before

    def _logits(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h))
