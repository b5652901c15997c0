"""The documents that a training holds back, as files: what `blt score --file` and compressors are given.

Run:  python -m scripts.held_out OUT SOURCE ...
SOURCE is what `data.sources` takes, in the training's order: a path, a glob, or a table of TOML such as
'{kind="jsonl",paths=["a.jsonl.zst"],field="vec_Latn"}'. OUT/held-0.txt gets what is held back of the first one,
OUT/train-0.txt the rest; a newline ends each document. FRACTION stands in for `data.validation_fraction`, 0.02.
"""

import os
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import SupportsIndex

from bltkit.data import Corpus, parse_source


def main(out: str, *specs: str) -> None:
    """Write two files for each source."""
    sources = [parse_source(tomllib.loads(f"it = {spec}")["it"] if spec.startswith("{") else spec) for spec in specs]
    # All of them at once: that some document is held back is seen to for the corpus, not for each source.
    corpus = Corpus.from_sources(sources, float(os.environ.get("FRACTION", "0.02")))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, indices: Iterable[SupportsIndex]) -> str:
        documents = [corpus.document(index) for index in indices]
        text = b"".join(document.removesuffix(b"\n") + b"\n" for document in documents)
        (folder / name).write_bytes(text)
        return f"{len(documents)} documents, {len(text)} bytes"

    for number, spec in enumerate(specs):
        held = write(f"held-{number}.txt", corpus.validation[corpus.source[corpus.validation] == number])
        rest = write(f"train-{number}.txt", corpus.train[corpus.source[corpus.train] == number])
        print(f"{spec}: {held} are held back, {rest} are not")


if __name__ == "__main__":
    main(*sys.argv[1:])
