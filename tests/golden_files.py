"""Reads tests/golden (made by scripts/make_golden.py): configs, shapes and seeds in JSON, the oracle's
numbers in npz.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import recipe

GOLDEN = Path(__file__).parent / "golden"
KEPT = 4  # of the logits of position t every KEPT-th column is stored, from t % KEPT on


@dataclass(frozen=True)
class GoldenCase:
    """One model and row with the oracle's answers; `logits` are the kept columns [T, V / KEPT]."""

    config: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]
    weights_sha256: str
    ids: list[int]
    entropies: NDArray[np.float32]
    starts: list[bool]
    logits: NDArray[np.float32]

    def write(self, directory: Path) -> None:
        """The model as a published directory."""
        from safetensors.numpy import save_file

        (directory / "config.json").write_text(json.dumps(self.config))
        save_file(self.weights, directory / "model.safetensors", metadata={"format": "pt"})


def names() -> list[str]:
    return list(_table())


def read(name: str) -> GoldenCase:
    entry = _table()[name]
    with np.load(GOLDEN / "cases.npz") as arrays:
        return GoldenCase(
            config=entry["config"],
            weights=recipe.tensors(entry["seed"], entry["shapes"]),
            weights_sha256=entry["weights_sha256"],
            ids=arrays[f"{name}/ids"].tolist(),
            entropies=arrays[f"{name}/entropies"],
            starts=arrays[f"{name}/starts"].tolist(),
            logits=arrays[f"{name}/logits"],
        )


def kept_logits(logits: NDArray[Any]) -> NDArray[Any]:
    """[T, V] -> [T, V / KEPT]."""
    return np.stack([row[t % KEPT :: KEPT] for t, row in enumerate(logits)])


def weights_sha256(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """Of every tensor in the order of the names: the name's bytes, then its little-endian float32 bytes."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(name.encode() + weights[name].astype("<f4").tobytes())
    return sha.hexdigest()


def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    return table
