"""JSON and TOML: the one place that parses them, whoever wrote the text.

Every error is a ValueError of one line that begins with the place (`file`, `file:line`). A byte order mark at the
beginning is dropped, as editors on Windows write it. Refused are nesting beyond `MAX_DEPTH`, which code that walks
values could not follow either, and half a surrogate pair (`"\\ud800"`), which names no character and has no UTF-8.
"""

import json
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

MAX_DEPTH = 200
"""Arrays and objects within one another. Walking a value costs up to three of Python's 1,000 stack frames a level."""

_BOM = b"\xef\xbb\xbf"


def parse_json(data: bytes | str, where: str, *, finite: bool = False, surrogates: bool = False) -> Any:
    """A JSON value. `where` names its place in messages.

    finite: refuse `NaN` and infinities, which JSON does not know but Python's `json` writes, and 1e999.
    surrogates: also take halves of surrogate pairs: records of our own keep bytes that are not UTF-8 as U+DC80..U+DCFF
        (`surrogateescape`).

    Raises ValueError.
    """
    try:
        value = (_FINITE if finite else _ANY).decode(parse_text(data))
        _check(value, surrogates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({_reason(error)})") from None
    return value


def parse_toml(data: bytes | str, where: str) -> dict[str, Any]:
    """A TOML document. `where` names its place in messages. Raises ValueError."""
    try:
        document = tomllib.loads(parse_text(data))
        _check(document, False)  # also of `a.a.a = 1`, which has no brackets
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, ...
        raise ValueError(f"{where} is not valid TOML: {_reason(error)}") from None
    return document


def parse_text(data: bytes | str) -> str:
    """UTF-8 without a byte order mark. Raises ValueError that says what is wrong, but not where the text is from."""
    if isinstance(data, str):
        return data.lstrip("\ufeff") if data.startswith("\ufeff") else data
    while data.startswith(_BOM):  # programs that add one do not look for one
        data = data[len(_BOM) :]
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("UTF-16, not UTF-8; save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        place = f"byte {error.start}" if line == 1 else f"line {line}"
        raise ValueError(f"not UTF-8: {error.reason} at {place}") from None


def read_utf8(path: Path) -> str:
    """The text of a whole file. Raises ValueError that names the file, OSError where it cannot be read."""
    try:
        return parse_text(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_json(path: Path, *, finite: bool = False, surrogates: bool = False) -> Any:
    """The JSON value of a whole file. Raises ValueError that names the file, OSError where it cannot be read."""
    return parse_json(path.read_bytes(), str(path), finite=finite, surrogates=surrogates)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises ValueError that names the file, OSError where it cannot be read."""
    return parse_toml(path.read_bytes(), str(path))


def read_json_object(path: Path, *, finite: bool = False, surrogates: bool = False) -> dict[str, Any]:
    """The JSON object of a whole file. Raises ValueError that names the file, OSError where it cannot be read."""
    value = read_json(path, finite=finite, surrogates=surrogates)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is expected, not a {type(value).__name__}")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is too large a number")
    return value


_ANY = json.JSONDecoder()
_FINITE = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _check(value: Any, surrogates: bool) -> None:
    """Depth, and surrogates in strings and keys. One pass level by level, which costs less than to search the text."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                if not (surrogates or item.isascii()):
                    _check_characters(item)
            elif kind is dict:
                inner += item
                inner += item.values()
            elif kind is list:
                inner += item
        if not inner:
            return
        level = inner
    raise RecursionError


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(f"\\u{half:04x} is half a surrogate pair, which is no character") from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested too deeply, more than {MAX_DEPTH} levels"
    if isinstance(error, json.JSONDecodeError):
        if not error.doc.strip():
            return "empty"
        # Of a file's one line among many, `where` has the number.
        line = f"line {error.lineno}, " if "\n" in error.doc.rstrip() else ""
        return f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
    if "integer string conversion" in str(error):
        return f"an integer of more than {sys.get_int_max_str_digits()} digits"
    return str(error)
