"""The study `robustness` on paper: a table in Markdown, and an HTML page with curves, from its rows alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.study.curves import SERIES, At, Line, draw_curves, legend, scale_of
from bltkit.study.robustness.curve import CurvePoint, NoiseCurve, curves_of
from bltkit.views.html import Cell, Html, Node, facts, page, tag
from bltkit.views.html import table as html_table

TABLE = "table.md"
PAGE = "report.html"

Row = Mapping[str, Any]

_DASH = "\u2013"
_HEAD = ("noise", "model", "intensity", "score", "95 %", "against clean", "kept above chance", "items")


def write_report(rows: Sequence[Row], out: Path) -> tuple[Path, ...]:
    """Write the table and the page into `out`; returns their paths. Raises ValueError for no rows."""
    written = {out / TABLE: table(rows), out / PAGE: page_of(rows)}
    for path, text in written.items():
        write_atomic(path, text.encode())
    return tuple(written)


def table(rows: Sequence[Row]) -> str:
    """Markdown: what each model keeps, then all scores by task."""
    curves = curves_of(rows)
    lines = ["# Robustness", "", *(line for text in _paragraphs(curves) for line in (text, ""))]
    heads, cells = _kept(curves)
    lines += [_line(heads), _line(["---"] * len(heads)), *map(_line, cells)]
    for task in _names(curves, "task"):
        own = [curve for curve in curves if curve.task == task]
        lines += ["", f"## {task}", "", _about(own), "", _line(_HEAD), _line(["---"] * len(_HEAD))]
        lines += [_line(cells) for cells in _cells(own)]
    return "\n".join(lines) + "\n"


def page_of(rows: Sequence[Row]) -> str:
    """The page: conclusions, what each model keeps, then for each task a chart of each noise, and the figures."""
    curves = curves_of(rows)
    models = _names(curves, "model")
    series = {model: at for at, model in enumerate(models)}
    heads, cells = _kept(curves)
    measured = [row for row in rows if row.get("what") == "robustness"]
    return page(
        "Robustness",
        tag("h1", "Robustness"),
        [tag("p", text) for text in _paragraphs(curves)],
        _facts(measured),
        legend(models),
        tag("p", f"The colours of {SERIES} models repeat.", class_="quiet") if len(models) > SERIES else None,
        html_table(heads, cells, texts=2, label="what is kept above chance"),
        [_section(task, curves, series) for task in _names(curves, "task")],
    )


def _section(task: str, curves: Sequence[NoiseCurve], series: Mapping[str, int]) -> Node:
    own = [curve for curve in curves if curve.task == task]
    lines = {curve: _drawn(curve, series[curve.model]) for curve in own}
    chance = own[0].chance if own[0].better == "higher" else None
    scale = scale_of(list(lines.values()), chance)
    charts = []
    for noise in _names(own, "noise"):
        chart = draw_curves(
            [line for curve, line in lines.items() if curve.noise == noise],
            f"{task} under {noise}: {own[0].metric} over the intensity",
            x_name="intensity",
            scale=scale,
            level=chance or None,
            level_name="chance",
        )
        charts.append(tag("figure", tag("figcaption", noise), chart))
    cells = [
        [Cell(text, value) for text, value in zip(texts, values, strict=True)]
        for texts, values in zip(_cells(own), _values(own), strict=True)
    ]
    return [
        tag("h2", task),
        tag("p", _about(own), class_="quiet"),
        tag("div", charts, class_="items"),
        tag(
            "details",
            tag("summary", "Figures"),
            html_table(_HEAD, cells, texts=2, sortable=True, label=f"figures of {task}"),
        ),
    ]


def _drawn(curve: NoiseCurve, series: int) -> Line:
    points = [curve.clean, *curve.points]
    return Line(
        curve.model,
        tuple(
            At(point.intensity, point.value, point.interval, point.own and point.noise is not None, _said(curve, point))
            for point in points
        ),
        series,
    )


def _said(curve: NoiseCurve, point: CurvePoint) -> str:
    return f"{curve.model}, {_named(point)}: {_of(point)}"


def _paragraphs(curves: Sequence[NoiseCurve]) -> list[str]:
    found = [
        "Noise damages the texts that a task asks about, at intensities from 0 to 1; gold answers stay as they are. "
        "Intensity says which share of the places that a noise can damage it does damage, so noises are not equally "
        "strong at the same one; each place that is damaged at a lower intensity is damaged at a higher one.",
        "What is kept: (score \u2212 chance) / (clean score \u2212 chance), the clean score taken as exact; a dash "
        "where the clean score's interval does not lie above chance, so that there is nothing to lose.",
    ]
    for model, (share, count) in _means(curves).items():
        ran = f"{count} pair of task and noise" if count == 1 else f"{count} pairs of task and noise"
        found.append(f"{model} keeps {_percent(share)} of its scores above chance, as the mean over {ran}.")
    if not _means(curves):
        found.append("No model stands above chance on any of the tasks, so the study says nothing of robustness yet.")
    return found


def _means(curves: Sequence[NoiseCurve]) -> dict[str, tuple[float, int]]:
    """Of each model: the mean of what it keeps at the intensities that noises were named with, and of how many."""
    found = {}
    for model in _names(curves, "model"):
        shares = [
            point.retained[0] for curve in curves if curve.model == model for point in curve.own if point.retained
        ]
        if shares:
            found[model] = (sum(shares) / len(shares), len(shares))
    return found


def _kept(curves: Sequence[NoiseCurve]) -> tuple[list[str], list[list[str]]]:
    """Noises with their own intensity down, tasks across: what each model keeps."""
    tasks = _names(curves, "task")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for curve in curves:
        for point in curve.own:
            found.setdefault((_named(point), curve.model), {})[curve.task] = _share(point)
    lines = [[*key, *(shares.get(task, _DASH) for task in tasks)] for key, shares in found.items()]
    return ["kept above chance under", "model", *tasks], lines


def _about(curves: Sequence[NoiseCurve]) -> str:
    first = curves[0]
    cleans = {curve.model: curve.clean for curve in curves if not curve.noise.startswith("paired:")}
    clean = "; ".join(f"{model} {_of(point)}" for model, point in cleans.items())
    said = [f"{first.metric}, {first.better} is better."]
    if first.chance:
        said.append(f"Chance is {_number(first.chance)}.")
    if clean:
        said.append(f"Clean: {clean}.")
    said.append("Rings are at the intensities that the noises were named with.")
    return " ".join(said)


def _points(curves: Sequence[NoiseCurve]) -> list[tuple[NoiseCurve, CurvePoint]]:
    return [(curve, point) for curve in curves for point in (curve.clean, *curve.points)]


def _cells(curves: Sequence[NoiseCurve]) -> list[list[str]]:
    """The lines of the figures, as text."""
    return [
        [
            curve.noise,
            curve.model,
            f"{point.intensity:g}",
            _number(point.value),
            _DASH if point.interval is None else _between(point.interval),
            _signed(point.value - curve.clean.value) if point.noise else _DASH,
            _share(point),
            f"{point.n} ({point.left_out} left out)" if point.left_out else str(point.n),
        ]
        for curve, point in _points(curves)
    ]


def _values(curves: Sequence[NoiseCurve]) -> list[list[float | None]]:
    """What they are sorted by."""
    return [
        [
            None,
            None,
            point.intensity,
            point.value,
            point.interval[0] if point.interval else None,
            point.value - curve.clean.value,
            point.retained[0] if point.retained else None,
            float(point.n),
        ]
        for curve, point in _points(curves)
    ]


def _facts(rows: Sequence[Row]) -> Html:
    last = rows[-1]
    sources = {row["model"]: row for row in rows}
    pairs: dict[str, Node] = {
        name: f"{row['source']} ({row['kind']}, {row['fingerprint'][:12]})" for name, row in sources.items()
    }
    pairs["items"] = "all" if last["limit"] is None else f"the first {last['limit']} of each group"
    for name in ("seed", "commit", "command"):
        if last.get(name) is not None:
            pairs[name] = str(last[name])
    return facts(pairs)


def _names(curves: Sequence[NoiseCurve], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(curve, field) for curve in curves))


def _named(point: CurvePoint) -> str:
    return point.noise or "clean"


def _of(point: CurvePoint) -> str:
    return _number(point.value) + ("" if point.interval is None else f" ({_between(point.interval)})")


def _between(ends: tuple[float, float]) -> str:
    return f"{_number(ends[0])} to {_number(ends[1])}"


def _share(point: CurvePoint) -> str:
    if point.retained is None:
        return _DASH
    share, low, high = point.retained
    return _percent(share) + ("" if low is None or high is None else f" ({_percent(low)} to {_percent(high)})")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "\u2212")


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "\u2212")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
