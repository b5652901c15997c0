"""Where the material that lies beside the repository is, for the tests that need it; they skip without it."""

from pathlib import Path

_beside = Path(__file__).resolve().parents[2] / "shared"

SHARED: Path | None = _beside if _beside.is_dir() else None
