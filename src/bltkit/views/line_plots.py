"""Named lines over two logarithmic axes, on which equal ratios of speeds or costs are equal distances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bltkit.views.figures import HAIRLINE, MUTED, PAPER, Axes, Figure, add_axes, house_style, new_figure, number, titled

_LEFT, _TOP, _WIDTH, _HEIGHT, _FOOT = 84.0, 112.0, 560.0, 360.0, 64.0
_LETTER = 7.6
"""Width of a letter of a name, a wide one."""
_LINE = 17.0
"""Pixels between names, at least."""


@dataclass(frozen=True)
class PlotLine:
    """A named line through points (x, y), both above 0, x ascending. note: text after the name."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        xs = [x for x, _ in self.points]
        if not xs or xs != sorted(set(xs)) or min(min(point) for point in self.points) <= 0:
            raise ValueError(f"line {self.name!r}: points must be there, above 0 and in ascending order of x")


@dataclass(frozen=True)
class LinePlot:
    """Lines with the title, the line below it and the names of the axes."""

    title: str
    about: str
    x_name: str
    y_name: str
    lines: tuple[PlotLine, ...]


@house_style()
def draw_lines(plot: LinePlot) -> Figure:
    """Figure of the lines, each named at its right end. Raises ValueError for no lines, and without matplotlib."""
    if not plot.lines:
        raise ValueError(f"plot {plot.title!r} has no lines to draw")
    figure = new_figure(*size_of(plot))
    draw_into(figure, plot)
    return figure


def size_of(plot: LinePlot) -> tuple[float, float]:
    """Width and height of a plot in pixels at 100 %."""
    names = max(len(f"{line.name}  {line.note}") for line in plot.lines)
    return max(_LEFT + _WIDTH + 58 + _LETTER * names, 56 + 7.3 * len(plot.about)), _TOP + _HEIGHT + _FOOT


def draw_into(figure: Figure, plot: LinePlot, top: float = 0.0) -> None:
    """Draw a plot into a part of a figure that begins `top` pixels below its upper edge."""
    titled(figure, plot.title, plot.about, top)
    axes = add_axes(figure, _LEFT, top + _TOP, _WIDTH, _HEIGHT)
    _scale(axes, plot)
    for line in plot.lines:
        style = (0, (3, 2.5)) if line.dashed else "-"
        axes.plot(
            *zip(*line.points, strict=True), color=line.colour, linestyle=style, linewidth=1.45, marker="o",
            markersize=6, markeredgecolor=PAPER, markeredgewidth=0.9, clip_on=False, zorder=3,
        )  # fmt: skip
    _name_ends(axes, plot.lines)


def _scale(axes: Axes, plot: LinePlot) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    xs = sorted({x for line in plot.lines for x, _ in line.points})
    ys = [y for line in plot.lines for _, y in line.points]
    x_limits, y_limits = _padded(xs[0], xs[-1], 1.15, 2.0), _padded(min(ys), max(ys), 1.3, 4.0)
    axes.set(xscale="log", yscale="log", xlim=x_limits, ylim=y_limits, xlabel=plot.x_name)
    axes.set_title(plot.y_name, loc="left", size=8, color=MUTED, pad=8, x=-0.1)
    span = math.log(x_limits[1] / x_limits[0])
    ticks = [xs[0]]
    for x in xs:  # where something was measured, as far as there is room to say so
        if math.log(x / ticks[-1]) / span * _WIDTH >= 44:
            ticks.append(x)
    axes.set_xticks(ticks, [number(x) for x in ticks])
    decades = math.log10(y_limits[1] / y_limits[0])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())


def _name_ends(axes: Axes, lines: Sequence[PlotLine]) -> None:
    """Names beside the ends of the lines, as far apart as letters are high; a hairline leads to a name moved far."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    ends = sorted(((*line.points[-1], line) for line in lines), key=lambda end: end[1])
    heights = [(math.log(y) - low) / (high - low) * _HEIGHT for _, y, _ in ends]
    for (x, y, line), height in zip(ends, _apart(heights), strict=True):
        place = math.exp(low + height / _HEIGHT * (high - low))
        left = axes.get_xlim()[1] * 1.02
        name = axes.annotate(
            line.name, (left, place), (8, 0), textcoords="offset points", color=line.colour, size=9, weight="bold",
            va="center", annotation_clip=False,
        )  # fmt: skip
        if line.note:
            axes.annotate(line.note, (1, 0.5), (6, 0), xycoords=name, textcoords="offset points", color=MUTED, size=9,
                          va="center", annotation_clip=False)  # fmt: skip
        axes.plot(
            [x, left], [y, place], color=HAIRLINE, linewidth=0.9, linestyle=(0, (3, 2.5)), clip_on=False, zorder=1
        )


def _apart(places: Sequence[float]) -> list[float]:
    """Ascending places pushed apart to _LINE, up and then down again where that leaves the plot."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + _LINE if moved else 0.0))
    limit = _HEIGHT
    for at in reversed(range(len(moved))):
        moved[at] = min(moved[at], limit)
        limit = moved[at] - _LINE
    return moved


def _padded(low: float, high: float, room: float, least: float) -> tuple[float, float]:
    """The range with `room` on both sides, and so wide that its ends are a factor of `least` apart."""
    room = max(room, math.sqrt(least * low / high))
    return low / room, high * room
