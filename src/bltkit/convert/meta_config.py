"""Fields of Meta's params.json and config.json <-> our configs.

Three objects describe a checkpoint: the model's arguments (`args` of config.json, `model` of params.json), and in the
entropy model's params.json its shape (`entropy_model`) and the patching rule (`data.patcher_args`). What a model was
trained with differs from any default that a reader might choose (thresholds, RoPE bases), so every field is read.

Meta's checkpoints do not say whether attention stays within documents; as in transformers it does not here.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bltkit.config import parse
from bltkit.convert.fields import Fields
from bltkit.model import BltConfig, EntropyConfig, StackConfig
from bltkit.patching import BothRule, PatchingRule, RiseRule, ThresholdRule
from bltkit.vocab import VOCAB_SIZE

_WINDOWED, _UNLIMITED = "local_block_causal", "causal"
_BYTES = "bytes and four special ids; other vocabularies are not supported"


def ffn_width(width: int, multiple: int) -> int:
    """Inner width of SwiGLU: two thirds of 4 x width, rounded up to a multiple of `multiple`."""
    return multiple * -(-int(8 * width / 3) // multiple)


def read_model(args: Fields) -> BltConfig:
    """The shape of the BLT. Raises ValueError that names file and field for what is missing or no model of ours."""
    args.expect("vocab_size", VOCAB_SIZE, _BYTES)
    args.expect_if_present("use_rope", True, "positions are rotary")
    args.integer("pm_size")  # part of the format; the model does not use it
    multiple = _positive(args, "multiple_of")
    kv_heads, window = args.optional_integer("n_kv_heads"), args.optional_integer("local_attention_window_len")
    shared = {"rope_theta": args.number("rope_theta"), "norm_eps": args.number("norm_eps")}

    def stack(part: str, kv_heads: int | None, window: int | None) -> dict[str, Any]:
        width = _positive(args, f"dim_{part}")
        return {
            "width": width,
            "layers": args.integer(f"n_layers_{part}"),
            "heads": args.integer(f"n_heads_{part}"),
            "kv_heads": kv_heads,
            "ffn_width": ffn_width(width, multiple),
            "window": window,
            **shared,
        }

    encoder = stack("local_encoder", kv_heads, window)
    decoder = stack("local_decoder", kv_heads, window)
    latent = stack("global", args.optional_integer("n_kv_heads_global"), None)
    data = {
        "encoder": encoder,
        "latent": latent,
        "decoder": decoder,
        "cross_attn_k": args.integer("cross_attn_k"),
        "ngrams": {
            "sizes": args.integers("encoder_hash_byte_group_size"),
            "buckets": args.integer("encoder_hash_byte_group_vocab"),
            "functions": args.integer("encoder_hash_byte_group_nb_functions"),
        },
        "encoder_cross_attn_all_layers": args.boolean("cross_attn_all_layers_encoder"),
        "decoder_cross_attn_all_layers": args.boolean("cross_attn_all_layers_decoder"),
        "document_masks": False,
        "max_positions": args.integer("max_encoder_seq_length"),
        "max_patch_positions": args.integer("max_seqlen"),
    }
    return parse(BltConfig, data, f"{args.path}: {args.section}")


def read_scorer(entropy: Fields) -> EntropyConfig:
    """The shape of the entropy model. Raises ValueError as `read_model` does."""
    entropy.expect("vocab_size", VOCAB_SIZE, _BYTES)
    bias = entropy.value("attn_bias_type")
    if bias not in (_WINDOWED, _UNLIMITED):
        raise entropy.wrong("attn_bias_type", f"{_WINDOWED!r} (a window) or {_UNLIMITED!r} (none)")
    width = _positive(entropy, "dim")
    data = {
        "width": width,
        "layers": entropy.integer("n_layers"),
        "heads": entropy.integer("n_heads"),
        "kv_heads": entropy.optional_integer("n_kv_heads"),
        "ffn_width": ffn_width(width, _positive(entropy, "multiple_of")),
        "window": entropy.integer("sliding_window") if bias == _WINDOWED else None,
        "rope_theta": entropy.number("rope_theta"),
        "norm_eps": entropy.number("norm_eps"),
        "document_masks": False,
        "max_positions": entropy.integer("max_seqlen"),
    }
    return parse(EntropyConfig, data, f"{entropy.path}: {entropy.section}")


def read_rule(patcher: Fields) -> PatchingRule:
    """The patching rule. Raises ValueError as `read_model` does.

    With both a threshold and one for the rise, byte 3 never opens a patch in the reference: `skip_third`.
    """
    patcher.expect_if_present("patching_mode", "entropy", "other modes do not go with an entropy model")
    patcher.number("patch_size")  # nominal; the threshold decides
    threshold, rise = patcher.number("threshold"), patcher.optional_number("threshold_add")
    longest = {"max_patch_bytes": patcher.optional_integer("max_patch_length")}
    monotone = patcher.boolean("monotonicity")
    if monotone and rise is not None:
        raise patcher.wrong("monotonicity", f"false where threshold_add is {rise}: no rule is both")
    where = f"{patcher.path}: {patcher.section}"
    if monotone:
        return parse(RiseRule, {"rise": threshold, **longest}, where)
    if rise is not None:
        return parse(BothRule, {"threshold": threshold, "rise": rise, "skip_third": True, **longest}, where)
    return parse(ThresholdRule, {"threshold": threshold, **longest}, where)


def write_model(model: BltConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model: `base`, which may be empty, with every field that `read_model` reads.

    Raises ValueError that names the setting for a model that these fields cannot describe.
    """
    stacks = {"local_encoder": model.encoder, "local_decoder": model.decoder, "global": model.latent}
    encoder, latent = model.encoder, model.latent
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "pm_size": base.get("pm_size", 0),
        "multiple_of": _multiple_of(list(stacks.values()), base.get("multiple_of")),
        "n_kv_heads": _kv_heads(encoder),
        "n_kv_heads_global": _kv_heads(latent),
        "local_attention_window_len": encoder.window,
        "rope_theta": encoder.rope_theta,
        "norm_eps": encoder.norm_eps,
        "cross_attn_k": model.cross_attn_k,
        "encoder_hash_byte_group_size": list(model.ngrams.sizes),
        "encoder_hash_byte_group_vocab": model.ngrams.buckets,
        "encoder_hash_byte_group_nb_functions": model.ngrams.functions,
        "cross_attn_all_layers_encoder": model.encoder_cross_attn_all_layers,
        "cross_attn_all_layers_decoder": model.decoder_cross_attn_all_layers,
        "max_encoder_seq_length": model.max_positions,
        "max_seqlen": model.max_patch_positions,
    }
    for part, stack in stacks.items():
        fields |= {f"dim_{part}": stack.width, f"n_layers_{part}": stack.layers, f"n_heads_{part}": stack.heads}
    return _proven(fields, base, read_model, _settings(model), "model")


def write_scorer(scorer: EntropyConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """The entropy model's fields; see `write_model`."""
    fields = {
        "vocab_size": VOCAB_SIZE,
        "dim": scorer.width,
        "n_layers": scorer.layers,
        "n_heads": scorer.heads,
        "n_kv_heads": _kv_heads(scorer),
        "multiple_of": _multiple_of([scorer], base.get("multiple_of")),
        "attn_bias_type": _UNLIMITED if scorer.window is None else _WINDOWED,
        "sliding_window": scorer.window,
        "rope_theta": scorer.rope_theta,
        "norm_eps": scorer.norm_eps,
        "max_seqlen": scorer.max_positions,
    }
    return _proven(fields, base, read_scorer, _settings(scorer), "entropy model")


def write_rule(rule: PatchingRule, patch_size: float, base: Mapping[str, Any]) -> dict[str, Any]:
    """The rule's fields; see `write_model`. patch_size: mean bytes per patch where `base` has none."""
    thresholds: dict[str, Any] = {"threshold_add": None, "monotonicity": False}
    match rule:
        case ThresholdRule():
            thresholds["threshold"] = rule.threshold
        case RiseRule():
            thresholds |= {"threshold": rule.rise, "monotonicity": True}
        case BothRule():
            thresholds |= {"threshold": rule.threshold, "threshold_add": rule.rise}
        case _:
            raise ValueError(f"rule {rule} has no place in Meta's layouts, which know rules of entropies only")
    fields = {
        "patching_mode": "entropy",
        "patch_size": base.get("patch_size", patch_size),
        "max_patch_length": rule.max_patch_bytes,
        **thresholds,
    }
    return _proven(fields, base, read_rule, rule.model_dump(), "rule")


def settings_of(model: BltConfig, scorer: EntropyConfig, rule: PatchingRule) -> tuple[Any, ...]:
    """Equal for two descriptions of the same model, whatever is written out in them."""
    return _settings(model), _settings(scorer), rule


def _settings(config: BltConfig | EntropyConfig) -> dict[str, Any]:
    """All settings with their defaults filled in, except document masks, which Meta's files do not describe."""
    settings = config.model_dump()
    stacks = (
        {"": config}
        if isinstance(config, EntropyConfig)
        else {name: getattr(config, name) for name in ("encoder", "latent", "decoder")}
    )
    for name, stack in stacks.items():
        filled = {"kv_heads": stack.num_kv_heads, "ffn_width": stack.ffn}
        (settings[name] if name else settings).update(filled)
    del settings["document_masks"]
    return settings


def _proven(
    fields: Mapping[str, Any],
    base: Mapping[str, Any],
    read: Callable[[Fields], Any],
    wanted: Mapping[str, Any],
    what: str,
) -> dict[str, Any]:
    """`base` with `fields`, once reading them has given what was to be written. Raises ValueError where it does not."""
    result = {**base, **fields}
    back = read(Fields(Path("params.json"), result, what))
    settings = back.model_dump() if isinstance(back, PatchingRule) else _settings(back)
    for key, value in _flat(wanted).items():
        if _flat(settings).get(key) != value:
            raise ValueError(
                f"{what}: {key} = {value!r} has no place in Meta's layouts; convert this checkpoint to 'ours' only"
            )
    return result


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _kv_heads(stack: StackConfig) -> int | None:
    return None if stack.num_kv_heads == stack.heads else stack.num_kv_heads


def _multiple_of(stacks: list[StackConfig], wanted: Any) -> int:
    """The rounding that gives all FFN widths: `wanted` or 256 if one of them does, else the largest there is."""
    common = math.gcd(*(stack.ffn for stack in stacks))
    divisors = (divisor for divisor in range(common, 0, -1) if common % divisor == 0)
    preferred = [value for value in (wanted, 256) if isinstance(value, int) and value > 0]
    for multiple in (*preferred, *divisors):
        if all(ffn_width(stack.width, multiple) == stack.ffn for stack in stacks):
            return multiple
    listed = ", ".join(f"{stack.ffn} of width {stack.width}" for stack in stacks)
    raise ValueError(
        f"ffn_width {listed}: no rounding of 8/3 of the width gives it, so it has no place in Meta's layouts; "
        "convert this checkpoint to 'ours' only"
    )


def _positive(fields: Fields, key: str) -> int:
    value = fields.integer(key)
    if value < 1:
        raise fields.wrong(key, "a positive integer")
    return value
