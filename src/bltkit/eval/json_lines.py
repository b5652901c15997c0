"""Files of JSON lines that a study grows by: what is there stays there, whatever breaks the study off.

A line counts once its end is written; the beginning of one that was cut off is dropped by the next reader.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file's complete lines; none where there is no file.

    Raises ValueError for a line that is no JSON object.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object; remove the line, or take another directory")
        found.append(value)
    return found


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
