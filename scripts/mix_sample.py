"""A sample of a training mixture, in the proportions of what a training reads: what `blt calibrate` is given.

Run:  python -m scripts.mix_sample CONFIG.toml OUT.jsonl [KEY=VALUE ...]
Takes the `[data]` of a training config with overrides as `blt train` has them. Of every training document the same
share, rounded up to 2,000 bytes, is taken from a place that its number decides; 2 MB in all.
"""

import json
import sys
from pathlib import Path

from bltkit.config import apply_overrides, parse
from bltkit.data import Corpus, DataConfig
from bltkit.files import read_toml

TOTAL, PIECE = 2_000_000, 2_000


def main(config: str, target: str, *overrides: str) -> None:
    """Write the pieces, of a source as many as its weighted bytes ask for."""
    fields = apply_overrides(read_toml(Path(config)), overrides)
    data: DataConfig = parse(DataConfig, fields["data"], "data")
    corpus = Corpus.from_sources(
        list(data.sources), data.validation_fraction, directory=None if data.cache is None else Path(data.cache)
    )
    visited = [(stats.num_bytes - stats.validation_bytes) * stats.weight for stats in corpus.stats]
    rows = []
    for number, weighted in enumerate(visited):
        indices = corpus.train[corpus.source[corpus.train] == number]
        pieces = round(TOTAL / PIECE * weighted / sum(visited))
        for piece in range(pieces):
            document = corpus.document(indices[(piece * len(indices)) // pieces])
            start = piece * 7919 % max(1, len(document) - PIECE)
            rows.append(json.dumps({"text": document[start : start + PIECE].decode("utf-8", "ignore")}))
    Path(target).write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{target}: {len(rows)} pieces of {len(visited)} sources, {[round(part / 1e6, 1) for part in visited]} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
