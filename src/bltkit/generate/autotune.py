"""Which form of its weights a model decodes fastest with on the machine at hand: measured, with its own matrices."""

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import nn

from bltkit.model.blt import Blt
from bltkit.model.cross import CrossAttention
from bltkit.model.fused_linear import Linear
from bltkit.model.quantize import MIN_ELEMENTS, WeightForm, available_forms, reform, refuse_formed

WALKS = 4
"""Through the matrices in a turn; whatever else a busy machine does only adds to the time of some."""

GAIN = 1.2
"""How many times as fast a form must be to be chosen."""


@torch.inference_mode()
def measure_forms(
    model: Blt,
    scorer: nn.Module | None = None,
    forms: Sequence[WeightForm] | None = None,
    *,
    rows: int = 1,
    patch_bytes: float = 4.5,
    repeats: int = 9,
    max_bytes: int = 2**28,
    min_elements: int = MIN_ELEMENTS,
    read: Callable[[Linear], Linear] | None = None,
    device: torch.device | None = None,
) -> dict[WeightForm, float]:
    """Microseconds that all matrix products of one decoded byte take in each form, fp32 always among them.

    The model's own matrices in the order of a step, the forms in turn, medians of the turns. In its turn a form walks
    through its matrices once to have them in the caches as far as they fit, as when decoding, and then a few times of
    which the fastest counts. What is done once a patch counts 1 / patch_bytes. Of what takes more than `max_bytes`
    only the first matrices are measured.

    forms: by default those available. rows: bytes in one product. min_elements: as for `reform`.
    read, device: for a model without its weights, where those of a matrix come from and where they are multiplied.
    Raises ValueError as `reform` does.
    """
    device = device or model.embed.bytes.weight.device
    per_patch = _per_patch(model)
    known = set(map(id, per_patch))
    per_byte = [one for one in (*_linears(model), *_linears(scorer)) if id(one) not in known]
    walks: dict[WeightForm, list[tuple[Callable[[], None], float]]] = {
        form: [] for form in ("fp32", *(forms or available_forms(device)))
    }
    for linears, every in ((per_byte, 1.0), (per_patch, patch_bytes)):
        taken, share = _first(linears, max_bytes // 2)
        taken = taken if read is None else [read(linear).to(device) for linear in taken]
        for form, walk in walks.items():
            products = reform(nn.ModuleList(taken), form, min_elements=min_elements)
            walk.append((_walk(products, rows, device), 1 / (share * every)))
    seconds: dict[WeightForm, list[float]] = {form: [] for form in walks}
    for _ in range(repeats):
        for form, parts in walks.items():
            turn = [sum(_timed(walk, device) * times for walk, times in parts) for _ in range(WALKS)]
            seconds[form].append(min(turn[1:]))
    return {form: 1e6 * statistics.median(own) for form, own in seconds.items()}


def best_form(
    microseconds: Mapping[WeightForm, float], gain: float = GAIN, baseline: WeightForm = "fp32"
) -> WeightForm:
    """The fastest form of `measure_forms`; `baseline` unless it is at least `gain` times as fast.

    To choose among forms of the same weights only, measure only those (`LOSSLESS`).
    """
    fastest = min(microseconds, key=lambda form: microseconds[form])
    return fastest if microseconds[baseline] >= gain * microseconds[fastest] else baseline


def _linears(module: nn.Module | None) -> list[Linear]:
    inside = [] if module is None else list(module.modules())
    refuse_formed(inside)
    return [one for one in inside if isinstance(one, Linear)]


def _per_patch(model: Blt) -> list[Linear]:
    """What a step does only where a patch closes."""
    in_stack = set(map(id, _linears(model.encoder.stack)))
    pooling = [one for one in _linears(model.encoder) if id(one) not in in_stack]
    read = [block.kv for block in model.decoder.readers if isinstance(block, CrossAttention)]
    return [*pooling, *_linears(model.latent), model.decoder.patch_projection, *read]


def _first(linears: Sequence[Linear], max_bytes: int) -> tuple[list[Linear], float]:
    """As many as fit in `max_bytes`, at least one, and their share of all weights."""
    sizes = list(accumulate(one.weight.nbytes for one in linears))
    count = max(1, bisect_right(sizes, max_bytes))
    return list(linears[:count]), sizes[count - 1] / sizes[-1]


def _walk(products: nn.ModuleList, rows: int, device: torch.device) -> Callable[[], None]:
    generator = torch.Generator(device).manual_seed(0)
    widths = {cast(Linear, one).in_features for one in products}
    inputs = {width: torch.randn(rows, width, generator=generator, device=device) for width in widths}
    steps = [(one, inputs[cast(Linear, one).in_features]) for one in products]

    def walk() -> None:
        for product, x in steps:
            product(x)

    return walk


def _timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds; a GPU's work included."""
    _finish(device)
    began = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
