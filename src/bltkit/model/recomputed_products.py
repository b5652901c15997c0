"""Backward passes that recompute an elementwise step in front of a product instead of keeping its result."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 1024
"""Positions computed at a time on a CPU, so that what lies between two products stays in its caches."""


class NormedProduct(torch.autograd.Function):
    """(x, gain, weight, eps) -> W (gain * x / sqrt(mean(x^2) + eps))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gain, weight)
        ctx.eps = eps
        out = x.new_empty(*x.shape[:-1], len(weight))
        for part, target in _stretches(x, out):
            torch.mm(torch.rms_norm(part, gain.shape, gain, eps), weight.T, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gain, weight = ctx.saved_tensors
        found = torch.empty_like(x)
        of_gain, of_weight = torch.zeros_like(gain), torch.zeros_like(weight)
        for part, grad, target in _stretches(x, grads[0], found):
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


class GatedProduct(torch.autograd.Function):
    """(gate and up side by side, weight) -> W (silu(gate) * up)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        out = gate_up.new_empty(*gate_up.shape[:-1], len(weight))
        for part, target in _stretches(gate_up, out):
            gate, up = part.chunk(2, -1)
            torch.mm(F.silu(gate).mul_(up), weight.T, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, weight = ctx.saved_tensors
        found = torch.empty_like(gate_up)
        of_weight = torch.zeros_like(weight)
        for part, grad, target in _stretches(gate_up, grads[0], found):
            gate, up = part.chunk(2, -1)
            back = grad @ weight
            active = F.silu(gate)
            of_gate, of_up = target.chunk(2, -1)
            torch.mul(back, active, out=of_up)
            if ctx.needs_input_grad[1]:
                of_weight.addmm_(grad.T, active.mul_(up))
            of_gate.copy_(torch.ops.aten.silu_backward(back.mul_(up), gate))
        return found, of_weight


def _stretches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of tensors [..., any width] the same stretches of rows, as views."""
    flat = [each.flatten(0, -2) for each in tensors]
    size = ROWS_AT_ONCE if flat[0].device.type == "cpu" else max(1, len(flat[0]))
    return zip(*(each.split(size) for each in flat), strict=True)
