"""Pictures of measured speeds: bytes per second against context and against batch, from rows of `blt bench decode`.

Rows are read as JSON, as a file of measurements holds them: a picture can be drawn again from what was kept. Of two
rows that measured the same the later one counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bltkit.files import lines, parse_json
from bltkit.views.figures import COLOURS, INK, MUTED, check_suffix, number, write_figure
from bltkit.views.line_plots import LinePlot, PlotLine, draw_lines

Row = Mapping[str, Any]
"""A row of `blt bench --json`."""

PEER_COLOURS = (MUTED, INK, "#9a7b5b", "#a3abb6")


@dataclass(frozen=True)
class _SpeedLine:
    """Rows that differ only in what is drawn along the x axis."""

    name: str
    speeds: Mapping[float, float]
    is_peer: bool


def read_rows(path: str | Path) -> list[Row]:
    """Rows of decoding in a file of JSON lines; a line holds one row, or several as {"rows": [...]}.

    Raises ValueError for a line that is no JSON object and for a file that cannot be read.
    """
    found: list[Row] = []
    for at, line in enumerate(lines(Path(path)), 1):
        if line.strip():
            where, remedy = f"{path}, line {at}", "give a file of `blt bench --out`"
            try:
                value = parse_json(line, where)
            except ValueError as error:
                raise ValueError(f"{error}; {remedy}") from None
            rows = value.get("rows", [value]) if isinstance(value, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f"{where}: not a JSON object; {remedy}")
            found += rows
    return [row for row in found if row.get("what") == "decode"]


def write_speeds(rows: Sequence[Row], path: str | Path) -> tuple[Path, ...]:
    """Draw speed against context into the .png or .svg file `path`, and beside it, as NAME-batch, speed against batch.

    Each where there are two values of it to draw a line through; one value of both is drawn against context. Returns
    the files written. Raises ValueError for another suffix, no rows, rows that cannot stand in one picture, and
    without matplotlib.
    """
    path = Path(path)
    check_suffix(path, ".png", ".svg")
    contexts, batches = (len({row[axis] for row in rows}) for axis in ("context", "batch"))
    pictures: list[tuple[Path, LinePlot]] = []
    if contexts > 1 or batches < 2:
        pictures.append((path, context_plot(rows)))
    if batches > 1:
        pictures.append((path.with_stem(f"{path.stem}-batch"), batch_plot(rows)))
    for place, plot in pictures:
        write_figure(draw_lines(plot), place)
    return tuple(place for place, _ in pictures)


def context_plot(rows: Sequence[Row]) -> LinePlot:
    """Speed against bytes of context, of the smallest batch; every way of decoding and every peer is a line.

    Raises ValueError for no rows, and for rows from several machines or numbers of threads.
    """
    _one_machine(rows)
    batch = min(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    lines = _lines(rows, "context")
    drawn = _drawn(lines, lambda line: number(_last(line)))
    about = " · ".join((*_circumstances(rows), f"batch {batch}"))
    return LinePlot("Decoding speed and context", about, "bytes of context", "bytes per second", drawn)


def batch_plot(rows: Sequence[Row]) -> LinePlot:
    """Speed of all rows together against their number, at the context with most batch sizes (the shortest of these).

    Raises ValueError as `context_plot` does.
    """
    _one_machine(rows)
    sizes = {row["context"]: {other["batch"] for other in rows if other["context"] == row["context"]} for row in rows}
    context = min(sizes, key=lambda context: (-len(sizes[context]), context))
    rows = [row for row in rows if row["context"] == context]
    lines = _lines(rows, "batch")
    lines = [line for line in lines if len(line.speeds) > 1] or lines  # a dot says nothing about batches
    drawn = _drawn(lines, lambda line: f"{number(_last(line))}{_gain(line)}")
    about = " · ".join((*_circumstances(rows), f"{context:,} bytes of context"))
    speed = "bytes per second, all rows together"
    return LinePlot("Decoding speed and batch", about, "rows in the batch", speed, drawn)


def _one_machine(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("there are no rows of `blt bench decode` to draw")
    found = sorted({", ".join(_place(row)) for row in rows})
    if len(found) > 1:
        raise ValueError(f"rows from {'; '.join(found)} cannot be compared in one picture; draw them apart")


def _place(row: Row) -> tuple[str, str]:
    machine = row["machine"]
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return machine.get("gpu", machine["cpu"]), threads


def _circumstances(rows: Sequence[Row]) -> Iterator[str]:
    presets = sorted({row["preset"] for row in rows})
    yield from ((f"shape {presets[0]}",) if len(presets) == 1 else ())
    yield from _place(rows[0])


def _lines(rows: Sequence[Row], axis: str) -> list[_SpeedLine]:
    """Ours in the order of the rows, then the peers."""
    several = len({row["preset"] for row in rows}) > 1
    speeds: dict[tuple[bool, str], dict[float, float]] = {}
    for row in rows:
        preset = f"{row['preset']}: " if several else ""
        speeds.setdefault((False, preset + _way(row)), {})[row[axis]] = row["ours"]
        if row.get("peer") is not None:
            speeds.setdefault((True, preset + _peer(row)), {})[row[axis]] = row["peer"]
    return sorted(
        (_SpeedLine(name, found, peer) for (peer, name), found in speeds.items()), key=lambda line: line.is_peer
    )


def _way(row: Row) -> str:
    """What tells one way of decoding from another; the plainest needs few words."""
    form = row.get("form") or {"weights": "fp32"}
    words = [row.get("strategy") or "ar"]
    words += [] if row.get("draft") is None else [f"k = {row['draft']}"]
    words += [form["weights"]] if form["weights"] != "fp32" else []
    words += [f"temperature {row['temperature']:g}"] if row.get("temperature") else []
    return ", ".join(words)


def _peer(row: Row) -> str:
    dtype = row.get("peer_dtype") or "float32"
    return row["peer_name"] + ("" if dtype == "float32" else f", {dtype}")


def _drawn(lines: Sequence[_SpeedLine], note: Callable[[_SpeedLine], str]) -> tuple[PlotLine, ...]:
    seen = {False: 0, True: 0}
    found = []
    for line in lines:
        colours = PEER_COLOURS if line.is_peer else COLOURS
        colour = colours[seen[line.is_peer] % len(colours)]
        seen[line.is_peer] += 1
        found.append(PlotLine(line.name, tuple(sorted(line.speeds.items())), colour, line.is_peer, note(line)))
    return tuple(found)


def _last(line: _SpeedLine) -> float:
    return line.speeds[max(line.speeds)]


def _gain(line: _SpeedLine) -> str:
    few, many = min(line.speeds), max(line.speeds)
    return "" if few == many else f", {line.speeds[many] / line.speeds[few]:.1f} times batch {few:g}"
