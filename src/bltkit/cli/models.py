"""Verbs that make a model or look at one: `train`, `check`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.terminal import (
    Device,
    Json,
    ScorerWeights,
    Threads,
    Weights,
    print_json,
    print_text,
    progress_bar,
    run_on,
    say,
    show,
    threads_option,
)


def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Directory of the run; default: runs/out/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="In place of trainer.device.")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", callback=threads_option, help="In place of trainer.threads.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Print every config key: type, default, meaning.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema of the config, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """Train an entropy, boundary or token model or a BLT; `torchrun -m bltkit train ...` trains on many processes."""
    if keys or schema:
        from bltkit.train.reference import keys_text, schema_text

        print_text(schema_text() if schema else keys_text())
        return
    if config is None:
        raise ValueError("name a training config (TOML); `blt train --keys` shows what it may hold")

    from bltkit.train import train as run
    from bltkit.train.parallel import is_main

    result = run(config, out, overrides=overrides or (), device=device, threads=threads, resume=resume, say=say)
    if as_json and is_main():
        print_json(asdict(result))
    elif is_main():
        bits = f"{result.bits_per_byte:.4f} bits per byte ({result.measured_on})"
        print_text(f"{result.out}: step {result.steps}, {bits}, {result.bytes_seen} bytes seen")
    if result.interrupted:
        raise typer.Exit(130)


def check(
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint directory, bltkit:NAME or hf:OWNER/NAME; a training run, of which all checkpoints are "
            "verified; or a directory of annotated shards or of a mapped corpus, whose files are verified."
        ),
    ],
    files: Annotated[list[str] | None, typer.Option(help="Texts to check with; default: the standard library.")] = None,
    patch_bytes: Annotated[
        float | None,
        typer.Option(help="Also find the threshold for this mean patch size, as `blt calibrate` does; store nothing."),
    ] = None,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Verify a checkpoint's files and look for the known failures of a BLT; each with cause and remedy."""
    place = run_on(model, device, threads, "rows")
    from bltkit.checkpoint import resolve_model
    from bltkit.data import read_texts
    from bltkit.diagnostics.health import check_directory
    from bltkit.diagnostics.thresholds import WantedSize

    wanted = None if patch_bytes is None else WantedSize(patch_bytes, files or (), model)
    documents = read_texts(files) if files else None
    with progress_bar("check") as progress:
        progress.stage("loading")
        report = check_directory(
            resolve_model(model),
            documents,
            wanted=wanted,
            model=model,
            files=files or (),
            device=place,
            progress=progress.stage,
            weights=weights,
            scorer_weights=scorer_weights,
        )
    show(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)


def models(as_json: Json = False) -> None:
    """List the models that the package carries; `--model bltkit:NAME` takes them."""
    from bltkit.checkpoint import load_bundle, resolve_model
    from bltkit.checkpoint.locate import EMBEDDED, embedded_models

    rows: list[dict[str, Any]] = []
    for name in embedded_models():
        bundle = load_bundle(resolve_model(f"{EMBEDDED}{name}"), device="meta")
        modules = [module for module in (bundle.model, bundle.scorer) if module is not None]
        weights = sum(weight.numel() for module in modules for weight in module.parameters())
        rows.append({"model": f"{EMBEDDED}{name}", "weights": weights, "rule": str(bundle.rule)})
    if as_json:
        print_json({"models": rows})
    else:
        for row in rows:
            print_text(f"{row['model']:16}{row['weights'] / 1e6:6.1f} M weights, rule {row['rule']}")
