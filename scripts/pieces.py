"""Documents cut into shorter ones at ends of lines, so that a few long ones leave something to hold out by hash.

Run:  python -m scripts.pieces SOURCE OUT.jsonl
Part of the recipe of `bltkit:tiny`, for sources of a dozen documents.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from bltkit.data import parse_source

PIECE_BYTES = 32_000


def pieces(text: str) -> Iterator[str]:
    """`text` in pieces that end with the first line that takes them to 32,000 bytes."""
    piece, size = list[str](), 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line.encode())
        if size >= PIECE_BYTES:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def main(source: str, target: str) -> None:
    """Write the pieces of every document of `source`."""
    documents = (document.data.decode("utf-8") for document in parse_source(source).documents())
    rows = [json.dumps({"text": piece}, ensure_ascii=False) for text in documents for piece in pieces(text)]
    Path(target).write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{source}: {len(rows)} pieces")


if __name__ == "__main__":
    main(*sys.argv[1:])
