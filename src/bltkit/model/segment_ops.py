"""Patches as contiguous stretches of bytes: sums and maxima over them, and attention between the two.

Attention keeps its queries, keys, values and weights, k numbers a head and byte; what each byte sees of its patch, or a
patch of its bytes, is gathered again in backward, one of the k vectors at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.patches import Patches


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

    def mean(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "BP D"]:
        """Mean over each patch's bytes, summed in fp32 at least; 0 where there are none."""
        total = self.sum(x.to(torch.promote_types(x.dtype, torch.float32)))
        return (total / self._drop_padding(self.lengths).clamp_min(1)[:, None]).to(x.dtype)

    def last(self, x: Float[Tensor, "N D"], count: int) -> Float[Tensor, "BP n D"]:
        """The last `count` bytes of each patch in their order; zeros in front where there are fewer."""
        back = torch.arange(count - 1, -1, -1, device=x.device)
        at = (self.lengths.cumsum(0)[:, None] - 1 - back).clamp_min(0)
        found = x.index_select(0, at.flatten()).unflatten(0, at.shape)
        return self._drop_padding(found.where((back < self.lengths[:, None])[..., None], 0))

    def attend(
        self, q: Float[Tensor, "B P k H d"], k: Float[Tensor, "N H d"], v: Float[Tensor, "N H d"]
    ) -> Float[Tensor, "BP k H d"]:
        """Each patch's k queries over its bytes' keys and values; zeros where there are no bytes. In fp32 at least."""
        queries = torch.cat((q, q.new_zeros(self.rows, 1, *q.shape[2:])), 1).flatten(0, 1)
        found: Tensor = _Pool.apply(queries, k, v, self.index, self.lengths)  # type: ignore[no-untyped-call]
        return self._drop_padding(found)

    def _drop_padding(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.rows, -1))[:, :-1].flatten(0, 1)


class Latents:
    """Which patch each byte reads, as stretches of the B T flattened bytes: a patch's readers stand side by side."""

    def __init__(self, byte_latent: Int64[Tensor, "B T"], patches: int) -> None:
        """byte_latent: within the row, non-decreasing. patches: of each row, P."""
        rows = len(byte_latent)
        row_start = torch.arange(rows, device=byte_latent.device)[:, None] * patches
        self.index = (row_start + byte_latent).flatten()
        readers = self.index.new_zeros(rows * patches)
        self.lengths = readers.index_add_(0, self.index, torch.ones_like(self.index))

    def spread(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B T D"]:
        """Each byte what its patch has."""
        found: Tensor = _Spread.apply(x.flatten(0, 1), self.index, self.lengths)  # type: ignore[no-untyped-call]
        return found.unflatten(0, (len(x), -1))

    def attend(
        self, q: Float[Tensor, "B T H d"], k: Float[Tensor, "B P k H d"], v: Float[Tensor, "B P k H d"]
    ) -> Float[Tensor, "B T H d"]:
        """Each byte over the k vectors of its patch."""
        flat = (each.flatten(0, 1) for each in (q, k, v))
        found: Tensor = _Read.apply(*flat, self.index, self.lengths)  # type: ignore[no-untyped-call]
        return found.unflatten(0, q.shape[:2])


class RowsOfLatents:
    """`Latents` of several groups of rows that stand behind one another, each in its own order."""

    def __init__(self, groups: Sequence[Int64[Tensor, "B _"]], patches: int) -> None:
        """groups: as `Latents` takes them."""
        self.sizes = [group.shape[1] for group in groups]
        self.groups = [Latents(group, patches) for group in groups]

    def spread(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B T D"]:
        """As `Latents.spread`; T is the sum of the groups' lengths."""
        return torch.cat([group.spread(x) for group in self.groups], 1)

    def attend(
        self, q: Float[Tensor, "B T H d"], k: Float[Tensor, "B P k H d"], v: Float[Tensor, "B P k H d"]
    ) -> Float[Tensor, "B T H d"]:
        """As `Latents.attend`; T is the sum of the groups' lengths."""
        parts = zip(self.groups, q.split(self.sizes, 1), strict=True)
        return torch.cat([group.attend(own, k, v) for group, own in parts], 1)


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


class _Pool(torch.autograd.Function):
    """(q [S, k, H, d], k [N, H, d], v [N, H, d], index, lengths) -> [S, k, H, d]: each stretch over its bytes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: Tensor, lengths: Tensor) -> Tensor:
        # In fp32 at least: a long patch's sum in bf16 would lose its last bytes.
        wide, scale = torch.promote_types(q.dtype, torch.float32), q.shape[-1] ** -0.5
        slots = range(q.shape[1])
        scores = torch.stack([(q[:, j].index_select(0, index) * k).sum(-1, dtype=wide) for j in slots], 1) * scale
        flat = scores.flatten(1)
        peak = torch.segment_reduce(flat, "max", lengths=lengths, axis=0, unsafe=True).view(q.shape[:-1])
        weights = scores.sub_(peak.index_select(0, index)).exp_()
        total = _segment_sum(weights, lengths).clamp_min(torch.finfo(wide).tiny)
        mixed = torch.stack([_segment_sum(weights[:, j, :, None] * v, lengths) for j in slots], 1)
        weights = weights / total.index_select(0, index)
        ctx.save_for_backward(q, k, v, weights, index, lengths)
        return mixed.div_(total.unsqueeze(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, weights, index, lengths = ctx.saved_tensors
        scale, slots = q.shape[-1] ** -0.5, range(q.shape[1])
        of_v, of_weights = torch.zeros_like(v, dtype=weights.dtype), torch.empty_like(weights)
        for j in slots:
            back = grads[0][:, j].index_select(0, index)
            of_weights[:, j] = (back * v).sum(-1)
            of_v.add_(back.mul_(weights[:, j, :, None]))
        along = _segment_sum(of_weights * weights, lengths).index_select(0, index)
        of_scores = of_weights.sub_(along).mul_(weights).mul_(scale)
        of_q, of_k = torch.empty_like(q), torch.zeros_like(k, dtype=weights.dtype)
        for j in slots:
            own = of_scores[:, j, :, None]
            of_q[:, j] = _segment_sum(own * k, lengths)
            of_k.add_(q[:, j].index_select(0, index) * own)
        return of_q, of_k.to(k.dtype), of_v.to(v.dtype), None, None


class _Read(torch.autograd.Function):
    """(q [N, H, d], k [S, k, H, d], v [S, k, H, d], index, lengths) -> [N, H, d]: each byte over its patch's."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: Tensor, lengths: Tensor) -> Tensor:
        scale, slots = q.shape[-1] ** -0.5, range(k.shape[1])
        scores = torch.stack([(q * k[:, j].index_select(0, index)).sum(-1) for j in slots], 1) * scale
        weights = scores.softmax(1)
        ctx.save_for_backward(q, k, v, weights, index, lengths)
        mixed = v[:, 0].index_select(0, index).mul_(weights[:, 0, :, None])
        for j in slots[1:]:
            mixed.add_(v[:, j].index_select(0, index).mul_(weights[:, j, :, None]))
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, weights, index, lengths = ctx.saved_tensors
        grad, scale, slots = grads[0], q.shape[-1] ** -0.5, range(k.shape[1])
        of_v, of_weights = torch.empty_like(v), torch.empty_like(weights)
        for j in slots:
            of_weights[:, j] = (grad * v[:, j].index_select(0, index)).sum(-1)
            of_v[:, j] = _segment_sum(grad * weights[:, j, :, None], lengths)
        along = (of_weights * weights).sum(1, keepdim=True)
        of_scores = of_weights.sub_(along).mul_(weights).mul_(scale)
        of_q, of_k = torch.zeros_like(q), torch.empty_like(k)
        for j in slots:
            own = of_scores[:, j, :, None]
            of_q.add_(k[:, j].index_select(0, index).mul_(own))
            of_k[:, j] = _segment_sum(q * own, lengths)
        return of_q, of_k, of_v, None, None
