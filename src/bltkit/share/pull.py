"""`blt pull`: a model from the hub, each file as its bltkit.json lists it.

Files arrive in the hub's cache, where complete ones stay if the command is interrupted; a directory that was asked for
appears when all of them are verified and copied.
"""

import shutil
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bltkit.checkpoint import MANIFEST, atomic_directory, damages, listed_files
from bltkit.checkpoint.atomic import refuse_existing
from bltkit.checkpoint.card_mark import CARD
from bltkit.checkpoint.fetch import META_FILES, HubName, fetch, fetch_again
from bltkit.files import needs_space
from bltkit.share.download_bars import Tell, bars_for

PULLED = (*META_FILES, CARD, "*.jinja", "merges.txt")
"""Shell patterns of the files that are fetched, besides those that bltkit.json lists."""


@dataclass(frozen=True)
class Pulled:
    """A model that was fetched."""

    model: str
    """OWNER/NAME, with the revision that was asked for."""
    commit: str
    directory: str
    """The directory that was asked for, or the one in the hub's cache."""
    num_files: int
    num_bytes: int
    verified: bool
    """Were the files compared with bltkit.json; False where the repository has none."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def summary(self) -> str:
        """One line for people."""
        check = f"verified against {MANIFEST}" if self.verified else f"not verified: there is no {MANIFEST}"
        return (
            f"{self.directory}: {self.model} at commit {self.commit[:12]}, {self.num_files} files, "
            f"{self.num_bytes:,} bytes, {check}"
        )


def pull(
    repo: str, *, revision: str | None = None, out: str | Path | None = None, progress: Tell | None = None
) -> Pulled:
    """Fetch a model from the hub and verify it.

    repo: OWNER/NAME. revision: a branch, a tag or a commit. out: a directory that does not exist; without, the model
    stays in the hub's cache, where `hf:OWNER/NAME` finds it. progress: told (bytes done, bytes in all).

    Checkpoints of Hugging Face's and of Meta's are fetched too. Raises ValueError with one line, OSError where writing
    fails; `out` then does not exist, and files that arrived whole are not fetched again.
    """
    name = HubName.parse(repo if revision is None else f"{repo}@{revision}")
    if out is not None:
        refuse_existing(Path(out))
    directory = fetch_verified(name, progress)
    files = _files(directory)
    total = sum((directory / file).stat().st_size for file in files)
    if out is not None:
        with atomic_directory(out) as target, needs_space(Path(out), total):
            for file in files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / file, target / file)
    return Pulled(
        model=str(name).removeprefix("hf:"),
        commit=directory.name,
        directory=str(directory if out is None else out),
        num_files=len(files),
        num_bytes=total,
        verified=bool(listed_files(directory)),
    )


def fetch_verified(name: HubName, progress: Tell | None = None) -> Path:
    """The directory in the hub's cache that holds all files of a model; a damaged one is fetched once more.

    Raises ValueError with one line, also for a repository whose files do not match its bltkit.json.
    """
    bars = bars_for(progress or (lambda done, total: None))
    directory = fetch(name, PULLED, bars=bars, ask_first=True)
    try:
        listed = listed_files(directory)
    except ValueError:
        fetch_again(name, directory, MANIFEST)
        listed = listed_files(directory)
    if missing := [file for file in listed if not (directory / file).exists()]:
        fetch(name, missing, bars=bars)
    for file, entry in listed.items():
        if any(damages(directory, {file: entry})):
            fetch_again(name, directory, file)
            for line in damages(directory, {file: entry}):
                raise ValueError(f"{name}: the repository's {file} does not match its {MANIFEST} ({line})")
    return directory


def _files(directory: Path) -> list[str]:
    """Names of the files to copy, in folders too; nothing hidden."""
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    wanted = {*listed_files(directory), *(name for name in names if any(fnmatchcase(name, form) for form in PULLED))}
    return [name for name in names if name in wanted and not any(part.startswith(".") for part in Path(name).parts)]
