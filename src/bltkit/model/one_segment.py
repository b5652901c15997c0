"""One patch of one row: what decoding meets most often, without the layout that `segment_ops.py` needs."""

import torch
from jaxtyping import Float
from torch import Tensor


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

    def mean(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "1 D"]:
        """As `Segments.mean`."""
        return x.mean(0, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)

    def last(self, x: Float[Tensor, "N D"], count: int) -> Float[Tensor, "1 n D"]:
        """As `Segments.last`."""
        found = x[-count:]
        return torch.cat((x.new_zeros(count - len(found), x.shape[1]), found))[None]

    def attend(
        self, q: Float[Tensor, "1 1 k H d"], k: Float[Tensor, "N H d"], v: Float[Tensor, "N H d"]
    ) -> Float[Tensor, "1 k H d"]:
        """As `Segments.attend`."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q[0] * k.unsqueeze(1)).sum(-1, dtype=wide) * q.shape[-1] ** -0.5
        weights = (scores - scores.amax(0, keepdim=True)).exp()
        mixed = (weights.unsqueeze(-1) * v.unsqueeze(1)).sum(0, keepdim=True)
        return mixed / weights.sum(0, keepdim=True).unsqueeze(-1)
