"""The transformer layer that every stack is made of, and the stack itself: `forward` over rows, `extend` by state.

Projections are stored fused (query, key, value in one matrix; gate and up in one): one product each. The names are
split only in the checkpoint.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.attention import Rotation, Visibility
from bltkit.model.cache import KVCache, StackCache
from bltkit.model.config import StackConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Before = Callable[[int, Tensor], Tensor]
"""What happens to the stream in front of layer i: (i, x) -> x."""


def truncated_normal(weight: Tensor, sigma: float, generator: torch.Generator | None) -> None:
    """Fill in place from a normal distribution cut at 3 sigma (spec 8)."""
    nn.init.trunc_normal_(weight, std=sigma, a=-3 * sigma, b=3 * sigma, generator=generator)


class Linear(nn.Linear):
    """A bias-free linear map, left uninitialised: `reset_parameters` of its owner knows the depth."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: torch would fill weights here that are drawn anew or loaded anyway."""


class Embedding(nn.Embedding):
    """A look-up table, left uninitialised like `Linear`."""

    def reset_parameters(self) -> None:
        """Nothing, see `Linear`."""


class RMSNorm(nn.Module):
    """g * x / sqrt(mean(x^2) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Causal self-attention with interleaved RoPE and grouped key/value heads."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.num_kv_heads, config.head_dim
        self.qkv = Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "B T D"], angles: Rotation, attend: Attend) -> Float[Tensor, "B T D"]:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), 1)
        q, k = angles.turn(qk).split((self.heads, self.kv_heads), 1)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: W2 (silu(W1 x) * (W3 x))."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.width, 2 * config.ffn)
        self.down = Linear(config.ffn, config.width)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = SelfAttention(config)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Float[Tensor, "B T D"], angles: Rotation, attend: Attend) -> Float[Tensor, "B T D"]:
        x = x + self.attention(self.attention_norm(x), angles, attend)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """A stack of layers over one stream. Positions are indices in the row and run on across documents (spec 0.1)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal, sigma = fan_in^-1/2 / sqrt(2 (depth + 1)) (spec 8, `current_depth`)."""
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
        visible = Visibility.of(x.shape[1], 0, self.config.window, segments, x.device)
        angles = self._angles(0, x)
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x if before is None else before(i, x), angles, visible.attend)
            outputs.append(x)
        return outputs

    def extend(
        self,
        x: Float[Tensor, "B S D"],
        cache: StackCache,
        segments: Int64[Tensor, "B S"] | None = None,
        before: Before | None = None,
    ) -> tuple[list[Float[Tensor, "B S D"]], StackCache]:
        """`forward` for S further positions behind the cached ones: the same outputs, and the cache that follows."""
        all_segments = cache.with_segments(segments)
        history = len(cache.layers[0])
        visible = Visibility.of(x.shape[1], history, self.config.window, all_segments, x.device)
        angles = self._angles(cache.position, x)
        keep = history + x.shape[1] if self.config.window is None else self.config.window - 1
        outputs, caches = [], []
        for i, (layer, kv) in enumerate(zip(self.layers, cache.layers, strict=True)):
            state = _Attending(visible, kv)
            x = layer(x if before is None else before(i, x), angles, state)
            outputs.append(x)
            caches.append(state.cache.keep_last(keep))
        kept = None if all_segments is None else all_segments[:, max(0, all_segments.shape[1] - keep) :]
        return outputs, StackCache(tuple(caches), cache.position + x.shape[1], kept)

    def empty_cache(self) -> StackCache:
        """The state in front of the first position."""
        return StackCache.empty(len(self.layers))

    def _angles(self, start: int, x: Tensor) -> Rotation:
        return Rotation.of(start, x.shape[1], self.config.head_dim, self.config.rope_theta, x)


class _Attending:
    """Attention of one layer over its cache and the new keys; lives for one call and hands out the new cache."""

    def __init__(self, visible: Visibility, cache: KVCache) -> None:
        self.visible, self.cache = visible, cache

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache = self.cache.append(k, v)
        return self.visible.attend(q, self.cache.keys, self.cache.values)
