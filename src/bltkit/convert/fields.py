"""Fields of one object in a JSON file: read by name, checked for their type, never given a default.

A conversion that fills in what a file leaves out makes a model that is slightly wrong and says nothing, so a missing
field is an error that names it. The fields that nobody asked for are remembered, to be reported.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bltkit.files import parse_json, require_regular

_MAX_INTEGER = 2**31


class Fields:
    """An object of a JSON file; `section` is the way to it, such as `data.patcher_args`."""

    def __init__(self, path: Path, data: Mapping[str, Any], section: str = "") -> None:
        self.path, self.data, self.section = path, data, section
        self._read: set[str] = set()

    def inside(self, key: str) -> "Fields":
        """The object under `key`. Raises ValueError where there is none."""
        value = self.value(key)
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Fields(self.path, value, self.name(key))

    def value(self, key: str) -> Any:
        """The value under `key`, null too. Raises ValueError where there is no such field."""
        self._read.add(key)
        if key not in self.data:
            raise ValueError(
                f"{self.path}: field {self.name(key)} is missing; no value is assumed for it: fetch the file again, "
                "or write in what the model was trained with"
            )
        return self.data[key]

    def integer(self, key: str) -> int:
        """An integer. Raises ValueError for anything else, and where it is missing."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _MAX_INTEGER:
            raise self.wrong(key, "an integer below 2^31")
        return value

    def optional_integer(self, key: str) -> int | None:
        """An integer or null, which is a value: a missing field is an error as everywhere."""
        return None if self.value(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A finite number, as it is written: 1 stays an integer."""
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return value

    def optional_number(self, key: str) -> float | None:
        """A finite number or null."""
        return None if self.value(key) is None else self.number(key)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def integers(self, key: str) -> list[int]:
        """A list of integers that is not empty."""
        values = self.value(key)
        sound = isinstance(values, list) and all(
            isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_INTEGER for value in values
        )
        if not sound or not values:
            raise self.wrong(key, "a list of integers")
        return list(values)

    def expect(self, key: str, value: Any, why: str) -> None:
        """Raises ValueError where the field is missing or has another value."""
        if self.value(key) != value or isinstance(self.data[key], bool) != isinstance(value, bool):
            raise self.wrong(key, f"{value!r}: {why}")

    def expect_if_present(self, key: str, value: Any, why: str) -> None:
        """Raises ValueError where the field is there and has another value."""
        if key in self.data:
            self.expect(key, value, why)

    def unread(self) -> list[str]:
        """Names of the fields that were not asked for, with their section."""
        return [self.name(key) for key in self.data if key not in self._read]

    def name(self, key: str) -> str:
        """A field's name with its section."""
        return f"{self.section}.{key}" if self.section else key

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error for a field of another kind than is `expected`."""
        return ValueError(f"{self.path}: field {self.name(key)} is {self.data[key]!r:.80}; expected {expected}")


def read_fields(path: Path) -> tuple[Fields, str]:
    """The object of a JSON file, and the file's text. Raises ValueError, FileNotFoundError where there is no file."""
    require_regular(path)
    content = path.read_bytes()
    return fields_of(path, content), content.decode()


def fields_of(path: Path, content: bytes | str) -> Fields:
    """The object of a JSON text. path: of the file, in messages. Raises ValueError."""
    data = parse_json(content, str(path), finite=True)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a JSON object is expected, not a {type(data).__name__}")
    return Fields(path, data)
