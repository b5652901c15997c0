"""Sealed JSON objects: a manifest that carries the SHA-256 of its own content under the key `digest`.

The digest is computed from the values and not from the text, so that spaces and the order of keys do not matter.
Manifests that were written before seals existed have none and are accepted.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "digest"


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data`, plain JSON values, with their digest."""
    return {**data, KEY: _digest(data)}


def check_seal(data: Mapping[str, Any], where: str) -> bool:
    """True where the digest fits, False where there is none. `where` names the file in messages.

    Raises ValueError where the content was changed after it was sealed.
    """
    if data.get(KEY) is None:
        return False
    if data[KEY] != _digest(data):
        raise ValueError(
            f"{where} is damaged or was edited: its content does not have the digest it names; restore it, "
            f"or remove the key {KEY!r} to accept it as it is"
        )
    return True


def _digest(data: Mapping[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != KEY}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
