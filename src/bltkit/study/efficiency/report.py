"""The study `efficiency` on paper: a table and a picture, from its rows alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.study.efficiency.fit import Fit, fits_of, latest
from bltkit.study.efficiency.predicted_cost import PHASES
from bltkit.study.scatter import Marker, Panel, Point, Scatter, draw_scatter
from bltkit.views.chart import COLOURS

TABLE = "table.md"
PICTURE = "efficiency.png"

Row = Mapping[str, Any]

_MARKERS: dict[str, Marker] = {"prefill": "circle", "decode": "square", "train": "up"}

_HEAD = (
    "system",
    "bytes/s",
    "ms per byte",
    "rounds from, to",
    "MFLOP per byte",
    "MB read",
    "MB update",
    "predicted ms: operations, reads, update",
    "measured / predicted",
    "operations' share of the time",
    "operations, times the first's",
    "time, times the first's",
)
_FITS = ("time against", "phase", "points", "slope", "R²", "over rounds", "R² of slope 1")


def write_report(rows: Sequence[Row], out: Path, *, pictures: bool = True) -> tuple[Path, ...]:
    """Write the table and, where asked for, the picture into `out`; returns the pictures written.

    Raises ValueError for no rows, and for pictures without matplotlib: the table is there by then.
    """
    write_atomic(out / TABLE, table(rows).encode())
    if not pictures:
        return ()
    write_atomic(out / PICTURE, draw_scatter(picture(rows)).to_png())
    return (out / PICTURE,)


def table(rows: Sequence[Row]) -> str:
    """Markdown: systems, then a table for each phase, preset and context, then what explains the time."""
    rows = latest(rows)
    lines = ["# Efficiency: operations, bytes and the clock", "", *_about(rows), "", *_systems(rows)]
    for preset, phase, context in dict.fromkeys(map(_group, rows)):
        own = [row for row in rows if _group(row) == (preset, phase, context)]
        rates = own[0]["rates"]
        lines += [
            "",
            f"## {phase}, {preset}, {context:,} bytes",
            "",
            f"The machine meanwhile: {rates['matmul_gflops']:.1f} GFLOP/s in large products, "
            f"{rates['product_gb_per_second']:.1f} GB/s in one-row products, {rates['copy_gb_per_second']:.1f} GB/s in "
            "copies.",
            "",
            _line(_HEAD),
            _line(["---"] * len(_HEAD)),
            *(_line(_cells(row, own[0])) for row in own),
        ]
    return "\n".join([*lines, "", *_explained(rows), "", *_residuals(rows)]) + "\n"


def picture(rows: Sequence[Row]) -> Scatter:
    """Measured against predicted time, all phases in one panel; beside it what operations alone would predict."""
    rows = latest(rows)
    systems = list(dict.fromkeys(map(_plainly, rows)))
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(systems)}

    def panel(title: str, field: str) -> Panel:
        points = tuple(
            Point(
                1000 * row["predicted"][field],
                1000 * row["seconds_per_byte"],
                colours[_plainly(row)],
                _MARKERS[row["phase"]],
            )
            for row in rows
        )
        return Panel(title, points, diagonal=True)

    machines = "; ".join(dict.fromkeys(_machine(row) for row in rows))
    return Scatter(
        "Time of a byte, predicted and measured",
        f"{machines} · {', '.join(dict.fromkeys(str(row['preset']) for row in rows))}",
        "predicted, ms per byte",
        "measured, ms per byte",
        ((panel("operations or reads, and the update", "seconds_per_byte"), panel("operations alone", "operations")),),
        tuple(colours.items()),
        tuple((phase, _MARKERS[phase]) for phase in PHASES if any(row["phase"] == phase for row in rows)),
        x_scale="log",
        y_scale="log",
        notes=("dashed: the prediction is right",),
    )


def _group(row: Row) -> tuple[str, str, int]:
    return row["preset"], row["phase"], row["context"]


def _plainly(row: Row) -> str:
    """A system without the shape that it has: presets share colours."""
    if row["kind"] == "token":
        return "token"
    return f"patch {row['unit_bytes']:g}{'' if row['entropy_params'] is None else ' + entropy'}"


def _machine(row: Row) -> str:
    machine, threads = row["machine"], row["threads"]
    return f"{machine.get('gpu', machine.get('cpu'))}, {threads} thread{'' if threads == 1 else 's'}"


def _about(rows: Sequence[Row]) -> Iterator[str]:
    where = "; ".join(dict.fromkeys(_machine(row) for row in rows))
    versions = dict.fromkeys(f"torch {row['machine']['torch']}, commit {row['commit'] or 'unknown'}" for row in rows)
    yield f"{where}; {'; '.join(versions)}. Random weights, fp32, one row."
    yield ""
    yield (
        "Every byte of text is counted, of a token model as many as its tokens stand for. Predicted: the longer of "
        "operations over the rate of large products and bytes read over the rate of one-row products (they happen in "
        "the same products), and then the update over the rate of copies. Time is the median of the rounds."
    )


def _systems(rows: Sequence[Row]) -> Iterator[str]:
    yield _line(("preset", "system", "parameters", "without tables that are looked up", "entropy model"))
    yield _line(["---"] * 5)
    for row in {(row["preset"], row["system"]): row for row in rows}.values():
        scorer = row["entropy_params"]
        cells = (f"{row['params']:,}", f"{row['params_without_lookups']:,}", "" if scorer is None else f"{scorer:,}")
        yield _line((row["preset"], row["system"], *cells))


def _cells(row: Row, first: Row) -> list[str]:
    predicted = row["predicted"]
    parts = ", ".join(f"{1000 * predicted[part]:.3g}" for part in ("operations", "reads", "update"))
    speeds = sorted(1000 * seconds / row["bytes_per_run"] for seconds in row["seconds"])
    return [
        row["system"],
        f"{row['bytes_per_second']:,.1f}",
        f"{1000 * row['seconds_per_byte']:.3g}",
        f"{speeds[0]:.3g}, {speeds[-1]:.3g}",
        f"{row['flops_per_byte'] / 1e6:.2f}",
        f"{row['read_bytes_per_byte'] / 1e6:.2f}",
        f"{row['update_bytes_per_byte'] / 1e6:.2f}",
        f"{1000 * predicted['seconds_per_byte']:.3g}: {parts}",
        f"{row['measured_to_predicted']:.2f}",
        f"{row['share_of_operations']:.0%}",
        f"{row['flops_per_byte'] / first['flops_per_byte']:.2f}",
        f"{row['seconds_per_byte'] / first['seconds_per_byte']:.2f}",
    ]


def _explained(rows: Sequence[Row]) -> Iterator[str]:
    yield "## How much of the time is explained"
    yield ""
    yield (
        "Lines through log seconds per byte. R²: share of the variance over these points. Over rounds: 95 % of it with "
        "the rounds drawn anew. R² of slope 1: time in proportion, below 0 where that is worse than a constant."
    )
    yield ""
    yield _line(_FITS)
    yield _line(["---"] * len(_FITS))
    for fit in (*fits_of(rows), *fits_of(rows, "predicted")):
        interval = "" if fit.interval is None else f"{fit.interval[0]:.2f} to {fit.interval[1]:.2f}"
        yield _line(
            (
                "operations" if fit.predictor == "operations" else "the predicted time",
                fit.phase,
                str(fit.points),
                f"{fit.slope:.2f}",
                f"{fit.r2:.2f}",
                interval,
                f"{fit.r2_proportional:.2f}",
            )
        )


def _residuals(rows: Sequence[Row]) -> Iterator[str]:
    """Measured over fitted time of the operations' lines."""
    fits = {fit.phase: fit for fit in fits_of(rows)}
    yield "## What the operations leave unexplained"
    yield ""
    yield "Measured time over that of the line through the operations: of the phase's own points, and of all."
    yield ""
    yield _line(("preset", "phase", "bytes", "system", "of its phase", "of all"))
    yield _line(["---"] * 6)
    seen: dict[str, int] = {}
    for at, row in enumerate(rows):
        phase = row["phase"]
        own = seen[phase] = seen.get(phase, -1) + 1
        factors = [_factor(fits.get(phase), own), _factor(fits.get("all"), at)]
        yield _line((row["preset"], phase, f"{row['context']:,}", row["system"], *factors))


def _factor(fit: Fit | None, at: int) -> str:
    return "" if fit is None else f"{fit.residuals[at]:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
