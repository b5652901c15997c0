"""Files as the rest of the package meets them: structured text, compressed streams, locks. Imports nothing of it."""

from bltkit.files.compressed import BrokenFile, chunks, lines, read_whole
from bltkit.files.lock import writer_lock
from bltkit.files.names import is_file_or_dangling
from bltkit.files.structured import (
    parse_json,
    parse_text,
    parse_toml,
    read_json,
    read_json_object,
    read_toml,
    read_utf8,
)

__all__ = [
    "BrokenFile",
    "chunks",
    "is_file_or_dangling",
    "lines",
    "parse_json",
    "parse_text",
    "parse_toml",
    "read_json",
    "read_json_object",
    "read_toml",
    "read_utf8",
    "read_whole",
    "writer_lock",
]
