"""What a step does around its stacks, as native calls: norms, entropies, and the embedding of bytes and n-grams.

Each is a handful of tensor operations in eager mode, and between stacks that fill the caches an operation costs tens of
microseconds, whatever it computes.
"""

import ctypes
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.embed import NgramEmbedding
from bltkit.model.entropy import EntropyModel
from bltkit.model.fused_linear import RMSNorm
from bltkit.native.library import NgramTables, kernels
from bltkit.native.linear import MOST_POSITIONS


class NativeNorm(RMSNorm):
    """`RMSNorm` over a few positions in one call; for inference."""

    def __init__(self, norm: RMSNorm) -> None:
        """norm: whose weight it shares."""
        nn.Module.__init__(self)
        self.eps, self.weight = norm.eps, norm.weight
        self._norm = kernels(norm.weight.dtype).norm

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        width = x.shape[-1]
        count = x.numel() // width
        weight = self.weight
        if count > MOST_POSITIONS or x.dtype != weight.dtype:
            return super().forward(x)
        x = x.contiguous()
        y = torch.empty_like(x)
        self._norm(x.data_ptr(), weight.data_ptr(), count, width, self.eps, y.data_ptr())
        return y


class NativeEntropyModel(EntropyModel):
    """`EntropyModel` that scores a few positions in one call; for inference."""

    def __init__(self, model: EntropyModel) -> None:
        """model: whose modules it shares."""
        nn.Module.__init__(self)
        self.config, self.embed, self.stack = model.config, model.embed, model.stack
        self.norm, self.head = model.norm, model.head
        self._entropy = kernels(model.embed.weight.dtype).entropy
        self.train(model.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def score(self, outputs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
        """See `EntropyModel`."""
        rows, size, ids = outputs.shape
        if rows * size > MOST_POSITIONS or outputs.dtype != self.embed.weight.dtype:
            return super().score(outputs)
        outputs = outputs.contiguous()
        entropies = outputs.new_empty(rows, size)
        self._entropy(outputs.data_ptr(), rows * size, ids, entropies.data_ptr())
        return entropies


class NativeNgramEmbedding(NgramEmbedding):
    """`NgramEmbedding` whose `extend` over a few positions is one call; for inference."""

    def __init__(self, embedding: NgramEmbedding) -> None:
        """embedding: whose tables it shares; they are of the bytes' dtype."""
        nn.Module.__init__(self)
        self.config, self.longest, self.scale = embedding.config, embedding.longest, embedding.scale
        self.bytes, self.ngrams = embedding.bytes, embedding.ngrams
        self.register_buffer("hash_weights", embedding.hash_weights.contiguous(), persistent=False)
        self.register_buffer("table_offsets", embedding.table_offsets, persistent=False)
        held = (self.bytes.weight, self.ngrams, self.hash_weights, self.table_offsets)
        addresses = [tensor.data_ptr() for tensor in held]
        width = self.ngrams.shape[1]
        sizes = (len(self.table_offsets), self.longest, self.config.buckets, width)
        self._tables = NgramTables(*addresses, *sizes, self.scale)
        self._reference = ctypes.byref(self._tables)
        self._embed_ids = kernels(self.ngrams.dtype).embed

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def extend(self, window: Int64[Tensor, "R T"]) -> Float[Tensor, "R S D"]:
        """See `ByteEmbedding`."""
        rows, size = window.shape[0], window.shape[1] - self.longest + 1
        if rows * size > MOST_POSITIONS:
            return super().extend(window)
        window = window.contiguous()
        x = self.ngrams.new_empty(rows, size, self.ngrams.shape[1])
        self._embed_ids(self._reference, window.data_ptr(), rows, size, x.data_ptr())
        return x


def native_step(module: nn.Module) -> nn.Module | None:
    """The module in native form, if it is one of those and in a dtype that the kernels have. Raises Unavailable."""
    if type(module) is RMSNorm and _fits(module.weight):
        return NativeNorm(module)
    if type(module) is EntropyModel and _fits(module.embed.weight):
        return NativeEntropyModel(module)
    if type(module) is NgramEmbedding and _fits(module.ngrams) and module.bytes.weight.dtype == module.ngrams.dtype:
        return NativeNgramEmbedding(module)
    return None


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64) and weight.is_contiguous()
