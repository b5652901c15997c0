"""MODEL as users name it -> a checkpoint directory: a path, `bltkit:NAME` (embedded), `hf:OWNER/NAME` (the hub)."""

import re
from importlib.resources import files
from pathlib import Path

from bltkit.config import nearest
from bltkit.files.hub import hub_or_cache

EMBEDDED = "bltkit:"
HUB = "hf:"
_FETCHED = ("*.json", "*.safetensors", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "COPYING*")
"""Files of a model on the hub; no pickles. Terms of use always come along."""


def resolve_model(name: str | Path) -> Path:
    """The directory of a model. `hf:` names are fetched into the hub's own cache: JSON, safetensors and
    licences only.

    Raises ValueError with one line if there is no such model, or no way to fetch it.
    """
    text = str(name)
    if text.startswith(EMBEDDED):
        return _embedded(text.removeprefix(EMBEDDED))
    if text.startswith(HUB):
        return _fetched(text.removeprefix(HUB))
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


def _fetched(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or {".", ".."} & set(name.split("/")):
        raise ValueError(f"model '{HUB}{name}' is not of the form {HUB}OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{HUB}{name} needs huggingface_hub: pip install 'bltkit[hub]'") from None
    with hub_or_cache() as out_of_reach:
        try:
            return Path(snapshot_download(name, allow_patterns=[*_FETCHED]))
        except Exception as error:  # the hub's client raises its own, httpx's and the system's errors alike
            first = out_of_reach or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{HUB}{name} could not be fetched: {first} (check the name, the network and, for gated models, your login)"
        ) from None
