"""Append-only files of JSON lines that survive interruption.

A line counts once its end is written; the beginning of one that was cut off is dropped by the next reader.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.files.regular import require_regular
from bltkit.files.structured import parse_json

Line = Mapping[str, Any]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file's complete lines; none where there is no file.

    Raises ValueError that names file and line for one that is no JSON object, or holds a number that is not finite.
    """
    if not path.exists():
        return []
    require_regular(path)  # of a pipe nothing would ever come
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        where, remedy = f"{path}, line {number}", "remove the line, or take another directory"
        try:
            value = parse_json(line, where, finite=True, escaped_bytes=True)
        except ValueError as error:
            raise ValueError(f"{error}; {remedy}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where}: not a JSON object; {remedy}")
        rows.append(value)
    return rows


def append_lines(path: Path, lines: Sequence[Line]) -> None:
    """Add objects, on disk when this returns. Raises OSError, ValueError for a number that is not finite."""
    data = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
