"""`blt study entropy`: does the entropy that places patches follow the information in a text?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.study_options import Out, Report, Threads, circumstances, measured, named, only_report, show
from bltkit.cli.terminal import Json, progress_bar


def entropy(
    out: Out,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A MODEL with an entropy model and a rule; default: bltkit:tiny."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE or folder (repeatable); default: a text of each type that every Python has."),
    ] = None,
    num_bytes: Annotated[
        int | None, typer.Option("--bytes", help="Of each text, in stretches all over it; default: 65536.")
    ] = None,
    primed_bytes: Annotated[
        int | None, typer.Option(help="Of each text, for the context-mixing model to learn from first; default: 0.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to compare borders with; default: the package's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn at random; default: 0.")] = None,
    threads: Threads = None,
    report: Report = False,
    as_json: Json = False,
) -> None:
    """Entropy beside surprisal, its calibration, and its borders beside others of the same rate."""
    options: dict[str, Any] = {
        "--model": model,
        "--text": text,
        "--bytes": num_bytes,
        "--primed-bytes": primed_bytes,
        "--tokenizer": tokenizer,
        "--seed": seed,
        "--threads": threads,
    }
    if report:
        only_report(options)
        _report(measured(out), out, as_json)
        return
    fields = {"bytes": num_bytes, "primed_bytes": primed_bytes, "seed": seed}
    given = {name: value for name, value in fields.items() if value is not None}
    _report(
        _measure(
            given, "bltkit:tiny" if model is None else model, named("--text", text or []), out, tokenizer, threads
        ),
        out,
        as_json,
    )


def _measure(
    fields: dict[str, Any], model: str, texts: dict[str, str], out: Path, tokenizer: Path | None, threads: int | None
) -> list[dict[str, Any]]:
    import torch

    from bltkit.config import parse
    from bltkit.study.entropy_quality import EntropyPlan, run

    plan: EntropyPlan = parse(EntropyPlan, fields, "study entropy")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar("entropy") as progress:
        return run(plan, model, texts, out, circumstances(), tokenizer=tokenizer, progress=progress)


def _report(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Tables on stdout and in a file, a page, pictures in files; without matplotlib no pictures."""
    from bltkit.study.entropy_quality import PAGE, TABLE, table, write_report

    show(rows, out / TABLE, table, write_report, as_json, pages=[out / PAGE])
