"""`blt study ablation NAME`: what single choices are worth, each by runs that differ in nothing else."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.study_options import Out, Report, Threads, circumstances, measured, named, only_report, show
from bltkit.cli.terminal import Json, lists, progress_bar, say

MAX_SEEDS = 1000
"""More is a mistake."""


def ablation(
    name: Annotated[
        str | None,
        typer.Argument(
            help="optimizer, patching, ngrams, cross-attention, local, entropy-model or scripts; --report: all."
        ),
    ] = None,
    out: Out = Path("ablation"),
    steps: Annotated[int | None, typer.Option(help="Of every training; default: 300.")] = None,
    scorer_steps: Annotated[int | None, typer.Option(help="Of the entropy model; default: 300.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many, from 0 on; default: 1.")] = None,
    patch_bytes: Annotated[float | None, typer.Option(help="Mean patch; default: 4.5, or that of words.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="NAME=SOURCE, a part of the mixture (repeatable); default: stdlib.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            callback=lists("rules"), is_eager=True, help="In place of the calibrated entropy rule; `list` shows all."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE on top of every training, such as model.encoder.window=16 (repeatable)."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A variant (repeatable); default: all.")] = None,
    threads: Threads = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep every run's checkpoint.")] = False,
    report: Report = False,
    as_json: Json = False,
) -> None:
    """Small trainings that differ in one thing, at an equal rate of patches and with the same seeds."""
    options: dict[str, Any] = {
        "--steps": steps,
        "--scorer-steps": scorer_steps,
        "--seeds": seeds,
        "--patch-bytes": patch_bytes,
        "--text": text,
        "--rule": rule,
        "--set": set_,
        "--only": only,
        "--threads": threads,
        "--keep-models": keep_models or None,
    }
    from bltkit.study.ablation import ABLATIONS, ablation_named

    if report:
        only_report(options)
        rows = measured(out)
        _report([row for row in rows if name in (None, row["ablation"])], out, as_json)
        return
    if name is None:
        raise ValueError(f"study 'ablation' needs the name of one: {', '.join(ABLATIONS)}")
    found = ablation_named(name)
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise ValueError(f"--seeds {seeds}: train with 1 to {MAX_SEEDS:,} seeds")
    fields = {
        "steps": steps,
        "scorer_steps": scorer_steps,
        "seeds": None if seeds is None else list(range(seeds)),
        "patch_bytes": patch_bytes,
        "texts": named("--text", text) if text else None,
        "rule": rule,
        "threads": threads,
        "keep_models": keep_models,
        "changes": set_,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    _run(found, given, out, only or [], as_json)


def _run(ablation: Any, fields: dict[str, Any], out: Path, only: list[str], as_json: bool) -> None:
    from bltkit.config import parse
    from bltkit.study.ablation import AblationSettings, run

    settings: AblationSettings = parse(AblationSettings, fields, "study ablation")
    with progress_bar(ablation.name) as progress:
        run(ablation, settings, out, circumstances(), only=only, progress=progress, say=say)
    _report(measured(out), out, as_json)


def _report(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Tables on stdout and in a file, pictures in files; without matplotlib no pictures."""
    from bltkit.study.ablation import PAGE, table, write_report

    show(rows, out / PAGE, table, write_report, as_json)
