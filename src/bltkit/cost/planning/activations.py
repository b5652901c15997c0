"""What a forward pass keeps for backward, in bytes, counted on the model's own code without its memory.

The model is built on the meta device, where tensors have shapes and no storage, and runs one micro-batch while hooks
look at every tensor that autograd saves. Nothing is modelled, so the count follows the code; `planner.py` uses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
)
from bltkit.model.layers import Transformer
from bltkit.patches import Patches

AnyConfig = BltConfig | EntropyConfig | BoundaryConfig | CnnConfig


@dataclass(frozen=True)
class Activations:
    """Bytes that are held when the forward pass ends; a storage that several tensors share counts once, weights and
    the loss do not count."""

    kept: int
    """Everything that autograd saves."""
    recomputed: int
    """With every transformer layer computed anew in backward: what is saved outside the layers, each layer's input,
    and the inside of the largest layer."""
    layer: int
    """That inside alone; its gradients take as much again while backward is there."""


def activations(config: AnyConfig, rows: int, row_bytes: int, patches: int, dtype: torch.dtype | None) -> Activations:
    """Of one micro-batch.

    rows, row_bytes: shape of the ids. patches: patches of a row (models other than a BLT have none).
    dtype: that autocast computes products in; None computes all in fp32.
    """
    model = meta_model(config)
    if dtype is not None:
        # Under autocast every product goes the plain way (`model/fused_linear.py`), and so it does where it is watched.
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *_: None)
    ids = torch.zeros(rows, row_bytes, dtype=torch.long, device="meta")
    with _Kernels(dtype) as kernels:
        if isinstance(model, Blt):
            starts = torch.zeros(rows, row_bytes + 1, dtype=torch.bool, device="meta")
            length = torch.zeros(rows, dtype=torch.long, device="meta")
            known = Patches(starts, length, patches)
            return _saved(model, lambda: model(ids, known), kernels)
        return _saved(model, lambda: model(ids), kernels)


def meta_model(config: AnyConfig) -> nn.Module:
    """The model with shapes and no memory, buffers included."""
    with torch.device("meta"):
        if isinstance(config, BltConfig):
            model: nn.Module = Blt(config)
        elif isinstance(config, CnnConfig):
            model = CnnEntropy(config)
        else:
            model = BoundaryModel(config) if isinstance(config, BoundaryConfig) else EntropyModel(config)
    return model.to("meta")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer layers by name: the units of sharding and of recomputing."""
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, Transformer)}
    return {f"{name}.layers.{i}": layer for name, stack in stacks.items() for i, layer in enumerate(stack.layers)}


def _saved(model: nn.Module, forward: Callable[[], Tensor], kernels: "_Kernels") -> Activations:
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    outside, inputs = _Storages(), _Storages()
    inside: list[_Storages] = []
    current = outside

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal current
        inputs.add(args[0])
        current = _Storages()
        inside.append(current)

    def leave(*_: Any) -> None:
        nonlocal current
        current = outside

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in kernels.copies:
            current.add(tensor)
        return tensor

    for layer in layers(model).values():
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad  # and holds the graph, and with it what is alive
    layered = [layer.alive() for layer in inside]
    stays = outside.alive() | inputs.sizes
    kept = outside.alive().union(*layered)
    largest = max((_bytes(layer - stays) for layer in layered), default=0)
    return Activations(_bytes(kept), _bytes(stays) + largest, largest)


class _Storages:
    """Storages by identity. A weak reference lets one go and still keeps its number from being given to another."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """(number, bytes) of all."""
        return {(number, size) for number, (_, size) in self._seen.items()}

    def alive(self) -> set[tuple[int, int]]:
        """Of those that something still holds: a graph that led nowhere is gone, and what it had saved."""
        return {(number, size) for number, (reference, size) in self._seen.items() if not reference.expired()}


def _bytes(storages: set[tuple[int, int]]) -> int:
    return sum(size for _, size in storages)


class _Kernels(TorchFunctionMode):
    """What a real device would do where the meta device does something else: autocast, and a fused attention kernel.

    The meta device knows neither; it would save the scores of every query and key.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype, self._weights = dtype, dict[int, Tensor]()
        self.copies: set[int] = set()
        """Storages of weights in `dtype`, which are weights and no activations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return func(self._low(args[0]), self._weight(args[1]), *args[2:], **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _low(self, x: Tensor) -> Tensor:
        return x if self._dtype is None else x.to(self._dtype)

    def _weight(self, weight: Tensor) -> Tensor:
        if self._dtype is None:
            return weight
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight.to(self._dtype)
            self.copies.add(self._weights[id(weight)].untyped_storage()._cdata)
        return self._weights[id(weight)]

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **_: Any
    ) -> Tensor:
        low, bias = self._low(q), None
        if attn_mask is not None:  # kernels add it to the scores; what is no such number yet is made one for each call
            bias = attn_mask.to(low.dtype)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output: Tensor = fused(low, self._low(k), self._low(v), 0.0, is_causal, attn_mask=bias)[0]
        return output
