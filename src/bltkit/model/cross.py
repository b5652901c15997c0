"""Cross-attention between bytes and patches as segment attention: O(T k), and no [T, P] mask (BLT 3.2.2, 3.3).

In the encoder every byte lies in one patch, so a softmax over a patch's bytes is a segmented one; in the decoder
every byte sees the k vectors of one patch, so its keys are gathered. Patches are contiguous stretches of bytes:
sums over a patch are segment reductions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import StackConfig
from bltkit.model.layers import Linear, RMSNorm, truncated_normal
from bltkit.patches import Patches


class CrossAttention(nn.Module):
    """q <- gain q + Wo Attn(Wq norm(q), Wk norm(kv), Wv norm(kv)), with gain 2 in the released weights (spec 0.1)."""

    def __init__(self, config: StackConfig, doubled_residual: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.num_kv_heads, config.head_dim
        self.gain = 2.0 if doubled_residual else 1.0
        self.q_norm = RMSNorm(config.width, config.norm_eps)
        self.kv_norm = RMSNorm(config.width, config.norm_eps)
        self.q = Linear(config.width, config.width)
        self.kv = Linear(config.width, 2 * self.kv_heads * self.head_dim)
        self.out = Linear(config.width, config.width)

    def reset_parameters(self, index: int, generator: torch.Generator | None = None) -> None:
        """Truncated normal, sigma = width^-1/2 / sqrt(2 (index + 1)), index in the block's own list (spec 8)."""
        for weight in (self.q.weight, self.kv.weight, self.out.weight):
            truncated_normal(weight, (2 * (index + 1) * weight.shape[1]) ** -0.5, generator)
        for norm in (self.q_norm, self.kv_norm):
            nn.init.ones_(norm.weight)

    def pool(
        self, z: Float[Tensor, "B P k D"], h: Float[Tensor, "B T D"], segments: "Segments | OneSegment"
    ) -> Float[Tensor, "B P k D"]:
        """Each patch's k queries attend to the bytes of their patch."""
        q = segments.spread(self._heads(self.q(self.q_norm(z))))
        k, v = self._keys_values(h)
        # In fp32 at least: a long patch's sum in bf16 would lose its last bytes.
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q * k.flatten(0, 1).unsqueeze(1)).sum(-1, dtype=wide) * self.head_dim**-0.5
        # The shift by the maximum cancels in the softmax, so no gradient is lost by leaving it out.
        peak = segments.maximum(scores.detach()).unflatten(0, (len(h), -1))
        weights = (scores - segments.spread(peak)).exp()
        total = segments.sum(weights)
        mixed = segments.sum(weights.unsqueeze(-1) * v.flatten(0, 1).unsqueeze(1))
        mixed = mixed / total.clamp_min(torch.finfo(total.dtype).tiny).unsqueeze(-1)
        return self.gain * z + self.out(mixed.flatten(-2).unflatten(0, (len(h), -1)).to(z.dtype))

    def read(
        self, h: Float[Tensor, "B T D"], k: Float[Tensor, "B Tk k H d"], v: Float[Tensor, "B Tk k H d"]
    ) -> Float[Tensor, "B T D"]:
        """Each byte attends to the k vectors of one patch: k[:, t] and v[:, t], or all to one (Tk = 1)."""
        q = self._heads(self.q(self.q_norm(h)))
        scores = (q.unsqueeze(2) * k).sum(-1) * self.head_dim**-0.5
        mixed = (scores.softmax(2).unsqueeze(-1) * v).sum(2)
        return torch.add(self.out(mixed.flatten(2).to(h.dtype)), h, alpha=self.gain)

    def patch_keys_values(
        self, vectors: Float[Tensor, "B P k D"]
    ) -> tuple[Float[Tensor, "B P k H d"], Float[Tensor, "B P k H d"]]:
        """Keys and values of the patches' k vectors: once a patch, whatever the number of bytes that read them."""
        return self._keys_values(vectors)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_dim)

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kv = self.kv(self.kv_norm(x)).view(*x.shape[:-1], 2 * self.kv_heads, self.head_dim)
        k, v = kv[..., : self.kv_heads, :], kv[..., self.kv_heads :, :]
        if self.kv_heads != self.heads:
            repeat = self.heads // self.kv_heads
            k, v = k.repeat_interleave(repeat, -2), v.repeat_interleave(repeat, -2)
        return k, v


def of_bytes(x: Float[Tensor, "B P k H d"], index: Int64[Tensor, "B T"]) -> Float[Tensor, "B T k H d"]:
    """For each byte what belongs to its patch, `index` within the row."""
    rows, patches = x.shape[:2]
    row_start = torch.arange(rows, device=x.device)[:, None] * patches
    return F.embedding(row_start + index, x.reshape(rows * patches, -1)).unflatten(-1, x.shape[2:])


class Segments:
    """The patches of a batch as contiguous stretches of the B T flattened bytes.

    Every row ends with one more stretch for its padding, which is computed and dropped.
    """

    def __init__(self, lengths: Int64[Tensor, " S"], index: Int64[Tensor, " N"], rows: int) -> None:
        self.lengths, self.index, self.rows = lengths, index, rows

    @classmethod
    def of(cls, patches: Patches) -> "Segments":
        """Stretches of a `Patches` value."""
        rows, length = patches.valid.shape
        padding = length - patches.num_bytes
        lengths = torch.cat((patches.lengths, padding[:, None]), 1)
        slot = patches.byte_patch.where(patches.valid, patches.max_patches)
        index = slot + torch.arange(rows, device=slot.device)[:, None] * lengths.shape[1]
        return cls(lengths.flatten(), index.flatten(), rows)

    def spread(self, x: Float[Tensor, "B P ..."]) -> Float[Tensor, "N ..."]:
        """Give every byte the value of its patch; padding gets zeros."""
        padded = torch.cat((x, x.new_zeros(self.rows, 1, *x.shape[2:])), 1)
        spread: Tensor = _Spread.apply(padded.flatten(0, 1), self.index, self.lengths)  # type: ignore[no-untyped-call]
        return spread

    def sum(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "BP ..."]:
        """Sum over each patch's bytes."""
        total: Tensor = _Sum.apply(x, self.index, self.lengths)  # type: ignore[no-untyped-call]
        return self._drop_padding(total)

    def maximum(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "BP ..."]:
        """Maximum over each patch's bytes; 0 where there are none. Ties share the gradient."""
        flat = x.reshape(len(x), -1)
        peak = torch.segment_reduce(flat, "max", lengths=self.lengths, axis=0, unsafe=True)
        peak = peak.where((self.lengths > 0)[:, None], 0)
        return self._drop_padding(peak.unflatten(1, x.shape[1:]))

    def _drop_padding(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.rows, -1))[:, :-1].flatten(0, 1)


class OneSegment:
    """`Segments` of one row that is one patch: what decoding meets most often, without the layout's cost."""

    def spread(self, x: Float[Tensor, "1 1 ..."]) -> Float[Tensor, "1 ..."]:
        """The one value, which broadcasts over the bytes."""
        return x[0]

    def sum(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "1 ..."]:
        """Over all bytes."""
        return x.sum(0, keepdim=True)

    def maximum(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "1 ..."]:
        """Over all bytes."""
        return x.amax(0, keepdim=True)


def _segment_sum(x: Tensor, lengths: Tensor) -> Tensor:
    flat = x.reshape(len(x), -1)
    total = torch.segment_reduce(flat, "sum", lengths=lengths, axis=0, unsafe=True, initial=0)
    return total.unflatten(1, x.shape[1:])


class _Spread(torch.autograd.Function):
    """Gather whose gradient is a segment sum: several times faster than the scatter that autograd would do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(lengths)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (lengths,) = ctx.saved_tensors
        return _segment_sum(grads[0].contiguous(), lengths), None, None


class _Sum(torch.autograd.Function):
    """Segment sum whose gradient is a gather."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return _segment_sum(x.contiguous(), lengths)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0].index_select(0, index), None, None
