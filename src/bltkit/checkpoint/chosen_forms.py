"""Which form the large matrices of a checkpoint get in memory, and whether they fit into it: decided before loading."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bltkit.checkpoint.names import ROUNDED, Room
from bltkit.checkpoint.reader import Reader
from bltkit.compute import free_memory
from bltkit.model.embed import NgramEmbedding
from bltkit.model.quantize import (
    FORMS,
    LOSSLESS,
    MIN_ELEMENTS,
    WeightForm,
    is_available,
    linears_of,
    parse_form,
    require_kernels,
)
from bltkit.model.rounding import GROUP

WIDE_BYTES = 2 * 2**30
"""Dense weights in fp32 up to which a checkpoint is loaded so, whatever its files hold."""

_BYTES: Mapping[WeightForm, float] = {
    "fp32": 4, "packed": 4, "fp16": 2, "bf16": 2, "int8": 1, "int4": 0.5 + 4 / GROUP
}  # fmt: skip
"""Of one weight of a large matrix; the scales of rows do not count."""


@dataclass(frozen=True)
class Forms:
    """Forms of the large matrices of a model and of its scorer; `fp32` leaves them plain."""

    model: WeightForm
    scorer: WeightForm


def choose_forms(
    directory: Path,
    reader: Reader,
    rooms: list[Room],
    weights: str | None,
    scorer_weights: str | None,
    *,
    by_default: bool = True,
    free: int | None = None,
) -> Forms:
    """The forms that are asked for, or those that fit the file.

    weights: of the BLT, or of a scorer that stands alone. None: as stored, if that is rounded; on the CPU fp32 up to
    `WIDE_BYTES`, and beyond that what the file holds, if that is 16 bits.
    scorer_weights: of a BLT's scorer. None: as `weights` where that rounds nothing, else what the file holds. Rounded
    entropies place some patches elsewhere.
    by_default: choose where nothing is asked for; else fp32, which leaves matrices plain.
    free: bytes of memory, by default those that this machine has now.

    Raises ValueError for a form that is unknown, that this machine has no kernels for or that the file cannot give,
    and for weights that do not fit into memory.
    """
    device, stored = reader.device, reader.stored
    asked = None if weights is None else parse_form(weights)
    asked_scorer = None if scorer_weights is None else parse_form(scorer_weights)
    if asked_scorer is not None and (len(rooms) < 2):
        raise ValueError(
            f"scorer_weights = {scorer_weights!r}: {directory} holds no model beside a scorer; leave it out"
        )
    if asked is not None and stored in ROUNDED and asked not in (stored, "fp32"):
        raise ValueError(
            f"weights = {asked!r}: {directory} stores its weights in {stored}, and what was rounded is gone; leave "
            f"--weights out, give fp32 to widen them as they are, or convert the original"
        )
    form, scorer_form = asked, asked_scorer
    file_form, wide = reader.file_form(rooms[0]), needed_bytes(rooms, "fp32")
    if form is None and by_default:
        form = stored or (file_form if wide > WIDE_BYTES else "fp32")
    form = form or "fp32"
    if stored in ROUNDED and form == "fp32" and device.type != "meta":
        _say("%s: weights stored in %s are widened to fp32; they stay rounded", directory, stored)
    if scorer_form is None:
        scorer_form = form if form in LOSSLESS else reader.file_form(rooms[-1])
        scorer_form = scorer_form if is_available(scorer_form, device) else "fp32"
    for each in (form, scorer_form):
        require_kernels(each, device)
    forms = Forms(form, scorer_form)
    free = free_memory(device) if free is None and device.type == "cpu" else free
    if free is not None:
        _require_memory(directory, rooms, forms, free, stored)
    if asked is None and stored is None and form != "fp32":
        need = sum(_need(room.module, each) for room, each in zip(rooms, _each(forms, rooms), strict=True))
        _say(
            "%s: weights are held in %s as in the file, %.1f GB; in fp32 they would take %.1f GB (weights='fp32')",
            directory, form, need / 1e9, wide / 1e9,
        )  # fmt: skip
    return forms


def _each(forms: Forms, rooms: list[Room]) -> list[WeightForm]:
    return [forms.model, forms.scorer][: len(rooms)]


def _require_memory(directory: Path, rooms: list[Room], forms: Forms, free: int, stored: WeightForm | None) -> None:
    need = sum(_need(room.module, form) for room, form in zip(rooms, _each(forms, rooms), strict=True))
    if need <= free:
        return
    sizes: dict[WeightForm, float] = {form: needed_bytes(rooms, form) for form in FORMS}
    tried: tuple[WeightForm, ...] = () if stored in ROUNDED else ("bf16", "int8", "int4")
    smaller = [f"{form} ({sizes[form] / 1e9:.1f} GB)" for form in tried if sizes[form] <= free]
    remedy = f"load them in a smaller form: --weights {' or '.join(smaller)}" if smaller else "free some memory"
    raise ValueError(
        f"{directory}: its weights take {need / 1e9:.1f} GB in {forms.model}, but {free / 1e9:.1f} GB of memory are "
        f"free; {remedy}"
    )


def needed_bytes(rooms: Iterable[Room], form: WeightForm) -> float:
    """Memory of all modules in one form, without n-gram tables."""
    return sum(_need(room.module, form) for room in rooms)


def _need(module: nn.Module, form: WeightForm) -> float:
    """Bytes of a module's weights in a form, without n-gram tables."""
    large = [linear.weight.numel() for _, _, linear in linears_of(module) if linear.weight.numel() >= MIN_ELEMENTS]
    tables = sum(inner.ngrams.numel() for inner in module.modules() if isinstance(inner, NgramEmbedding))
    total = sum(weight.numel() for weight in module.parameters())
    return sum(large) * _BYTES[form] + 4 * (total - sum(large) - tables)


def weight_sizes(module: nn.Module, form: WeightForm, itemsize: int) -> dict[str, int]:
    """Bytes of a module's parameters by their names, its large matrices in a form; fp32 is as loaded.

    itemsize: bytes of a number that gets no form.
    """
    large = {f"{path}.weight" for _, path, linear in linears_of(module) if linear.weight.numel() >= MIN_ELEMENTS}
    formed = itemsize if form == "fp32" else _BYTES[form]
    return {
        name: int(weight.numel() * (formed if name in large else itemsize))
        for name, weight in module.named_parameters()
    }


def _say(line: str, *values: object) -> None:
    """A line on stderr, unless the program that uses this package says otherwise."""
    logging.getLogger(__name__).warning(line, *values)
