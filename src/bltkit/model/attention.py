"""Self-attention's backend: rotary positions, and who sees whom. The only file that calls an attention kernel.

A `Visibility` is built once per stack and shared by its layers. Sliding windows cost O(T w): queries go in blocks of
w, each against its own and the previous block of keys, so no [T, T] mask exists once T is past twice the window.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each [T, head_dim / 2]."""


def rotation(start: int, length: int, head_dim: int, theta: float, like: Tensor) -> Rotation:
    """Rotary angles of positions start .. start+length-1, computed in fp32, in the dtype of `like` (spec 0.1, 0.2)."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device) / head_dim)
    position = torch.arange(start, start + length, dtype=torch.float32, device=like.device)
    angle = position[:, None] * frequency
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Float[Tensor, "B H T D"], by: Rotation) -> Float[Tensor, "B H T D"]:
    """Turn neighbouring pairs (0, 1), (2, 3), ... (interleaved RoPE; half-split weights would need permuting)."""
    cos, sin = by
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


@dataclass(frozen=True)
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
        if queries <= reach or history > reach:
            return cls("dense", reach, _dense_mask(queries, history, reach, segments, device))
        return cls("blocks", reach, _block_mask(queries, history, reach, segments, device))

    def attend(
        self, q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B G K D"], v: Float[Tensor, "B G K D"]
    ) -> Float[Tensor, "B H Q D"]:
        """softmax(q k / sqrt(D)) v over the visible keys; G key/value heads serve H/G consecutive heads each."""
        if self.form == "blocks":
            return _block_attention(q, k, v, self.window, self.mask)
        gqa = k.shape[1] != q.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=self.form == "causal", enable_gqa=gqa
        )


def _dense_mask(
    queries: int, history: int, window: int, segments: Tensor | None, device: torch.device
) -> Bool[Tensor, "..."]:
    query = torch.arange(history, history + queries, device=device)[:, None]
    key = torch.arange(history + queries, device=device)
    seen = (key <= query) & (key > query - window)
    if segments is None:
        return seen
    return (seen & (segments[:, history:, None] == segments[:, None, :]))[:, None]


def _block_mask(
    queries: int, history: int, window: int, segments: Tensor | None, device: torch.device
) -> Bool[Tensor, "..."]:
    """[blocks or B * blocks, 1, window, 2 window]: block i's queries against key blocks i-1 and i."""
    blocks = -(-queries // window)
    query = torch.arange(window, device=device)[:, None]
    key = torch.arange(2 * window, device=device) - window
    seen = (key <= query) & (key > query - window)
    position = torch.arange(blocks, device=device)[:, None, None] * window + key
    seen = seen & (position >= -history)
    if segments is None:
        return seen[:, None]
    rows = len(segments)
    # Padding gets segment -1 in front, which no query has, and repeats nothing behind: those queries are cut off.
    padded = F.pad(segments, (window - history, blocks * window - queries), value=-1)
    own = padded[:, window:].unflatten(1, (blocks, window))
    seen = seen & (own[..., None] == _pairs_of_blocks(padded, blocks, window)[:, :, None, :])
    return seen.reshape(rows * blocks, 1, window, 2 * window)


def _block_attention(q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None) -> Tensor:
    rows, heads, queries, dim = q.shape
    assert mask is not None
    blocks = -(-queries // window)
    behind = blocks * window - queries
    front = window - (k.shape[2] - queries)
    q = F.pad(q, (0, 0, 0, behind)).unflatten(2, (blocks, window))
    q = q.transpose(1, 2).reshape(rows * blocks, heads, window, dim)

    def pairs(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, front, behind)).transpose(1, 2)
        return _pairs_of_blocks(x, blocks, window).transpose(2, 3).flatten(0, 1)

    if mask.shape[0] != rows * blocks:
        mask = mask.repeat(rows, 1, 1, 1)
    gqa = k.shape[1] != heads
    out = F.scaled_dot_product_attention(q, pairs(k), pairs(v), attn_mask=mask, enable_gqa=gqa)
    return out.unflatten(0, (rows, blocks)).transpose(2, 3).flatten(1, 2)[:, :queries].transpose(1, 2)


def _pairs_of_blocks(x: Tensor, blocks: int, window: int) -> Tensor:
    """[B, (blocks + 1) window, ...] -> [B, blocks, 2 window, ...]: each block with the one before it."""
    x = x.unflatten(1, (blocks + 1, window))
    return torch.cat((x[:, :-1], x[:, 1:]), 2)
