"""Files as the rest of the package meets them: structured text, compressed streams, locks. Imports nothing of it."""

from bltkit.files.lock import LOCK_FILES, writer_lock
from bltkit.files.regular import require_regular
from bltkit.files.seal import check_seal, sealed
from bltkit.files.space import needs_space
from bltkit.files.structured import parse_json, parse_toml, read_json, read_toml

__all__ = [
    "LOCK_FILES",
    "check_seal",
    "needs_space",
    "parse_json",
    "parse_toml",
    "read_json",
    "read_toml",
    "require_regular",
    "sealed",
    "writer_lock",
]
