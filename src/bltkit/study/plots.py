"""Figures of studies in the house style: rows of panels with points, lines, bands and whiskers.

    panels([[PlotPanel("code", [PlotSeries("ar", x, y)])]], "Speed", x_name="bytes", y_name="seconds", x_scale="log")

Losses over operations are panels with a logarithmic x and lines for the fits; a parity plot is a panel with `diagonal`
and two logarithmic scales. Colours are those of `views.figures`, which pages turn into lighter ones on a dark ground.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

from bltkit.views.figures import (
    COLOURS,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    Axes,
    Figure,
    displayable,
    house_style,
    new_figure,
    number,
    write,
)

Scale = Literal["linear", "log", "percent"]
Interval = tuple[float, float]

_WIDTH, _HEIGHT = 400.0, 290.0
_LEFT, _ABOVE, _BELOW, _BETWEEN = 64.0, 34.0, 50.0, 24.0
_TOP, _LEGEND_LINE, _LETTER = 84.0, 20.0, 6.4


@dataclass(frozen=True)
class PlotSeries:
    """Points of one colour in a panel.

    name: entry of the legend, once for all panels; "" for none. colour: of `COLOURS` by index, or a colour. marker,
    line: matplotlib's, "" for none. intervals: ends by point, None where there are none; drawn as whiskers, or as a
    band with `band`. names: short texts at points, where they fit. rings: points that stand out. x_intervals: whiskers
    across.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | str = 0
    marker: str = "o"
    line: str = ""
    intervals: Sequence[Interval | None] = ()
    x_intervals: Sequence[Interval | None] = ()
    band: bool = False
    names: Sequence[str] = ()
    rings: Sequence[bool] = ()
    hollow: bool = False

    @property
    def shade(self) -> str:
        """The colour itself."""
        return self.colour if isinstance(self.colour, str) else COLOURS[self.colour % len(COLOURS)]


@dataclass(frozen=True)
class PlotPanel:
    """Series on one pair of axes. levels: dashed lines at a y, with a name. diagonal: a dashed line at x = y.

    x_name, y_name: in place of the figure's.
    """

    title: str
    series: Sequence[PlotSeries]
    levels: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    x_name: str = ""
    y_name: str = ""


@house_style()
def panels(
    rows: Sequence[Sequence[PlotPanel]],
    title: str,
    *,
    about: str = "",
    x_name: str = "",
    y_name: str = "",
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    share_y: bool = False,
    x_limits: Interval | None = None,
    y_limits: Interval | None = None,
    x_ticks: Mapping[float, str] | None = None,
    markers: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Figure:
    """Rows of panels with a title, a line below it, a legend of the series' names, and notes.

    Points and intervals alone decide how far the axes reach. share_y: one scale for all panels. x_ticks: texts by
    place. markers: meaning of markers, for the legend. Raises ValueError for no panels, and without matplotlib.
    """
    if not rows or not all(rows):
        raise ValueError(f"figure {title!r} has no panels to draw")
    columns = max(map(len, rows))
    width = 2 * MARGIN + columns * _WIDTH + (columns - 1) * _BETWEEN
    about_lines, note_lines = _wrapped(about, width), [line for note in notes for line in _wrapped(note, width)]
    entries = _legend_rows(_entries(rows, markers or {}), width)
    top = _TOP + 15.0 * max(0, len(about_lines) - 1)
    bottom = top + len(rows) * (_HEIGHT + _BETWEEN)
    height = bottom + _LEGEND_LINE * len(entries) + 15.0 * len(note_lines) + 16
    figure = new_figure(width, height)
    figure.set_label(f"{title}. {about}" if about else title)
    write(figure, MARGIN, 36, displayable(title), size=13, weight="bold", color=INK)
    for at, line in enumerate(about_lines):
        write(figure, MARGIN, 58 + 15 * at, line, size=8.5, color=MUTED)
    drawn: list[Axes] = []
    for down, row in enumerate(rows):
        for across, panel in enumerate(row):
            left = MARGIN + across * (_WIDTH + _BETWEEN) + _LEFT
            upper = top + down * (_HEIGHT + _BETWEEN) + _ABOVE
            box = (left, upper, _WIDTH - _LEFT, _HEIGHT - _ABOVE - _BELOW)
            axes = figure.add_axes(
                (box[0] / width, 1 - (box[1] + box[3]) / height, box[2] / width, box[3] / height),
                sharey=drawn[0] if share_y and drawn else None,
            )
            drawn.append(axes)
            _draw_panel(axes, panel, x_scale, y_scale)
            axes.set_xlabel(panel.x_name or x_name)
            if across == 0 or panel.y_name:
                axes.set_ylabel(panel.y_name or y_name)
    for axes in drawn:
        _set_scales(axes, x_scale, y_scale, x_ticks)
        axes.set(**{name: limits for name, limits in (("xlim", x_limits), ("ylim", y_limits)) if limits is not None})
    for panel, axes in zip((panel for row in rows for panel in row), drawn, strict=True):
        _draw_references(axes, panel)
        _name_points(axes, panel)
    for at, line_entries in enumerate(entries):
        _write_legend(figure, line_entries, bottom + _LEGEND_LINE * at + 6)
    for at, line in enumerate(note_lines):
        write(figure, MARGIN, bottom + _LEGEND_LINE * len(entries) + 10 + 15 * at, line, size=8, color=MUTED)
    return figure


def _draw_panel(axes: Axes, panel: PlotPanel, x_scale: Scale, y_scale: Scale) -> None:
    axes.set_xscale("log" if x_scale == "log" else "linear")
    axes.set_yscale("log" if y_scale == "log" else "linear")
    axes.set_title(displayable(panel.title), loc="left", size=9.5, color=INK)
    axes.tick_params(length=0, which="both")
    for series in panel.series:
        _draw_series(axes, series)


def _draw_series(axes: Axes, series: PlotSeries) -> None:
    colour = series.shade
    style: dict[str, Any] = {
        "color": colour,
        "marker": series.marker or "none",
        "markerfacecolor": PAPER if series.hollow else colour,
        "markersize": 10 if series.marker == "*" else 5.5,  # a star of the same size is hard to see
        "markeredgecolor": colour if series.hollow else PAPER,
        "markeredgewidth": 1.0 if series.hollow else 0.5,
        "linestyle": series.line or "none",
        "linewidth": 1.5,
        "zorder": 3 if series.marker else 2,
    }
    line = axes.plot(series.x, series.y, **style)[0]
    if not series.marker:  # a fit may leave the panel
        line.remove()
        axes.add_line(line)
        line.set_clip_on(True)
    ends = [(x, *interval) for x, interval in zip(series.x, series.intervals, strict=False) if interval is not None]
    if series.band and len(ends) > 1:
        x, low, high = zip(*ends, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    elif ends and not series.band:
        x, low, high = zip(*ends, strict=True)
        axes.vlines(x, low, high, color=colour, linewidth=1.1)
    sides = [(y, *interval) for y, interval in zip(series.y, series.x_intervals, strict=False) if interval is not None]
    if sides:
        y, low, high = zip(*sides, strict=True)
        axes.hlines(y, low, high, color=colour, linewidth=1.1)
    ringed = [(x, y) for x, y, ring in zip(series.x, series.y, series.rings, strict=False) if ring]
    if ringed:
        axes.plot(*zip(*ringed, strict=True), "o", markersize=11, markerfacecolor="none", color=colour, linewidth=0)


def _draw_references(axes: Axes, panel: PlotPanel) -> None:
    """Lines that do not decide how far the axes reach, and so come last."""
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for level, name in panel.levels:
        if bottom <= level <= top:
            axes.hlines(level, low, high, color=MUTED, linestyle=(0, (3, 3)), linewidth=0.9, zorder=1)
            axes.annotate(name, (0, level), (3, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          size=7, color=MUTED)  # fmt: skip
    if panel.diagonal:
        ends = max(low, bottom), min(high, top)
        axes.plot(ends, ends, color=MUTED, linestyle=(0, (3, 3)), linewidth=0.9, zorder=1)
    axes.set(xlim=(low, high), ylim=(bottom, top))


def _name_points(axes: Axes, panel: PlotPanel) -> None:
    """Write the names of points beside them, unless one would cover a point or another name, or leave the panel."""
    from matplotlib.transforms import Bbox

    points = [
        (x, y, displayable(text), series.shade)
        for series in panel.series
        if series.marker
        for x, y, text in zip_longest(series.x, series.y, series.names, fillvalue="")
    ]
    if not any(text for *_, text, _ in points):
        return
    places = axes.transData.transform([(x, y) for x, y, *_ in points])
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    frame = axes.get_window_extent()
    for (x, y), (*_, text, colour) in zip(places, points, strict=True):
        width, height = 4.6 * len(text), 9.0
        for dx, dy in ((7 + width / 2, 0), (-7 - width / 2, 0), (0, 10), (0, -10)):
            box = Bbox.from_bounds(x + dx - width / 2, y + dy - height / 2, width, height)
            if text and frame.contains(*box.min) and frame.contains(*box.max) and not box.count_overlaps(taken):
                across, up = axes.transAxes.inverted().transform((x + dx, y + dy))
                style: dict[str, Any] = {"ha": "center", "va": "center", "size": 6.5, "color": colour}
                axes.text(across, up, text, transform=axes.transAxes, **style)
                taken.append(box)
                break


def _set_scales(axes: Axes, x_scale: Scale, y_scale: Scale, x_ticks: Mapping[float, str] | None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    for axis, scale in ((axes.xaxis, x_scale), (axes.yaxis, y_scale)):
        if scale == "percent":
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        elif scale == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(FuncFormatter(_log_label))
    if x_ticks is not None:
        axes.set_xticks(list(x_ticks), list(x_ticks.values()))


def _log_label(value: float, position: int | None) -> str:
    return f"{value:.0e}".replace("e+", "e") if value >= 1e5 or value < 1e-4 else number(value)


def _entries(rows: Sequence[Sequence[PlotPanel]], markers: Mapping[str, str]) -> list[PlotSeries]:
    series = {entry.name: entry for row in rows for panel in row for entry in panel.series if entry.name}
    if markers:  # colours say whose a point is, markers of which kind
        series = {
            name: replace(entry, marker="s" if entry.marker else "", hollow=False) for name, entry in series.items()
        }
    shapes = [PlotSeries(name, (), (), MUTED, marker) for name, marker in markers.items()]
    return [*series.values(), *shapes] if len(series) + len(shapes) > 1 else []


def _legend_rows(entries: Sequence[PlotSeries], width: float) -> list[list[PlotSeries]]:
    """Entries by line, as many as fit."""
    lines: list[list[PlotSeries]] = []
    left = width
    for entry in entries:
        needed = 42 + _LETTER * len(entry.name)
        if not lines or left + needed > width - MARGIN:
            lines.append([])
            left = MARGIN
        lines[-1].append(entry)
        left += needed
    return lines


def _write_legend(figure: Figure, entries: Sequence[PlotSeries], y: float) -> None:
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches() * 100
    x = MARGIN
    for entry in entries:
        ends = [(x + 2) / width, (x + 10) / width, (x + 18) / width]
        style: dict[str, Any] = {"marker": entry.marker or "none", "linestyle": entry.line or "none", "markersize": 5.5}
        style["markerfacecolor"] = PAPER if entry.hollow else entry.shade
        figure.add_artist(Line2D(ends, [1 - (y - 3.5) / height] * 3, color=entry.shade, markevery=[1], **style))
        write(figure, x + 24, y, displayable(entry.name), size=8.5, color=INK)
        x += 42 + _LETTER * len(entry.name)


def _wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(displayable(text), int((width - 2 * MARGIN) / 5.6))
