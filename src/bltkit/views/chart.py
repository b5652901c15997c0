"""Lines over two logarithmic axes as a drawing, in the style of the other pictures.

Lines are named at their right ends and not in a legend; ratios are distances, which is what speeds are compared by.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bltkit.views.figures import HAIRLINE, INK, MUTED, PAPER
from bltkit.views.scene import Box, Curve, Dot, Label, Scene, Shape

COLOURS = ("#004488", "#bb5566", "#228833", "#aa7700", "#aa3377", "#3399bb", "#4d4d4d", "#7a5cc9", "#8c510a", "#5a8f00")
"""Of lines, in turn: Paul Tol's and four more, dark enough for text on white."""

_MARGIN = 28.0
_LEFT = 84.0
_TOP = 112.0
_PLOT_WIDTH = 560.0
_PLOT_HEIGHT = 360.0
_NAME = 12.5
_LETTER = 7.6
"""Width of a letter of size _NAME, a wide one."""
_LINE = 17.0
_TICK_ROOM = 44.0
_LADDERS = ((1, 2, 5), (1, 3), (1,))
_MAX_TICKS = 9


@dataclass(frozen=True)
class Series:
    """A named line through points (x, y), both above 0, x ascending."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False
    note: str = ""
    """Stands behind the name."""

    def __post_init__(self) -> None:
        xs = [x for x, _ in self.points]
        if not xs or xs != sorted(set(xs)) or min(min(point) for point in self.points) <= 0:
            raise ValueError(f"series {self.name!r}: points must be there, above 0 and in ascending order of x")


@dataclass(frozen=True)
class Chart:
    """Lines and what they say."""

    title: str
    about: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class _LogAxis:
    """low .. high on a logarithmic scale, drawn from pixel `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Its pixel."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def draw_chart(chart: Chart) -> Scene:
    """Lay the chart out. Raises ValueError where it has no lines."""
    if not chart.series:
        raise ValueError(f"chart {chart.title!r} has no lines to draw")
    right, bottom = _LEFT + _PLOT_WIDTH, _TOP + _PLOT_HEIGHT
    xs = sorted({x for line in chart.series for x, _ in line.points})
    ys = [y for line in chart.series for _, y in line.points]
    x_axis = _LogAxis(*_padded(xs[0], xs[-1], 1.15, 2.0), _LEFT, right)
    y_axis = _LogAxis(*_padded(min(ys), max(ys), 1.3, 4.0), bottom, _TOP)
    names = [len(f"{line.name}  {line.note}") for line in chart.series]
    width = max(right + 30 + _LETTER * max(names) + _MARGIN, 2 * _MARGIN + 7.3 * len(chart.about))
    shapes = [
        Label(_MARGIN, 44, chart.title, 19, INK, bold=True),
        Label(_MARGIN, 66, chart.about, 12.5, MUTED),
        Label(_MARGIN, _TOP - 12, chart.y_name, 11, MUTED),
        Label((_LEFT + right) / 2, bottom + 44, chart.x_name, 11, MUTED, "middle"),
        *_grid(x_axis, y_axis, xs),
        *_names(chart.series, x_axis, y_axis),
    ]
    for line in chart.series:
        points = tuple((x_axis.at(x), y_axis.at(y)) for x, y in line.points)
        if len(points) > 1:
            shapes.append(Curve(points, line.colour, 2.0, line.dashed))
        shapes += [Dot(*point, 3.8, line.colour) for point in points]
    return Scene(width, bottom + 64, tuple(shapes), PAPER)


def number(value: float) -> str:
    """Three digits that mean something, thousands apart: 0.18, 3.5, 293, 16,384."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def _grid(x_axis: _LogAxis, y_axis: _LogAxis, xs: Sequence[float]) -> Iterator[Shape]:
    bottom, right = y_axis.start, x_axis.end
    for value in _ticks(y_axis):
        y = y_axis.at(value)
        yield Box(x_axis.start, y, right - x_axis.start, 1, HAIRLINE)
        yield Label(x_axis.start - 10, y + 4, number(value), 11, MUTED, "end")
    yield Box(x_axis.start, bottom, right - x_axis.start, 1, MUTED)
    before = -math.inf
    for value in xs:  # where something was measured, as far as there is room to say so
        x = x_axis.at(value)
        if x - before >= _TICK_ROOM:
            before = x
            yield Box(x - 0.5, bottom, 1, 5, MUTED)
            yield Label(x, bottom + 20, number(value), 11, MUTED, "middle")


def _names(series: Sequence[Series], x_axis: _LogAxis, y_axis: _LogAxis) -> Iterator[Shape]:
    """Names beside the ends of the lines, as far apart as letters are high; a hairline leads to a name moved far."""
    ends = sorted(((*line.points[-1], line) for line in series), key=lambda end: -end[1])
    wanted = [y_axis.at(y) for _, y, _ in ends]
    for (x, _, line), y, place in zip(ends, wanted, _apart(wanted, y_axis.end, y_axis.start), strict=True):
        left, end = x_axis.end + 22, x_axis.at(x)
        if left - end > 60 or abs(place - y) > 3:
            yield Curve(((end + 7, y), (left - 5, place)), HAIRLINE, 1.2, dashed=True)
        yield Label(left, place + 4, line.name, _NAME, line.colour, bold=True)
        if line.note:
            yield Label(left + _LETTER * len(line.name) + 9, place + 4, line.note, _NAME, MUTED)


def _apart(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending places pushed apart to _LINE, down and then up again where that leaves the plot."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + _LINE if found else top))
    limit = bottom
    for at in reversed(range(len(found))):
        found[at] = min(found[at], limit)
        limit = found[at] - _LINE
    return found


def _padded(low: float, high: float, room: float, least: float) -> tuple[float, float]:
    """The range with `room` on both sides, and so wide that its ends are a factor of `least` apart."""
    room = max(room, math.sqrt(least * low / high))
    return low / room, high * room


def _ticks(axis: _LogAxis) -> list[float]:
    """Round numbers, as many as do not crowd the axis."""
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    ladders = ([n * 10.0**decade for decade in decades for n in ladder] for ladder in _LADDERS)
    choices = [[value for value in ladder if axis.low <= value <= axis.high] for ladder in ladders]
    return next((ticks for ticks in choices if len(ticks) <= _MAX_TICKS), choices[-1])
