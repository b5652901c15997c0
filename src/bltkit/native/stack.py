"""A transformer stack whose `extend` is one call of the native kernels, over the caches of the eager one.

The layers stay the modules of `model/layers.py`, with their weights in panels: whatever is no step over a few positions
(prompts, blocks of a draft) runs through them as ever, and so do both on the same caches.
"""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bltkit.model.attention import rotary_frequencies
from bltkit.model.cache import Slot, StackCache
from bltkit.model.cross import CrossAttention
from bltkit.model.decoder import PatchReads
from bltkit.model.fused_linear import RMSNorm
from bltkit.model.layers import Before, Layer, Transformer
from bltkit.native.library import LayerWeights, PanelMatrix, ReaderWeights, StackWeights, kernels
from bltkit.native.linear import MOST_POSITIONS, NativeLinear


class NativeTransformer(Transformer):
    """`Transformer` with a native `extend`; for inference. It shares all modules with the stack it is made from."""

    def __init__(self, stack: Transformer, readers: Sequence[CrossAttention] = ()) -> None:
        """stack: its linear maps, and those of the readers' query side, are `NativeLinear`s.

        readers: cross-attention in front of the first layers.
        """
        nn.Module.__init__(self)
        self.config, self.kv_heads, self.layers = stack.config, stack.kv_heads, stack.layers
        self._readers = tuple(readers)
        self._dtype = _linear(cast(Layer, self.layers[0]).attention.out).dtype
        self._weights, self._held = _described(stack, self._readers, self._dtype)
        self._reference = ctypes.byref(self._weights)
        # Plain attributes: a module looks up everything else in Python, and a step asks in every stack.
        self._num_layers, self._heads, self._head_dim = (
            len(self.layers),
            2 * self.config.num_kv_heads,
            self.config.head_dim,
        )
        self._extend = kernels(self._dtype).stack

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing changes it, and its description holds addresses

    def extend(
        self, x: Float[Tensor, "R S D"], caches: Sequence[StackCache], before: Before | None = None
    ) -> tuple[list[Float[Tensor, "R S D"]], tuple[Slot, ...]]:
        """See `Transformer`: eager for more than `MOST_POSITIONS` positions in all."""
        rows, size, width = x.shape
        if rows * size > MOST_POSITIONS or x.dtype != self._dtype:
            return super().extend(x, caches, before)
        patches: array[int] | None = None
        kept: list[Tensor] = []
        if before is not None:
            if self._readers and isinstance(before, PatchReads) and before.latents is None:
                patches = array("q", _addresses(before, kept))
            elif self._readers:
                return super().extend(x, caches, before)
            else:  # what is no cross-attention only adds to the stream
                x = before(0, x)
        x = x.contiguous()
        parts = StackCache.apart(caches) if len(caches) > 1 else caches
        slots = tuple([cache.slot(size, self._heads, self._head_dim, x) for cache in parts])
        places = array("q", [number for slot in slots for number in slot.places()])
        outputs = x.new_empty(self._num_layers, rows, size, width)
        self._extend(
            self._reference,
            places.buffer_info()[0],
            rows,
            size,
            x.data_ptr(),
            outputs.data_ptr(),
            None if patches is None else patches.buffer_info()[0],
            torch.get_num_threads(),
        )
        return list(outputs.unbind()), slots


def _addresses(reads: PatchReads, kept: list[Tensor]) -> Iterator[int]:
    """Of each reader what `PatchVectors` of the kernels holds. kept: the tensors that must outlive the call."""
    for keys, values in reads.kv:
        k, v = keys.contiguous(), values.contiguous()
        kept += (k, v)
        yield from (k.data_ptr(), v.data_ptr(), k.shape[1], k.shape[2])


def _described(
    stack: Transformer, readers: Sequence[CrossAttention], dtype: torch.dtype
) -> tuple[StackWeights, list[Any]]:
    """The stack as the kernels read it, and all that its addresses point to."""
    config = stack.config
    held: list[Any] = []

    def address(tensor: Tensor) -> int:
        held.append(tensor.detach().to(dtype).contiguous())
        return int(held[-1].data_ptr())

    def matrix(linear: nn.Module) -> PanelMatrix:
        held.append(linear)
        return _linear(linear).matrix

    def layer_weights(layer: Layer) -> LayerWeights:
        attention, ffn = layer.attention, layer.ffn
        return LayerWeights(
            address(layer.attention_norm.weight),
            matrix(attention.qkv),
            matrix(attention.out),
            address(layer.ffn_norm.weight),
            matrix(ffn.gate_up),
            matrix(ffn.down),
        )

    def reader_weights(reader: CrossAttention) -> ReaderWeights:
        norm: RMSNorm = reader.q_norm
        sides = matrix(reader.q), matrix(reader.out)
        return ReaderWeights(address(norm.weight), *sides, reader.heads, reader.head_dim, norm.eps, reader.gain)

    layers = (LayerWeights * len(stack.layers))(*(layer_weights(cast(Layer, layer)) for layer in stack.layers))
    crossing = (ReaderWeights * max(1, len(readers)))(*map(reader_weights, readers))
    held += [layers, crossing]
    device = torch.device("cpu")
    frequencies = rotary_frequencies(config.head_dim, config.rope_theta, dtype, device)
    weights = StackWeights(
        len(stack.layers),
        config.width,
        config.heads,
        config.num_kv_heads,
        config.head_dim,
        config.ffn,
        config.window or 0,
        config.norm_eps,
        address(frequencies),
        layers,
        len(readers),
        crossing,
    )
    return weights, held


def _linear(linear: nn.Module) -> NativeLinear:
    assert isinstance(linear, NativeLinear), "weights are laid out before the stack is described"
    return linear
