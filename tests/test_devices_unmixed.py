"""No training step mixes devices: on the meta device, without a GPU.

This reaches shapes, dtypes and devices of operations, not kernels, streams, numbers or memory.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bltkit.model import Blt
from bltkit.patches import Patches
from tests.rows import example

ROWS, LENGTH, PATCH = 2, 12, 3


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of `kind` among others, but for single numbers, and any read of their values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        kinds = {tensor.device.type for tensor in tensors if tensor.dim()}
        if self.kind in kinds:
            assert kinds == {self.kind} or "copy" in str(func), f"{func} mixes {sorted(kinds)}"
            assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read from the device"
        return func(*args, **(kwargs or {}))


def patches_on(device: str) -> Patches:
    """Of `PATCH` bytes, if there were numbers."""
    starts = torch.empty(ROWS, LENGTH + 1, dtype=torch.bool, device=device)
    return Patches(starts, torch.empty(ROWS, dtype=torch.long, device=device), LENGTH // PATCH + 1)


def _move_buffers(model: Blt, device: str) -> None:
    """The hash's numbers, which are made on the CPU; what they are does not matter here."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty_like(buffer, device=device), persistent=False)


def test_a_training_step_on_the_meta_device() -> None:
    config = example("space").model.config
    with torch.device("meta"):
        model = Blt(config)
        _move_buffers(model, "meta")
        ids, patches = torch.zeros(ROWS, LENGTH, dtype=torch.long), patches_on("meta")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    with OneDevice("meta"):
        logits = model(ids, patches)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    assert all(weight.grad is not None and weight.grad.device.type == "meta" for weight in model.parameters())


@pytest.mark.parametrize("operation", [lambda x: x + torch.ones(3), lambda x: x.sum().item()])
def test_the_mode_refuses(operation: Callable[[Tensor], Any]) -> None:
    """Mixing and reading; either is refused here, or by the meta device itself."""
    x = torch.ones(3, device="meta")
    with pytest.raises((AssertionError, RuntimeError)), OneDevice("meta"):
        operation(x)
