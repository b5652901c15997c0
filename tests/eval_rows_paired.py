"""Small rows of the task `paired`, and which of its texts a model that knows everything finds likely."""

import json
from collections.abc import Callable
from typing import Any

from bltkit.eval.tasks.task import Item

PAIRS = (
    {"clean": "The modern barn stood alone.", "noisy": "Tbe modem bam stood a1one.", "source": "scans"},
    {"clean": "See you tonight!", "noisy": "c u 2nite", "source": "posts"},
    {"clean": "Пять кошек и один пёс.", "noisy": "Пять к0шек и oдин пес.", "source": "scans"},
)

ROWS: dict[str, dict[str, str]] = {
    "paired": {"paired.jsonl": "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in PAIRS)}
}

TRUTHS: dict[str, Callable[[Item], list[Any]]] = {"paired": lambda item: [True, False]}
"""By kind: is a text the one that a good model finds the more likely per byte."""
