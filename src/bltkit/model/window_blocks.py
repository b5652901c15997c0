"""Rows as attention reads them: how a sliding window is cut into blocks, and how queries and keys lie in memory.

A windowed row costs O(T w): queries go in blocks of a quarter of the window, each against the stretch of keys that its
queries see, so no [T, T] mask exists once T is past the window, and only a fifth of the scores computed are masked.
Stretches overlap. They are views of one buffer in which the rows stand end to end, so no key is stored twice, and what
a key's several gradients add up to is a sum of shifted buffers. What a block sees of the row before its own is masked.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MIN_BLOCK = 64
"""Shorter blocks than this cost more in calls than they save in scores."""


@dataclass(frozen=True)
class WindowBlocks:
    """How a windowed row of `length` positions is cut: `count` blocks of `size` queries, each with the keys of its own
    block and of `back` blocks before it."""

    length: int
    window: int
    size: int
    back: int
    count: int

    @classmethod
    def of(cls, length: int, window: int) -> "WindowBlocks":
        """window: keys that a query sees, itself included."""
        size = max(MIN_BLOCK, -(-window // 4))
        return cls(length, window, size, -(-(window - 1) // size), -(-length // size))

    @property
    def keys(self) -> int:
        """Keys against which a block of queries is computed."""
        return (self.back + 1) * self.size

    @property
    def padding(self) -> int:
        """Positions behind a row that make its blocks whole."""
        return self.count * self.size - self.length

    def seen(
        self, segments: Int64[Tensor, "B T"] | None, device: torch.device
    ) -> Bool[Tensor, "BC 1 S K"] | Bool[Tensor, "C 1 S K"]:
        """Which keys of its stretch a query sees; for every row the same without segments."""
        query = torch.arange(self.size, device=device)[:, None]
        key = torch.arange(self.keys, device=device) - self.back * self.size
        seen = (key <= query) & (key > query - self.window)
        position = torch.arange(self.count, device=device)[:, None, None] * self.size + key
        seen = seen & (position >= 0)
        if segments is None:
            return seen[:, None]
        # Padding sees itself alone: its segment is -1, which no query that is kept has.
        padded = F.pad(segments, (self.back * self.size, self.padding), value=-1)
        own = padded[:, self.back * self.size :].unflatten(1, (self.count, self.size))
        seen = seen & (own[..., None] == padded.unfold(1, self.keys, self.size)[:, :, None, :])
        return seen.flatten(0, 1)[:, None]

    def buffer(self, rows: int, like: Float[Tensor, "..."], *shape: int) -> Float[Tensor, "Z ..."]:
        """Room for rows end to end, a stretch of zeros in front of the first."""
        return like.new_empty((self.back + rows * self.count) * self.size, *shape)

    def rows_of(self, buffer: Float[Tensor, "Z ..."]) -> Float[Tensor, "B L ..."]:
        """The rows of a buffer, their padding with them."""
        return buffer[self.back * self.size :].unflatten(0, (-1, self.count * self.size))

    def fill_padding(self, buffer: Float[Tensor, "Z ..."]) -> None:
        """Zeros where no row stands: a masked score must be a number."""
        buffer[: self.back * self.size] = 0
        if self.padding:
            self.rows_of(buffer)[:, self.length :] = 0

    def lay(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "Z N D"]:
        """A buffer of these rows, differentiable."""
        end_to_end = F.pad(x, (0, 0, 0, 0, 0, self.padding)).flatten(0, 1)
        return F.pad(end_to_end, (0, 0, 0, 0, self.back * self.size, 0))

    def queries(self, buffer: Float[Tensor, "Z H D"]) -> Float[Tensor, "BC H S D"]:
        """The blocks of a buffer, a view."""
        return buffer[self.back * self.size :].unflatten(0, (-1, self.size)).transpose(1, 2)

    def stretches(self, buffer: Float[Tensor, "Z G D"]) -> Float[Tensor, "BC G K D"]:
        """The keys of each block, overlapping views."""
        return buffer.unfold(0, self.keys, self.size).transpose(2, 3)

    def summed(self, grads: Float[Tensor, "BC G K D"]) -> Float[Tensor, "B L G D"]:
        """The way back from `stretches`: what the stretches say of each position, added up."""
        pieces = grads.transpose(1, 2).unflatten(1, (self.back + 1, self.size))  # [blocks, back + 1, size, G, D]
        total = pieces[:, self.back].contiguous()
        for shift in range(1, min(self.back, len(total) - 1) + 1):
            total[:-shift] += pieces[shift:, self.back - shift]
        return total.flatten(0, 1).unflatten(0, (-1, self.count * self.size))

    def rows(self, out: Float[Tensor, "BC H S D"]) -> Float[Tensor, "B H T D"]:
        """Blocks as rows again, padding dropped."""
        end_to_end = out.transpose(1, 2).flatten(0, 1).unflatten(0, (-1, self.count * self.size))
        return end_to_end[:, : self.length].transpose(1, 2)


class RotateIntoBlocks(torch.autograd.Function):
    """(fused, factors, heads, kv_heads, blocks) -> queries, keys, values as attention reads them, in one buffer.

    fused: [B, T, H + 2 G, D], heads of queries, keys and values; queries and keys are turned on the way. factors: the
    rotation as complex numbers, [T, D/2]. With blocks the results are those of `WindowBlocks.queries` and `stretches`,
    else [B, H, T, D] and twice [B, G, T, D]. Nothing but the factors is kept for backward.
    """

    @staticmethod
    def forward(
        ctx: Any, fused: Tensor, factors: Tensor, heads: int, kv_heads: int, blocks: WindowBlocks | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, length, total, head_dim = fused.shape
        ctx.save_for_backward(factors)
        ctx.heads, ctx.kv_heads, ctx.blocks, ctx.shape = heads, kv_heads, blocks, fused.shape
        if blocks is None:
            buffer = target = torch.empty_like(fused)
        else:
            buffer = blocks.buffer(rows, fused, total, head_dim)
            blocks.fill_padding(buffer)
            target = blocks.rows_of(buffer)[:, :length]
        turned = heads + kv_heads
        turned_into(target[:, :, :turned], fused[:, :, :turned], factors)
        target[:, :, turned:] = fused[:, :, turned:]
        q, k, v = buffer.split((heads, kv_heads, kv_heads), -2)
        if blocks is None:
            return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return blocks.queries(q), blocks.stretches(k), blocks.stretches(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (factors,) = ctx.saved_tensors
        heads, kv_heads, blocks = ctx.heads, ctx.kv_heads, ctx.blocks
        grad = grads[0].new_empty(ctx.shape)
        length = grad.shape[1]
        if blocks is None:
            q, k, v = (each.transpose(1, 2) for each in grads)
        else:
            q = grads[0].transpose(1, 2).flatten(0, 1).unflatten(0, (len(grad), -1))[:, :length]
            k, v = (blocks.summed(each)[:, :length] for each in grads[1:])
        back = factors.conj().resolve_conj()
        for part, first in ((q, 0), (k, heads)):
            turned_into(grad[:, :, first : first + part.shape[2]], part, back)
        grad[:, :, heads + kv_heads :] = v
        return grad, None, None, None, None


def turned_into(target: Float[Tensor, "B T N D"], x: Float[Tensor, "B T N D"], factors: Tensor) -> None:
    """Neighbouring pairs of x are complex numbers, a turn is one product: one pass over memory."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    pairs = [torch.view_as_complex(each.unflatten(-1, (-1, 2))) for each in (x, target)]
    torch.mul(pairs[0], factors[:, None], out=pairs[1])
