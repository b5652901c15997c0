"""Books as files come: half of the documents hard-wrapped, half of those with CRLF line ends.

Run:  python -m scripts.rewrap BOOKS.jsonl.zst OUT.jsonl
Part of the recipe of `bltkit:tiny`. Digitised books are often one line a paragraph; a model that saw only such lines
finds every wrapped line, and every carriage return, a surprise. Which documents change, and how, follows from their
numbers alone.
"""

import json
import sys
import textwrap
from pathlib import Path

from bltkit.data import parse_source

WIDTHS = (60, 65, 68, 70, 72, 75, 78)


def rewrap(text: str, width: int, newline: str, indent: str) -> str:
    """The paragraphs of `text` as lines of at most `width` characters."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines += textwrap.wrap(paragraph, width, initial_indent=indent if paragraph else "") or [""]
    return newline.join(lines)


def main(source: str, target: str) -> None:
    """Write every document of `source`, some of them rewrapped."""
    rows = []
    for number, document in enumerate(parse_source(source).documents()):
        text = document.data.decode("utf-8")
        if number % 2:
            newline, indent = ("\r\n" if number % 4 == 1 else "\n"), ("   " if number % 8 < 4 else "")
            text = rewrap(text, WIDTHS[number % len(WIDTHS)], newline, indent)
        rows.append(json.dumps({"text": text}, ensure_ascii=False))
    Path(target).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
