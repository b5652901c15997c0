"""Rounding of matrices to 8 and 4 bits, slice by slice: the numbers that the forms hold and that checkpoints store.

Every row is rounded by itself, so that slices of rows give the same numbers as a whole matrix. Steps and scales are
plain tensors and do not depend on the machine; what its kernels make of them is `quantize.py`'s.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float, Int8, UInt8
from torch import Tensor

SLICE_ELEMENTS = 2**20
"""Numbers that are rounded at a time: 4 MiB in fp32, which stay in a core's caches from one step to the next."""

PACK_ELEMENTS = 2**23
"""Numbers that are packed at a time by kernels that take fp32: 32 MiB."""

SLICE_ROWS = 64
"""Slices hold a multiple of as many rows, which kernels for 4 bits pack together."""

GROUP = 32
"""Inputs that share a scale and a zero in int4."""


@dataclass(frozen=True)
class Matrix:
    """A matrix whose parts lie one below another, in memory or in a file's map; it is read in slices.

    parts: of one dtype and width. device: of what is made of it.
    """

    parts: Sequence[Float[Tensor, "_ in"]]
    device: torch.device

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"]) -> "Matrix":
        """One tensor, where it is."""
        return cls((weight,), weight.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return sum(map(len, self.parts)), self.parts[0].shape[1]

    def whole(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """All rows in another dtype, joined; a single part that is in it already is not copied."""
        return self._rows(0, self.shape[0], dtype)

    def slices(self, elements: int = SLICE_ELEMENTS) -> Iterator[Float[Tensor, "_ in"]]:
        """Successive rows in fp32: a multiple of `SLICE_ROWS`, of about as many `elements`."""
        outputs, inputs = self.shape
        step = rows_at_once(inputs, elements)
        for start in range(0, outputs, step):
            yield self._rows(start, min(start + step, outputs), torch.float32)

    def _rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        pieces, begin = [], 0
        for part in self.parts:
            end = begin + len(part)
            if max(start, begin) < min(stop, end):
                pieces.append(part[max(start, begin) - begin : min(stop, end) - begin])
            begin = end
        if len(pieces) == 1:
            return pieces[0].to(device=self.device, dtype=dtype)
        whole = torch.empty(stop - start, self.parts[0].shape[1], dtype=dtype, device=self.device)
        for target, piece in zip(whole.split([len(piece) for piece in pieces]), pieces, strict=True):
            target.copy_(piece)
        return whole


def rows_at_once(inputs: int, elements: int = SLICE_ELEMENTS) -> int:
    """Rows of a slice of about as many `elements`: a multiple of `SLICE_ROWS`."""
    return max(1, elements // max(1, inputs * SLICE_ROWS)) * SLICE_ROWS


def round_int8(rows: Float[Tensor, "out in"]) -> tuple[Int8[Tensor, "out in"], BFloat16[Tensor, " out"]]:
    """Steps from -127 to 127 and a scale for every row: a weight is step * scale.

    Scales are bf16, as kernels take them: rounded before the steps are, they cost nothing.
    """
    scales = (rows.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
    steps = (rows / scales.float()[:, None]).round_()
    return steps.clamp_(-127, 127).to(torch.int8), scales


def round_int4(
    rows: Float[Tensor, "out in"],
) -> tuple[UInt8[Tensor, "out in"], BFloat16[Tensor, "out groups"], BFloat16[Tensor, "out groups"]]:
    """Steps from 0 to 15, a scale and a zero for every group of `GROUP` inputs: a weight is (step - 8) * scale + zero.

    Scales and zeros span a group's smallest and largest number; they are bf16, and rounded before the steps are.
    """
    groups = rows.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
    zeros = (low + 8 * scales.float()).bfloat16()
    steps = (groups - zeros.float()[..., None]).div_(scales.float()[..., None]).round_().add_(8)
    return steps.clamp_(0, 15).to(torch.uint8).flatten(1), scales, zeros


def widen_int4(
    steps: UInt8[Tensor, "out in"], scales: BFloat16[Tensor, "out groups"], zeros: BFloat16[Tensor, "out groups"]
) -> Float[Tensor, "out in"]:
    """The rounded weights in fp32."""
    groups = (steps.float() - 8).unflatten(1, (-1, GROUP))
    return groups.mul_(scales.float()[..., None]).add_(zeros.float()[..., None]).flatten(1)


def to_nibbles(steps: UInt8[Tensor, "out in"]) -> UInt8[Tensor, "out half"]:
    """Two steps a byte: that of an even input in the lower four bits, that of the next one in the upper four."""
    return steps[:, ::2] | (steps[:, 1::2] << 4)


def from_nibbles(packed: UInt8[Tensor, "out half"]) -> UInt8[Tensor, "out in"]:
    """The way back."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)


def fill_rows(targets: Sequence[Tensor], matrix: Matrix, rounded: Callable[[Tensor], Sequence[Tensor]]) -> None:
    """Round a matrix slice by slice into tensors whose rows are its rows."""
    start = 0
    for rows in matrix.slices():
        for target, values in zip(targets, rounded(rows), strict=True):
            target[start : start + len(rows)] = values
        start += len(rows)
