"""Noise from a real source: pairs of the same text, clean and noisy, such as a page and what a scanner made of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bltkit.files import lines, parse_json, require_regular


@dataclass(frozen=True)
class TextPair:
    """A text and its damaged version."""

    clean: str
    noisy: str


@dataclass(frozen=True)
class Paired:
    """Replaces a text by its noisy version, looked up exactly, then without the white space around it.

    What it does not cover the runner leaves out, and counts.
    """

    file: str
    pairs: Mapping[str, str] = field(repr=False)
    kind: str = "paired"

    @classmethod
    def load(cls, path: str | Path) -> "Paired":
        """Raises ValueError for a file that is missing or malformed, and for a text with two noisy versions."""
        found: dict[str, str] = {}
        for number, pair in enumerate(read_pairs(Path(path)), 1):
            known = found.setdefault(pair.clean.strip(), pair.noisy.strip())
            if known != pair.noisy.strip():
                raise ValueError(f"{path}, pair {number}: this clean text stands there before, with another noisy one")
        return cls(str(path), found)

    def apply(self, text: str, key: str) -> str:
        """The noisy version, with the white space that was around the text. The key does not matter.

        Raises ValueError for a text without one.
        """
        core = text.strip()
        if not core:
            return text
        if core not in self.pairs:
            raise ValueError(f"{self.file} has no pair for {text[:60]!r}")
        start = text.index(core)
        return text[:start] + self.pairs[core] + text[start + len(core) :]

    def covers(self, text: str) -> bool:
        """Is there a pair for it. White space alone stays what it is."""
        core = text.strip()
        return not core or core in self.pairs

    def at(self, intensity: float) -> "Paired":
        """There is one intensity, 1. Raises ValueError for another."""
        if intensity != 1:
            raise ValueError(f"intensity = {intensity}: a noise from pairs has one intensity, 1")
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs, as hex."""
        return hashlib.sha256(json.dumps(sorted(self.pairs.items())).encode()).hexdigest()

    def __str__(self) -> str:
        """As `parse_noise` reads it."""
        return f"paired:{self.file}"


def read_pairs(path: Path) -> Iterator[TextPair]:
    """The pairs of a `.jsonl` file, compressed as well, in order.

    Raises ValueError that names file and line: no JSON object, `clean` or `noisy` missing, not text or blank.
    """
    try:
        require_regular(path)
    except FileNotFoundError:
        raise ValueError(f'{path}: no such file; a line of it is {{"clean": TEXT, "noisy": TEXT}}') from None
    number = 0
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where, finite=True)
            try:
                pair = pair_of(row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            yield pair
    if not number:
        raise ValueError(f'{path} is empty; a line of it is {{"clean": TEXT, "noisy": TEXT}}')


def pair_of(row: object) -> TextPair:
    """A row as a pair. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for name in ("clean", "noisy"):
        if name not in row:
            raise ValueError(f"field {name!r} is missing; the row has {', '.join(map(str, row)) or 'none'}")
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name} = {row[name]!r} is not a text")
    return TextPair(row["clean"], row["noisy"])
