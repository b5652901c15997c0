"""Shapes of the ablations: a small BLT, changed in one thing at a time; grown at a constant number of parameters."""

from typing import Any

from bltkit.config import parse
from bltkit.model import BltConfig
from bltkit.model.families import blt_params

LOCAL: dict[str, Any] = {"width": 64, "layers": 1, "heads": 2, "ffn_width": 192, "window": 128}

BASE: dict[str, Any] = {
    "kind": "blt",
    "encoder": LOCAL,
    "latent": {"width": 128, "layers": 3, "heads": 4, "ffn_width": 384},
    "decoder": LOCAL | {"layers": 2},
    "ngrams": {"sizes": [3, 4, 5, 6], "buckets": 2003},
}
"""0.9 M parameters, and half a million of n-gram tables."""

SCORER: dict[str, Any] = {"kind": "entropy", "width": 64, "layers": 2, "heads": 2, "ffn_width": 192, "window": 128}
"""The entropy model beside it."""

TOKENS: dict[str, Any] = {"kind": "bpe", "width": 128, "layers": 3, "heads": 4, "ffn_width": 384, "tied": True}
"""A token model of about as many operations per byte, at two to three bytes a token."""

_HEADS = 4
_TABLES = 512_768
"""Parameters of the n-gram tables of all grown shapes: those of BASE."""


def grown(params: float, width: int, encoder_layers: int, decoder_layers: int) -> dict[str, Any]:
    """A BLT of `params` parameters (tables apart, and the same for all) with these local modules.

    The global transformer, three layers, takes the remainder.

    Raises ValueError where they leave too little.
    """
    local = {**LOCAL, "width": width, "ffn_width": 3 * width}

    def fields(wide: int, ffn: int) -> dict[str, Any]:
        return BASE | {
            "encoder": local | {"layers": encoder_layers},
            "latent": {"width": wide, "layers": 3, "heads": _HEADS, "ffn_width": ffn},
            "decoder": local | {"layers": decoder_layers},
            "ngrams": {"sizes": [3, 4, 5, 6], "buckets": round(_TABLES / (4 * width))},
        }

    shapes: list[tuple[float, dict[str, Any]]] = []
    for wide in range(8 * _HEADS, 1024, 8 * _HEADS):
        least = blt_params(parse(BltConfig, fields(wide, 8), "shape"))
        ffn = 8 + 8 * round((params - least) / (3 * 3 * wide) / 8)
        if ffn >= wide:
            shapes.append((abs(ffn / wide - 3), fields(wide, ffn)))
    if not shapes:
        raise ValueError(f"local modules of width {width} leave nothing of {params:,.0f} parameters; take more of them")
    return min(shapes, key=lambda shape: shape[0])[1]
