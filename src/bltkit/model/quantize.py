"""Run-time forms of the weights: a model whose large matrices are held in another layout or precision.

One-row products, which decoding consists of, take as long as it takes to read the weights: fewer bytes are faster,
and so is a layout that the kernels like. Norms, embeddings and n-gram tables stay as they are. `formed.py` has the
forms, `generate/autotune.py` chooses one for the machine at hand.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from bltkit.config import nearest
from bltkit.model.formed import KINDS, FormedLinear, WeightForm
from bltkit.model.fused_linear import Linear
from bltkit.model.rounding import Matrix

__all__ = [
    "FORMS",
    "KINDS",
    "LOSSLESS",
    "MIN_ELEMENTS",
    "FormedLinear",
    "Matrix",
    "WeightForm",
    "available_forms",
    "form_of",
    "is_available",
    "linears_of",
    "parse_form",
    "reform",
    "refuse_formed",
    "require_kernels",
    "weight_bytes",
    "weights_of",
]

FORMS: tuple[WeightForm, ...] = get_args(WeightForm)
LOSSLESS: tuple[WeightForm, ...] = ("fp32", "packed")
"""Forms of the very same weights: results differ in the order of fp32 sums only."""

MIN_ELEMENTS = 2**15
"""Smallest matrix that is worth another form: reading a smaller one takes less time than the kernels' own dispatch."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def parse_form(name: str) -> WeightForm:
    """A form by its name. Raises ValueError that names the nearest one."""
    if name not in FORMS:
        raise ValueError(f"no form of weights {name!r}{nearest(name, FORMS)}")
    return name


def available_forms(device: torch.device | str = "cpu") -> tuple[WeightForm, ...]:
    """The forms that this machine has kernels for: each is tried."""
    return tuple(form for form in FORMS if is_available(form, torch.device(device)))


def is_available(form: WeightForm, device: torch.device) -> bool:
    """Whether this machine has kernels for a form, which is tried."""
    if form == "fp32" or form not in {"cpu": FORMS, "cuda": ("bf16",)}.get(device.type, ()):
        return form == "fp32"
    one = torch.ones(32, 32, device=device)
    try:
        return bool((KINDS[form].of(Matrix.of(one))(one[:1]) == 32).all())
    except (RuntimeError, AttributeError):  # no such kernel on this machine, no such operator in this torch
        return False


def require_kernels(form: WeightForm, device: torch.device) -> None:
    """Raises ValueError for a form that the machine has no kernels for."""
    if not is_available(form, device):
        usable = ", ".join(available_forms(device))
        raise ValueError(f"form = {form!r}: no kernels for it on this {device.type}; there are {usable}")


def linears_of(module: nn.Module) -> Iterator[tuple[nn.Module, str, Linear]]:
    """Every plain matrix with the module that owns it and its dotted path; do not replace any while iterating."""
    for path, owner in module.named_modules():
        for name, inner in owner.named_children():
            if isinstance(inner, Linear):
                yield owner, f"{path}.{name}" if path else name, inner


@torch.no_grad()
def reform(module: AnyModule, form: WeightForm, *, min_elements: int = MIN_ELEMENTS) -> AnyModule:
    """A copy of a loaded model with its large matrices in another form, for inference; `fp32` is the model itself.

    It shares everything else with `module`. Matrices of fewer than `min_elements` numbers stay as they are.
    Raises ValueError for a form that the machine has no kernels for, and for weights that are not in fp32.
    """
    if form == "fp32":
        return module
    refuse_formed(module.modules())
    large = [linear.weight for _, _, linear in linears_of(module) if linear.weight.numel() >= min_elements]
    if not large:
        return module
    device, dtype = large[0].device, large[0].dtype
    if dtype != torch.float32:
        raise ValueError(f"form = {form!r} is made of weights in torch.float32, not {dtype}; load the model in that")
    require_kernels(form, device)
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, cast(dict[int, Any], tensors))
    for owner, path, linear in list(linears_of(copied)):
        if linear.weight.numel() >= min_elements:
            matrix = Matrix.of(linear.weight.detach())
            if KINDS[form].fits(matrix):
                setattr(owner, path.rpartition(".")[2], KINDS[form].of(matrix))
    return copied


def weight_bytes(module: nn.Module) -> int:
    """Memory of a module's weights in whatever form, embeddings and tables included."""
    plain = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    return plain + sum(inner.num_bytes for inner in module.modules() if isinstance(inner, FormedLinear))


def form_of(module: nn.Module) -> WeightForm:
    """The form in which a module holds its large matrices; fp32 where they are plain, in whatever dtype."""
    return next((inner.form for inner in module.modules() if isinstance(inner, FormedLinear)), "fp32")


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name, in the names' order; those in a form as numbers, one at a time."""
    formed = {f"{name}.weight": inner for name, inner in module.named_modules() if isinstance(inner, FormedLinear)}
    plain = dict(module.named_parameters())
    for name in sorted({*formed, *plain}):
        yield name, plain[name] if name in plain else formed[name].weight


def refuse_formed(modules: Iterable[nn.Module]) -> None:
    """Raises ValueError where one of them is a `FormedLinear`."""
    held = next((one.form for one in modules if isinstance(one, FormedLinear)), None)
    if held is not None:
        raise ValueError(f"the model's weights are in form {held!r} already; begin with the model they were made from")
