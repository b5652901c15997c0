"""A checkpoint's fingerprint: two that have the same one give the same answers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

CHECKPOINT = ("*.json", "*.safetensors")


def fingerprint(directory: Path, patterns: Sequence[str] = CHECKPOINT, more: Sequence[str] = ()) -> str:
    """SHA-256, as hex, of the names and contents of the files that match, and of `more`. Reads them all."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            found.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    for word in more:
        found.update(f"{word}\0".encode())
    return found.hexdigest()
