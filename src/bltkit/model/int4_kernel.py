"""The layout of torch's int4 kernel: steps of 4 bits into it and back.

Checkpoints store steps in an order of their own (`rounding.py`); this layout is the CPU's and lives in memory only.
"""

from functools import lru_cache

import torch
from jaxtyping import UInt8
from torch import Tensor

from bltkit.model.rounding import SLICE_ROWS


def pack_int4(steps: UInt8[Tensor, "out in"]) -> UInt8[Tensor, "out half"]:
    """In the layout of torch's kernel for this CPU, which packs 64 rows together: slices of as many can be joined."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps.int(), 1)


def unpack_int4(packed: UInt8[Tensor, "out half"]) -> UInt8[Tensor, "out in"]:
    """The way back."""
    outputs, half = packed.shape
    whole = outputs - outputs % SLICE_ROWS
    blocks = [] if not whole else [packed[:whole].reshape(-1, SLICE_ROWS * half)]
    blocks += [packed[whole:].reshape(1, -1)] if outputs > whole else []
    steps = []
    for block in blocks:
        rows = block.shape[1] // half
        nibbles = torch.cat([block & 15, block >> 4], 1)
        steps.append(nibbles[:, _layout(rows, 2 * half)].view(-1, 2 * half))
    return torch.cat(steps)


@lru_cache(maxsize=32)
def _layout(outputs: int, inputs: int) -> Tensor:
    """Where the kernel's layout of one block of rows has each step: its place among lower nibbles, then upper ones.

    The layout depends on the CPU and is documented nowhere, so it is measured: the digits of every step's number, in
    base 16, are packed and read back.
    """
    numbers = torch.arange(outputs * inputs).view(outputs, inputs)
    at = torch.zeros(outputs * inputs, dtype=torch.long)
    for digit in range(8):
        if 16**digit >= numbers.numel():
            break
        packed = pack_int4((numbers // 16**digit % 16).to(torch.uint8)).flatten()
        at += 16**digit * torch.cat([packed & 15, packed >> 4]).long()
    layout = torch.empty_like(at)
    layout[at] = torch.arange(len(at))
    return layout
