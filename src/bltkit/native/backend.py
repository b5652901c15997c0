"""Which parts of a model the native backend takes, and a copy of the model in which it does."""

import copy
import logging
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import nn

from bltkit.config import nearest
from bltkit.model.cross import CrossAttention
from bltkit.model.decoder import LocalDecoder
from bltkit.model.layers import Transformer
from bltkit.model.quantize import FormedLinear, weight_bytes
from bltkit.native.library import Unavailable
from bltkit.native.linear import NativeLinear, in_huge_pages, native_linear
from bltkit.native.stack import NativeTransformer
from bltkit.native.steps import native_step

Backend = Literal["auto", "eager", "native"]
"""eager: torch, one operation after another. native: compiled code. auto: native where machine and model allow it."""

BACKENDS: tuple[Backend, ...] = get_args(Backend)

AUTO_BYTES = 2**30
"""Weights up to which `auto` takes native code. It lays weights out in memory of its own, and larger models, which
may lie in their file, are bound by the reading of weights and not by dispatch."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)
AnyScorer = TypeVar("AnyScorer", bound=nn.Module | None)

logger = logging.getLogger(__name__)


def parse_backend(name: str) -> Backend:
    """A backend by its name. Raises ValueError that names the nearest one."""
    if name not in BACKENDS:
        raise ValueError(f"no backend {name!r}{nearest(name, BACKENDS)}")
    return name


def backend_of(*modules: nn.Module | None) -> str:
    """`native`, `eager`, or `native, eager NAMES` where some stacks are native and those named are not."""
    stacks = {
        name: stack
        for module in modules
        if module is not None
        for name, stack in module.named_modules()
        if isinstance(stack, Transformer) and len(stack.layers)
    }
    eager = [name for name, stack in stacks.items() if not isinstance(stack, NativeTransformer)]
    if len(eager) == len(stacks):
        return "eager"
    return f"native, eager {', '.join(eager)}" if eager else "native"


@torch.no_grad()
def accelerated(module: AnyModule) -> tuple[AnyModule, list[str]]:
    """A copy of a loaded model or scorer whose stacks are native, and which of them are not, each with the reason.

    It shares norms, embeddings and tables with `module`; the weights of the products are copied into panels, in the
    precision that they have (`reform` comes first). Raises Unavailable where there is no library.
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, cast(dict[int, Any], tensors))
    readers = {id(part.stack): part.readers for part in copied.modules() if isinstance(part, LocalDecoder)}
    reasons: list[str] = []
    native: list[tuple[nn.Module, str, Transformer, list[CrossAttention]]] = []
    for owner_name, owner in list(copied.named_modules()):
        for name, stack in list(owner.named_children()):
            if type(stack) is not Transformer or not len(stack.layers):
                continue
            reading = [each for each in readers.get(id(stack), ()) if isinstance(each, CrossAttention)]
            refused = next(filter(None, map(_lay_out, (stack, *reading))), None)
            if refused is None:
                native.append((owner, name, stack, reading))
            else:
                reasons.append(f"{f'{owner_name}.' if owner_name else ''}{name}: {refused}")
    if not reasons:
        _lay_out(copied)
    in_huge_pages([inner for inner in copied.modules() if isinstance(inner, NativeLinear)])
    for owner, name, stack, reading in native:
        setattr(owner, name, NativeTransformer(stack, reading))
    for owner in list(copied.modules()):
        for name, inner in list(owner.named_children()):
            if (step := native_step(inner)) is not None:
                setattr(owner, name, step)
    return cast(AnyModule, native_step(copied) or copied), reasons


def on_backend(backend: str, model: AnyModule | None, scorer: AnyScorer) -> tuple[AnyModule | None, AnyScorer]:
    """Model and scorer as `backend` runs them; the same where that is eager. A warning, once, says what stays eager.

    Raises ValueError for an unknown backend, and for `native` on a machine without a library: `auto` does without.
    """
    chosen = parse_backend(backend)
    modules = [module for module in (model, scorer) if module is not None]
    on_cpu = all(weight.device.type == "cpu" for module in modules for weight in module.parameters())
    too_large = sum(map(weight_bytes, modules)) > AUTO_BYTES
    if chosen == "eager" or backend_of(*modules) != "eager" or (chosen == "auto" and (too_large or not on_cpu)):
        return model, scorer
    try:
        native_model, reasons = (None, []) if model is None else accelerated(model)
        native_scorer, others = (scorer, []) if scorer is None else accelerated(scorer)
    except Unavailable as error:
        if chosen == "native":
            raise ValueError(f"backend = 'native': {error}; or use backend 'eager'") from None
        _warn_once(f"decoding without the native backend: {error}")
        return model, scorer
    for reason in (*reasons, *(f"scorer {other}" for other in others)):
        _warn_once(f"not in the native backend: {reason}")
    return native_model, cast(AnyScorer, native_scorer)


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _lay_out(module: nn.Module) -> str | None:
    """Put the weights of all linear maps inside into panels; or why one of them cannot be."""
    laid: list[tuple[nn.Module, str, NativeLinear]] = []
    for owner in module.modules():
        for name, inner in owner.named_children():
            if isinstance(inner, nn.Linear | FormedLinear) and not isinstance(inner, NativeLinear):
                made = native_linear(inner)
                if isinstance(made, str):
                    return made
                laid.append((owner, name, made))
    for owner, name, made in laid:
        setattr(owner, name, made)
    return None
