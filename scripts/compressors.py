"""Bits per byte of files under a model, bzip2 and xz: what the model card quotes.

Run:  python -m scripts.compressors MODEL FILE ...
Prints one JSON row: every file scored and compressed alone (`files`), and the compressors on all files joined, which
suits them better than the model (`joined`).
"""

import bz2
import json
import lzma
import sys
from pathlib import Path

import bltkit


def bits(compressed: bytes, num_bytes: int) -> float:
    """Bits per byte of text."""
    return 8 * len(compressed) / num_bytes


def main(model: str, *names: str) -> None:
    """Score and compress."""
    lm = bltkit.load(model)
    texts = [Path(name).read_bytes() for name in names]
    total = sum(map(len, texts))
    scores = [lm.score(text) for text in texts]
    row = {
        "model": model,
        "files": len(texts),
        "bytes": total,
        "bits_per_byte": sum(score.bits_per_byte * score.num_bytes for score in scores) / total,
        "bzip2": sum(8 * len(bz2.compress(text, 9)) for text in texts) / total,
        "xz": sum(8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) for text in texts) / total,
        "joined": {
            "bzip2": bits(bz2.compress(b"".join(texts), 9), total),
            "xz": bits(lzma.compress(b"".join(texts), preset=9 | lzma.PRESET_EXTREME), total),
        },
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
