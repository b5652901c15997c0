"""`blt study scaling`: patches against tokens over sizes and training budgets, at matched FLOPs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.study_options import Report, circumstances, measured, only_report, show
from bltkit.cli.terminal import Json, print_json, print_text, progress_bar, say

if TYPE_CHECKING:
    from bltkit.study.scaling import ScalingPlan


def scaling(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Directory of rows, runs and pictures; several processes may share it, a study goes on there.",
        ),
    ] = None,
    plan: Annotated[str | None, typer.Option(help="cpu (the default), gpu, cluster, or a TOML file.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Text in place of the plan's, as in data.sources (repeatable).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE on top of the plan, such as seeds=1 (repeatable).")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="FAMILY:SIZE:SEED, of which each may be *, such as 'bpe-4096:s:*' (repeatable)."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no further run after so many minutes.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and what they cost; train nothing.")
    ] = False,
    rates: Annotated[
        bool,
        typer.Option("--rates", help="Measure how long a byte of training takes, of all models in turn; best quiet."),
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="With --dry-run: training GFLOP/s, in place of the plan's.")
    ] = None,
    report: Report = False,
    as_json: Json = False,
) -> None:
    """Bits per byte over sizes and training FLOPs, of patches by several rules and of BPE tokens."""
    options: dict[str, Any] = {
        "--plan": plan,
        "--source": source,
        "--set": set_,
        "--only": only,
        "--minutes": minutes,
        "--rate": rate,
        "--dry-run": dry_run or None,
        "--rates": rates or None,
    }
    if report:
        only_report(options)
        place = _needed(out)
        _report(measured(place), place, as_json)
        return
    if rate is not None and not dry_run:
        raise ValueError("--rate is for --dry-run: a run takes the time that it takes")
    from bltkit.study.row_file import ROWS
    from bltkit.study.scaling import read_plan

    parsed = read_plan("cpu" if plan is None else plan, set_ or [])
    if source:
        from bltkit.data import parse_source

        parsed = parsed.replace(sources=tuple(parse_source(one) for one in source))
    if dry_run:
        _cost(parsed, only or [], rate, as_json)
        return
    place = _needed(out)
    if rates and minutes is not None:
        raise ValueError("--minutes is for runs; --rates takes a few minutes, leave it out")
    _measure(parsed, place, only or [], minutes, rates)
    _report(measured(place) if (place / ROWS).is_file() else [], place, as_json)


def _needed(out: Path | None) -> Path:
    if out is None:
        raise ValueError("study 'scaling' needs --out DIR (or --dry-run, which tells what it would cost)")
    return out


def _cost(plan: "ScalingPlan", only: list[str], rate: float | None, as_json: bool) -> None:
    from bltkit.study.scaling import cost_of

    found = cost_of(plan, plan.chosen(only), None if rate is None else rate * 1e9)
    if as_json:
        print_json(found.to_json())
    else:
        print_text(found.summary())


def _measure(plan: "ScalingPlan", out: Path, only: list[str], minutes: float | None, rates: bool) -> None:
    from bltkit.study.scaling import measure_rates, run

    with progress_bar("scaling") as progress:
        # Threads are the plan's, in every row.
        around = {name: value for name, value in circumstances().items() if name != "threads"}
        if rates:
            measure_rates(plan, out, around, only=only, progress=progress, say=say)
        else:
            run(plan, out, around, only=only, minutes=minutes, progress=progress, say=say)


def _report(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Table on stdout and in a file, a page, pictures in files; without matplotlib no pictures."""
    from bltkit.study.scaling import PAGE, TABLE, table, write_report

    if not any(row.get("what") == "scaling" for row in rows):
        say("no row is finished yet")
        if as_json:
            print_json({"rows": [], "figures": [], "table": None})
        return
    show(rows, out / TABLE, table, write_report, as_json, pages=[out / PAGE])
