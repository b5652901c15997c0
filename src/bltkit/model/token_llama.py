"""A token model of Llama's shape: the baseline that bytes are compared with, made of the same layers as our stacks.

Beside the way of the bytes: it reads rows of tokens (`data/token_batches.py`). Notable: RoPE turns neighbouring pairs
here as in all our stacks; Hugging Face's Llama turns halves, which the checkpoint sees to
(`checkpoint/token_checkpoint.py`).
"""

from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import TokenConfig
from bltkit.model.fused_linear import Linear, RMSNorm
from bltkit.model.layers import Embedding, Transformer, truncated_normal


class TokenLlama(nn.Module):
    """Tokens [B, S] -> logits [B, S, V]; logits[:, s] predict token s+1."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        self.stack = Transformer(config)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_size)

    def reset_parameters(self, generator: torch.Generator | None = None) -> Self:
        """Initialise as docs/model.md 9 says, like the byte models; returns the model."""
        self.stack.reset_parameters(generator)
        for table in (self.embed, self.head):
            if table is not None:
                truncated_normal(table.weight, table.weight.shape[1] ** -0.5, generator)
        nn.init.ones_(self.norm.weight)
        return self

    def forward(
        self, ids: Int64[Tensor, "B S"], documents: Int64[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S V"]:
        """documents: the number of each token's document, rising along a row; None: one a row."""
        h = self.stack(self.embed(ids), documents if self.config.document_masks else None)[-1]
        h = self.norm(h)
        return F.linear(h, self.embed.weight) if self.head is None else self.head(h)
