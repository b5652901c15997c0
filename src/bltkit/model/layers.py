"""The transformer layer that every stack is made of, and the stack itself: `forward` over rows, `extend` by state.

Projections are stored fused (query, key, value in one matrix; gate and up in one): one product each. The names are
split only in the checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.attention import Attend, CachedAttention, Rotation, RowAttention, SeveralCaches, Visibility
from bltkit.model.cache import Slot, StackCache
from bltkit.model.config import StackConfig
from bltkit.model.fused_linear import Linear, RMSNorm, gated_product, normed_product

Before = Callable[[int, Tensor], Tensor]
"""What happens to the stream in front of layer i: (i, x) -> x."""


def truncated_normal(weight: Tensor, sigma: float, generator: torch.Generator | None) -> None:
    """Fill in place from a normal distribution cut at 3 sigma (docs/model.md 9).

    A weight that several processes share gets the numbers that it has in one: each draws all of them and keeps its own.
    """
    if hasattr(weight, "placements"):  # a DTensor, whose module would cost every command half a second
        from torch.distributed.tensor import distribute_tensor

        drawn = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
        truncated_normal(drawn, sigma, generator)
        with torch.no_grad():
            own = distribute_tensor(drawn, cast(Any, weight).device_mesh, weight.placements, src_data_rank=None)
            cast(Any, weight).to_local().copy_(own.to_local())
        return
    nn.init.trunc_normal_(weight, std=sigma, a=-3 * sigma, b=3 * sigma, generator=generator)


class Embedding(nn.Embedding):
    """A look-up table, left uninitialised like `Linear`."""

    def reset_parameters(self) -> None:
        """Nothing, see `Linear`."""


class SelfAttention(nn.Module):
    """Causal self-attention with interleaved RoPE and grouped key/value heads; layer `index` of its stack."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        self.index, self.head_dim = index, config.head_dim
        self.qkv = Linear(config.width, (config.heads + 2 * config.num_kv_heads) * config.head_dim)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "B T D"], norm: RMSNorm, attend: Attend) -> Float[Tensor, "B T D"]:
        """norm: of x, in front."""
        fused = normed_product(norm, self.qkv, x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        return self.out(attend(self.index, fused).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: W2 (silu(W1 x) * (W3 x))."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.ffn)
        self.down = Linear(config.ffn, config.width)

    def forward(self, x: Float[Tensor, "B T D"], norm: RMSNorm) -> Float[Tensor, "B T D"]:
        """norm: of x, in front."""
        return gated_product(self.down, normed_product(norm, self.gate_up, x))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = SelfAttention(config, index)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Float[Tensor, "B T D"], attend: Attend) -> Float[Tensor, "B T D"]:
        x = x + self.attention(x, self.attention_norm, attend)
        return x + self.ffn(x, self.ffn_norm)


class Transformer(nn.Module):
    """A stack of layers over one stream. Positions are indices in the row (docs/model.md 2)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config, self.kv_heads = config, config.num_kv_heads
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal, sigma = fan_in^-1/2 / sqrt(2 (depth + 1)) (docs/model.md 9, `current_depth`)."""
        for depth, layer in enumerate(self.layers):
            for name, weight in layer.named_parameters():
                if name.endswith("norm.weight"):
                    nn.init.ones_(weight)
                else:
                    truncated_normal(weight, (2 * (depth + 1) * weight.shape[1]) ** -0.5, generator)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        segments: Int64[Tensor, "B T"] | None = None,
        before: Before | None = None,
    ) -> list[Float[Tensor, "B T D"]]:
        """The outputs of all layers, the last one being the stack's.

        segments: attention stays within equal numbers (documents); None for one segment a row.
        """
        return self.through(x, self.row_attention(x.shape[1], segments, x), before)

    def row_attention(self, length: int, segments: Int64[Tensor, "B T"] | None, x: Tensor) -> RowAttention:
        """Attention of rows of `length` positions, as `forward` uses it; of x only dtype and device count."""
        config = self.config
        visible = Visibility.of(length, 0, config.window, segments, x.device, x.dtype)
        positions = torch.arange(length, device=x.device)
        rotation = Rotation.of(positions, config.head_dim, config.rope_theta, x)
        return RowAttention(rotation, visible, config.heads, self.kv_heads)

    def extend(
        self, x: Float[Tensor, "R S D"], caches: Sequence[StackCache], before: Before | None = None
    ) -> tuple[list[Float[Tensor, "R S D"]], tuple[Slot, ...]]:
        """`forward` for S further positions of rows of which the caches hold what came before: the same outputs.

        caches: their rows together are the rows of x. The slots say how much of the new positions the next caches
        keep (`Slot.keep`). Not differentiable: it writes into the caches' storage.
        """
        config, parts, row = self.config, [], 0
        for cache in StackCache.apart(caches) if len(caches) > 1 else caches:
            own = x[row : row + len(cache.stops)]
            parts.append(CachedAttention(cache, x.shape[1], config.heads, self.kv_heads, config.rope_theta, own))
            row += len(cache.stops)
        attend: Attend = parts[0] if len(parts) == 1 else SeveralCaches(tuple(parts))
        return self.through(x, attend, before), tuple(part.slot for part in parts)

    def empty_cache(self, rows: int = 1) -> StackCache:
        """The state in front of the first position."""
        return StackCache.empty(len(self.layers), self.config.window, rows)

    def through(
        self, x: Float[Tensor, "B T D"], attend: Attend, before: Before | None = None
    ) -> list[Float[Tensor, "B T D"]]:
        """The outputs of all layers, for any rows and whatever they see of each other; x itself where there is none."""
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x if before is None else before(i, x), attend)
            outputs.append(x)
        return outputs or [x]
