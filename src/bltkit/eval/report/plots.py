"""Figures of evaluations: dots with whiskers, by task or group, and histograms of items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bltkit.views.figures import (
    COLOURS,
    HOLLOW,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    Axes,
    Figure,
    displayable,
    house_style,
    new_figure,
)

PAGE_SIZE = 9.5
"""Letters of a picture among a page's text, in points."""
_ROW, _STEP, _HEAD = 23.0, 12.0, 44.0
"""Pixels of a row with one mark, of each further mark, and of a panel's scale and title."""
_LETTER = 7.4
_NAME = 34
"""Letters of the longest name that is shown whole."""


@dataclass(frozen=True)
class PlotMark:
    """A value with its interval. series: number of the run, which gives colour and marker."""

    value: float
    interval: tuple[float, float] | None = None
    series: int = 0


@dataclass(frozen=True)
class PlotRow:
    """A name and its marks, one below the other. note: text at the right end. chance: score of guessing."""

    name: str
    marks: tuple[PlotMark, ...]
    note: str = ""
    chance: float | None = None


@dataclass(frozen=True)
class DotPanel:
    """Rows on one scale. highest: the scale's top, where there is one; centred: 0 lies in the middle."""

    title: str
    rows: tuple[PlotRow, ...]
    highest: float | None = None
    centred: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the scale, which holds 0 and all that is finite."""
        marks = [mark for row in self.rows for mark in row.marks]
        values = [value for mark in marks for value in (mark.value, *(mark.interval or ()))]
        values += [row.chance for row in self.rows if row.chance is not None]
        low, high = _reach(values)
        if self.centred:
            high = max(-low, high) or 1.0
            return -1.06 * high, 1.06 * high
        return 1.06 * low, high * 1.06 if self.highest is None else self.highest


@house_style(PAGE_SIZE)
def dot_whisker(panels: Sequence[DotPanel], width: float = 860.0) -> Figure:
    """Figure of panels below one another; a row shows its marks, their intervals and the score of guessing."""
    heights = [sum(map(_height, panel.rows)) + _HEAD for panel in panels]
    rows = [row for panel in panels for row in panel.rows]
    titles = [panel.title for panel in panels]
    names = max(map(len, (*titles, *(_shown(row.name) for row in rows)))) * _LETTER + 14
    notes = max(len(row.note) for row in rows) * _LETTER + 18
    total = sum(heights)
    figure, top = new_figure(width, total), 0.0
    for panel, height in zip(panels, heights, strict=True):
        bottom = 1 - (top + height) / total
        axes = figure.add_axes((names / width, bottom, 1 - (names + notes) / width, (height - _HEAD) / total))
        top += height
        low, high = panel.limits
        axes.set(xlim=(low, high), ylim=(sum(map(_height, panel.rows)), 0))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "bottom"]].set_visible(False)
        figure.text(4 / width, 1 - (top - height + _HEAD - 12) / total, displayable(panel.title), color=MUTED)
        if low < 0:
            axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
        places = []
        y = 0.0
        for row in panel.rows:
            middle = y + _height(row) / 2
            places.append(middle)
            if row.chance is not None and math.isfinite(row.chance):
                axes.vlines(row.chance, y, y + _height(row), color=MUTED, linestyle=(0, (3, 3)), linewidth=0.9)
            axes.annotate(
                displayable(row.note), (1, middle), (6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", annotation_clip=False,
            )  # fmt: skip
            for at, mark in enumerate(row.marks):
                _draw_mark(axes, mark, middle + _STEP * (at - (len(row.marks) - 1) / 2))
            y += _height(row)
        axes.set_yticks(places, [_shown(row.name) for row in panel.rows])
        axes.tick_params(axis="y", labelcolor=INK)
    return figure


@house_style(PAGE_SIZE)
def histogram(values: Sequence[float], *, left: str = "", right: str = "", signed: bool = False) -> Figure:
    """Counts of values. What lies beyond the 1st and 99th percentile is counted in the outermost bars.

    signed: 0 is a border between bars; those below it are of one colour, those above of another, named by `left` and
    `right`.
    """
    from matplotlib.ticker import MaxNLocator

    ordered = sorted(values)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    if signed:
        low, high = min(low, 0.0), max(high, 0.0)
    edges = np.array(MaxNLocator(nbins=30, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    edges[np.abs(edges) < 1e-9 * (edges[1] - edges[0])] = 0.0
    figure = new_figure(860, 180)
    axes = figure.add_axes((0.04, 0.16, 0.94, 0.7))
    axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges.tolist(), color=COLOURS[0], edgecolor=PAPER)
    axes.tick_params(length=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.margins(x=0)
    if signed:
        for bar, edge in zip(axes.patches, edges, strict=False):
            bar.set_facecolor(COLOURS[2] if edge >= 0 else COLOURS[1])
        axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set_title(left, loc="left", color=COLOURS[1], size=PAGE_SIZE)
        axes.set_title(right, loc="right", color=COLOURS[2], size=PAGE_SIZE)
    return figure


def _draw_mark(axes: Axes, mark: PlotMark, y: float) -> None:
    if not math.isfinite(mark.value):
        return
    series = mark.series % len(MARKERS)
    colour = COLOURS[series]
    if mark.interval is not None:
        axes.hlines(y, *mark.interval, color=colour, linewidth=1.6)
    face = PAPER if series == HOLLOW else colour
    axes.plot([mark.value], [y], MARKERS[series], color=colour, markerfacecolor=face, markersize=5.5, clip_on=False)


def _height(row: PlotRow) -> float:
    return _ROW + _STEP * max(0, len(row.marks) - 1)


def _shown(name: str) -> str:
    name = displayable(name).replace("\n", " ")
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _reach(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    return low, high if high > low else low + 1
