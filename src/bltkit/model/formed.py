"""The forms themselves: a `Linear` whose weight is held in another layout or precision, one class each.

A form is made of a `Matrix` in slices, whether that lies in memory or in a checkpoint's file. Activations go in and
come out in fp32, and no row depends on another: int8 with activations rounded by the largest of all rows is faster for
several rows, but lets a byte move those before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Never, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int8, UInt8
from torch import Tensor, nn

from bltkit.model.int4_kernel import pack_int4, unpack_int4
from bltkit.model.rounding import (
    GROUP,
    PACK_ELEMENTS,
    Matrix,
    fill_rows,
    from_nibbles,
    round_int4,
    round_int8,
    rows_at_once,
    widen_int4,
)

WeightForm = Literal["fp32", "packed", "fp16", "bf16", "int8", "int4"]
"""fp32: as loaded. packed: fp32 in oneDNN's layout. fp16, bf16: rounded to 16 bits. int8: 8 bits, a scale per row.
int4: 4 bits, a scale and a zero per group of 32 inputs."""

MANY_ROWS = 16
"""Up to which kernels made for few rows are used; for more, widening the weights for one large product costs less."""

MANY_ROWS_INT4 = 64
"""The same for int4, whose weights take longer to widen."""

INT8_STEP = 16
"""Inputs per step of torch's int8 kernel, which reads beyond its arrays if their number is no multiple of this."""

INT4_OUTPUTS = 16
"""Divisor of the number of outputs that torch's int4 kernel packs."""


class FormedLinear(nn.Module):
    """A `Linear` whose weight is held in a form to be multiplied with: for inference, where it is, in fp32.

    It has no parameters: what is not a weight any more cannot be trained, saved, moved or cast.
    """

    form: ClassVar[WeightForm]

    def __init__(self, shape: tuple[int, int], num_bytes: int) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.num_bytes = num_bytes
        """Of the weight as it is held: what a product with one row reads."""

    @classmethod
    def of(cls, matrix: Matrix) -> Self:
        """Make the form of a matrix that it `fits`."""
        raise NotImplementedError

    @classmethod
    def fits(cls, matrix: Matrix) -> bool:
        """Whether the form can hold this matrix; one that it cannot stays as it is."""
        return True

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix that is multiplied with, in fp32; computed at each access."""
        return torch.cat(list(self._slices(torch.float32)))

    def _slices(self, dtype: torch.dtype) -> Iterator[Float[Tensor, "_ in"]]:
        """Successive rows of `weight`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shape and form."""
        return f"{self.in_features}, {self.out_features}, {self.form}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing changes it, and what kernels have packed cannot be copied

    def _save_to_state_dict(self, *_: Any, **__: Any) -> Never:
        raise ValueError(f"a model with {self.form} weights is for running only; save the one that it was made from")

    def _apply(self, *_: Any, **__: Any) -> Never:
        raise ValueError(f"a model with {self.form} weights stays as it is; move or cast the one that it was made from")


class PackedLinear(FormedLinear):
    """fp32 in the layout of oneDNN's kernels, which read it twice as fast as plain matrices are read on some CPUs."""

    form = "packed"

    def __init__(self, packed: Tensor, shape: tuple[int, int]) -> None:
        super().__init__(shape, 4 * shape[0] * shape[1])
        self.packed = packed

    @classmethod
    def of(cls, matrix: Matrix) -> Self:
        """See `FormedLinear`."""
        return cls(_pack(matrix.whole(torch.float32)), matrix.shape)

    def _slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        yield self.packed.to_dense().to(dtype)

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        return _packed_product(x, self.packed)


class Fp16Linear(FormedLinear):
    """fp16 weights that fbgemm widens as it reads them: products and sums are fp32, only the weights are rounded.

    Numbers beyond 65,504 do not exist in fp16: `reform` leaves alone a matrix that has any. Large matrices are packed
    in slices of rows, since fbgemm packs what is in fp32.
    """

    form = "fp16"

    def __init__(self, packed: list[Any], shape: tuple[int, int]) -> None:
        super().__init__(shape, 2 * shape[0] * shape[1])
        self.packed = packed

    @classmethod
    def of(cls, matrix: Matrix) -> Self:
        """See `FormedLinear`."""
        prepack = torch.ops.quantized.linear_prepack_fp16
        return cls([prepack(rows.contiguous(), None) for rows in matrix.slices(PACK_ELEMENTS)], matrix.shape)

    @classmethod
    def fits(cls, matrix: Matrix) -> bool:
        """See `FormedLinear`."""
        largest = torch.finfo(torch.float16).max
        return all(bool(rows.abs().max() <= largest) for rows in matrix.slices())

    def _slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for packed in self.packed:
            yield torch.ops.quantized.linear_unpack_fp16(packed)[0].to(dtype)

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        product = torch.ops.quantized.linear_dynamic_fp16.default
        if len(self.packed) == 1:
            return cast(Tensor, product(x, self.packed[0]))
        return torch.cat([product(x, packed) for packed in self.packed], -1)


class Bf16Linear(FormedLinear):
    """bf16 weights and products; inputs and outputs are rounded to bf16 as well, sums are fp32.

    A CPU without instructions for bf16 multiplies many rows in fp32, with the same roundings.
    """

    form = "bf16"

    def __init__(self, weight: BFloat16[Tensor, "out in"]) -> None:
        super().__init__(cast(tuple[int, int], tuple(weight.shape)), 2 * weight.numel())
        self.is_packed = weight.device.type == "cpu" and _has_bf16()
        self.narrow = not self.is_packed and weight.device.type == "cpu"
        self.held = _pack(weight) if self.is_packed else weight

    @classmethod
    def of(cls, matrix: Matrix) -> Self:
        """See `FormedLinear`."""
        return cls(matrix.whole(torch.bfloat16))

    def _slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        yield (self.held.to_dense() if self.is_packed else self.held).to(dtype)

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        y = x.bfloat16()
        if self.is_packed:
            y = _packed_product(y, self.held)
        elif self.narrow and x.numel() > MANY_ROWS * self.in_features:
            y = F.linear(y.float(), self.held.float()).bfloat16()
        else:
            y = F.linear(y, self.held)
        return y.float()


class Int8Linear(FormedLinear):
    """int8 weights with a scale for every output; inputs and outputs are rounded to bf16, sums are fp32.

    Many rows are multiplied with weights widened for the one product. `reform` leaves alone a matrix whose inputs are
    no multiple of 16.
    """

    form = "int8"

    def __init__(self, steps: Int8[Tensor, "out in"], scales: BFloat16[Tensor, " out"]) -> None:
        super().__init__(cast(tuple[int, int], tuple(steps.shape)), steps.numel() + 2 * len(steps))
        self.steps, self.scales = steps, scales
        self.wide = torch.bfloat16 if _has_bf16() else torch.float32

    @classmethod
    def of(cls, matrix: Matrix) -> Self:
        """See `FormedLinear`."""
        steps, scales = torch.empty(matrix.shape, dtype=torch.int8), torch.empty(matrix.shape[0], dtype=torch.bfloat16)
        fill_rows((steps, scales), matrix, round_int8)
        return cls(steps, scales)

    @classmethod
    def fits(cls, matrix: Matrix) -> bool:
        """See `FormedLinear`."""
        return matrix.shape[1] % INT8_STEP == 0

    def _slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        yield (self.steps.float() * self.scales.float()[:, None]).to(dtype)

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if len(rows) > MANY_ROWS:
            y = F.linear(rows.to(self.wide), self.steps.to(self.wide)).float() * self.scales.float()
        else:
            y = torch.ops.aten._weight_int8pack_mm.default(rows, self.steps, self.scales).float()
        return y.view(*x.shape[:-1], self.out_features)


class Int4Linear(FormedLinear):
    """int4 weights with a scale and a zero for every group of inputs; inputs and outputs are rounded to bf16.

    Many rows are multiplied with weights widened in slices. `reform` leaves alone a matrix whose inputs are no multiple
    of 32, or whose outputs are none of 16.
    """

    form = "int4"

    def __init__(
        self, packed: UInt8[Tensor, "out half"], scales_zeros: BFloat16[Tensor, "groups out 2"], shape: tuple[int, int]
    ) -> None:
        super().__init__(shape, packed.nbytes + scales_zeros.nbytes)
        self.packed, self.scales_zeros = packed, scales_zeros
        self.wide = torch.bfloat16 if _has_bf16() else torch.float32

    @classmethod
    def of(cls, matrix: Matrix) -> Self:
        """See `FormedLinear`."""
        return cls._of_slices(map(round_int4, matrix.slices()), matrix.shape)

    @classmethod
    def of_nibbles(
        cls,
        nibbles: UInt8[Tensor, "out half"],
        scales: BFloat16[Tensor, "out groups"],
        zeros: BFloat16[Tensor, "out groups"],
    ) -> Self:
        """Steps, scales and zeros as checkpoints store them, packed for this machine's kernel in slices."""
        outputs, half = nibbles.shape
        step = rows_at_once(2 * half)
        slices = zip(map(from_nibbles, nibbles.split(step)), scales.split(step), zeros.split(step), strict=True)
        return cls._of_slices(slices, (outputs, 2 * half))

    @classmethod
    def _of_slices(cls, slices: Iterable[tuple[Tensor, Tensor, Tensor]], shape: tuple[int, int]) -> Self:
        outputs, inputs = shape
        packed = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
        scales_zeros = torch.empty(inputs // GROUP, outputs, 2, dtype=torch.bfloat16)
        start = 0
        for steps, scales, zeros in slices:
            stop = start + len(steps)
            packed[start:stop] = pack_int4(steps)
            scales_zeros[:, start:stop] = torch.stack([scales, zeros], -1).transpose(0, 1)
            start = stop
        return cls(packed, scales_zeros, shape)

    @classmethod
    def fits(cls, matrix: Matrix) -> bool:
        """See `FormedLinear`."""
        return matrix.shape[1] % GROUP == 0 and matrix.shape[0] % INT4_OUTPUTS == 0

    def _slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        step = rows_at_once(self.in_features)
        scales, zeros = self.scales_zeros.unbind(-1)
        for start in range(0, self.out_features, step):
            rows = slice(start, min(start + step, self.out_features))
            yield widen_int4(unpack_int4(self.packed[rows]), scales[:, rows].T, zeros[:, rows].T).to(dtype)

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if len(rows) > MANY_ROWS_INT4:
            wide = rows.to(self.wide)
            y = torch.cat([F.linear(wide, weight) for weight in self._slices(self.wide)], -1)
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu.default(rows, self.packed, GROUP, self.scales_zeros)
        return y.float().view(*x.shape[:-1], self.out_features)


KINDS: Mapping[WeightForm, type[FormedLinear]] = {
    kind.form: kind for kind in (PackedLinear, Fp16Linear, Bf16Linear, Int8Linear, Int4Linear)
}
"""The registration of each form but fp32."""


def _has_bf16() -> bool:
    """Does oneDNN multiply bf16 here, be it with instructions for it or with AVX-512's."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(weight: Tensor) -> Tensor:
    """In the layout of oneDNN's kernels for few rows; many are fast as well."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None))


def _packed_product(x: Tensor, packed: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], ""))
