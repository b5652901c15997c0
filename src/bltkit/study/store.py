"""Rows of a study's directory: append-only JSON Lines that survive interruption and take rows of several processes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bltkit.files.json_lines import append_lines, read_lines
from bltkit.study.study import Row

if TYPE_CHECKING:
    import pandas as pd

ROWS = "rows.jsonl"


class ResultStore:
    """Rows of one study in `out`: those whose `what` is the study's, or begins with it and a hyphen.

    The file is parsed once, and again where another process has added to it.
    """

    def __init__(self, out: Path, what: str) -> None:
        self.out, self.what = out, what
        self._lock = FileLock(out / f".{ROWS}.lock")
        self._rows: list[Row] = []
        self._state: tuple[int, int] | None = None

    def rows(self) -> list[Row]:
        """All rows, in the order of measurement. Raises ValueError for a line that is no JSON object."""
        return list(self._current())

    def add(self, row: Row) -> None:
        """Append a row; it is on disk when this returns. Raises TypeError for a row that is no JSON."""
        try:
            json.dumps(row, allow_nan=False)
        except ValueError as error:
            raise TypeError(error) from None
        self.out.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._current()
            append_lines(self.out / ROWS, [row])
            self._rows.append(row)
            self._state = self._stat()

    def frame(self) -> "pd.DataFrame":
        """All rows as a table; keys that a row lacks are missing values. Needs pandas."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def _current(self) -> list[Row]:
        if (state := self._stat()) != self._state:
            rows = read_lines(self.out / ROWS)
            self._rows = [row for row in rows if f"{row.get('what')}-".startswith(f"{self.what}-")]
            self._state = state
        return self._rows

    def _stat(self) -> tuple[int, int] | None:
        path = self.out / ROWS
        return (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None


def refuse_other_settings(rows: Sequence[Row], settings: Mapping[str, Any], out: Path, unit: str) -> None:
    """Compare stored rows with what they must have. A dotted key reads a nested value.

    unit: names the rows in the message. Raises ValueError for the first value that differs.
    """
    for row in rows:
        for name, now in settings.items():
            then = _value(row, name)
            if then != now:
                raise ValueError(
                    f"{out} holds rows of {unit} with {name.rpartition('.')[2]} = {then!r}, and the plan says "
                    f"{now!r}; use a new --out, or restore the original plan"
                )


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return _value(inner, rest) if rest and isinstance(inner, Mapping) else None
