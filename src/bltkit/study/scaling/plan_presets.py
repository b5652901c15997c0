"""Plans of the study `scaling` by name, as plain values: `cpu` runs overnight; `--dry-run` estimates the larger ones.

Rates are training FLOP/s: on the CPU those measured for `docs/studies.md`, elsewhere assumed.
"""

from typing import Any

_FAMILIES = ("blt-entropy-4.5", "bpe-4096", "blt-entropy-6", "blt-entropy-8", "blt-space", "blt-stride-6")


def _size(
    name: str,
    stack: tuple[int, int, int, int],
    local: tuple[int, int, int, int, int],
    lr: float,
    rate: float,
    **more: Any,
) -> dict[str, Any]:
    """stack: width, layers, heads, FFN of the global part; local: width, encoder and decoder layers, heads, FFN."""
    width, encoder, decoder, heads, ffn = local
    side = {"width": width, "encoder_layers": encoder, "decoder_layers": decoder, "heads": heads, "ffn_width": ffn}
    fields = dict(zip(("width", "layers", "heads", "ffn_width"), stack, strict=True))
    rates = {"rate": rate} | {key: more.pop(key) for key in ("token_rate",) if key in more}
    return {"name": name, **fields, "local": side | more, "lr": lr, **rates}


PLANS: dict[str, dict[str, Any]] = {
    "cpu": {
        "families": _FAMILIES,
        "sizes": [
            # Below the others, so that the best size of a budget lies between sizes and not below them.
            _size("xs", (64, 2, 1, 160), (32, 1, 1, 1, 80), 3e-3, 2.8e10, token_rate=4.2e10),
            _size("s", (96, 2, 2, 256), (48, 1, 1, 1, 128), 3e-3, 3.2e10, token_rate=4.8e10),
            _size("m", (144, 3, 3, 384), (64, 1, 1, 1, 192), 2.5e-3, 4.0e10, token_rate=6.7e10),
            _size("l", (256, 3, 4, 704), (96, 1, 1, 2, 256), 2e-3, 5.5e10, token_rate=9.5e10),
        ],
        "budgets": [8e12, 1.6e13, 3.2e13],
        "seeds": 3,
        "seeds_at": "s",
        "seeded": ["blt-entropy-4.5", "bpe-4096"],
        "fixed_inference": {"sizes": ["m"], "patches": [6.0, 8.0]},
        "scorer": {"width": 48, "layers": 2, "heads": 1, "ffn_width": 128, "window": 128, "steps": 1500},
        "precision": "bf16",
    },
    "gpu": {
        "families": (*_FAMILIES, "bpe-32768"),
        "sizes": [
            _size("s", (384, 8, 6, 1024), (192, 1, 2, 3, 512), 1.5e-3, 4e13, window=512, ngram_buckets=20011),
            _size("m", (640, 12, 10, 1792), (256, 1, 3, 4, 768), 1e-3, 8e13, window=512, ngram_buckets=50021),
            _size("l", (1024, 16, 16, 2816), (384, 1, 4, 6, 1024), 6e-4, 1.5e14, window=512, ngram_buckets=100003),
        ],
        "budgets": [1e17, 3e17, 1e18],
        "seeds": 3,
        "seeded": ["blt-entropy-4.5", "bpe-32768"],
        "fixed_inference": {"sizes": ["m"], "patches": [6.0, 8.0]},
        "scorer": {"width": 192, "layers": 4, "heads": 3, "ffn_width": 512, "window": 256, "steps": 8000, "lr": 1e-3},
        "row_bytes": 4096,
        "batch_rows": 32,
        "warmup_steps": 300,
        "precision": "bf16",
        "device": "cuda",
        "rate": 1e14,
    },
    "cluster": {
        "families": ("blt-entropy-4.5", "bpe-32768", "blt-entropy-6", "blt-entropy-8", "blt-space", "blt-stride-6"),
        # The paper's grid (BLT, table 10) from 400M to 8B, with local models as there.
        "sizes": [
            _size("400m", (1280, 24, 10, 3584), (768, 1, 7, 12, 2048), 6e-4, 2.0e16, window=512, ngram_buckets=500002),
            _size("1b", (2048, 25, 16, 5632), (1024, 1, 9, 16, 2816), 4e-4, 2.2e16, window=512, ngram_buckets=500002),
            _size("4b", (3072, 36, 24, 8192), (1024, 1, 9, 16, 2816), 4e-4, 2.5e16, window=512, ngram_buckets=500002),
        ],
        "budgets": [1e20, 4e20, 1.6e21],
        "seeds": 3,
        "seeded": ["blt-entropy-4.5", "bpe-32768"],
        "fixed_inference": {"sizes": ["1b"], "patches": [6.0, 8.0]},
        "scorer": {
            "width": 768,
            "layers": 14,
            "heads": 12,
            "ffn_width": 2048,
            "window": 512,
            "steps": 100000,
            "lr": 4e-4,
        },
        "row_bytes": 8192,
        "batch_rows": 512,
        "warmup_steps": 2000,
        "precision": "bf16",
        "device": "cuda",
        "processes": 64,
        # 64 H100 at 35 to 40 % of 989 TFLOP/s.
        "rate": 2.2e16,
    },
}
"""Every preset."""

SMOKE: dict[str, Any] = {
    "name": "smoke",
    "families": ("blt-entropy-4.5", "blt-stride-6"),
    "sizes": [
        _size("a", (16, 1, 1, 32), (16, 1, 1, 1, 24), 1e-2, 1e9, window=16, ngram_sizes=[3], ngram_buckets=61),
        _size("b", (32, 1, 1, 64), (16, 1, 1, 1, 24), 1e-2, 1e9, window=16, ngram_sizes=[3], ngram_buckets=61),
    ],
    "budgets": [1.6e8, 3.2e8],
    "seeds": 1,
    "scorer": {"width": 16, "layers": 1, "ffn_width": 24, "window": 16, "steps": 20},
    "calibration_bytes": 2000,
    "validation_fraction": 0.2,
    "row_bytes": 64,
    "batch_rows": 2,
    "validation_batches": 2,
    "warmup_steps": 2,
}
"""A plan of seconds, to see every station work."""
