"""Files that hold terms of use: which they are, and which licence they state."""

import re
from pathlib import Path

_NAME = re.compile(r"(licen[cs]e|notice|copying|use[_-]policy|acceptable[_-]use)", re.IGNORECASE)
_WORDS = ("license", "licence", "notice", "copying", "use_policy", "use-policy", "acceptable")

PATTERNS = tuple(
    "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word) + "*" for word in _WORDS
)
"""The same names as shell patterns, which tell upper case from lower."""

_KNOWN = (
    ("apache-2.0", re.compile(r"Apache License\s+Version 2\.0")),
    ("mit", re.compile(r"Permission is hereby granted, free of charge, to any person obtaining a copy")),
    ("gpl-3.0", re.compile(r"^\s*GNU GENERAL PUBLIC LICENSE\s+Version 3")),
    ("cc0-1.0", re.compile(r"CC0 1\.0 Universal")),
)
"""The hub's identifiers, and texts that only that licence has."""

_MAX_BYTES = 1 << 20


def is_licence(name: str) -> bool:
    """Does a file's name say that it holds terms of use."""
    return _NAME.match(name) is not None


def licence_files(directory: Path) -> list[Path]:
    """The files with terms of use in a directory, by name."""
    return sorted(path for path in directory.iterdir() if is_licence(path.name) and path.is_file())


def read_licences(directory: Path) -> dict[str, bytes]:
    """Contents of the files with terms of use in a directory, by name. Raises OSError."""
    return {path.name: path.read_bytes() for path in licence_files(directory)}


def licence_identifier(files: list[Path]) -> str | None:
    """The hub's identifier of the licence that the files state: None without files, `other` for what is not known.

    Several licences are `other`, too. Files of notices alone state none.
    """
    terms = [path for path in files if not path.name.lower().startswith("notice")]
    if not terms:
        return None
    names = {_identified(path) for path in terms}
    return names.pop() if len(names) == 1 else "other"


def _identified(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        return "other"
    text = path.read_text(encoding="utf-8", errors="replace")
    return next((name for name, pattern in _KNOWN if pattern.search(text)), "other")
