"""A token model's checkpoint: a Llama of Hugging Face's with its tokenizer, and bltkit.json for the training record.

`AutoModelForCausalLM` and `AutoTokenizer` load it, and so does whatever else knows Llamas. Notable: that format turns
the two halves of a head where our layers turn neighbouring pairs, so rows of queries and keys change places on the way.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bltkit.checkpoint.intact import check_contents, check_names, check_sizes, entry_of, read_manifest
from bltkit.checkpoint.manifest import FORMAT, MANIFEST, FileEntry
from bltkit.checkpoint.names import TensorPart, token_parts
from bltkit.checkpoint.weights import Weights, read_json, write_weights
from bltkit.config import Config, parse
from bltkit.files import check_seal, sealed
from bltkit.model import TokenConfig, TokenLlama
from bltkit.tokens import Vocabulary

MODEL_TYPE = "llama"
KIND = "bpe"
MAX_SHARD_BYTES = 5_000_000_000
_TURNED = ("q_proj.weight", "k_proj.weight")


@dataclass(frozen=True)
class TokenBundle:
    """What a token model's checkpoint holds."""

    model: TokenLlama
    vocabulary: Vocabulary
    record: dict[str, Any] = field(default_factory=dict)
    """The training record: plain values that JSON can hold."""


class TokenizerEntry(Config):
    """sha256: of the `Vocabulary`. tokens: how many it has."""

    sha256: str
    tokens: int


class TokenManifest(Config):
    """The content of a token model's bltkit.json."""

    format: int
    bltkit: str
    kind: Literal["bpe"] = "bpe"
    model: TokenConfig
    tokenizer: TokenizerEntry
    record: dict[str, Any]
    files: dict[str, FileEntry]
    """Every other file of the checkpoint; weights alone in format 1."""
    digest: str | None = None
    """The seal (`bltkit.files.seal`)."""


def is_token_model(directory: Path) -> bool:
    """Does the directory hold a Llama, ours or another. Raises ValueError for a config.json that cannot be read."""
    path = directory / "config.json"
    return os.path.lexists(path) and read_json(path).get("model_type") == MODEL_TYPE


def write_token_model(directory: Path, bundle: TokenBundle, *, dtype: torch.dtype | None = None) -> None:
    """Write the files of a checkpoint into an existing directory. dtype: of the weights; as they are when absent."""
    model, vocabulary = bundle.model, bundle.vocabulary
    tensors = dict(_split(model))
    files = write_weights(directory, tensors, dtype, MAX_SHARD_BYTES)
    stored = dtype or reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    manifest = TokenManifest(
        format=FORMAT,
        bltkit=version("bltkit"),
        model=model.config,
        tokenizer=TokenizerEntry(sha256=vocabulary.sha256, tokens=vocabulary.size),
        record=bundle.record,
        files={},
    )
    special = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad}
    config = _llama(model.config) | special | {"dtype": str(stored).removeprefix("torch.")}
    others = dict(vocabulary.files())
    for name, settings in (("config.json", config), ("generation_config.json", special)):
        others[name] = _json_of(settings)
    for name, content in others.items():
        (directory / name).write_bytes(content)
    entries = {name: entry_of(directory / name) for name in (*(file.name for file in files), *others)}
    listed = manifest.replace(files=entries).model_dump_json(exclude={"digest"})  # which writes NaN as null
    (directory / MANIFEST).write_bytes(_json_of(sealed(json.loads(listed))))
    for file in files:  # safetensors lets only the owner read its files, whatever the umask says
        shutil.copymode(directory / "config.json", file)


def write_vocabulary(directory: Path, vocabulary: Vocabulary) -> None:
    """The tokenizer's files alone: what a run needs to go on, also without an exported model."""
    for name, content in vocabulary.files().items():
        (directory / name).write_bytes(content)


def token_config(directory: Path) -> TokenConfig:
    """The shape of a checkpoint of ours. Raises ValueError for a Llama that was not trained here."""
    return _manifest(directory).model


def load_token_model(directory: Path, *, dtype: torch.dtype | None = None, verify: bool = False) -> TokenBundle:
    """Read a checkpoint of ours, on the CPU. dtype: of the weights, the files' own when absent.

    verify: compare every file with its sha256 in bltkit.json; without it their sizes, as in `load_bundle`.
    Raises ValueError with one line for a Llama that was not trained here, and for damaged files.
    """
    manifest = _manifest(directory)
    config, path = read_json(directory / "config.json"), directory / "config.json"
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r:.80}; expected {MODEL_TYPE!r}")
    for key, value in _llama(manifest.model).items():
        if key in config and config[key] != value:
            raise ValueError(f"{path} and {MANIFEST} disagree on {key} (here {config[key]!r:.80}, there {value!r})")
    check_sizes(directory, manifest.files)
    if verify:
        check_contents(directory, manifest.files)
    with torch.device("meta"):
        model = TokenLlama(manifest.model)
    with Weights(directory, manifest.files) as weights:
        state = {
            name: torch.cat([_ours(part, weights.read(part.name, part.shape), manifest.model) for part in parts])
            for name, parts in _layout(model)
        }
    model.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()}, assign=True)
    vocabulary = Vocabulary.load(directory)
    if vocabulary.sha256 != manifest.tokenizer.sha256:
        raise ValueError(f"{directory}: the tokenizer is not the one that the model was trained with; put it back")
    return TokenBundle(model, vocabulary, manifest.record)


def _manifest(directory: Path) -> TokenManifest:
    path = directory / MANIFEST
    if not os.path.lexists(path):
        raise ValueError(
            f"{directory} holds a Llama that was not trained here (no bltkit.json), whose shape is unknown"
        )
    data = read_manifest(directory)
    manifest: TokenManifest = parse(TokenManifest, data, str(path))
    check_seal(data, str(path))
    check_names(directory, manifest.files)
    return manifest


def _json_of(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _layout(model: TokenLlama) -> Iterator[tuple[str, tuple[TensorPart, ...]]]:
    for name, tensor in model.state_dict().items():
        yield name, token_parts(name, tensor.shape)


def _split(model: TokenLlama) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file."""
    state = model.state_dict()
    for name, parts in _layout(model):
        pieces = state[name].split([part.shape[0] for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            yield part.name, _halves(piece, model.config.head_dim) if part.name.endswith(_TURNED) else piece


def _ours(part: TensorPart, tensor: Tensor, config: TokenConfig) -> Tensor:
    return _pairs(tensor, config.head_dim) if part.name.endswith(_TURNED) else tensor


def _halves(weight: Float[Tensor, "N D"], head_dim: int) -> Float[Tensor, "N D"]:
    """Rows of each head from pairs (0, 1), (2, 3), ... to halves: 0, 2, ... and then 1, 3, ..."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _pairs(weight: Float[Tensor, "N D"], head_dim: int) -> Float[Tensor, "N D"]:
    """The way back."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _llama(config: TokenConfig) -> dict[str, Any]:
    """config.json, special tokens apart."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # where readers of before transformers 5 look for it
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "use_cache": True,
    }
