"""From a record (a JSON object, a row of a table) to a document: which field is the text, what goes along.

Shared by the sources of records, so that a dotted name, a null and a wrong type mean the same in all of them.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

Metadata = Annotated[
    Literal["all"] | tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) and value != "all" else value),
]
"""Names of the fields that a document carries along, or "all": everything but the text itself."""


def find(record: Mapping[str, Any], field: str, where: str, setting: str = "field") -> Any:
    """The value of `field`: the key of that name, or else, cut at its dots, the way through nested objects.

    `ValueError` that begins with `where` and lists keys, where there is none; `setting` is the source's setting that
    named the field.
    """
    found, value = _look_up(record, field)
    if not found:
        keys = ", ".join(sorted(record)[:8]) or "none"
        raise ValueError(f"{where}: no field {field!r}; set the source's `{setting}` to one of its keys: {keys}")
    return value


def text_bytes(value: Any, field: str, where: str) -> bytes:
    """A field's value -> a document's bytes: a string's UTF-8, bytes as they are, null -> an empty document."""
    if isinstance(value, str):
        return value.encode()  # half a surrogate pair was refused by the reader
    if isinstance(value, bytes):
        return value
    if value is None:
        return b""
    raise ValueError(f"{where}: field {field!r} is a {type(value).__name__}, a string is wanted")


def choose_metadata(record: Mapping[str, Any], field: str, names: Metadata) -> dict[str, Any] | None:
    """What goes along of a record, as JSON values; a name that the record does not have is left out.

    None where nothing was asked for. `record` is not changed.
    """
    if names == "all":
        rest: dict[str, Any] = as_json(_without(record, field))
        return rest
    found = ((name, *_look_up(record, name)) for name in names)
    return {name: as_json(value) for name, is_there, value in found if is_there} if names else None


def as_json(value: Any) -> Any:
    """A copy of `value` that JSON can hold: times in ISO 8601, bytes in base64, NaN and infinities as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): as_json(inner) for key, inner in value.items()}
        case list() | tuple():
            return [as_json(inner) for inner in value]
        case bytes():
            return base64.b64encode(value).decode()
        case dt.date() | dt.time():  # a datetime is a date
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
    return str(value)  # Decimal, UUID


def _look_up(record: Mapping[str, Any], field: str) -> tuple[bool, Any]:
    """(is it there, its value). The whole name comes first: a key may have dots of its own."""
    if field in record:
        return True, record[field]
    value: Any = record
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False, None
        value = value[name]
    return True, value


def _without(record: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A copy without `field`, which is found as `_look_up` does; a copy of all where it is not there."""
    if field in record or not _look_up(record, field)[0]:
        return {key: value for key, value in record.items() if key != field}

    def without(inner: Mapping[str, Any], way: list[str]) -> dict[str, Any]:
        first, *rest = way
        if not rest:
            return {key: value for key, value in inner.items() if key != first}
        return {**inner, first: without(inner[first], rest)}

    return without(record, field.split("."))
