"""Fine-tuning: going on from any checkpoint, holding parts of the model still, and LoRA on the global transformer.

Around the training loop: `continue_from` before its config is read, `adapt` behind the weights of the checkpoint, and
`merged_state` in front of every checkpoint that is written. The adapters are those of the library `peft` (Hu et al.
2021, W x + (alpha / rank) B A x), put into the latent stack alone, whose names they change:

    latent.stack.layers.0.attention.qkv.weight -> ...qkv.base_layer.weight, ...qkv.lora_A.default.weight, ...lora_B...

Notable: everything about those names works on a state dict, so that it serves as well for one that was gathered from
several processes. Query, key and value are one matrix here and share one A. Adapters are what is trained of the global
transformer; with all else frozen they teach a model little (nor does the whole of it), because bytes are formed in the
decoder: leave that to train.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from bltkit.checkpoint import is_token_model, load_bundle, resolve_model, token_config
from bltkit.config import Config
from bltkit.model import Blt, BltConfig, BoundaryConfig, CnnConfig, EntropyConfig, TokenConfig

Target = Literal["qkv", "out", "gate_up", "down"]
"""The matrices of a layer."""

Shape = BltConfig | EntropyConfig | BoundaryConfig | CnnConfig | TokenConfig

_ADAPTER = "default"  # peft's own name for the first one
_BASE, _DOWN, _UP = ".base_layer.weight", f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight"
_SHORT_NAMES = {"ngrams": "embed.ngrams"}
_NO_SHAPE = {"kind", "document_masks", "diffusion_block"}


class LoraSection(Config):
    """Low-rank adapters in the global transformer: of its weights these alone are trained."""

    rank: PositiveInt = 8
    """Inner width of the adapters."""
    alpha: PositiveFloat = 16.0
    """The adapters' product is multiplied by alpha / rank."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("qkv", "out", "gate_up", "down")
    """Matrices of a layer that get an adapter."""


class AdaptSection(Config):
    """What is trained, where that is not all of the model."""

    freeze: tuple[str, ...] = ()
    """Parts that keep their weights: `embed`, `encoder`, `latent`, `decoder`, `ngrams`, or a path within them such as
    `decoder.stack.layers.0`."""
    lora: LoraSection | None = None
    """Train low-rank adapters of the global transformer alone; absent: no adapters."""


def adapt(model: nn.Module, section: AdaptSection, seed: int) -> None:
    """Make a model with its base weights loaded ready for fine-tuning, in place: what is still, what has adapters.

    A fresh adapter changes no output. Its numbers follow from `seed` and the shapes alone, not from the device or
    torch's own generator.
    Raises ValueError for unknown parts, for LoRA in a model without a global transformer, and where nothing is left to
    train.
    """
    freeze(model, section.freeze)
    if section.lora is not None:
        _inject(model, section.lora, seed)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"adapt.freeze = {list(section.freeze)} leaves nothing to train; leave a part out of it")


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Take parts of a model out of training. Raises ValueError for a name that no weight stands under."""
    weights = dict(model.named_parameters())
    for name in names:
        path = _SHORT_NAMES.get(name, name)
        below = [weight for full, weight in weights.items() if f"{full}.".startswith(f"{path}.")]
        if not below:
            parts = [part for part, module in model.named_children() if any(True for _ in module.parameters())]
            parts += [short for short, full in _SHORT_NAMES.items() if full in weights]
            raise ValueError(f"adapt.freeze = {name!r}: the model has no such part; known: {', '.join(parts)}")
        for weight in below:
            weight.requires_grad_(False)


def plain_name(name: str) -> str | None:
    """A parameter's name in the model without adapters; None for an adapter's own."""
    if name.endswith((_DOWN, _UP)):
        return None
    return name.removesuffix(_BASE) + ".weight" if name.endswith(_BASE) else name


def merged_state(state: Mapping[str, Tensor], lora: LoraSection | None) -> dict[str, Tensor]:
    """The state dict of an adapted model -> that of an ordinary one, under our names, the adapters added in.

    The adapted matrices are new tensors, all others are those of `state`; nothing of it is changed. The sum is made
    in the wider dtype of base and adapter.
    """
    merged = {}
    for name, tensor in state.items():
        plain = plain_name(name)
        if plain is None:
            continue
        if name.endswith(_BASE):
            assert lora is not None, name
            owner = name.removesuffix(_BASE)
            down, up = state[owner + _DOWN].detach(), state[owner + _UP].detach()
            wide = torch.promote_types(tensor.dtype, down.dtype)
            change = (lora.alpha / lora.rank) * (up.to(wide) @ down.to(wide))
            tensor = (tensor.detach().to(wide) + change).to(tensor.dtype)
        merged[plain] = tensor.detach()
    return merged


def base_config(checkpoint: str, kind: str | None = None) -> Shape:
    """The shape of a checkpoint's model, whatever its layout (a path, `bltkit:NAME`, `hf:OWNER/NAME`), without reading
    its weights. kind: of the two models that a BLT's checkpoint holds, which; by default the BLT.

    Raises ValueError for a checkpoint that cannot be read or holds no such model.
    """
    held = _held(resolve_model(checkpoint))
    for shape in held:
        if kind in (None, shape.kind):
            return shape
    there = ", ".join(repr(shape.kind) for shape in held) or "none that can be trained"
    raise ValueError(f"model.kind = {kind!r}: {checkpoint} (trainer.init) holds {there}")


def _held(directory: Path) -> list[Shape]:
    if is_token_model(directory):
        return [token_config(directory)]
    found = load_bundle(directory, device="meta")
    configs = [getattr(module, "config", None) for module in (found.model, found.scorer)]
    return [shape for shape in configs if isinstance(shape, Shape)]


def continue_from(data: Mapping[str, Any]) -> dict[str, Any]:
    """A training config's plain values, with what is left out of them taken from `trainer.init`.

    [model] that is absent, or says only `kind` or `document_masks`, gets the checkpoint's shape; a BLT's [patching]
    without a `model` listens to the checkpoint's own entropy model, under its rule unless one is given.
    Raises ValueError for a checkpoint that cannot be read.
    """
    trainer, model, patching = (_table(data, name) for name in ("trainer", "model", "patching"))
    init = None if trainer is None else trainer.get("init")
    if not isinstance(init, str) or model is None or not model.keys() <= _NO_SHAPE:
        return dict(data)
    shape = base_config(init, model.get("kind"))
    filled = {**data, "model": {**shape.model_dump(), **model}}
    if isinstance(shape, BltConfig) and patching is not None and "model" not in patching:
        filled["patching"] = {"model": init, **patching}
    return filled


def shares_weights(ours: Shape, theirs: Shape) -> bool:
    """Can weights of the one shape go on as the other: equal, but for who sees whom across documents, and for the
    blocks that they were trained to fill in.

    What Hugging Face trained knows no documents; rows of several conversations should be told apart all the same.
    A token model takes the checkpoint's tokenizer along (`tokens/vocabulary.py`).
    """
    free = {"document_masks", "diffusion_block", "tokenizer"}
    return ours.model_dump(exclude=free) == theirs.model_dump(exclude=free)


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A section, {} where it is absent, None where it is no section (the validation behind this says so)."""
    found = data.get(name, {})
    return found if isinstance(found, Mapping) else None


def _inject(model: nn.Module, lora: LoraSection, seed: int) -> None:
    if not isinstance(model, Blt):
        raise ValueError("adapt.lora adapts the global transformer, which only model.kind = 'blt' has; remove it")
    try:
        import peft
    except ImportError:
        raise ValueError("adapt.lora needs peft: pip install 'bltkit[lora]'") from None
    stack = model.latent.stack
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, used as a factor
        target_modules=rf"layers\.\d+\.\w+\.({'|'.join(lora.targets)})",
        bias="none",
    )
    # What peft draws, from torch's own generator, is drawn again below.
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(settings, stack, adapter_name=_ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.latent.named_parameters():
        weight.requires_grad_(name.endswith((_DOWN, _UP)))
        if name.endswith(_DOWN) and not weight.is_meta:
            drawn = torch.empty(weight.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as peft and the paper's code do
            with torch.no_grad():
                weight.copy_(drawn)
    model.train(model.training)  # peft's modules begin in training mode
