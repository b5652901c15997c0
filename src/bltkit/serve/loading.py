"""A model that is to be served: loaded, checked, with its weights in the form that was asked for."""

from dataclasses import replace
from pathlib import Path

import torch

from bltkit.checkpoint import Bundle, DeviceMap, resolve_model
from bltkit.compute import SMALL, default_threads, device_of, share_cores
from bltkit.config import nearest
from bltkit.cost.formulas.parameters import count_parameters
from bltkit.generate import STRATEGIES, strategy_of
from bltkit.generate.open_bundle import open_bundle
from bltkit.model.quantize import form_of
from bltkit.native import on_backend
from bltkit.serve.messages import ModelInfo
from bltkit.serve.scheduler import Scheduler
from bltkit.serve.settings import EngineSettings

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(settings: EngineSettings) -> Bundle:
    """The model of the settings, on its device. Sets the threads of the process.

    Raises ValueError with one line for a model that cannot be loaded or does not generate, and for other settings that
    this machine cannot follow.
    """
    if settings.dtype is not None and settings.dtype not in DTYPES:
        raise ValueError(f"dtype = {settings.dtype!r}{nearest(settings.dtype, list(DTYPES))}")
    share_cores()
    directory = resolve_model(settings.model)
    # Decoding reads weights for few rows: threads pay where there are many weights.
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors") if file.is_file()) // 4 or SMALL
    torch.set_num_threads(settings.threads or default_threads(size, "sequence"))
    device = device_of(settings.device, "--device", small=size < SMALL)
    parts = None if settings.device_map is None else DeviceMap.parse(settings.device_map)
    dtype = None if settings.dtype is None else DTYPES[settings.dtype]
    bundle = open_bundle(
        directory,
        dtype=dtype,
        device=device,
        weights=settings.weights,
        scorer_weights=settings.scorer_weights,
        device_map=parts,
    )
    bundle = servable(bundle, settings.model)
    model, scorer = on_backend(settings.backend, bundle.model, bundle.scorer)
    return replace(bundle, model=model, scorer=scorer)


def servable(bundle: Bundle, name: str) -> Bundle:
    """The bundle. Raises ValueError unless it generates: a BLT, a rule that streams, and the scorer that it needs."""
    if bundle.model is None:
        raise ValueError(f"model = {name} holds no BLT, only a model that places patches; serve a BLT's checkpoint")
    if bundle.rule is None:
        raise ValueError(f"model = {name} has no patching rule; save it with one, such as 'stride:k=4.5'")
    if bundle.rule.scores is not None and bundle.scorer is None:
        raise ValueError(
            f"model = {name}: rule {bundle.rule.kind!r} reads {bundle.rule.scores} scores, but there is no model that "
            "gives them; save it with a rule that reads none, such as 'space'"
        )
    if not bundle.rule.streams:
        raise ValueError(f"model = {name}: rule {bundle.rule.kind!r} looks at bytes that are not generated yet")
    return bundle


def describe(settings: EngineSettings, scheduler: Scheduler) -> ModelInfo:
    """What HTTP has to know."""
    bundle = scheduler.bundle
    model = bundle.model
    assert model is not None
    parameters = count_parameters(model) + sum(map(count_parameters, [bundle.scorer] if bundle.scorer else []))
    weight, form = model.embed.bytes.weight, form_of(model)
    return ModelInfo(
        name=settings.name or _short(settings.model),
        parameters=parameters,
        context=scheduler.context,
        strategies=tuple(kind for kind in STRATEGIES if _decodes(kind, bundle)),
        record=bundle.record,
        rule=str(bundle.rule),
        sequence_bytes=scheduler.budget.needed(scheduler.context + 1, 1),
        memory=scheduler.budget.memory,
        limits=replace(settings.limits, context=scheduler.context, memory=scheduler.budget.memory),
        device=str(weight.device),
        weights=str(weight.dtype).removeprefix("torch.") if form == "fp32" else form,
    )


def _decodes(kind: str, bundle: Bundle) -> bool:
    assert bundle.model is not None
    try:
        strategy_of(kind).check(bundle.model)
    except ValueError:
        return False
    return True


def _short(model: str) -> str:
    """`bltkit:tiny` as it is; of a path its last part, which says nothing of where it lies."""
    return model if ":" in model and not Path(model).exists() else Path(model).resolve().name
