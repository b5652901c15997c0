"""`blt study fast-decoding`: speed, passes, gigabytes and quality of all ways of decoding."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.study_options import Out, Report, Threads, circumstances, measured, named, only_report, show
from bltkit.cli.terminal import Json, lists, progress_bar, say


def fast_decoding(
    out: Out,
    model: Annotated[list[str] | None, typer.Option(help="NAME=MODEL, such as d8=bltkit:tiny-d (repeatable).")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE or folder (repeatable); one whose name begins with code is Python."),
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="From each text, evenly spread; default: 32.")] = None,
    prompt_bytes: Annotated[int | None, typer.Option(help="Default: 200.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Of a continuation, at most; default: 256.")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="0 is greedy (repeatable); default: 0 and 0.8.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the prompts and their continuations; default: 0.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Sampled continuations of each prompt; default: 1.")] = None,
    grid: Annotated[str | None, typer.Option(help="Ways of decoding: small (the default), full, or ar alone.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            callback=lists("strategies"),
            is_eager=True,
            help="A further way, such as diffusion:alpha=0.6 (repeatable); `list` shows them.",
        ),
    ] = None,
    heldout_bytes: Annotated[
        int | None, typer.Option(help="Of each text's own continuations, to score; default: 65536.")
    ] = None,
    threads: Threads = None,
    report: Report = False,
    as_json: Json = False,
) -> None:
    """Speed, passes, gigabytes and quality of all ways of decoding, of models trained alike."""
    options: dict[str, Any] = {
        "--model": model,
        "--text": text,
        "--prompts": prompts,
        "--prompt-bytes": prompt_bytes,
        "--max-bytes": max_bytes,
        "--temperature": temperature,
        "--seed": seed,
        "--seeds": seeds,
        "--grid": grid,
        "--setting": setting,
        "--heldout-bytes": heldout_bytes,
        "--threads": threads,
    }
    if report:
        only_report(options)
        _report(measured(out), out, as_json)
        return
    if not model or not text:
        missing = "--model NAME=MODEL" if not model else "--text NAME=FILE"
        raise ValueError(f"study 'fast-decoding' needs {missing}, as in --model plain=bltkit:tiny --text prose=FILE")
    fields = {
        "prompts": prompts,
        "prompt_bytes": prompt_bytes,
        "max_bytes": max_bytes,
        "temperatures": temperature,
        "seed": seed,
        "seeds": seeds,
        "grid": grid,
        "settings": setting,
        "heldout_bytes": heldout_bytes,
    }
    given_fields = {field: value for field, value in fields.items() if value is not None}
    _report(_measure(given_fields, named("--model", model), named("--text", text), out, threads), out, as_json)


def _measure(
    fields: dict[str, Any], models: dict[str, str], texts: dict[str, str], out: Path, threads: int | None
) -> list[dict[str, Any]]:
    import torch

    from bltkit.config import parse
    from bltkit.study.fast_decoding import FastDecodingPlan, run

    plan: FastDecodingPlan = parse(FastDecodingPlan, fields, "study fast-decoding")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar("fast-decoding") as progress:
        return run(plan, models, texts, out, circumstances(), progress=progress, say=say)


def _report(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Table on stdout and in a file, pictures in files; without matplotlib the table alone."""
    from bltkit.study.fast_decoding import TABLE, table, write_report

    show(rows, out / TABLE, table, write_report, as_json)
