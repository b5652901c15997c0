"""Run-time forms of the weights: a loaded model whose large matrices are held in another layout or precision.

One-row products, which decoding consists of, take as long as it takes to read the weights: fewer bytes are faster,
and so is a layout that the kernels like. Activations go in and come out in fp32, and no row depends on another: int8
with activations rounded by the largest of all rows is faster for several rows, but lets a byte move those before it.
Norms, embeddings and n-gram tables stay as they are. `generate/autotune.py` chooses for the machine at hand.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Never, Self, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bltkit.config import nearest
from bltkit.model.products import Linear

WeightForm = Literal["fp32", "packed", "fp16", "bf16", "int8"]
"""fp32: as loaded. packed: fp32 in oneDNN's layout. fp16, bf16: rounded to 16 bits. int8: 8 bits, a scale a row."""

FORMS: tuple[WeightForm, ...] = get_args(WeightForm)
LOSSLESS: tuple[WeightForm, ...] = ("fp32", "packed")
"""Forms of the very same weights: results differ in the order of fp32 sums only."""

MIN_ELEMENTS = 2**15
"""Of a matrix that is worth another form: reading a smaller one takes less time than the kernels' own dispatch."""

MANY_ROWS = 16
"""Up to which kernels made for few rows are used; for more, widening the weights for one large product costs less."""

INT8_STEP = 16
"""torch's int8 kernel takes so many inputs at once and, where they do not come out even, reads beyond its arrays."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class FormedLinear(nn.Module):
    """A `Linear` whose weight is held in a form to be multiplied with: for inference, where it is, in fp32.

    It has no parameters: what is not a weight any more cannot be trained, saved, moved or cast.
    """

    form: ClassVar[WeightForm]

    def __init__(self, weight: Float[Tensor, "out in"], num_bytes: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.num_bytes = num_bytes
        """Of the weight as it is held: what a product with one row reads."""

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix that is multiplied with, in fp32; made anew each time."""
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

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(weight, 4 * weight.numel())
        self.packed = _pack(weight)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weights."""
        return self.packed.to_dense()

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        return _packed_product(x, self.packed)


class Fp16Linear(FormedLinear):
    """fp16 weights that fbgemm widens as it reads them: products and sums are fp32, only the weights are rounded.

    Numbers beyond 65,504 do not exist in fp16: `reform` leaves alone a matrix that has any.
    """

    form = "fp16"

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(weight, 2 * weight.numel())
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), None)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The rounded weights."""
        return cast(Tensor, torch.ops.quantized.linear_unpack_fp16(self.packed)[0]).float()

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        return cast(Tensor, torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed))


class Bf16Linear(FormedLinear):
    """bf16 weights and products; inputs and outputs are rounded to bf16 as well, sums are fp32.

    A CPU without instructions for bf16 multiplies many rows in fp32, with the same roundings.
    """

    form = "bf16"

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(weight, 2 * weight.numel())
        self.is_packed = weight.device.type == "cpu" and _has_bf16()
        self.narrow = not self.is_packed and weight.device.type == "cpu"
        self.held = _pack(weight.bfloat16()) if self.is_packed else weight.bfloat16()

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The rounded weights."""
        return (self.held.to_dense() if self.is_packed else self.held).float()

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

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        assert weight.shape[1] % INT8_STEP == 0
        super().__init__(weight, weight.numel() + 2 * weight.shape[0])
        # The kernel takes scales in bf16: rounded before the weights are, they cost nothing.
        self.scales = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
        steps = (weight / self.scales.float()[:, None]).round_()
        self.steps = steps.clamp_(-127, 127).to(torch.int8)
        self.wide = torch.bfloat16 if _has_bf16() else torch.float32

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The rounded weights."""
        return self.steps.float() * self.scales.float()[:, None]

    def forward(self, x: Float[Tensor, "... S in"]) -> Float[Tensor, "... S out"]:
        """Any number of rows."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if len(rows) > MANY_ROWS:
            y = F.linear(rows.to(self.wide), self.steps.to(self.wide)).float() * self.scales.float()
        else:
            y = torch.ops.aten._weight_int8pack_mm.default(rows, self.steps, self.scales).float()
        return y.view(*x.shape[:-1], self.out_features)


_KINDS: Mapping[WeightForm, Callable[[Tensor], FormedLinear]] = {
    kind.form: kind for kind in (PackedLinear, Fp16Linear, Bf16Linear, Int8Linear)
}


def parse_form(name: str) -> WeightForm:
    """A form by its name. Raises ValueError that names the nearest one."""
    if name not in FORMS:
        raise ValueError(f"no form of weights {name!r}{nearest(name, FORMS)}")
    return name


def available_forms(device: torch.device | str = "cpu") -> tuple[WeightForm, ...]:
    """The forms that this machine has kernels for: each is tried."""
    return tuple(form for form in FORMS if _is_available(form, torch.device(device)))


def _is_available(form: WeightForm, device: torch.device) -> bool:
    if form == "fp32" or form not in {"cpu": FORMS, "cuda": ("bf16",)}.get(device.type, ()):
        return form == "fp32"
    one = torch.ones(32, 32, device=device)
    try:
        return bool((_KINDS[form](one)(one[:1]) == 32).all())
    except (RuntimeError, AttributeError):  # no such kernel on this machine, no such operator in this torch
        return False


@torch.no_grad()
def reform(module: AnyModule, form: WeightForm, *, min_elements: int = MIN_ELEMENTS) -> AnyModule:
    """A copy of a loaded model with its large matrices in another form, for inference; `fp32` is the model itself.

    It shares everything else with `module`. Matrices of fewer than `min_elements` numbers stay as they are.
    Raises ValueError for a form that the machine has no kernels for, and for weights that are not in fp32.
    """
    if form == "fp32":
        return module
    refuse_formed(module.modules())
    large = [one for one in module.modules() if isinstance(one, Linear) and one.weight.numel() >= min_elements]
    if not large:
        return module
    device, dtype = large[0].weight.device, large[0].weight.dtype
    if dtype != torch.float32:
        raise ValueError(f"form = {form!r} is made of weights in torch.float32, not {dtype}; load the model in that")
    if not _is_available(form, device):
        known = ", ".join(available_forms(device))
        raise ValueError(f"form = {form!r}: no kernels for it on this {device.type}; there are {known}")
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, cast(dict[int, Any], tensors))
    for owner in list(copied.modules()):
        for name, inner in list(owner.named_children()):
            if isinstance(inner, Linear) and inner.weight.numel() >= min_elements and _fits(inner.weight, form):
                setattr(owner, name, _KINDS[form](inner.weight.detach()))
    return copied


def weight_bytes(module: nn.Module) -> int:
    """Memory of a module's weights in whatever form, embeddings and tables included."""
    plain = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    return plain + sum(inner.num_bytes for inner in module.modules() if isinstance(inner, FormedLinear))


def refuse_formed(modules: Iterable[nn.Module]) -> None:
    """Raises ValueError where one of them is a `FormedLinear`."""
    held = next((one.form for one in modules if isinstance(one, FormedLinear)), None)
    if held is not None:
        raise ValueError(f"the model's weights are in form {held!r} already; begin with the model they were made from")


def _fits(weight: Tensor, form: WeightForm) -> bool:
    """Can the form hold this matrix; one that it cannot stays as it is."""
    if form == "int8":
        return weight.shape[1] % INT8_STEP == 0
    return form != "fp16" or bool(weight.abs().max() <= torch.finfo(torch.float16).max)


def _has_bf16() -> bool:
    """Does oneDNN multiply bf16 here, be it with instructions for it or with AVX-512's."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(weight: Tensor) -> Tensor:
    """In the layout of oneDNN's kernels for few rows; many are fast as well."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None))


def _packed_product(x: Tensor, packed: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], ""))
