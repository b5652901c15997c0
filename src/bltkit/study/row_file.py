"""The rows of a study's directory: JSON lines that several processes add to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from bltkit.files.json_lines import append_lines, read_lines

ROWS = "rows.jsonl"


class RowFile:
    """Those rows of `out` that say `what` they are. The file is parsed again only where somebody has written to it."""

    def __init__(self, out: Path, what: str) -> None:
        self.out, self._what = out, what
        self._lock = FileLock(out / f".{ROWS}.lock")
        self._rows: list[dict[str, Any]] = []
        self._state: tuple[int, int] | None = None

    def read(self) -> list[dict[str, Any]]:
        """All, in the order in which they were measured."""
        path = self.out / ROWS
        with self._lock:
            state = (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None
            if state != self._state:
                self._rows = [row for row in read_lines(path) if row.get("what") == self._what]
                self._state = state
            return list(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """On disk when this returns."""
        with self._lock:
            append_lines(self.out / ROWS, [dict(row)])
