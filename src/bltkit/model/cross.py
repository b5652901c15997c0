"""Cross-attention between bytes and patches as segment attention: O(T k), and no [T, P] mask (BLT 3.2.2, 3.3).

In the encoder every byte lies in one patch, so a softmax over a patch's bytes is a segmented one; in the decoder
every byte sees the k vectors of one patch, so its keys are gathered (`segment_ops.py`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bltkit.model.config import StackConfig
from bltkit.model.fused_linear import Linear, RMSNorm, normed_product
from bltkit.model.layers import truncated_normal
from bltkit.model.one_segment import OneSegment
from bltkit.model.segment_ops import Latents, RowsOfLatents, Segments


class CrossAttention(nn.Module):
    """q <- gain q + Wo Attn(Wq norm(q), Wk norm(kv), Wv norm(kv)) (docs/model.md 2)."""

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
        """Truncated normal, sigma = width^-1/2 / sqrt(2 (index + 1)), index in its list (docs/model.md 9)."""
        for weight in (self.q.weight, self.kv.weight, self.out.weight):
            truncated_normal(weight, (2 * (index + 1) * weight.shape[1]) ** -0.5, generator)
        for norm in (self.q_norm, self.kv_norm):
            nn.init.ones_(norm.weight)

    def pool(
        self, z: Float[Tensor, "B P k D"], h: Float[Tensor, "B T D"], segments: Segments | OneSegment
    ) -> Float[Tensor, "B P k D"]:
        """Each patch's k queries attend to the bytes of their patch."""
        q = self._heads(normed_product(self.q_norm, self.q, z))
        k, v = self._keys_values(h)
        mixed = segments.attend(q, k.flatten(0, 1), v.flatten(0, 1))
        return self.gain * z + self.out(mixed.flatten(-2).unflatten(0, (len(h), -1)).to(z.dtype))

    def read(
        self,
        h: Float[Tensor, "B T D"],
        kept: tuple[Float[Tensor, "B Tk k H d"], Float[Tensor, "B Tk k H d"]],
        latents: Latents | RowsOfLatents | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Each byte attends to the k vectors of one patch: that of `latents`; without, to k[:, t] and v[:, t], or all
        to one (Tk = 1). kept: `patch_keys_values`."""
        k, v = kept
        q = self._heads(normed_product(self.q_norm, self.q, h))
        if latents is not None:
            mixed = latents.attend(q, k, v)
        else:
            scores = (q.unsqueeze(2) * k).sum(-1) * self.head_dim**-0.5
            mixed = (scores.softmax(2).unsqueeze(-1) * v).sum(2)
        return torch.add(self.out(mixed.flatten(2).to(h.dtype)), h, alpha=self.gain)

    def patch_keys_values(
        self, vectors: Float[Tensor, "B P k D"]
    ) -> tuple[Float[Tensor, "B P k H d"], Float[Tensor, "B P k H d"]]:
        """Keys and values of the patches' k vectors: once a patch, whatever the number of bytes that read them."""
        return self._keys_values(vectors)

    def no_patch(
        self, rows: int, k: int, like: Tensor
    ) -> tuple[Float[Tensor, "R 1 k H d"], Float[Tensor, "R 1 k H d"]]:
        """In place of keys and values where there is no patch yet. like: of their dtype and device."""
        zeros = like.new_zeros(rows, 1, k, self.heads, self.head_dim)
        return zeros, zeros

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_dim)

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kv = normed_product(self.kv_norm, self.kv, x).view(*x.shape[:-1], 2 * self.kv_heads, self.head_dim)
        k, v = kv[..., : self.kv_heads, :], kv[..., self.kv_heads :, :]
        if self.kv_heads != self.heads:
            repeat = self.heads // self.kv_heads
            k, v = k.repeat_interleave(repeat, -2), v.repeat_interleave(repeat, -2)
        return k, v
