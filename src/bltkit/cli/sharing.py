"""The verbs `push` and `pull`: checkpoints to the Hugging Face hub and back."""

from pathlib import Path
from typing import Annotated

import typer

from bltkit.cli.terminal import Json, progress_bar, show

Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")]


def push(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint directory, directory of a training run, or bltkit:NAME.")
    ],
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="Create the repository for its owner alone.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="R", help="Branch; created where there is none. Default: main.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="M", help="Message of the commit.")] = None,
    as_json: Json = False,
) -> None:
    """Upload a checkpoint to the Hugging Face hub in one commit, after verifying it; needs the extra `hub`.

    HF_TOKEN or `hf auth login` says who you are, HF_ENDPOINT which hub.
    """
    from bltkit.share import push as run

    with progress_bar("push", "bytes") as progress:
        result = run(model, repo, private=private, revision=revision, message=message, progress=progress)
    show(result, as_json)


def pull(
    repo: Repo,
    revision: Annotated[
        str | None, typer.Option(metavar="R", help="Branch, tag or commit. Default: the main branch.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Directory to write; it must not exist. Default: HF_HOME."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a checkpoint from the Hugging Face hub and verify every file of it; needs the extra `hub`.

    Rerun the command to resume after an interruption. `--model hf:OWNER/NAME@REVISION` finds what was fetched.
    """
    from bltkit.share import pull as run

    with progress_bar("pull", "bytes") as progress:
        result = run(repo, revision=revision, out=out, progress=progress)
    show(result, as_json)
