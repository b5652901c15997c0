"""Products that keep less for backward: the elementwise step in front of them is recomputed there.

A plain product keeps its input. Where that is a norm of the stream or SwiGLU's inner product, the stream or the two
halves are kept as well. Recomputing it costs a few passes over memory beside a product, and a layer keeps half as
much. Only for plain weights in the activations' dtype: whatever else stands in a `Linear`'s place (rounded weights, an
adapter), hooks, autocast and `torch.compile` get the plain way, which gives the same numbers.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bltkit.model.recomputed_products import GatedProduct, NormedProduct


class Linear(nn.Linear):
    """A bias-free linear map, left uninitialised: `reset_parameters` of its owner knows the depth."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: torch would fill weights here that are initialised or loaded anyway."""

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """Without torch's look at a bias that is not there, which a step of a small model would notice."""
        return F.linear(x, self.weight)


class RMSNorm(nn.Module):
    """g * x / sqrt(mean(x^2) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        weight: Tensor = self.weight
        if weight.dtype != x.dtype:
            weight = weight.to(x.dtype)
        return torch.rms_norm(x, weight.shape, weight, self.eps)


def normed_product(norm: RMSNorm, linear: nn.Module, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
    """linear(norm(x))."""
    if _is_plain(linear, x) and norm.weight.dtype == x.dtype:
        product: Tensor = NormedProduct.apply(x, norm.weight, linear.weight, norm.eps)  # type: ignore[no-untyped-call]
        return product
    found: Tensor = linear(norm(x))
    return found


def gated_product(linear: nn.Module, gate_up: Float[Tensor, "... FF"]) -> Float[Tensor, "... out"]:
    """linear(silu(gate) * up) of the two halves."""
    if _is_plain(linear, gate_up):
        product: Tensor = GatedProduct.apply(gate_up, linear.weight)  # type: ignore[no-untyped-call]
        return product
    gate, up = gate_up.chunk(2, -1)
    found: Tensor = linear(F.silu(gate) * up)
    return found


def _is_plain(linear: nn.Module, x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and type(linear) is Linear
        and linear.weight.dtype == x.dtype
        and not (linear._forward_hooks or linear._forward_pre_hooks)
        and not torch.compiler.is_compiling()
        and (x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type))  # meta has none
    )
