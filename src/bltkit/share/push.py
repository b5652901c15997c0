"""`blt push`: a checkpoint to the hub, in one commit.

What is uploaded is listed by name, so that nothing of a run (optimizer, position, logs) and nothing hidden ever goes
along. The checkpoint is verified before the hub is asked for anything.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any

from bltkit.checkpoint import (
    MANIFEST,
    damages,
    is_token_model,
    listed_files,
    load_bundle,
    resolve_model,
    token_config,
)
from bltkit.checkpoint.card import model_card
from bltkit.checkpoint.card_mark import CARD, is_generated
from bltkit.checkpoint.fetch import HubName
from bltkit.checkpoint.licences import is_licence, licence_files
from bltkit.checkpoint.weights import INDEX, weight_files
from bltkit.files import read_json_object
from bltkit.files.hub import hub_or_cache, quiet_hub
from bltkit.files.hub_errors import hub_reason
from bltkit.share.download_bars import Tell

OTHER_FILES = (
    MANIFEST,
    CARD,
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files of a checkpoint besides its weights, its licences and what bltkit.json lists."""


@dataclass(frozen=True)
class Pushed:
    """A checkpoint that was uploaded."""

    repo: str
    url: str
    commit: str
    revision: str
    private: bool
    files: tuple[str, ...]
    removed: tuple[str, ...]
    """Weights of the repository that the checkpoint does not have."""
    num_bytes: int
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Lines for people."""
        kind = "private" if self.private else "public"
        lines = [f"{self.url}: {len(self.files)} files, {self.num_bytes:,} bytes, {kind}, commit {self.commit[:12]}"]
        lines += [f"removed there: {', '.join(self.removed)}"] if self.removed else []
        return "\n".join([*lines, *self.remarks])


def push(
    model: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    progress: Tell | None = None,
) -> Pushed:
    """Upload a checkpoint to the hub in one commit; the repository is created where there is none.

    model: a checkpoint directory, a training run, or another MODEL. repo: OWNER/NAME. private: create it for its owner
    alone. revision: the branch, created where there is none. message: of the commit. progress: told (bytes done, bytes
    in all) after each file.

    A card on the hub that somebody has edited is left as it is, unless the directory's card was edited as well. Raises
    ValueError with one line: for a checkpoint that is damaged or does not load, a public repository where a private one
    is wanted, and what the hub refuses. The repository's files then are as they were.
    """
    name = HubName.parse(repo)
    if name.revision is not None:
        raise ValueError(f"{repo!r} holds a revision; give OWNER/NAME, and the branch by --revision")
    directory = resolve_model(model)
    contents = shared_contents(directory)
    try:
        from huggingface_hub import get_token
    except ImportError:
        raise ValueError("`push` needs huggingface_hub: pip install 'bltkit[hub]'") from None
    with hub_or_cache() as out_of_reach, quiet_hub(bars=False):
        if out_of_reach is not None:
            raise ValueError(f"{repo}: nothing was pushed: {out_of_reach} (check the network)")
        if get_token() is None:
            raise ValueError(f"{repo}: nothing was pushed: no token; log in (`hf auth login`, or HF_TOKEN)")
        try:
            upload = _Upload(name.repo, revision or "main", contents, progress)
            upload.prepare(private)
            commit = upload.commit(message or f"Upload with bltkit {version('bltkit')}")
        except _NotPushedError as error:
            reason = str(error)
        except Exception as error:  # the hub's client raises its own, httpx's and the system's errors alike
            reason = hub_reason(error, name.repo, revision, writing=True)
        else:
            return Pushed(
                repo=name.repo,
                url=upload.url,
                commit=commit,
                revision=upload.revision,
                private=upload.private,
                files=tuple(upload.contents),
                removed=upload.stale,
                num_bytes=sum(map(_size, upload.contents.values())),
                remarks=() if upload.private else tuple(_remarks(directory)),
            )
    raise ValueError(f"{repo}: nothing was pushed: {reason}")


def shared_contents(directory: Path) -> dict[str, Path | bytes]:
    """Paths of the files of a checkpoint that others get, or their contents, by name.

    Raises ValueError for a checkpoint that is damaged, incomplete or does not load.
    """
    listed, card = listed_files(directory), None
    for line in damages(directory, listed):
        raise ValueError(f"{directory} is not pushed: {line}")
    if is_token_model(directory):
        token_config(directory)
    else:
        bundle = load_bundle(directory, device="meta")
        if not (directory / CARD).is_file():
            card = model_card(bundle, licence_files(directory), _stored_form(directory)).encode()
    weights = {path.name for path in weight_files(directory)}
    names = sorted(
        path.name
        for path in directory.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and (path.name in (*listed, *OTHER_FILES, *weights) or is_licence(path.name))
    )
    contents: dict[str, Path | bytes] = {name: directory / name for name in names}
    return contents if card is None else contents | {CARD: card}


class _NotPushedError(Exception):
    """A reason of ours not to push."""


class _Upload:
    """One commit to a repository. Errors are those of the hub's client, and `_NotPushedError`."""

    def __init__(self, repo: str, revision: str, contents: dict[str, Path | bytes], progress: Tell | None) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(library_name="bltkit")
        self.repo, self.revision, self.contents, self.progress = repo, revision, contents, progress
        self.url, self.private = f"{self.api.endpoint}/{repo}", False
        self.stale: tuple[str, ...] = ()
        """Weights and manifests there that the checkpoint does not have."""

    def prepare(self, private: bool) -> None:
        """Create repository and branch where there are none, and see what lies there."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            self.private = bool(self.api.model_info(self.repo).private)
        except RepositoryNotFoundError:
            self.api.create_repo(self.repo, private=private, exist_ok=False)
            self.private = private
        if private and not self.private:
            raise _NotPushedError(f"{self.url} exists and is public; make it private there, or push to another name")
        if self.revision != "main":
            self.api.create_branch(self.repo, branch=self.revision, exist_ok=True)
        there = self.api.list_repo_files(self.repo, revision=self.revision)
        checkpoint = [name for name in there if "/" not in name and (name.endswith(".safetensors") or name == INDEX)]
        checkpoint += [MANIFEST] if MANIFEST in there else []
        self.stale = tuple(name for name in checkpoint if name not in self.contents)
        if CARD in there and self._keeps_card():
            self.contents.pop(CARD, None)

    def _keeps_card(self) -> bool:
        """Was the card there edited, and the one here was not."""
        card = self.contents.get(CARD)
        if isinstance(card, Path) and not is_generated(card):
            return False
        return not is_generated(Path(self.api.hf_hub_download(self.repo, CARD, revision=self.revision)))

    def commit(self, message: str) -> str:
        """Upload all files, then make them one commit; returns its hash."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = [
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in self.contents.items()
        ]
        done, total = 0, sum(map(_size, self.contents.values()))
        for addition in additions:
            self.api.preupload_lfs_files(self.repo, [addition], revision=self.revision, free_memory=False)
            done += _size(self.contents[addition.path_in_repo])
            if self.progress is not None:
                self.progress(done, total)
        deletions = [CommitOperationDelete(name) for name in self.stale]
        info = self.api.create_commit(
            self.repo, [*additions, *deletions], commit_message=message, revision=self.revision
        )
        return str(info.oid)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _stored_form(directory: Path) -> str | None:
    """The form of weights that bltkit.json names."""
    return read_json_object(directory / MANIFEST).get("weights") if (directory / MANIFEST).exists() else None


def _remarks(directory: Path) -> list[str]:
    """Notes for whoever publishes the directory."""
    if not (directory / MANIFEST).exists():
        return []
    path = _absolute_path(read_json_object(directory / MANIFEST).get("record"))
    return (
        [] if path is None else [f"note: {MANIFEST} names paths of this machine, such as {path}; anybody can read it"]
    )


def _absolute_path(value: Any) -> str | None:
    """The first absolute path among plain values."""
    if isinstance(value, str):
        return value if len(value) > 1 and (value.startswith("/") or PureWindowsPath(value).is_absolute()) else None
    items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return next((path for path in map(_absolute_path, items) if path is not None), None)
