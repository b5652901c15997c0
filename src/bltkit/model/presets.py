"""Named shapes: the embedded model's, the benchmark's, the released ones and the paper's grid (docs/model.md 10); other
byte architectures, also of any size (`families.py`)."""

from collections.abc import Mapping
from typing import Any

from bltkit.config import nearest
from bltkit.model.config import BltConfig, EntropyConfig, NgramConfig, StackConfig
from bltkit.model.families import sized, without_cross_attention

RELEASED_THRESHOLD = 1.335442066192627
"""Global entropy threshold of the released 1B and 7B, in nats (docs/model.md 4.4)."""


def _blt(
    local: tuple[int, int, int],
    latent: tuple[int, int, int],
    decoder_layers: int,
    k: int,
    ngrams: NgramConfig | None = None,
    *,
    window: int = 512,
    ffn: tuple[int | None, int | None] = (None, None),
) -> BltConfig:
    """local = (encoder layers, width, heads); latent = (layers, width, heads); ffn = inner widths (local, latent)."""
    encoder_layers, width, heads = local
    encoder = StackConfig(width=width, layers=encoder_layers, heads=heads, window=window, ffn_width=ffn[0])
    return BltConfig(
        encoder=encoder,
        latent=StackConfig(width=latent[1], layers=latent[0], heads=latent[2], ffn_width=ffn[1]),
        decoder=encoder.replace(layers=decoder_layers),
        cross_attn_k=k,
        ngrams=ngrams or NgramConfig(),
    )


# Shallow decoder, most of the weight in the global part: what is read for every byte is small.
_TINY = _blt(
    (1, 128, 2),
    (3, 256, 4),
    2,
    2,
    NgramConfig(sizes=(3, 4, 5, 6), buckets=3209),
    window=128,
    ffn=(384, 768),
)

BLT_PRESETS: dict[str, BltConfig] = {
    "tiny": _TINY,
    "megabyte-tiny": without_cross_attention(_TINY, "megabyte"),
    "spacebyte-tiny": without_cross_attention(_TINY, "spacebyte"),
    "20m": _blt((1, 192, 3), (6, 384, 6), 3, 2, NgramConfig(buckets=4001)),
    "69m": _blt((1, 256, 4), (8, 512, 8), 4, 2, NgramConfig(buckets=20002), ffn=(768, 1536)),
    "400m": _blt((1, 768, 12), (24, 1280, 10), 7, 2),
    "1b": _blt((1, 1024, 16), (25, 2048, 16), 9, 2),
    "2b": _blt((1, 1024, 16), (26, 2560, 20), 9, 3),
    "4b": _blt((1, 1024, 16), (36, 3072, 24), 9, 3),
    "8b": _blt((1, 1280, 20), (32, 4096, 32), 6, 4),
}
"""`1b` and `8b` are the released 1B and 7B; the others of the grid are the paper's (400m with the local heads for
cross-attention, since the 10 printed there do not divide its width of 768). These names count neither the n-gram
tables nor the entropy model. `20m` and `69m` are ours, and their names count everything: tables (4.6 M and 30.7 M) and
the entropy model of the same name (1.9 M and 5.2 M) too. `megabyte-tiny` and `spacebyte-tiny` have the stacks of
`tiny`, but for the encoder's layers; `blt_preset` knows such models of every size."""

ENTROPY_PRESETS: dict[str, EntropyConfig] = {
    "tiny": EntropyConfig(width=128, layers=3, heads=2, ffn_width=384, window=256),
    "byte-tiny": EntropyConfig(width=256, layers=4, heads=4, ffn_width=768, window=8192, rope_theta=500000.0),
    "20m": EntropyConfig(width=192, layers=4, heads=3),
    "69m": EntropyConfig(width=256, layers=6, heads=4, ffn_width=768),
    "100m": EntropyConfig(width=768, layers=14, heads=12),
    "paper": EntropyConfig(width=512, layers=14, heads=8),
}
"""`100m` is the released entropy model (width 768), which goes with every BLT from 400m on; `paper` is the one that
the paper describes (width 512). `byte-tiny` is to be a language model, not to place patches: a byte transformer as
large as the BLT `tiny` without its tables, that sees all of its row."""


def blt_preset(name: str) -> BltConfig:
    """The BLT shape called `name`, or FAMILY-SIZE: `blt-30m`, `megabyte-20m`, `spacebyte-1.5b` (`families.py`).

    Raises ValueError that names the nearest one.
    """
    found = BLT_PRESETS.get(name) or sized(name)
    if isinstance(found, EntropyConfig):
        raise ValueError(f"preset {name!r} has no patches: it is one of model.kind = 'entropy'")
    if found is None:
        raise ValueError(f"no BLT preset {name!r}{nearest(name, list(BLT_PRESETS))}")
    return found


def entropy_preset(name: str) -> EntropyConfig:
    """The entropy model's shape called `name`, or `byte-SIZE`, a byte transformer: `byte-20m` (`families.py`).

    Raises ValueError that names the nearest one.
    """
    found = ENTROPY_PRESETS.get(name) or sized(name)
    if isinstance(found, BltConfig):
        raise ValueError(f"preset {name!r} has patches: it is one of model.kind = 'blt'")
    if found is None:
        raise ValueError(f"no entropy model preset {name!r}{nearest(name, list(ENTROPY_PRESETS))}")
    return found


def expand_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """A config's [model] section with `kind` in it and its `preset` written out, single fields of it changed.

    Raises ValueError for an unknown preset, and for kinds that have none.
    """
    fields = {"kind": "blt", **section}
    if "preset" not in fields:
        return fields
    name, kind = fields.pop("preset"), fields["kind"]
    presets = {"blt": blt_preset, "entropy": entropy_preset, "boundary": entropy_preset}
    if kind not in presets or not isinstance(name, str):
        raise ValueError(f"model.preset = {name!r}: presets are names, for kinds {', '.join(presets)}")
    return _merged(presets[kind](name).model_dump(), fields)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
