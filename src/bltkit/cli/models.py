"""Verbs that make a model or look at one: `train`, `calibrate`, `check`, `flops`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bltkit.cli.terminal import Json, Model, print_json, progress_bar, say, show


def train(
    config: Annotated[Path, typer.Argument(help="TOML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; default: runs/out/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train an entropy model, a boundary model or a BLT."""
    from bltkit.config import load_toml, parse
    from bltkit.train import TrainConfig
    from bltkit.train import train as run

    parsed: TrainConfig = parse(TrainConfig, load_toml(config, overrides or []), str(config))
    result = run(parsed, out or Path("runs/out") / config.stem, resume=resume, say=say)
    if as_json:
        print_json(asdict(result))
    else:
        bits = f"{result.bits_per_byte:.4f} bits per byte"
        print(f"{result.out}: step {result.steps}, {bits}, {result.bytes_seen} bytes seen")
    if result.interrupted:
        raise typer.Exit(130)


def calibrate(
    files: Annotated[list[str], typer.Option(help="Texts: files, globs, jsonl, `stdlib` (repeatable).")],
    patch_bytes: Annotated[float, typer.Option(help="Wanted mean bytes per patch.")],
    model: Model = "bltkit:tiny",
    rule: Annotated[str | None, typer.Option(help="Rule whose threshold is sought; default: the model's.")] = None,
    as_json: Json = False,
) -> None:
    """Find the threshold for a mean patch size and store it with the model."""
    from bltkit.study.calibration import calibrate_model

    with progress_bar("entropies") as progress:
        result = calibrate_model(model, files, patch_bytes, rule, progress)
    show(result, as_json)


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


def flops(
    target: Annotated[str, typer.Argument(help="A training config (TOML) or a MODEL.")],
    patch_bytes: Annotated[float | None, typer.Option(help="Bytes per patch; default: the model's, else 4.5.")] = None,
    context: Annotated[int, typer.Option(help="Bytes in the row.")] = 8192,
    as_json: Json = False,
) -> None:
    """Parameters and floating-point operations per byte, by module."""
    from bltkit.study.flops import ledger_of

    show(ledger_of(target, patch_bytes, context), as_json)
