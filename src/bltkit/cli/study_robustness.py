"""`blt study robustness`: what noise in the text costs models, over its intensity and side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.study_options import Out, Report, Threads, circumstances, measured, named, only_report
from bltkit.cli.terminal import Json, lists, print_json, print_text, progress_bar, say

NOISES = ("antspeak", "drop", "randomcase", "repeat", "uppercase")


def robustness(
    out: Out,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL, such as blt=bltkit:tiny or llama=token:DIR (repeatable).")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--tasks",
            callback=lists("tasks"),
            is_eager=True,
            help="As `blt eval --tasks` has them (repeatable); `list` shows them.",
        ),
    ] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(
            callback=lists("noises"),
            is_eager=True,
            help=f"Such as drop or ocr:0.2+uppercase:1 (repeatable); default: {', '.join(NOISES)}. `list` shows them.",
        ),
    ] = None,
    paired: Annotated[list[Path] | None, typer.Option(help="A .jsonl of clean and noisy texts (repeatable).")] = None,
    intensity: Annotated[
        list[float] | None,
        typer.Option(help="Beside each noise's own one (repeatable); default: 0.1, 0.3, 0.6 and 1."),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Directory of task files (repeatable); default: hub.")] = None,
    limit: Annotated[int | None, typer.Option(help="Items of a task's group, at most; default: all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the bootstrap; a noise has its own, drop:0.1,seed=3.")] = None,
    threads: Threads = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run programs that models write, in a sandbox.")
    ] = False,
    report: Report = False,
    as_json: Json = False,
) -> None:
    """What noise in the text costs models: scores over its intensity, and what is kept above chance."""
    options: dict[str, Any] = {
        "--model": model,
        "--task": task,
        "--noise": noise,
        "--paired": paired,
        "--intensity": intensity,
        "--data": data,
        "--limit": limit,
        "--seed": seed,
        "--threads": threads,
    }
    if report:
        only_report(options)
        _report(measured(out), out, as_json)
        return
    if not model or not task:
        missing = "--model NAME=MODEL" if not model else "--task NAME"
        raise ValueError(f"study 'robustness' needs {missing}, as in --model blt=bltkit:tiny --task hellaswag")
    noises = [*(noise or (() if paired else NOISES)), *(f"paired:{file}" for file in paired or ())]
    fields = {"tasks": task, "noises": noises, "intensities": intensity, "limit": limit, "seed": seed}
    given = {name: value for name, value in fields.items() if value is not None}
    _report(_measure(given, named("--model", model), data or [], out, threads, allow_code_execution), out, as_json)


def _measure(
    fields: dict[str, Any], models: dict[str, str], data: list[str], out: Path, threads: int | None, execute: bool
) -> list[dict[str, Any]]:
    import torch

    from bltkit.config import parse
    from bltkit.eval.dataset_source import Place
    from bltkit.study.robustness import RobustnessPlan, run

    plan: RobustnessPlan = parse(RobustnessPlan, fields, "study robustness")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar("robustness") as progress:
        return run(plan, models, Place.of(data), out, circumstances(), execute=execute, progress=progress, say=say)


def _report(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Table on stdout and in a file, and the page."""
    from bltkit.study.robustness import PAGE, TABLE, table, write_report

    written = write_report(rows, out)
    if as_json:
        print_json({"rows": rows, "page": str(out / PAGE), "table": str(out / TABLE)})
    else:
        print_text(table(rows), end="")
    for place in written:
        say(f"wrote {place}")
