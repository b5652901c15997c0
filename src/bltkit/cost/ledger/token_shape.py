"""The shape of a token model, for counting: a Llama is one of our stacks between a table of tokens and a head.

Only a shape: what it costs is compared with what a BLT costs, per byte of text.
"""

from typing import Any

from bltkit.config import nearest, parse, parse_value
from bltkit.model.config import TokenShape

LLAMA = "llama:"


LLAMAS = {
    "2-7b": TokenShape(width=4096, layers=32, heads=32, ffn_width=11008, vocab_size=32000),
    "3.2-1b": TokenShape(width=2048, layers=16, heads=32, kv_heads=8, ffn_width=8192, vocab_size=128256, tied=True),
    "3.2-3b": TokenShape(width=3072, layers=28, heads=24, kv_heads=8, ffn_width=8192, vocab_size=128256, tied=True),
    "3-8b": TokenShape(width=4096, layers=32, heads=32, kv_heads=8, ffn_width=14336, vocab_size=128256),
    "3-70b": TokenShape(width=8192, layers=80, heads=64, kv_heads=8, ffn_width=28672, vocab_size=128256),
}
"""Published shapes, as `llama:NAME`."""


def parse_token_shape(text: str) -> TokenShape:
    """`llama:NAME`, or `llama:width=512,layers=8,heads=8,vocab_size=32000` with any field of `TokenShape`.

    A name may stand in front of fields, which then change it. Raises ValueError with one line.
    """
    base: TokenShape | None = None
    fields: dict[str, Any] = {}
    for at, item in enumerate(text.removeprefix(LLAMA).split(",")):
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals and not at:
            if field not in LLAMAS:
                raise ValueError(f"{text}: no shape {field!r}{nearest(field, list(LLAMAS))}")
            base = LLAMAS[field]
        elif not (field and equals and value) or field in fields:
            raise ValueError(f"{text}: {item!r} is not a further field=value, as in 'llama:3-8b,vocab_size=32000'")
        else:
            fields[field] = parse_value(value)
    held = {} if base is None else base.model_dump()
    shape: TokenShape = parse(TokenShape, held | fields, text)
    return shape


def token_shape_of_hf(config: dict[str, Any], where: str) -> TokenShape:
    """The shape that a Hugging Face `config.json` of a Llama or Mistral tells.

    Raises ValueError, with `where` in it, for another architecture, for heads whose widths do not add up to that of
    the model, and for biases, which this shape has none of.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "mistral"):
        raise ValueError(
            f"{where}: model_type = {kind!r} is not counted here, llama and mistral are; "
            "write its shape out: llama:width=...,layers=...,heads=...,vocab_size=..."
        )
    missing = [name for name in _NAMES.values() if name not in config and name not in _OPTIONAL]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if (config.get("head_dim") or width // heads) * heads != width:
        raise ValueError(
            f"{where}: head_dim = {config['head_dim']}, but {heads} heads of a model of width {width} are counted "
            f"as {width // heads} wide each"
        )
    biased = next((name for name in ("attention_bias", "mlp_bias") if config.get(name)), None)
    if biased is not None:
        raise ValueError(f"{where}: {biased} = true, but layers are counted without biases")
    fields = {own: config.get(name) for own, name in _NAMES.items()} | {"tied": bool(config.get("tie_word_embeddings"))}
    # Mistral's alone knows a window.
    window = config.get("sliding_window") if kind == "mistral" else None
    shape: TokenShape = parse(TokenShape, fields | {"window": window}, where)
    return shape


_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn_width": "intermediate_size",
    "vocab_size": "vocab_size",
}
_OPTIONAL = ("num_key_value_heads",)
