"""Makes tests/golden/train_losses.json: loss, gradient norm and rate of twenty steps, in deterministic mode.

    python -m scripts.make_train_golden        (from the repository's root)

To be run, and its change explained, when a change is meant to alter training: another default, another order of data.
"""

import json
import tempfile
from pathlib import Path

from tests.golden_training import LOSSES, MODELS, run


def main() -> None:
    """Train and write."""
    found = {}
    for kind in MODELS:
        with tempfile.TemporaryDirectory() as directory:
            found[kind] = run(kind, Path(directory) / "run")
    lines = [f'"{kind}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for kind, rows in found.items()]
    LOSSES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for kind, rows in found.items():
        print(f"{kind}: {rows[0]['loss']:.4f} nats at the first step, {rows[-1]['loss']:.4f} at the last")


if __name__ == "__main__":
    main()
