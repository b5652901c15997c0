"""config.json of `transformers.BltForCausalLM` <-> our configs, with the defaults and oddities of that format.

Read and write are inverse where the format can say what a model is; `expresses` asks exactly that, so that a new
field of ours can never be lost silently.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bltkit.config import Config, parse
from bltkit.model import BltConfig, EntropyConfig, StackConfig
from bltkit.model.presets import RELEASED_THRESHOLD
from bltkit.patching import PatchingRule, ThresholdRule
from bltkit.vocab import BOS, EOS, PAD, VOCAB_SIZE

MODEL_TYPE = "blt"
ARCHITECTURE = "BltForCausalLM"

DEFAULTS: dict[str, dict[str, Any]] = {
    "encoder_config": {
        "hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16, "rope_theta": 500000.0,
        "max_position_embeddings": 24576, "cross_attn_k": 2, "cross_attn_all_layers": False,
    },
    "decoder_config": {
        "hidden_size": 1024, "num_hidden_layers": 9, "num_attention_heads": 16, "rope_theta": 500000.0,
        "intermediate_size": 2816, "cross_attn_k": 2, "cross_attn_all_layers": True,
    },
    "global_config": {
        "hidden_size": 2048, "num_hidden_layers": 25, "num_attention_heads": 16, "rope_theta": 500000.0,
        "intermediate_size": 5632, "max_position_embeddings": 4096,
    },
    "patcher_config": {
        "hidden_size": 768, "num_hidden_layers": 14, "num_attention_heads": 12, "rope_theta": 10000.0,
        "intermediate_size": 2048, "max_position_embeddings": 8192, "sliding_window": 512,
    },
}  # fmt: skip
"""What an absent key means (docs/model.md 12; seen by asking transformers 5.23). Widths do not follow from one another:
only the encoder's FFN width does, without rounding."""


@dataclass(frozen=True)
class Described:
    """What a config.json says: the models, the rule, and how the weights are to be read."""

    model: BltConfig
    scorer: EntropyConfig | None
    rule: ThresholdRule
    encoder_cross: int = 0
    """Index of the encoder's cross-attention block that takes effect; the ones before it are dead weights."""
    tied: bool = False
    """May the head be missing because it equals the byte embedding."""


def read_config(data: Mapping[str, Any], path: Path) -> Described:
    """The models of a config.json with model_type "blt"; documents are unknown to them.

    Encoder cross-attention in all of several layers is read as cross-attention after the last one: this format's
    model pools again after every layer, so it computes exactly that (docs/model.md 6). max_patch_length becomes the
    rule's maximum, without the format's slip at the last position (docs/model.md 4.3).

    Raises ValueError with one line for what no model of ours is.
    """
    _refuse_other_types(path, data)
    names = data.get("architectures") or [ARCHITECTURE]
    if not isinstance(names, list) or not any(str(name).startswith("Blt") for name in names):
        raise ValueError(f"{path}: architectures is {names!r:.80}; expected [{ARCHITECTURE!r}]")
    top = _Section(path, "", data, {})
    encoder, decoder, latent, patcher = (_section(path, data, name) for name in DEFAULTS)
    _check_patching(top)
    for section in (top, encoder, decoder, patcher):
        section.expect("vocab_size", VOCAB_SIZE, "bytes and four special ids; other vocabularies are not supported")
    k = top.get("cross_attn_k", 2)
    for section in (encoder, decoder):
        if section.get("cross_attn_k") != k:
            raise ValueError(
                f"{path}: cross_attn_k is {k}, but {section.name}cross_attn_k is {section.get('cross_attn_k')}; "
                "the three must agree (absent means 2)"
            )
    window = top.get("local_attention_window_len", 512)
    all_layers = bool(encoder.get("cross_attn_all_layers"))
    layers = encoder.get("num_hidden_layers")
    repools = all_layers and isinstance(layers, int) and layers > 1
    if repools:
        logging.getLogger(__name__).warning(
            "%s: encoder cross-attention in all %d layers; as in transformers, only the last takes effect", path, layers
        )
    model: BltConfig = parse(
        BltConfig,
        {
            "encoder": encoder.stack() | {"window": window},
            "latent": latent.stack(),
            "decoder": decoder.stack() | {"window": window},
            "cross_attn_k": k,
            "ngrams": {
                "sizes": top.get("encoder_hash_byte_group_size") or [3, 4, 5, 6, 7, 8],  # [] too, as there
                "buckets": top.get("encoder_hash_byte_group_vocab", 500002),
                "functions": top.get("encoder_hash_byte_group_nb_functions", 1),
            },
            "encoder_cross_attn_all_layers": all_layers and not repools,
            "decoder_cross_attn_all_layers": decoder.get("cross_attn_all_layers"),
            "document_masks": False,
            "max_positions": encoder.get("max_position_embeddings"),
            "max_patch_positions": latent.get("max_position_embeddings"),
        },
        str(path),
    )
    entropy = patcher.stack() | {
        "window": patcher.get("sliding_window"),
        "max_positions": patcher.get("max_position_embeddings"),
        "document_masks": False,
    }
    rule = {
        "threshold": top.get("patching_threshold", RELEASED_THRESHOLD),
        "max_patch_bytes": top.get("max_patch_length", None),
    }
    return Described(
        model=model,
        scorer=parse(EntropyConfig, entropy, f"{path}: patcher") if top.get("patch_in_forward", True) else None,
        rule=parse(ThresholdRule, rule, f"{path}: patching"),
        encoder_cross=model.encoder.layers - 1 if repools else 0,
        tied=bool(top.get("tie_word_embeddings", False)),
    )


def write_config(model: BltConfig, scorer: EntropyConfig, rule: ThresholdRule) -> dict[str, Any]:
    """The config.json of a model that `expresses` holds for; every key that has an odd default is written out."""
    local = {"cross_attn_k": model.cross_attn_k, "hidden_size_global": model.latent.width, "vocab_size": VOCAB_SIZE}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "max_position_embeddings": model.max_positions,
        "patch_in_forward": True,
        "patching_mode": "entropy",
        "patching_threshold": rule.threshold,
        "patch_size": 4,  # no meaning, but null would switch patching off
        "max_patch_length": None,
        "local_attention_window_len": model.encoder.window,
        "cross_attn_k": model.cross_attn_k,
        "encoder_hash_byte_group_size": list(model.ngrams.sizes),
        "encoder_hash_byte_group_vocab": model.ngrams.buckets,
        "encoder_hash_byte_group_nb_functions": model.ngrams.functions,
        "tie_word_embeddings": False,
        "use_cache": False,  # that model's cached path gives wrong bytes (docs/model.md 12)
        "encoder_config": {
            **local,
            **_stack(model.encoder, model.max_positions),
            "cross_attn_all_layers": model.encoder_cross_attn_all_layers,
            "sliding_window": model.encoder.window,
        },
        "decoder_config": {
            **local,
            **_stack(model.decoder, model.max_positions),
            "cross_attn_all_layers": model.decoder_cross_attn_all_layers,
        },
        "global_config": _stack(model.latent, model.max_patch_positions),
        "patcher_config": {
            **_stack(scorer, scorer.max_positions),
            "sliding_window": scorer.window,
            "vocab_size": VOCAB_SIZE,
        },
    }


def expresses(model: BltConfig | None, scorer: Config | None, rule: PatchingRule | None) -> bool:
    """Can Hugging Face's format say what these are, documents apart?"""
    return obstacle(model, scorer, rule) is None


def obstacle(model: BltConfig | None, scorer: Config | None, rule: PatchingRule | None) -> str | None:
    """The part of these that Hugging Face's format cannot say, documents apart, as a noun; None if it says everything.

    Asked by writing and reading back: what does not come back, the format cannot say.
    """
    if model is None:
        return "a model that only places patches"
    if rule is None:
        return "a model without a patching rule"
    if type(rule) is not ThresholdRule:
        return f"patching rule {rule.kind!r}"
    if scorer is None:
        return "a model without an entropy model"
    if type(scorer) is not EntropyConfig:
        return f"a scorer of kind {getattr(scorer, 'kind', type(scorer).__name__)!r}"
    if not model.encoder.layers:  # patches are made in its layers there
        return "encoder.layers = 0"
    read = read_config(write_config(model, scorer, rule), Path("config.json"))
    assert read.scorer is not None
    return (
        _unlike(_canonical_blt(model), _canonical_blt(read.model), "")
        or _unlike(_canonical(scorer), _canonical(read.scorer), "scorer.")
        or _unlike(rule.model_dump(), read.rule.model_dump(), "rule.")
    )


def _unlike(ours: Mapping[str, Any], read: Mapping[str, Any], prefix: str) -> str | None:
    """The first field that differs, with its value; None where the two are equal."""
    if ours == read:
        return None
    there = _flat(read)
    fields = (f"{prefix}{key} = {value!r}" for key, value in _flat(ours).items() if value != there.get(key))
    return next(fields, "the model's shape")


def difference(path: Path, data: Mapping[str, Any], model: BltConfig, scorer: Config | None, rule: Any) -> str | None:
    """Where config.json says something else than our own configs of the same checkpoint; None if nowhere."""
    if not isinstance(scorer, EntropyConfig) or not isinstance(rule, ThresholdRule):
        return "model_type (it describes an entropy model and a threshold)"
    described = read_config(data, path)
    if described.scorer is None:
        return "patch_in_forward"
    here = _flat(write_config(described.model, described.scorer, described.rule))
    there = _flat(write_config(model, scorer, rule))
    for key in here:
        if here[key] != there[key]:
            return f"{key} (here {here[key]}, there {there[key]})"
    # `write_config` leaves it out: the format has a slip there.
    return None if described.rule == rule else "max_patch_length"


class _Section:
    """One object of the config: its keys with their defaults, and the name to call them by in messages."""

    def __init__(self, path: Path, name: str, data: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.path, self.name, self.data, self.defaults = path, name, data, defaults

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, self.defaults.get(key, default))

    def expect(self, key: str, value: Any, why: str) -> None:
        found = self.get(key, value)
        if found != value:
            raise ValueError(f"{self.path}: {self.name}{key} is {found!r}; expected {value!r}: {why}")

    def stack(self) -> dict[str, Any]:
        """Fields of a `StackConfig`. `norm_eps`, an older spelling, is not read: transformers ignores it too."""
        self.expect("hidden_act", "silu", "other activations are not supported")
        width, heads = self.get("hidden_size"), self.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and self.data.get("head_dim") is not None:
            self.expect("head_dim", width // heads, "heads of another width than hidden_size / num_attention_heads")
        return {
            "width": width,
            "layers": self.get("num_hidden_layers"),
            "heads": heads,
            "kv_heads": self.get("num_key_value_heads"),
            "ffn_width": self._ffn_width(width),
            "rope_theta": self._rope_theta(),
            "norm_eps": self.get("rms_norm_eps", 1e-5),
        }

    def _ffn_width(self, width: Any) -> Any:
        found = self.get("intermediate_size")
        if found is None and "intermediate_size" not in self.defaults:
            return int(8 * width / 3) if isinstance(width, int) else None
        if found is None:
            raise ValueError(f"{self.path}: {self.name}intermediate_size is null; expected a number")
        return found

    def _rope_theta(self) -> Any:
        """`rope_parameters`, or the older `rope_theta` beside `rope_scaling`."""
        rope = self.get("rope_parameters") or self.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
        if kind != "default":
            raise ValueError(f"{self.path}: {self.name}rope_parameters has type {kind!r}; only 'default' is supported")
        theta = rope.get("rope_theta", self.get("rope_theta"))
        if not isinstance(theta, int | float) or isinstance(theta, bool):
            raise ValueError(f"{self.path}: {self.name}rope_theta is {theta!r:.80}; expected a number")
        return theta


_NUMBERS = {key: type(value) for section in DEFAULTS.values() for key, value in section.items()} | {
    "vocab_size": int, "num_key_value_heads": int, "head_dim": int, "rms_norm_eps": float, "patching_threshold": float,
    "max_patch_length": int, "local_attention_window_len": int, "encoder_hash_byte_group_vocab": int,
    "encoder_hash_byte_group_nb_functions": int, "tie_word_embeddings": bool, "patch_in_forward": bool,
}  # fmt: skip
"""Types of the keys that are read."""
_WORDS = {int: "an integer below 2^31", float: "a number", bool: "true or false"}


def _refuse_other_types(path: Path, data: Mapping[str, Any]) -> None:
    """Raises ValueError for a number in quotes, true in a number's place and the like: they are not converted."""
    sections = [("", data), *((f"{name}.", data.get(name)) for name in DEFAULTS)]
    for prefix, section in sections:
        for key, value in section.items() if isinstance(section, Mapping) else ():
            kind = _NUMBERS.get(key)
            if kind is None or value is None:
                continue
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool) is not (kind is bool) or (kind is int and abs(value) >= 2**31):
                raise ValueError(f"{path}: {prefix}{key} is {value!r:.80}; expected {_WORDS[kind]}")


def _section(path: Path, data: Mapping[str, Any], name: str) -> _Section:
    found = data.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"{path}: {name} is {found!r}; expected an object")
    return _Section(path, f"{name}.", found or {}, DEFAULTS[name])


def _check_patching(top: _Section) -> None:
    """transformers turns each of these into patches of one byte, silently: nobody wants that."""
    why = "transformers silently makes every byte a patch there; set it if the weights were trained for entropy patches"
    top.expect("patching_mode", "entropy", why)
    for key, default in (("patch_size", 4), ("patching_threshold", RELEASED_THRESHOLD)):
        if top.get(key, default) is None:
            raise ValueError(f"{top.path}: {key} is null; expected a number: {why}")


def _stack(config: StackConfig, max_positions: int) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


def _canonical(stack: StackConfig) -> dict[str, Any]:
    """Defaults filled in, documents left out."""
    filled = stack.replace(kv_heads=stack.num_kv_heads, ffn_width=stack.ffn)
    return filled.model_dump(exclude={"document_masks"})


def _canonical_blt(config: BltConfig) -> dict[str, Any]:
    stacks = {name: _canonical(getattr(config, name)) for name in ("encoder", "latent", "decoder")}
    rest = config.model_dump(exclude={"document_masks", "diffusion_block", *stacks})
    if config.encoder.layers == 1:
        rest["encoder_cross_attn_all_layers"] = False
    return rest | stacks


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
