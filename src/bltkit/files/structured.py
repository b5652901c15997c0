"""JSON and TOML: the one place that parses them, whoever wrote the text.

Every error is a ValueError of one line that begins with the place (`file`, `file:line`). A byte order mark at the
beginning is dropped, as editors on Windows write it; nesting that Python's parser cannot follow is an error like any
other broken text.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

_BOM = b"\xef\xbb\xbf"


def parse_json(data: bytes | str, where: str) -> Any:
    """A JSON value. `where` names its place in messages. Raises ValueError."""
    try:
        return json.loads(_text(data))
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; a thousand brackets
        raise ValueError(f"{where}: not JSON ({_reason(error)})") from None


def parse_toml(data: bytes | str, where: str) -> dict[str, Any]:
    """A TOML document. `where` names its place in messages. Raises ValueError."""
    try:
        return tomllib.loads(_text(data))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ValueError(f"{where}: not valid TOML ({_reason(error)})") from None


def read_json(path: Path) -> Any:
    """The JSON value of a whole file. Raises ValueError that names the file, OSError where it cannot be read."""
    return parse_json(path.read_bytes(), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises ValueError that names the file, OSError where it cannot be read."""
    return parse_toml(path.read_bytes(), str(path))


def _text(data: bytes | str) -> str:
    if isinstance(data, bytes):
        return data.removeprefix(_BOM).decode()
    return data.removeprefix("\ufeff")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
