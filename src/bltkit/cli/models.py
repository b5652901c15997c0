"""Verbs that make a model or look at one: `train`, `check`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bltkit.cli.terminal import Json, print_json, say, show


def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; default: runs/out/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Print every config key: type, default, meaning.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema of the config, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """Train an entropy, boundary or token model or a BLT; `torchrun -m bltkit train ...` trains on many processes."""
    if keys or schema:
        from bltkit.train.reference import keys_text, schema_text

        print(schema_text() if schema else keys_text())
        return
    if config is None:
        raise ValueError("name a training config (TOML); `blt train --keys` shows what it may hold")

    from bltkit.config import load_toml, parse
    from bltkit.train import TrainConfig
    from bltkit.train import train as run
    from bltkit.train.parallel import is_main

    parsed: TrainConfig = parse(TrainConfig, load_toml(config, overrides or []), str(config))
    result = run(parsed, out or Path("runs/out") / config.stem, resume=resume, say=say)
    if as_json and is_main():
        print_json(asdict(result))
    elif is_main():
        bits = f"{result.bits_per_byte:.4f} bits per byte"
        print(f"{result.out}: step {result.steps}, {bits}, {result.bytes_seen} bytes seen")
    if result.interrupted:
        raise typer.Exit(130)


def check(
    model: Annotated[str, typer.Argument(help="Checkpoint directory, bltkit:NAME or hf:OWNER/NAME.")],
    files: Annotated[list[str] | None, typer.Option(help="Texts to check with; default: the standard library.")] = None,
    as_json: Json = False,
) -> None:
    """Look for the known failures of a BLT; each with cause and remedy."""
    from bltkit.checkpoint import load_bundle, resolve_model
    from bltkit.data import read_documents
    from bltkit.eval.health import check as look

    documents = [document.data for document in read_documents(files)] if files else None
    with Console(stderr=True).status("loading") as status:
        report = look(load_bundle(resolve_model(model)), documents, progress=status.update)
    show(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)
