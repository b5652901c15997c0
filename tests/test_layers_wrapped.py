"""What training wraps around a layer changes nothing: compilation whole, computing anew, autocast, adapters."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bltkit.model import Blt, BltConfig, NgramConfig, StackConfig, document_of
from bltkit.model.fused_linear import Linear
from bltkit.model.layers import Layer
from bltkit.patches import Patches
from tests import tiny

LENGTH = 200
SEEN = 70
"""The window: blocks of 64 queries, of which the row has four."""


def a_model() -> tuple[Blt, Tensor, Patches]:
    """In float64, with windows shorter than the row, and two documents in the second row."""
    local = StackConfig(width=16, layers=2, heads=4, kv_heads=2, ffn_width=24, window=SEEN)
    latent = StackConfig(width=32, layers=2, heads=4, ffn_width=40)
    config = BltConfig(encoder=local, latent=latent, decoder=local, ngrams=NgramConfig(sizes=(3, 4), buckets=53))
    model = tiny.fill(Blt(config), 0).double()
    ids = torch.randint(4, 260, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = ids[1, 90] = 1
    starts = torch.rand(2, LENGTH + 1, generator=torch.Generator().manual_seed(1)) < 0.3
    starts[:, :2] = starts[1, 90:92] = True
    assert document_of(ids)[1, -1] == 2
    return model, ids, Patches.from_starts(starts)


def gradients(model: Blt, ids: Tensor, patches: Patches) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(ids, patches)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def layers_of(model: nn.Module) -> list[Layer]:
    return [module for module in model.modules() if isinstance(module, Layer)]


def check(change: Callable[[Blt], object], tolerance: float) -> None:
    model, ids, patches = a_model()
    wanted = gradients(model, ids, patches)
    change(model)
    found = gradients(model, ids, patches)
    assert found.keys() == wanted.keys() and len(wanted) == len(list(model.parameters()))
    for name, right in wanted.items():
        torch.testing.assert_close(found[name], right, atol=tolerance, rtol=tolerance, msg=name)


def check_compiled(backend: str) -> None:
    """What `test_a_layer_compiles_whole` runs."""

    def change(model: Blt) -> None:
        for layer in layers_of(model):
            layer.compile(backend=backend, fullgraph=True)

    check(change, 1e-11)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_compiles_whole(backend: str) -> None:
    """Without a break in the graph, and to the same gradients. In a process where nobody checks types: compilation
    does not get through the checks that the tests put around every function."""
    script = f"from tests.test_layers_wrapped import check_compiled; check_compiled({backend!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_layer_computed_anew() -> None:
    calls = []

    def change(model: Blt) -> None:
        for layer in layers_of(model):
            inner = layer.forward

            def anew(*given: object, inner: Callable[..., Tensor] = inner) -> Tensor:
                calls.append(1)
                found: Tensor = checkpoint(inner, *given, use_reentrant=False)
                return found

            layer.forward = anew  # type: ignore[method-assign, assignment]

    check(change, 0.0)
    assert calls


def test_what_is_no_plain_product_is_called() -> None:
    """Rounded weights, adapters, hooks: the lean ways know nothing of them and stand back."""

    class Other(nn.Module):
        def __init__(self, inner: Linear) -> None:
            super().__init__()
            self.weight = inner.weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    def change(model: Blt) -> None:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) is Linear:
                    setattr(module, name, Other(child))

    check(change, 1e-11)


def test_hooks_are_called() -> None:
    model, ids, patches = a_model()
    seen = []
    for module in model.modules():
        if type(module) is Linear:
            module.register_forward_hook(lambda module, given, out: seen.append(module))
    gradients(model, ids, patches)
    assert {id(module) for module in seen} == {id(module) for module in model.modules() if type(module) is Linear}


def test_frozen_weights_get_no_gradient() -> None:
    model, ids, patches = a_model()
    wanted = gradients(model, ids, patches)
    for weight in model.latent.parameters():
        weight.requires_grad_(False)
    found = gradients(model, ids, patches)
    assert found.keys() == {name for name in wanted if not name.startswith("latent.")}
    for name, grad in found.items():
        assert torch.equal(grad, wanted[name]), name


def test_autocast() -> None:
    """Products in bf16: gradients of every weight, in fp32, near the exact ones."""
    model, ids, patches = a_model()
    model.float()
    wanted = gradients(model, ids, patches)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, ids, patches)
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        assert grad.dtype == torch.float32
        assert (grad - wanted[name]).norm() < 0.1 * wanted[name].norm(), name


def test_tables_with_sparse_gradients() -> None:
    model, ids, patches = a_model()
    wanted = gradients(model, ids, patches)["embed.ngrams"]
    model.embed.sparse_gradients = True
    found = gradients(model, ids, patches)["embed.ngrams"]
    assert found.is_sparse and not wanted.is_sparse
    torch.testing.assert_close(found.to_dense(), wanted, atol=1e-12, rtol=0)
