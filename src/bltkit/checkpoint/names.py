"""Tensor names: ours, where products that belong together are one matrix, and Hugging Face's, where they are split.

A tensor of ours is made of one or more tensors of the file, stacked along dim 0 (docs/model.md 12).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bltkit.model.quantize import WeightForm

STAGES = {
    "embed.bytes.weight": "model.local_encoder.embed_tokens.weight",
    "embed.ngrams": "model.encoder_hash_tok_embedding.weight",
    "encoder.stack.layers.": "model.local_encoder.layers.",
    "encoder.patch_projection.": "model.local_encoder.patch_embedding_projection.",
    "encoder.cross.": "model.local_encoder.cross_attn_layers.",
    "latent.projection.": "model.global_transformer.token_embedding_projection.",
    "latent.stack.layers.": "model.global_transformer.layers.",
    "decoder.patch_projection.": "model.local_decoder.patch_embedding_projection.",
    "decoder.cross.": "model.local_decoder.cross_attn_layers.",
    "decoder.stack.layers.": "model.local_decoder.layers.",
    "decoder.norm.": "model.local_decoder.norm.",
    "decoder.head.": "lm_head.",
}
"""Beginnings of our names in a Blt, and of the file's."""

SCORER_STAGES = {"embed.": "embed_tokens.", "stack.layers.": "layers.", "norm.": "norm.", "head.": "lm_head."}
"""The same for an entropy model, whose names in the file stand behind a prefix."""

TOKEN_STAGES = {
    "embed.": "model.embed_tokens.",
    "stack.layers.": "model.layers.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
}
"""The same for a token model, which is a Llama in the file."""

LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
    "ffn.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "ffn.down.weight": ("mlp.down_proj.weight",),
}
"""Behind the layer's index, in a stack."""

CROSS = {
    "q_norm.weight": ("q_norm.weight",),
    "kv_norm.weight": ("k_norm.weight",),
    "q.weight": ("q_proj.weight",),
    "kv.weight": ("k_proj.weight", "v_proj.weight"),
    "out.weight": ("o_proj.weight",),
}
"""Behind the block's index, in a list of cross-attention blocks."""

SCORER_PREFIX = "model.patcher."
"""Where the scorer's tensors stand in a whole model's file; alone they have no prefix."""

OWN_PREFIX = "bltkit."
"""Where a tensor stands that Hugging Face's model does not have."""

ROUNDED: Mapping[WeightForm | None, tuple[str, ...]] = {
    "int8": ("steps", "scales"),
    "int4": ("steps", "scales", "zeros"),
}
"""Tensors by which a checkpoint holds a matrix of these forms. int8: steps [out, in] int8, scales [out] bf16. int4:
steps [out, in / 2] uint8, that of an even input in the lower four bits of a byte and that of the next input in the
upper ones; scales and zeros [out, in / 32] bf16. `model/rounding.py` says what they mean."""


@dataclass(frozen=True)
class TensorPart:
    """One tensor of the file: its name and shape."""

    name: str
    shape: tuple[int, ...]


def blt_parts(name: str, shape: Iterable[int]) -> tuple[TensorPart, ...]:
    """The file's tensors that make up tensor `name` of a `Blt`."""
    return _parts(name, tuple(shape), STAGES, OWN_PREFIX)


def scorer_parts(name: str, shape: Iterable[int], prefix: str) -> tuple[TensorPart, ...]:
    """The file's tensors that make up tensor `name` of a scorer. prefix: `SCORER_PREFIX`, or nothing."""
    stages = {ours: prefix + theirs for ours, theirs in SCORER_STAGES.items()}
    return _parts(name, tuple(shape), stages, prefix)


@dataclass(frozen=True)
class Room:
    """A module of a checkpoint, and where its tensors stand in the file."""

    module: nn.Module
    parts: Callable[[str, Iterable[int]], tuple[TensorPart, ...]]
    """(name, shape) of a tensor of the module -> the file's tensors that make it up."""
    rounded: str
    """Prefix of matrices that the file holds as steps and scales, in front of the module's own names."""


def rooms(model: nn.Module | None, scorer: nn.Module | None) -> Iterator[Room]:
    """A `Blt` and its scorer, or a scorer alone."""
    if model is not None:
        yield Room(model, blt_parts, OWN_PREFIX)
    if scorer is not None:
        prefix = SCORER_PREFIX if model is not None else ""
        yield Room(scorer, lambda name, shape: scorer_parts(name, shape, prefix), f"{OWN_PREFIX}scorer.")


def stored_parts(model: nn.Module | None, scorer: nn.Module | None) -> Iterator[tuple[Tensor, tuple[TensorPart, ...]]]:
    """Every tensor of a `Blt` and of its scorer, or of a scorer alone, with the file's tensors that it is made of."""
    for room in rooms(model, scorer):
        for name, tensor in room.module.state_dict().items():
            yield tensor, room.parts(name, tensor.shape)


def rounded_names(base: str, form: WeightForm | None) -> tuple[str, ...]:
    """Names of the tensors of a matrix that is stored in `form`. base: its name without them."""
    return tuple(f"{base}.{leaf}" for leaf in ROUNDED[form])


def token_parts(name: str, shape: Iterable[int]) -> tuple[TensorPart, ...]:
    """The file's tensors that make up tensor `name` of a `TokenLlama`, but for the order of rows of q and k."""
    return _parts(name, tuple(shape), TOKEN_STAGES, OWN_PREFIX)


def is_hugging_face(name: str) -> bool:
    """Does Hugging Face's BLT know tensor `name` of a `Blt`?"""
    return any(name.startswith(stage) for stage in STAGES)


def _parts(name: str, shape: tuple[int, ...], stages: dict[str, str], otherwise: str) -> tuple[TensorPart, ...]:
    stage = next((stage for stage in stages if name.startswith(stage)), None)
    if stage is None:
        return (TensorPart(otherwise + name, shape),)
    rest, table = name.removeprefix(stage), _inner_table(stage)
    if table is None:
        return (TensorPart(stages[stage] + rest, shape),)
    index, _, inner = rest.partition(".")
    split = table[inner]
    rows = _rows(len(split), shape)
    return tuple(
        TensorPart(f"{stages[stage]}{index}.{theirs}", (count, *shape[1:]))
        for theirs, count in zip(split, rows, strict=True)
    )


def _inner_table(stage: str) -> dict[str, tuple[str, ...]] | None:
    if stage.endswith("layers."):
        return LAYER
    return CROSS if stage.endswith("cross.") else None


def _rows(parts: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Queries are as wide as the stream; grouped keys and values share what is left."""
    if parts == 3:
        queries = shape[1]
        return (queries, (shape[0] - queries) // 2, (shape[0] - queries) // 2)
    return (shape[0] // parts,) * parts
