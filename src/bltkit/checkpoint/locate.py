"""MODEL as users name it -> a checkpoint directory: a path, `bltkit:NAME` (embedded), `hf:OWNER/NAME` (the hub)."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from bltkit.checkpoint.fetch import HUB, MODEL_FILES, HubName, fetch
from bltkit.config import nearest

EMBEDDED = "bltkit:"


def resolve_model(name: str | Path, hub_files: Sequence[str] = MODEL_FILES) -> Path:
    """The directory of a model. hub_files: patterns of what is fetched of an `hf:` name, into the hub's own cache.

    Raises ValueError with one line if there is no such model, or no way to fetch it.
    """
    text = str(name)
    if text.startswith(EMBEDDED):
        return _embedded(text.removeprefix(EMBEDDED))
    if text.startswith(HUB):
        return fetch(HubName.parse(text), hub_files)
    path = Path(text).expanduser()
    if not path.exists():
        embedded = embedded_models()
        meant = f"{EMBEDDED}{text}" if text in embedded else f"a directory, {EMBEDDED}NAME or {HUB}OWNER/NAME"
        raise ValueError(f"model {text!r}: no such directory; did you mean {meant}?")
    if not path.is_dir():
        raise ValueError(f"model {text!r} is a file; name the checkpoint directory that holds it")
    return path


def embedded_models() -> list[str]:
    """Names of the models that the package carries."""
    root = _embedded_root()
    return sorted(entry.parent.name for entry in root.glob("*/config.json"))


def _embedded_root() -> Path:
    return Path(str(files("bltkit"))) / "embedded"


def _embedded(name: str) -> Path:
    known = embedded_models()
    if name not in known:
        tail = nearest(name, known) if known else "; this installation embeds none"
        listed = ", ".join(EMBEDDED + model for model in known)
        raise ValueError(f"no embedded model {EMBEDDED}{name}{tail} (`blt models` lists them: {listed})")
    return _embedded_root() / name
