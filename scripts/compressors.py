"""Bits per byte of files under a model, bzip2 and xz: what the model card quotes.

Run:  python -m scripts.compressors MODEL FILE_OR_FOLDER ...
Prints a JSON row for each argument, of a folder all `*.py` below it: every file scored and compressed alone, and the
compressors on all files joined, which suits them better than the model (`joined`). The last row is over all arguments;
`smaller` is the sum over the arguments of the smaller of bzip2 and xz, and `saved` how far the model is below it, as a
share. SCORE_CONTEXT and SCORE_STRIDE, in bytes, stand in for what `blt score` takes by default.
"""

import bz2
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

import bltkit

_XZ = 9 | lzma.PRESET_EXTREME


def bits(texts: list[bytes]) -> dict[str, float]:
    """Bits of all texts, each compressed alone."""
    return {
        "bzip2": 8.0 * sum(len(bz2.compress(text, 9)) for text in texts),
        "xz": 8.0 * sum(len(lzma.compress(text, preset=_XZ)) for text in texts),
    }


def measured(lm: Any, place: Path) -> dict[str, Any]:
    """The row of a file, or of all Python files of a folder that hold any bytes; `bits` in place of bits per byte."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    texts = [text for text in (file.read_bytes() for file in files) if text]
    options = {
        name: int(os.environ[key])
        for name, key in (("context", "SCORE_CONTEXT"), ("stride", "SCORE_STRIDE"))
        if key in os.environ
    }
    scores = [lm.score(text, **options) for text in texts]
    return {
        "files": len(texts),
        "bytes": sum(map(len, texts)),
        "model": sum(score.bits_per_byte * score.num_bytes for score in scores),
        **bits(texts),
        "joined": bits([b"".join(texts)]),
    }


def per_byte(row: dict[str, Any], num_bytes: int) -> dict[str, Any]:
    """Every sum of bits divided by the bytes."""
    return {
        key: value
        if isinstance(value, int | str)
        else per_byte(value, num_bytes)
        if isinstance(value, dict)
        else round(value / num_bytes, 4)
        for key, value in row.items()
    }


def main(model: str, *names: str) -> None:
    """Score and compress."""
    lm = bltkit.load(model)
    rows = []
    for name in names:
        rows.append(measured(lm, Path(name)))
        print(json.dumps({"name": name} | per_byte(rows[-1], rows[-1]["bytes"])), flush=True)
    total = {key: sum(row[key] for row in rows) for key in ("files", "bytes", "model", "bzip2", "xz")}
    total["smaller"] = float(sum(min(row["bzip2"], row["xz"]) for row in rows))
    whole = {"name": "all", "of": model} | per_byte(total, total["bytes"])
    print(json.dumps(whole | {"saved": round(1 - total["model"] / total["smaller"], 4)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
