"""Twenty steps whose losses are kept: `scripts/make_train_golden.py` writes them, `test_train_golden.py` compares."""

from pathlib import Path
from typing import Any

from bltkit.config import parse
from bltkit.train import TrainConfig, read_metrics, train

GOLDEN = Path(__file__).parent / "golden"
LOSSES = GOLDEN / "train_losses.json"
TEXT = GOLDEN / "lighthouse.txt"
STEPS = 20
FIGURES = ("loss", "grad_norm", "lr")

_STACK = {"width": 32, "layers": 2, "heads": 2, "ffn_width": 48}
MODELS: dict[str, dict[str, Any]] = {
    "entropy": {"model": {"kind": "entropy", **_STACK, "window": 32}},
    "blt": {
        "model": {
            "kind": "blt",
            "encoder": {**_STACK, "layers": 1, "window": 32},
            "latent": _STACK | {"width": 64},
            "decoder": {**_STACK, "window": 32},
            "ngrams": {"sizes": [3, 4, 5], "buckets": 499},
        },
        "patching": {"rule": "space"},
    },
}


def run(kind: str, out: Path) -> list[dict[str, float]]:
    """Train a model for 20 steps as a user would who wants the same numbers again; the figures of every step."""
    fields = MODELS[kind] | {
        "data": {"sources": [str(TEXT)], "row_bytes": 256, "batch_rows": 3, "validation_fraction": 0.0},
        "optim": {"lr": 4e-3, "warmup_steps": 4, "tables": "rows"},
        "trainer": {
            "max_steps": STEPS,
            "log_every": 1,
            "seed": 11,
            "accumulate": 2,
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
            "deterministic": True,
        },
    }
    train(parse(TrainConfig, fields, "golden"), out, say=lambda line: None)
    return [{name: row[name] for name in FIGURES} for row in read_metrics(out) if "loss" in row]
