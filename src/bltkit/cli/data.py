"""Verbs that prepare data: `annotate`, `calibrate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bltkit.cli.terminal import (
    Device,
    Json,
    Model,
    ScorerWeights,
    Threads,
    Weights,
    lists,
    progress_bar,
    run_on,
    say,
    show,
    workers_option,
)


class AnnotationEngine(StrEnum):
    """Who computes the shards."""

    local = "local"
    ray = "ray"


class EntropyDtype(StrEnum):
    """What entropies are stored in."""

    fp32 = "fp32"
    fp16 = "fp16"


def annotate(
    config: Annotated[Path, typer.Argument(help="TOML file; of a training config only data.sources counts.")],
    entropy: Annotated[str, typer.Option(help="MODEL whose entropy model is used.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Directory of the shards; of the same job: it is finished."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="data.sources=...")] = None,
    engine: Annotated[AnnotationEngine, typer.Option(help="This process, or a Ray cluster.")] = AnnotationEngine.local,
    dtype: Annotated[
        EntropyDtype, typer.Option(help="fp16 takes a threshold that `blt calibrate` has snapped.")
    ] = EntropyDtype.fp32,
    rule: Annotated[
        str | None,
        typer.Option(
            callback=lists("rules"),
            is_eager=True,
            help="Rule of the stored patches; default: the model's. `list` shows all.",
        ),
    ] = None,
    shard_bytes: Annotated[int | None, typer.Option(help="Bytes of text in a shard; default: 64 MiB.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            callback=workers_option, help="Cores; ray: processes of a core or GPU each. Default: all that there are."
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compute entropies and patches of a corpus once and store them beside the text."""
    place = run_on(None, device, None, "rows")
    from bltkit.annotate import SHARD_BYTES
    from bltkit.annotate import annotate as run
    from bltkit.config import load_toml, parse
    from bltkit.data import DataConfig
    from bltkit.patching import parse_rule

    data: DataConfig = parse(DataConfig, load_toml(config, overrides or []).get("data", {}), f"{config}: data")
    with progress_bar("annotate", "bytes") as progress:
        result = run(
            data.sources,
            entropy,
            out,
            engine=engine.value,
            rule=parse_rule(rule, "--rule") if rule else None,
            dtype=dtype.value,
            shard_bytes=SHARD_BYTES if shard_bytes is None else shard_bytes,
            workers=workers,
            device=str(place),
            progress=progress,
            say=say,
        )
    show(result, as_json)


def calibrate(
    patch_bytes: Annotated[float, typer.Option(help="Wanted mean bytes per patch.")],
    files: Annotated[list[str] | None, typer.Option(help="Texts: files, globs, jsonl, `stdlib` (repeatable).")] = None,
    annotated: Annotated[
        Path | None, typer.Option(help="Shards of `blt annotate` with this model, in place of files.")
    ] = None,
    model: Model = "bltkit:tiny",
    rule: Annotated[
        str | None,
        typer.Option(
            callback=lists("rules"),
            is_eager=True,
            help="Rule whose threshold is sought; default: the model's. `list` shows all.",
        ),
    ] = None,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the threshold for a mean patch size and store it with the model."""
    place = run_on(model, device, threads, "rows")
    from bltkit.views.calibration import calibrate_model

    with progress_bar("entropies", "stretches") as progress:
        result = calibrate_model(
            model,
            files or [],
            patch_bytes,
            rule,
            progress,
            annotated=annotated,
            device=place,
            weights=weights,
            scorer_weights=scorer_weights,
        )
    show(result, as_json)
