"""Verbs that make a model or look at one: `train`, `check`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bltkit.cli.terminal import Json, print_json, say, show


def train(
    config: Annotated[Path, typer.Argument(help="TOML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; default: runs/out/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train an entropy, boundary or token model or a BLT; `torchrun -m bltkit train ...` trains on many processes."""
    from bltkit.config import load_toml, parse
    from bltkit.train import TrainConfig
    from bltkit.train import train as run
    from bltkit.train.parallel import is_main

    parsed: TrainConfig = parse(TrainConfig, load_toml(config, overrides or []), str(config))
    result = run(parsed, out or Path("runs/out") / config.stem, resume=resume, say=say)
    if as_json and is_main():
        print_json(asdict(result))
    elif is_main():
        bits = f"{result.bits_per_byte:.4f} bits per byte ({result.measured_on})"
        print(f"{result.out}: step {result.steps}, {bits}, {result.bytes_seen} bytes seen")
    if result.interrupted:
        raise typer.Exit(130)


def check(
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint directory, bltkit:NAME or hf:OWNER/NAME; or a directory of annotated shards or of a "
            "mapped corpus, whose files are verified."
        ),
    ],
    files: Annotated[list[str] | None, typer.Option(help="Texts to check with; default: the standard library.")] = None,
    as_json: Json = False,
) -> None:
    """Verify a checkpoint's files and look for the known failures of a BLT; each with cause and remedy."""
    from bltkit.checkpoint import resolve_model
    from bltkit.data import read_documents
    from bltkit.eval.health import check_directory

    documents = [document.data for document in read_documents(files)] if files else None
    directory = resolve_model(model)
    with Console(stderr=True).status("loading") as status:
        report = check_directory(directory, documents, progress=status.update)
    show(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)
