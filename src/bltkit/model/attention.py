"""Self-attention's backend: rotary positions, and who sees whom. The only file that calls an attention kernel.

A `Visibility` is built once per stack and shared by its layers. Sliding windows cost O(T w): queries go in blocks of
a quarter of the window, each against the stretch of keys that its queries see, so no [T, T] mask exists once T is past
the window, and only a fifth of the scores computed are masked. Dense causal masks are worked off in a few steps of
queries, which skips most of the masked half.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

STEPS = 8
"""Parts that a long dense causal mask is cut into: 9/16 of the whole is computed."""
MIN_STEP = 128
"""Shorter steps and blocks than this (half of it for blocks) cost more in calls than they save in scores."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary angles of T consecutive positions; made once per stack and shared by its layers."""

    cos: Float[Tensor, "T d"]
    sin: Float[Tensor, "T d"]

    @classmethod
    def of(cls, start: int, length: int, head_dim: int, theta: float, like: Tensor) -> Self:
        """For positions start .. start+length-1: computed in fp32 (float64 for float64), then cast to the dtype of
        `like` (spec 0.1, 0.2)."""
        wide, device = torch.promote_types(like.dtype, torch.float32), like.device
        frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=wide, device=device) / head_dim)
        angle = torch.arange(start, start + length, dtype=wide, device=device)[:, None] * frequency
        return cls(angle.cos().to(like.dtype), angle.sin().to(like.dtype))

    def turn(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        """Turn neighbouring pairs (0, 1), (2, 3), ... (interleaved RoPE; half-split weights would need permuting)."""
        if x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
            # A pair is a complex number and a turn one product: one pass over memory, 8 times faster on the CPU.
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * self._factors).flatten(-2)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * self.cos - odd * self.sin, odd * self.cos + even * self.sin), -1).flatten(-2)

    @cached_property
    def _factors(self) -> Complex[Tensor, "T d"]:
        return torch.complex(self.cos, self.sin)


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which keys each of `queries` new positions sees; the keys are `history` older ones and the new ones.

    Causal; within `window` keys (itself included) if given; within the query's own segment if segments are given.
    """

    form: Literal["all", "causal", "dense", "blocks"]
    window: int
    mask: Bool[Tensor, "..."] | None = None

    @classmethod
    def of(
        cls,
        queries: int,
        history: int,
        window: int | None,
        segments: Int64[Tensor, "B S"] | None,
        device: torch.device,
    ) -> "Visibility":
        """segments: [B, history + queries], non-decreasing along a row; a query sees keys of its own segment only."""
        keys = history + queries
        reach = min(window or keys, keys)
        if segments is None and reach == keys and queries == 1:
            return cls("all", reach)
        if segments is None and reach == keys and not history:
            return cls("causal", reach)
        if queries <= reach or history >= reach:
            return cls("dense", reach, _dense_mask(queries, history, reach, segments, device))
        return cls("blocks", reach, _block_mask(queries, history, reach, segments, device))

    def attend(
        self, q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B G K D"], v: Float[Tensor, "B G K D"]
    ) -> Float[Tensor, "B H Q D"]:
        """softmax(q k / sqrt(D)) v over the visible keys; G key/value heads serve H/G consecutive heads each."""
        if self.form == "blocks":
            return _block_attention(q, k, v, self.window, self.mask)
        if self.form == "dense" and q.shape[2] >= 2 * MIN_STEP:
            return _stepped_attention(q, k, v, self.mask)
        return _sdpa(q, k, v, self.mask, causal=self.form == "causal")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    gqa = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


def _dense_mask(
    queries: int, history: int, window: int, segments: Tensor | None, device: torch.device
) -> Bool[Tensor, "..."]:
    query = torch.arange(history, history + queries, device=device)[:, None]
    key = torch.arange(history + queries, device=device)
    seen = (key <= query) & (key > query - window)
    if segments is None:
        return seen
    return (seen & (segments[:, history:, None] == segments[:, None, :]))[:, None]


def _stepped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention under a causal mask, a stretch of queries at a time against the keys up to the stretch's end."""
    assert mask is not None
    queries, history = q.shape[2], k.shape[2] - q.shape[2]
    size = max(MIN_STEP, -(-queries // STEPS))
    parts = []
    for first in range(0, queries, size):
        now, seen = slice(first, first + size), slice(0, history + first + size)
        parts.append(_sdpa(q[:, :, now], k[:, :, seen], v[:, :, seen], mask[..., now, seen]))
    return torch.cat(parts, 2)


@dataclass(frozen=True)
class _Blocks:
    """How a windowed row is cut: `count` blocks of `size` queries, each with the keys of its own block and of `back`
    blocks before it. `front` and `behind` positions of padding make it fit."""

    size: int
    back: int
    count: int
    front: int
    behind: int

    @classmethod
    def of(cls, queries: int, history: int, window: int) -> "_Blocks":
        size = max(MIN_STEP // 2, -(-window // 4))
        back, count = -(-(window - 1) // size), -(-queries // size)
        return cls(size, back, count, back * size - history, count * size - queries)

    @property
    def keys(self) -> int:
        """Keys against which a block of queries is computed."""
        return (self.back + 1) * self.size


def _block_mask(
    queries: int, history: int, window: int, segments: Tensor | None, device: torch.device
) -> Bool[Tensor, "..."]:
    """[blocks or B * blocks, 1, size, keys]."""
    cut = _Blocks.of(queries, history, window)
    query = torch.arange(cut.size, device=device)[:, None]
    key = torch.arange(cut.keys, device=device) - cut.back * cut.size
    seen = (key <= query) & (key > query - window)
    position = torch.arange(cut.count, device=device)[:, None, None] * cut.size + key
    seen = seen & (position >= -history)
    if segments is None:
        return seen[:, None]
    # Padding gets segment -1, which no query that is kept has.
    padded = F.pad(segments, (cut.front, cut.behind), value=-1)
    own = padded[:, cut.back * cut.size :].unflatten(1, (cut.count, cut.size))
    seen = seen & (own[..., None] == padded.unfold(1, cut.keys, cut.size)[:, :, None, :])
    return seen.flatten(0, 1)[:, None]


def _block_attention(q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None) -> Tensor:
    rows, _, queries, _ = q.shape
    assert mask is not None
    cut = _Blocks.of(queries, k.shape[2] - queries, window)
    q = F.pad(q, (0, 0, 0, cut.behind)).unflatten(2, (cut.count, cut.size)).transpose(1, 2).flatten(0, 1)

    def stretches(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, cut.front, cut.behind)).unfold(2, cut.keys, cut.size)
        return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

    if mask.shape[0] != rows * cut.count:
        mask = mask.repeat(rows, 1, 1, 1)
    out = _sdpa(q, stretches(k), stretches(v), mask)
    return out.unflatten(0, (rows, cut.count)).transpose(2, 3).flatten(1, 2)[:, :queries].transpose(1, 2)
