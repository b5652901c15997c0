"""From a checkpoint to a model that runs: the one door of all verbs, which knows `auto` besides the forms."""

import logging
from pathlib import Path

import torch

from bltkit.checkpoint import Bundle, DeviceMap, Skeleton, load_bundle, skeleton
from bltkit.compute import free_memory
from bltkit.generate.autotune import best_form, measure_forms
from bltkit.model.quantize import LOSSLESS, WeightForm, is_available

AUTO = "auto"

MEASURED_BYTES = 2**27
"""Of fp32 weights of which forms are measured: the first matrices, whatever the model's size."""

TIGHT: tuple[WeightForm, ...] = ("int8", "int4")
"""Forms for models that fit into memory in no other one."""


def open_bundle(
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    verify: bool = False,
    weights: str | None = None,
    scorer_weights: str | None = None,
    device_map: DeviceMap | None = None,
) -> Bundle:
    """`load_bundle`, which has the meaning of all arguments, with `weights = "auto"` besides.

    `auto` takes the fastest form on this machine, of those that round no weight of the file and fit into memory; it
    measures on the model's first matrices, and says on stderr what it took. A stored form is used as stored. Where no
    such form fits, it takes int8, else int4.
    Raises ValueError and OSError as `load_bundle` does.
    """
    if weights == AUTO:
        weights = _choose(Path(directory), torch.device(device))
    return load_bundle(
        directory,
        dtype=dtype,
        device=device,
        verify=verify,
        weights=weights,
        scorer_weights=scorer_weights,
        device_map=device_map,
    )


def _choose(directory: Path, device: torch.device) -> WeightForm | None:
    with skeleton(directory) as bones:
        if bones.stored is not None:
            _say("weights auto: %s, as stored", bones.stored)
            return None
        free = free_memory(device)
        fitting = [form for form in (*LOSSLESS, bones.file_form) if is_available(form, device)]
        fitting = [form for form in dict.fromkeys(fitting) if free is None or bones.needed_bytes(form) <= free]
        if not fitting:
            assert free is not None
            return _smallest(bones, free, device)
        chosen, why = fitting[0], "nothing else fits into memory or has kernels here"
        if bones.model is not None and len(fitting) > 1:
            times = measure_forms(
                bones.model, bones.scorer, fitting, read=bones.read, device=device, max_bytes=MEASURED_BYTES, repeats=5
            )
            times = {form: times[form] for form in fitting}
            chosen = best_form(times, baseline=fitting[0])
            why = f"{times[fitting[0]] / times[chosen]:.1f} times the speed of {fitting[0]} on the first matrices"
        size = bones.needed_bytes(chosen)
    _say("weights auto: %s, %s; %.1f GB%s", chosen, why, size / 1e9, _of(free))
    return chosen


def _smallest(bones: Skeleton, free: int, device: torch.device) -> WeightForm:
    for form in TIGHT:
        if is_available(form, device) and bones.needed_bytes(form) <= free:
            size = bones.needed_bytes(form)
            _say("weights auto: %s, as larger forms do not fit; %.1f GB%s", form, size / 1e9, _of(free))
            return form
    return TIGHT[-1]  # refused by `load_bundle`, with the sizes


def _of(free: int | None) -> str:
    return "" if free is None else f" of {free / 1e9:.1f} GB that are free"


def _say(line: str, *values: object) -> None:
    """A line on stderr, unless the program that uses this package says otherwise."""
    logging.getLogger(__name__).warning(line, *values)
