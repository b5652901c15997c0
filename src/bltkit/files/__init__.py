"""Files as the rest of the package meets them: structured text, compressed streams, locks. Imports nothing of it."""

from bltkit.files.lock import writer_lock
from bltkit.files.structured import parse_json, parse_toml, read_json, read_toml

__all__ = ["parse_json", "parse_toml", "read_json", "read_toml", "writer_lock"]
