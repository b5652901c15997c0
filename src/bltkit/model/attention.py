"""Self-attention's backend: rotary positions, and who sees whom. The only file that calls an attention kernel.

A `Visibility` is built once per stack and shared by its layers. Sliding windows go in blocks (`window_blocks.py`).
Without a window a row on the CPU goes document by document, each a causal call of its own, which needs no mask: looking
at the documents' bounds costs nothing there. Elsewhere a look would make the host wait for the device, so there is a
dense mask; these are worked off in a few steps of queries, which skips most of the masked half.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from bltkit.model.cache import Slot, StackCache
from bltkit.model.window_blocks import RotateIntoBlocks, WindowBlocks

STEPS = 8
"""Parts that a long dense causal mask is cut into: 9/16 of the whole is computed."""
MIN_STEP = 128
"""Shorter steps than this cost more in calls than they save in scores."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary angles of positions; made once per stack and shared by its layers."""

    angle: Float[Tensor, "... T d"]
    """In fp32, or float64 for float64 (docs/model.md 2)."""
    dtype: torch.dtype
    """That sine and cosine are rounded to."""

    @classmethod
    def of(cls, positions: Int64[Tensor, "... T"], head_dim: int, theta: float, like: Tensor) -> Self:
        """For activations such as `like`."""
        frequencies = rotary_frequencies(head_dim, theta, like.dtype, like.device)
        return cls(positions[..., None] * frequencies, like.dtype)

    def turn(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        """Turn neighbouring pairs (0, 1), (2, 3), ... (interleaved RoPE; half-split weights would need permuting)."""
        if x.dtype in (torch.float32, torch.float64) and not _compiling():
            # A pair is a complex number and a turn one product: one pass over memory, 8 times faster on the CPU.
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * self.factors).flatten(-2)
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = self.angle.cos().to(self.dtype), self.angle.sin().to(self.dtype)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)

    def turn_(self, x: Float[Tensor, "B H T D"]) -> None:
        """`turn` in place, for passes without gradient."""
        if x.dtype in (torch.float32, torch.float64):
            torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(self.factors)
        else:
            x.copy_(self.turn(x))

    @cached_property
    def factors(self) -> Complex[Tensor, "... T d"]:
        """A turn of a pair as a complex number."""
        return torch.polar(_one(self.dtype, self.angle.device), self.angle)


@lru_cache(maxsize=64)
def rotary_frequencies(head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " d"]:
    """theta^(-2i / head_dim), in fp32 at least: angles of position 1. Kept, since a step of a small model would spend a
    tenth of its time on them."""
    wide = torch.promote_types(dtype, torch.float32)
    with torch.inference_mode(False):
        return theta ** -(torch.arange(0, head_dim, 2, dtype=wide, device=device) / head_dim)


@lru_cache(maxsize=8)
def _one(dtype: torch.dtype, device: torch.device) -> Float[Tensor, ""]:
    with torch.inference_mode(False):
        return torch.ones((), dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which keys each of `queries` new positions sees; the keys are `history` older ones and the new ones.

    Causal; within `window` keys (itself included) if given; within the query's own segment if segments are given.
    """

    form: Literal["all", "causal", "documents", "dense", "blocks"]
    window: int
    mask: Tensor | None = None
    """True where a key is seen; or, for `blocks`, 0 there and minus infinity elsewhere."""
    lengths: tuple[int, ...] = ()
    """Of `documents`: those of all rows, one row after the other."""
    blocks: WindowBlocks | None = None

    @classmethod
    def of(
        cls,
        queries: int,
        history: int,
        window: int | None,
        segments: Int64[Tensor, "B S"] | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> "Visibility":
        """segments: [B, history + queries], non-decreasing along a row; a query sees keys of its own segment only.

        dtype: of the queries.
        """
        keys = history + queries
        reach = min(window or keys, keys)
        if segments is None and reach == keys and queries == 1:
            return cls("all", reach)
        if segments is None and reach == keys and not history:
            return cls("causal", reach)
        if segments is not None and reach == keys and not history and device.type == "cpu" and not _compiling():
            lengths = _lengths(segments)
            return cls("causal", reach) if len(lengths) == len(segments) else cls("documents", reach, lengths=lengths)
        if queries <= reach or history >= reach:
            return cls("dense", reach, _dense_mask(queries, history, reach, segments, device))
        blocks = WindowBlocks.of(keys, reach)
        seen = blocks.seen(segments, device)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
        return cls("blocks", reach, mask, blocks=blocks)

    @classmethod
    def behind(cls, slot: Slot, device: torch.device) -> "Visibility":
        """For the new positions of a slot, against its columns [first, end)."""
        cache, size = slot.cache, slot.size
        if slot.aligned:
            return cls.of(size, slot.end - size - slot.first, cache.window, None, device)
        start, stop = torch.tensor([cache.starts, cache.stops], device=device)[:, :, None, None, None]
        query = stop + torch.arange(size, device=device)[:, None]
        key = torch.arange(slot.first, slot.end, device=device)
        seen = (key <= query) & (key >= start)
        if cache.window is not None:
            seen = seen & (key > query - cache.window)
        return cls("dense", slot.end - slot.first, seen)

    def attend(
        self, q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B G K D"], v: Float[Tensor, "B G K D"]
    ) -> Float[Tensor, "B H Q D"]:
        """softmax(q k / sqrt(D)) v over the visible keys; G key/value heads serve H/G consecutive heads each."""
        if self.blocks is not None:
            # Older positions ask as well, and are not answered.
            asked = F.pad(q, (0, 0, k.shape[2] - q.shape[2], 0))
            laid = [self.blocks.lay(each.transpose(1, 2)) for each in (asked, k, v)]
            blocks = self.blocks.queries(laid[0]), self.blocks.stretches(laid[1]), self.blocks.stretches(laid[2])
            return self.attend_in_blocks(*blocks)[:, :, -q.shape[2] :]
        if self.form == "documents":
            return _document_attention(q, k, v, self.lengths)
        if self.form == "dense" and q.shape[2] >= 2 * MIN_STEP:
            return _stepped_attention(q, k, v, self.mask)
        return sdpa(q, k, v, self.mask, causal=self.form == "causal")

    def attend_in_blocks(
        self, q: Float[Tensor, "BC H S D"], k: Float[Tensor, "BC G K D"], v: Float[Tensor, "BC G K D"]
    ) -> Float[Tensor, "B H T D"]:
        """`attend` for what already lies as form `blocks` wants it."""
        assert self.mask is not None and self.blocks is not None
        mask = self.mask.to(q.dtype)
        if len(mask) != len(q):
            mask = mask.repeat(len(q) // len(mask), 1, 1, 1)
        return self.blocks.rows(sdpa(q, k, v, mask))


@runtime_checkable
class Attend(Protocol):
    """Attention of one pass through a stack; the layers hand in what they project, not yet turned."""

    def __call__(self, layer: int, fused: Float[Tensor, "B N T D"]) -> Float[Tensor, "B H T D"]:
        """fused: the heads of queries, keys and values, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class RowAttention:
    """Over whole rows; differentiable."""

    rotation: Rotation
    visible: Visibility
    heads: int
    kv_heads: int

    def __call__(self, layer: int, fused: Float[Tensor, "B N T D"]) -> Float[Tensor, "B H T D"]:
        """See `Attend`."""
        return self.attend(*self.turned(fused))

    def turned(self, fused: Float[Tensor, "B N T D"]) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Queries, keys and values; and do they lie in the window's blocks already, which is cheap where we turn them
        by a kernel of our own."""
        if fused.dtype in (torch.float32, torch.float64) and not _compiling():
            factors, blocks = self.rotation.factors, self.visible.blocks
            q, k, v = RotateIntoBlocks.apply(fused.transpose(1, 2), factors, self.heads, self.kv_heads, blocks)  # type: ignore[no-untyped-call]
            return q, k, v, blocks is not None
        qk, v = fused.split((self.heads + self.kv_heads, self.kv_heads), 1)
        q, k = self.rotation.turn(qk).split((self.heads, self.kv_heads), 1)
        return q, k, v, False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, in_blocks: bool) -> Float[Tensor, "B H T D"]:
        """Of what `turned` gave."""
        return self.visible.attend_in_blocks(q, k, v) if in_blocks else self.visible.attend(q, k, v)


class CachedAttention:
    """Of new positions, over a cache and themselves; writes their keys and values into a slot behind the cache."""

    def __init__(self, cache: StackCache, size: int, heads: int, kv_heads: int, theta: float, x: Tensor) -> None:
        """x: [R, size, D], of which only shape, dtype and device count."""
        self.heads, self.kv_heads = heads, kv_heads
        head_dim = x.shape[-1] // heads
        self.slot = cache.slot(size, 2 * kv_heads, head_dim, x)
        self.visible = Visibility.behind(self.slot, x.device)
        new = torch.arange(size, device=x.device)
        if len(set(cache.positions)) == 1:
            positions = new + cache.positions[0]
        else:
            positions = torch.tensor(cache.positions, device=x.device)[:, None, None] + new
        self.rotation = Rotation.of(positions, head_dim, theta, x)

    def __call__(self, layer: int, fused: Float[Tensor, "R N S D"]) -> Float[Tensor, "R H S D"]:
        """See `Attend`."""
        self.rotation.turn_(fused[:, : self.heads + self.kv_heads])
        k, v = self.slot.write(layer, fused[:, self.heads :]).chunk(2, 1)
        return self.visible.attend(fused[:, : self.heads], k, v)


@dataclass(frozen=True, eq=False)
class SeveralCaches:
    """Of rows whose caches lie apart: one after another."""

    parts: tuple[CachedAttention, ...]

    def __call__(self, layer: int, fused: Float[Tensor, "R N S D"]) -> Float[Tensor, "R H S D"]:
        """See `Attend`."""
        rows = fused.split([len(part.slot.cache.stops) for part in self.parts])
        return torch.cat([part(layer, own) for part, own in zip(self.parts, rows, strict=True)])


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """softmax(q k / sqrt(D) + mask) v: the one call of a kernel."""
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
        parts.append(sdpa(q[:, :, now], k[:, :, seen], v[:, :, seen], mask[..., now, seen]))
    return torch.cat(parts, 2)


def _document_attention(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Attention of rows whose documents have these lengths, one causal call for each."""
    found = []
    for part in zip(*(each.transpose(1, 2).flatten(0, 1).split(lengths) for each in (q, k, v)), strict=True):
        own_q, own_k, own_v = (each.transpose(0, 1)[None] for each in part)
        found.append(sdpa(own_q, own_k, own_v, None, causal=True)[0].transpose(0, 1))
    return torch.cat(found).unflatten(0, (len(q), -1)).transpose(1, 2)


def _lengths(segments: Int64[Tensor, "B T"]) -> tuple[int, ...]:
    """How long each segment of each row is."""
    ends = F.pad(segments.diff(dim=1) != 0, (0, 1), value=True).flatten().nonzero()[:, 0]
    return tuple(ends.diff(prepend=ends.new_full((1,), -1)).tolist())


def _compiling() -> bool:
    return torch.compiler.is_compiling()
