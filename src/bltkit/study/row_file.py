"""The rows of a study's directory: JSON lines that several processes add to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from bltkit.files.json_lines import append_lines, read_lines

ROWS = "rows.jsonl"


class RowFile:
    """Those rows of `out` that say `what` they are."""

    def __init__(self, out: Path, what: str) -> None:
        self.out, self._what = out, what
        self._lock = FileLock(out / f".{ROWS}.lock")

    def read(self) -> list[dict[str, Any]]:
        """All, in the order in which they were measured."""
        with self._lock:
            return [row for row in read_lines(self.out / ROWS) if row.get("what") == self._what]

    def add(self, row: Mapping[str, Any]) -> None:
        """On disk when this returns."""
        with self._lock:
            append_lines(self.out / ROWS, [dict(row)])
