"""The verb `eval`: benchmarks, byte-exact, of our models and of token models; `blt study evaluations` compares runs."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.terminal import (
    Backend,
    Device,
    Json,
    ScorerWeights,
    Threads,
    Weights,
    lists,
    print_json,
    print_text,
    progress_bar,
    run_on,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bltkit.eval.benchmark_run import PairedEvaluation


def evaluate(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint directory, bltkit:NAME, hf:OWNER/NAME; token:DIR is a Hugging Face token model.",
        ),
    ] = "bltkit:tiny",
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "--task",
            callback=lists("tasks"),
            is_eager=True,
            help="NAME, NAME:PART, NAME:shots=2, with commas between. `list` shows them.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="The first so many items of a task, or of each of its parts.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of the tasks' files (repeatable); default: the Hugging Face hub's data sets."),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            callback=lists("noises"),
            is_eager=True,
            help="Such as drop:0.1, uppercase or drop:0.1+ocr:0.2; `list` shows them.",
        ),
    ] = None,
    paired: Annotated[
        Path | None, typer.Option(help="Lines of `clean` and `noisy` text: what real noise costs on the same items.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Directory for results.json, every item's record and a page."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the evaluation in --out.")] = False,
    context: Annotated[
        int | None, typer.Option(help="Bytes the model is shown at once; default: a training row.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            callback=lists("strategies"),
            is_eager=True,
            help="How a BLT writes, such as diffusion:alpha=0.7; default: ar. `list` shows them.",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Bytes (tokens) computed at once; it bounds memory.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap; a task's own is NAME:seed=1.")] = 0,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="humaneval, mbpp: run what the model writes, in a sandbox.")
    ] = False,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    backend: Backend = "eager",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on benchmarks. `--tasks list` shows them all, with their sources."""
    place = run_on(model, device, threads, "rows")
    from bltkit.eval.benchmark_run import PairedEvaluation
    from bltkit.eval.benchmark_run import evaluate as run

    with progress_bar("evaluating", "items") as progress:
        evaluation = run(
            model,
            tasks or (),
            data=data or (),
            limit=limit,
            noise=noise,
            paired=paired,
            seed=seed,
            out=out,
            resume=resume,
            context=context,
            strategy=strategy,
            batch=batch,
            weights=weights,
            scorer_weights=scorer_weights,
            backend=backend,
            device=str(place),
            allow_code_execution=allow_code_execution,
            command=shlex.join(["blt", *sys.argv[1:]]),
            progress=progress,
            say=say,
        )
    if as_json:
        print_json(evaluation.to_json())
    elif isinstance(evaluation, PairedEvaluation):
        _show_pairs(evaluation)
    else:
        print_table([task_cells(name, result) for name, result in evaluation.results.items()])


def _show_pairs(pairs: "PairedEvaluation") -> None:
    lines = [task_cells(name, result) for name, result in pairs.texts.results.items()]
    for name, gap in pairs.gaps.items():
        assert pairs.clean is not None and pairs.noisy is not None
        lines += [
            task_cells(f"{name}, clean", pairs.clean.results[name]),
            task_cells(f"{name}, noisy", pairs.noisy.results[name]),
            task_cells(f"{name}, gap", gap),
        ]
    print_table(lines)


def task_cells(name: str, result: "Mapping[str, Any]") -> list[str]:
    """A line of the table. An interval that is missing gives its reason where the results have it."""
    value, interval, chance = result["value"], result["interval"], result.get("chance")
    method, contexts, cut = result.get("interval_method"), result.get("contexts"), result.get("cut_contexts")
    if interval is not None and interval[0] == interval[1]:
        interval = None  # of version 0.1.0, whose intervals lose their width where the items show no spread
    ends = (method or "-") if interval is None else f"{interval[0]:.4f} .. {interval[1]:.4f}"
    whole = "" if not contexts else f" of {contexts:,}"
    return [
        name,
        f"{result['n']:,}",
        str(result["metric"]),
        "-" if value is None else f"{value:.4f}",
        ends,
        "-" if chance is None else f"{chance:.4f}",
        "-" if cut is None or contexts == 0 else f"{cut:,}{whole}" if cut else "0",
    ]


HEADS = ("task", "n", "metric", "value", "95 %", "chance", "cut")
RIGHT = ("n", "value", "chance", "cut")
"""Columns of numbers, which are aligned on their right."""


def print_table(lines: list[list[str]]) -> None:
    """Lines of `task_cells` under their heads."""
    table = [list(HEADS), *lines]
    widths = [max(len(line[at]) for line in table) for at in range(len(HEADS))]
    for line in table:
        cells = [
            cell.rjust(width) if head in RIGHT else cell.ljust(width)
            for cell, width, head in zip(line, widths, HEADS, strict=True)
        ]
        print_text("  ".join(cells).rstrip())


def evaluations(
    directories: Annotated[
        list[Path], typer.Argument(help="Directories of `blt eval --out`; the others are compared with the first.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page, such as runs.html; default for a single one: its report.html.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page: of one evaluation, or of several with their differences to the first."""
    from bltkit.eval.report import write_comparison, write_page

    if out is not None and out.suffix != ".html":
        raise ValueError(f"--out {out}: a page's name ends in .html")
    if len(directories) == 1:
        place = write_page(directories[0], out)
        if as_json:
            print_json({"page": str(place)})
    else:
        if out is None:
            raise ValueError("a comparison needs a place for its page, such as --out runs.html")
        comparison = write_comparison(directories, out)
        place = out
        if as_json:
            print_json({"page": str(place)} | comparison.to_json())
        else:
            print_text(comparison.summary(), end="")
    say(f"wrote {place}")
