"""`blt study efficiency`: operations, predicted and measured time of patches and tokens."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bltkit.cli.study_options import Out, Report, circumstances, measured, only_report, show
from bltkit.cli.terminal import Device, Json, progress_bar, say, threads_option

FIELDS = {
    "--preset": "presets",
    "--patch-bytes": "patch_bytes",
    "--entropy": "entropy",
    "--vocab-size": "vocab_size",
    "--bytes-per-token": "bytes_per_token",
    "--context": "contexts",
    "--phase": "phases",
    "--num-bytes": "num_bytes",
    "--repeats": "repeats",
}
"""Options by the plan's fields."""


def efficiency(
    out: Out,
    preset: Annotated[list[str] | None, typer.Option(help="A BLT's shape (repeatable); default: 69m.")] = None,
    patch_bytes: Annotated[
        list[float] | None, typer.Option(help="Of every patch, exactly (repeatable); default: 4, 6 and 8.")
    ] = None,
    entropy: Annotated[
        str | None, typer.Option(help="Preset of an entropy model: each patch size once more with it at work.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Of the token model; default: 32000.")] = None,
    bytes_per_token: Annotated[float | None, typer.Option(help="That a token stands for; default: 4.4.")] = None,
    context: Annotated[
        list[int] | None, typer.Option(help="Bytes of a row or in front (repeatable); default: 512 and 2048.")
    ] = None,
    phase: Annotated[list[str] | None, typer.Option(help="prefill, decode, train (repeatable); default: all.")] = None,
    num_bytes: Annotated[int | None, typer.Option(help="Decoded in a run; default: 48.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds; default: 5.")] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(callback=threads_option, help="Default: 1.")] = None,
    report: Report = False,
    as_json: Json = False,
) -> None:
    """Operations, predicted and measured time of patches of several sizes and of tokens, in turn."""
    given: dict[str, Any] = {
        "--preset": preset,
        "--patch-bytes": patch_bytes,
        "--entropy": entropy,
        "--vocab-size": vocab_size,
        "--bytes-per-token": bytes_per_token,
        "--context": context,
        "--phase": phase,
        "--num-bytes": num_bytes,
        "--repeats": repeats,
    }
    if report:
        only_report(given | {"--device": None if device == "auto" else device, "--threads": threads})
        _report(measured(out), out, as_json)
        return
    fields = {FIELDS[option]: value for option, value in given.items() if value is not None}
    _report(_measure(fields, out, device, 1 if threads is None else threads), out, as_json)


def _measure(fields: dict[str, Any], out: Path, device: str, threads: int) -> list[dict[str, Any]]:
    from bltkit.bench.record import machine
    from bltkit.bench.timing import threads_of
    from bltkit.compute import device_of
    from bltkit.config import parse
    from bltkit.study.efficiency import EfficiencyPlan, run

    plan: EfficiencyPlan = parse(EfficiencyPlan, fields, "study efficiency")
    place = device_of(device, "--device")
    if place.type != "cpu":
        say(f"device: {place}")
    with threads_of(threads), progress_bar("efficiency") as progress:
        stamp = circumstances() | {"machine": machine(place)}
        return run(plan, out, stamp, device=place, progress=progress, say=say)


def _report(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Table on stdout and in a file, the picture in a file; without matplotlib the table alone."""
    from bltkit.study.efficiency import TABLE, fits_of, table, write_report

    fits = [fit.to_json() for fit in (*fits_of(rows), *fits_of(rows, "predicted"))] if as_json else []
    show(rows, out / TABLE, table, write_report, as_json, more={"fits": fits})
