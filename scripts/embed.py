"""Put a trained run into the package: bf16 weights, and a record without paths of the machine that trained it.

Run:  python -m scripts.embed RUN src/bltkit/embedded/tiny
"""

import sys
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import Bundle, load_bundle, save_bundle

MAX_BYTES = 22_000_000
"""What the package spends on a model with its entropy model: all of it below 25 MB, so that of a second model only what
differs has room."""


def without_paths(value: Any) -> Any:
    """The same plain values, with every absolute path cut down to its file's name."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def main(run: str, target: str) -> None:
    """Write `target` and say how large it is."""
    bundle = load_bundle(run)
    record = without_paths(bundle.record)
    save_bundle(target, Bundle(bundle.model, bundle.scorer, bundle.rule, record), dtype=torch.bfloat16, overwrite=True)
    size = sum(file.stat().st_size for file in Path(target).iterdir())
    if size > MAX_BYTES:
        sys.exit(f"{target} takes {size} bytes, more than {MAX_BYTES}")
    print(f"{target}: {size} bytes, step {record['steps']}, {record['bytes_seen']} bytes seen")


if __name__ == "__main__":
    main(*sys.argv[1:])
