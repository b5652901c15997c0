"""Models on the Hugging Face hub: `OWNER/NAME@REVISION`, fetched file by file into the hub's own cache.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to every program of the hub.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bltkit.checkpoint.licences import PATTERNS
from bltkit.files.hub import hub_or_cache, quiet_hub
from bltkit.files.hub_errors import hub_reason

HUB = "hf:"
MODEL_FILES = ("*.json", "*.safetensors", *PATTERNS)
"""Files that loading takes from the hub; no pickles. Terms of use always come along."""
META_FILES = (*MODEL_FILES, "*.pth")
"""The same with Meta's weights, which `blt convert` reads without running what is in them."""

_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@(\S+))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model on the hub. repo: OWNER/NAME. revision: a branch, a tag or a commit; the main branch if None."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `[hf:]OWNER/NAME[@REVISION]`. Raises ValueError for another form."""
        match = _NAME.fullmatch(text.removeprefix(HUB))
        if match is None or {".", ".."} & set(match[1].split("/")):
            raise ValueError(f"model {text!r} is not of the form {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{HUB}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def fetch(
    name: HubName,
    patterns: Sequence[str] = MODEL_FILES,
    *,
    bars: type | None = None,
    ask_first: bool = False,
) -> Path:
    """The directory in the hub's cache that holds the model's files; files that are there already are not fetched.

    patterns: shell patterns of the files wanted. bars: a subclass of tqdm in place of the library's own bars, which
    show on terminals. ask_first: refuse what the hub refuses, also where the cache has a copy.

    Raises ValueError with one line. A hub that does not answer costs no retries; the cache may hold the model then.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise ValueError(f"{name} needs huggingface_hub: pip install 'bltkit[hub]'") from None
    options: dict[str, Any] = {} if bars is None else {"tqdm_class": bars}
    with hub_or_cache() as out_of_reach, quiet_hub(bars=bars is None):
        try:
            if ask_first and out_of_reach is None:
                HfApi().model_info(name.repo, revision=name.revision)
            return Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=[*patterns], **options))
        except Exception as error:  # the hub's client raises its own, httpx's and the system's errors alike
            reason = hub_reason(error, name.repo, name.revision)
        where = f"{out_of_reach}, and {reason} (check the network)" if out_of_reach else reason
        raise ValueError(f"{name} could not be fetched: {where}") from None


def fetch_again(name: HubName, directory: Path, file: str) -> None:
    """Replace one file of a directory that `fetch` returned. Raises ValueError with one line."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name.repo, file, revision=directory.name, force_download=True)
    except Exception as error:  # as above
        raise ValueError(f"{name}: {file} could not be fetched: {hub_reason(error, name.repo)}") from None
