"""The tables of noises: JSON files in `data/`, each read once, when a noise first needs it. The tables are our own."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bltkit.files import read_json


@cache
def table(name: str) -> Any:
    """The value of `data/NAME.json`. It is shared: callers leave it alone."""
    return read_json(Path(str(files("bltkit.eval.noise") / "data" / f"{name}.json")))
