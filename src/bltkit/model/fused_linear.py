"""Products that keep less for backward: what an elementwise step in front of them made is computed again there.

A plain product keeps its input. Where that is a norm of the stream or SwiGLU's inner product, the stream or the two
halves are kept as well, and computing it anew is a few passes over memory against a product: a layer keeps half as
much. Only for plain weights in the activations' dtype: whatever else stands in a `Linear`'s place (rounded weights, an
adapter), hooks, autocast and `torch.compile` get the plain way, which gives the same numbers.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ROWS_AT_ONCE = 1024
"""Positions worked off at a time on a CPU, so that what lies between two products stays in its caches."""


class Linear(nn.Linear):
    """A bias-free linear map, left uninitialised: `reset_parameters` of its owner knows the depth."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: torch would fill weights here that are drawn anew or loaded anyway."""

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
        product: Tensor = _NormedProduct.apply(x, norm.weight, linear.weight, norm.eps)  # type: ignore[no-untyped-call]
        return product
    found: Tensor = linear(norm(x))
    return found


def gated_product(linear: nn.Module, gate_up: Float[Tensor, "... FF"]) -> Float[Tensor, "... out"]:
    """linear(silu(gate) * up) of the two halves."""
    if _is_plain(linear, gate_up):
        product: Tensor = _GatedProduct.apply(gate_up, linear.weight)  # type: ignore[no-untyped-call]
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


class _NormedProduct(torch.autograd.Function):
    """(x, gain, weight, eps) -> W (gain * x / sqrt(mean(x^2) + eps))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gain, weight)
        ctx.eps = eps
        out = x.new_empty(*x.shape[:-1], len(weight))
        for part, target in _parts(x, out):
            torch.mm(torch.rms_norm(part, gain.shape, gain, eps), weight.T, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gain, weight = ctx.saved_tensors
        found = torch.empty_like(x)
        of_gain, of_weight = torch.zeros_like(gain), torch.zeros_like(weight)
        for part, grad, target in _parts(x, grads[0], found):
            scale = part.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
            unit = part * scale
            if ctx.needs_input_grad[2]:
                of_weight.addmm_(grad.T, unit * gain)
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                back = grad @ weight
                both = back * unit
                of_gain.add_(both.sum(0))
                along = (both @ gain).div_(len(gain))[:, None]
                torch.mul(back.mul_(gain).addcmul_(unit, along, value=-1), scale, out=target)
        return found, of_gain, of_weight, None


class _GatedProduct(torch.autograd.Function):
    """(gate and up side by side, weight) -> W (silu(gate) * up)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        out = gate_up.new_empty(*gate_up.shape[:-1], len(weight))
        for part, target in _parts(gate_up, out):
            gate, up = part.chunk(2, -1)
            torch.mm(F.silu(gate).mul_(up), weight.T, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, weight = ctx.saved_tensors
        found = torch.empty_like(gate_up)
        of_weight = torch.zeros_like(weight)
        for part, grad, target in _parts(gate_up, grads[0], found):
            gate, up = part.chunk(2, -1)
            back = grad @ weight
            active = F.silu(gate)
            of_gate, of_up = target.chunk(2, -1)
            torch.mul(back, active, out=of_up)
            if ctx.needs_input_grad[1]:
                of_weight.addmm_(grad.T, active.mul_(up))
            of_gate.copy_(torch.ops.aten.silu_backward(back.mul_(up), gate))
        return found, of_weight


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of tensors [..., any width] the same stretches of rows, as views."""
    flat = [each.flatten(0, -2) for each in tensors]
    size = ROWS_AT_ONCE if flat[0].device.type == "cpu" else max(1, len(flat[0]))
    return zip(*(each.split(size) for each in flat), strict=True)
