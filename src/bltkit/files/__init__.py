"""Files as the rest of the package meets them: structured text, compressed streams, locks. Imports nothing of it."""

from bltkit.files.compressed import BrokenFile, chunks, lines, read_whole
from bltkit.files.disk_space import needs_space
from bltkit.files.entry_names import is_file_or_dangling
from bltkit.files.lock import LOCK_FILES, writer_lock
from bltkit.files.regular import require_regular
from bltkit.files.seal import check_seal, sealed
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
    "LOCK_FILES",
    "BrokenFile",
    "check_seal",
    "chunks",
    "is_file_or_dangling",
    "lines",
    "needs_space",
    "parse_json",
    "parse_text",
    "parse_toml",
    "read_json",
    "read_json_object",
    "read_toml",
    "read_utf8",
    "read_whole",
    "require_regular",
    "sealed",
    "writer_lock",
]
