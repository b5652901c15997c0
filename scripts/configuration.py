"""Writes docs/configuration.md from the config classes; `--check` only says whether it is current (status 1 if not)."""

import sys
from pathlib import Path

from bltkit.train.reference import keys_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == keys_page() else 1)
    PAGE.write_text(keys_page(), encoding="utf-8")
