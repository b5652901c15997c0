"""Weights in panels, as the native kernels read them: 64 outputs side by side, input after input.

A product with a few positions then reads the weight as one stream and needs no sum across vector lanes. Weights stay in
the precision of the `Linear` or of the form (`model/formed.py`) that they are made from.
"""

import ctypes
import mmap
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bltkit.model.formed import FormedLinear, Int4Linear, Int8Linear, WeightForm
from bltkit.model.fused_linear import Linear
from bltkit.model.int4_kernel import unpack_int4
from bltkit.model.rounding import GROUP, widen_int4
from bltkit.native.library import BF16, FP16, INT4, INT8, PLAIN, PanelMatrix, kernels

PANEL = 64
"""Outputs of a panel; the last one is filled up with zeros."""

MOST_POSITIONS = 64
"""Most positions of a native product; for more, one large product by torch with a row-major copy costs less."""

HUGE_PAGE = 2**21
LINE = 64
"""Bytes of a large page, and of a line of the caches."""

LARGEST_SUM = 2**31 - 1


class NativeLinear(FormedLinear):
    """A `Linear` whose weight lies in panels; see `FormedLinear` for what it cannot do any more."""

    code: ClassVar[int]

    def __init__(self, panels: Tensor, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        """dtype: of activations, float32 or float64."""
        nn.Module.__init__(self)
        self.out_features, self.in_features, self.dtype = outputs, inputs, dtype
        self.panels = panels
        self.num_bytes = self._without_padding(panels)
        self.matrix = PanelMatrix(panels.data_ptr(), None, outputs, inputs, self.code, 0.0)
        """Describes the weight to the kernels; who copies it does so after `in_huge_pages`."""
        self._reference = ctypes.byref(self.matrix)
        self._product = kernels(dtype).linear

    def _without_padding(self, panels: Tensor) -> int:
        """Bytes of the outputs that exist: a ledger counts the same weights for every backend."""
        return panels.nbytes * self.out_features // (len(panels) * PANEL)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix that is multiplied with, in the dtype of the activations; copied row-major at each access."""
        rows = self.panels.transpose(1, 2).reshape(-1, self.in_features)
        return rows[: self.out_features].to(self.dtype)

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of positions; their products do not depend on one another."""
        count = x.numel() // self.in_features
        if count > MOST_POSITIONS:
            return F.linear(x, self.weight)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        self._product(self._reference, x.data_ptr(), count, y.data_ptr(), torch.get_num_threads())
        return y


class NativePlain(NativeLinear):
    """Weights as loaded, in the dtype of the activations."""

    form: ClassVar[WeightForm] = "fp32"
    code = PLAIN


class NativeFp16(NativeLinear):
    """Weights rounded to fp16; products and sums are fp32."""

    form: ClassVar[WeightForm] = "fp16"
    code = FP16


class NativeBf16(NativeLinear):
    """Weights rounded to bf16; products and sums are fp32."""

    form: ClassVar[WeightForm] = "bf16"
    code = BF16


class NativeInt8(NativeLinear):
    """int8 weights with a scale per output, inputs rounded to 16 bits with a scale per position: exact sums.

    An input has as many of the 16 bits as leave the largest sum of a row of the weight within 32 bits.
    """

    form: ClassVar[WeightForm] = "int8"
    code = INT8

    def __init__(self, steps: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        """steps: [out, in] in -127 to 127. scales: [out]."""
        outputs, inputs = steps.shape
        pairs = F.pad(steps, (0, inputs % 2, 0, -outputs % PANEL)).view(-1, PANEL, (inputs + 1) // 2, 2)
        super().__init__(pairs.transpose(1, 2).contiguous(), outputs, inputs, dtype)
        self.scales = scales.float().contiguous()
        largest = max(1, int(steps.abs().sum(1, dtype=torch.int64).max()))
        self.num_bytes += self.scales.nbytes
        self.matrix.scales = self.scales.data_ptr()
        self.matrix.limit = float(min(2**15 - 1, LARGEST_SUM // largest))

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """See `NativeLinear`."""
        rows = self.panels.transpose(1, 2).reshape(-1, self.in_features + self.in_features % 2)
        steps = rows[: self.out_features, : self.in_features]
        return steps.to(self.dtype) * self.scales.to(self.dtype)[:, None]


class NativeInt4(NativeLinear):
    """int4 weights with a scale and a zero per group of 32 inputs; inputs are rounded as for `NativeInt8`.

    The sum of a group is exact; groups are added in fp32, in their order.
    """

    form: ClassVar[WeightForm] = "int4"
    code = INT4

    def __init__(self, steps: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> None:
        """steps: [out, in] in 0 to 15. scales, zeros: bf16 [out, groups]."""
        outputs, inputs = steps.shape
        words = _padded(steps).int().view(-1, PANEL, inputs // 8, 4, 2)
        shifts = torch.tensor([[4 * pair, 16 + 4 * pair] for pair in range(4)], dtype=torch.int32)
        panels = (words << shifts).sum((-2, -1), dtype=torch.int32)
        super().__init__(panels.transpose(1, 2).contiguous(), outputs, inputs, dtype)
        pairs = torch.stack([_padded(scales), _padded(zeros)], -1)
        self.factors = pairs.view(-1, PANEL, inputs // GROUP, 2).permute(0, 2, 3, 1).contiguous()
        self.num_bytes += self._without_padding(self.factors)
        self.matrix.scales = self.factors.data_ptr()
        self.matrix.limit = float(2**15 - 1)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """See `NativeLinear`."""
        shifts = torch.tensor([[4 * pair, 16 + 4 * pair] for pair in range(4)], dtype=torch.int32)
        steps = self.panels.transpose(1, 2)[..., None, None] >> shifts & 15
        steps = steps.to(torch.uint8)
        scales, zeros = self.factors.permute(2, 0, 3, 1).flatten(1, 2)[:, : self.out_features]
        return widen_int4(steps.reshape(-1, self.in_features)[: self.out_features], scales, zeros).to(self.dtype)


def in_huge_pages(linears: Sequence[NativeLinear]) -> None:
    """Move the weights into one stretch of memory, in this order, with large pages where the system has them.

    A step reads all of it in a row; with pages of 4 KiB a core reads half as fast.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    offsets = [0, *accumulate(-(-linear.panels.nbytes // LINE) * LINE for linear in linears)]
    if offsets[-1] < HUGE_PAGE:
        return
    memory = mmap.mmap(-1, offsets[-1] + HUGE_PAGE)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(memory, dtype=torch.uint8)
    skipped = -block.data_ptr() % HUGE_PAGE
    for linear, offset in zip(linears, offsets, strict=False):  # the last offset is the end
        old = linear.panels
        new = block[skipped + offset : skipped + offset + old.nbytes].view(old.dtype).view(old.shape)
        linear.panels = new.copy_(old)
        linear.matrix.panels = new.data_ptr()


def _padded(rows: Tensor) -> Tensor:
    """With zeros for the outputs that the last panel lacks."""
    return F.pad(rows, (0, 0, 0, -len(rows) % PANEL))


def panels_of(weight: Float[Tensor, "out in"]) -> Tensor:
    """[ceil(out / 64), in, 64]."""
    return _padded(weight).view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def native_linear(linear: nn.Module) -> NativeLinear | str:
    """The linear map in panels, in the precision that it has; or why there is none. Raises Unavailable."""
    if isinstance(linear, NativeLinear):
        return linear
    weight: Any = getattr(linear, "weight", None)
    if isinstance(linear, Int8Linear):
        return NativeInt8(linear.steps, linear.scales, torch.float32)
    if isinstance(linear, Int4Linear):
        scales, zeros = linear.scales_zeros.transpose(0, 1).unbind(-1)
        return NativeInt4(unpack_int4(linear.packed), scales, zeros, torch.float32)
    if isinstance(linear, FormedLinear):
        kinds: dict[str, tuple[type[NativeLinear], torch.dtype]] = {
            "packed": (NativePlain, torch.float32),
            "fp16": (NativeFp16, torch.float16),
            "bf16": (NativeBf16, torch.bfloat16),
        }
        if linear.form not in kinds:
            return f"weights in form {linear.form!r}"
        kind, dtype = kinds[linear.form]
        return kind(panels_of(weight.to(dtype)), linear.out_features, linear.in_features, torch.float32)
    if type(linear) is not Linear:
        return f"a {type(linear).__name__} in a product's place"
    weight = weight.detach()
    if weight.device.type != "cpu":
        return f"weights on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"weights in {str(weight.dtype).removeprefix('torch.')}"
    return NativePlain(panels_of(weight), linear.out_features, linear.in_features, weight.dtype)
