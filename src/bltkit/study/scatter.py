"""Points in panels side by side, in the style of the other pictures: colour says whose, shape says of which kind.

Every panel has its own scales, unless all share the one that is read upwards. Points may carry a short name, which is
left out where it would cover another.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bltkit.views.chart import number
from bltkit.views.pictures import HAIRLINE, INK, MUTED, PAPER
from bltkit.views.scene import Box, Curve, Dot, Label, Scene, Shape

Marker = Literal["circle", "square", "diamond", "up", "down", "star"]
Scale = Literal["log", "linear", "percent"]

_WIDTH, _HEIGHT = 400.0, 290.0
_LEFT, _ABOVE, _BELOW, _BETWEEN = 64.0, 40.0, 52.0, 30.0
_MARGIN, _TOP = 28.0, 88.0
_LEGEND, _LINE = 210.0, 19.0
_RADIUS = 4.6
_NAME, _LETTER = 9.0, 5.2
"""A point's name, and the width of one of its letters."""


@dataclass(frozen=True)
class Point:
    """A mark."""

    x: float
    y: float
    colour: str
    marker: Marker = "circle"
    name: str = ""


@dataclass(frozen=True)
class Trace:
    """A line through places, such as a fit; what leaves the panel is not drawn."""

    places: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Points with a title. `levels` are dashed lines at a y, `diagonal` one at x = y, `traces` lies below the points.

    The points alone decide how far the axes reach.
    """

    title: str
    points: tuple[Point, ...]
    levels: tuple[tuple[float, str], ...] = ()
    diagonal: bool = False
    traces: tuple[Trace, ...] = ()


@dataclass(frozen=True)
class Scatter:
    """Rows of panels that share their axes' names and kinds."""

    title: str
    about: str
    x_name: str
    y_name: str
    panels: tuple[tuple[Panel, ...], ...]
    colours: tuple[tuple[str, str], ...]
    """Name and colour, for the legend."""
    markers: tuple[tuple[str, Marker], ...]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    shared_y: bool = False
    """One scale upwards for all panels, so that they compare."""
    notes: tuple[str, ...] = field(default=())
    """Below the legend, a line each."""


@dataclass(frozen=True)
class _ScatterAxis:
    """low .. high, from pixel `start` to `end`."""

    scale: Scale
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Its pixel."""
        low, high, value = (math.log(one) if self.scale == "log" else one for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, three to eight of them."""
        if self.scale == "log":
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ladders = ((1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,))
            choices = [
                [step * 10.0**decade for decade in decades for step in ladder if self.holds(step * 10.0**decade)]
                for ladder in ladders
            ]
            found = next((ticks for ticks in choices if len(ticks) <= 8), choices[-1])
            if len(found) > 2:
                return found
        raw = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        first = math.ceil(self.low / step)
        return [step * at for at in range(first, math.floor(self.high / step) + 1)]

    def holds(self, value: float) -> bool:
        """Is it on the axis."""
        return self.low <= value <= self.high

    def text(self, value: float) -> str:
        """A tick's."""
        if self.scale == "percent":
            return f"{100 * value:.0f} %"
        if abs(value) >= 1e6:
            return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
        return "0" if abs(value) < 1e-12 else f"{'-' if value < 0 else ''}{number(abs(value))}"


def draw_scatter(scatter: Scatter) -> Scene:
    """Lay it out. Raises ValueError where there are no points."""
    if not any(panel.points for panel in _all(scatter)):
        raise ValueError(f"{scatter.title!r} has no points to draw")
    columns, step_x, step_y = max(map(len, scatter.panels)), _LEFT + _WIDTH + _BETWEEN, _ABOVE + _HEIGHT + _BELOW
    shapes: list[Shape] = [
        Label(_MARGIN, 44, scatter.title, 19, INK, bold=True),
        Label(_MARGIN, 66, scatter.about, 12.5, MUTED),
    ]
    for down, row in enumerate(scatter.panels):
        for across, panel in enumerate(row):
            left, top = _MARGIN + across * step_x + _LEFT, _TOP + down * step_y + _ABOVE
            shapes += _panel(scatter, panel, left, top)
    legend = _MARGIN + columns * step_x
    shapes += _legend(scatter, legend, _TOP + _ABOVE)
    lines = len(scatter.colours) + len(scatter.markers) + len(scatter.notes) + 2
    longest = max([0, *(len(note) for note in scatter.notes)])
    width = max(legend + max(_LEGEND, 6.1 * longest) + _MARGIN, 2 * _MARGIN + 7.3 * len(scatter.about))
    height = _TOP + max(len(scatter.panels) * step_y, _ABOVE + lines * _LINE) + 12
    return Scene(width, height, tuple(shapes), PAPER)


def _panel(scatter: Scatter, panel: Panel, left: float, top: float) -> Iterator[Shape]:
    right, bottom = left + _WIDTH, top + _HEIGHT
    yield Label(left, top - 23, panel.title, 12.5, INK, bold=True)
    if not panel.points:
        yield Label(left, top + 20, "nothing was measured", 11, MUTED)
        return
    ys = [y for one in (_all(scatter) if scatter.shared_y else [panel]) for y in _heights(one)]
    x = _axis(scatter.x_scale, [point.x for point in panel.points], left, right)
    y = _axis(scatter.y_scale, ys, bottom, top)
    for value in y.ticks():
        yield Box(left, y.at(value), _WIDTH, 1, HAIRLINE)
        yield Label(left - 8, y.at(value) + 4, y.text(value), 10.5, MUTED, "end")
    for value in x.ticks():
        yield Box(x.at(value), top, 1, _HEIGHT, HAIRLINE)
        yield Label(x.at(value), bottom + 17, x.text(value), 10.5, MUTED, "middle")
    yield Box(left, bottom, _WIDTH, 1, MUTED)
    yield Label(left - _LEFT + 6, top - 8, scatter.y_name, 10.5, MUTED)
    yield Label((left + right) / 2, bottom + 36, scatter.x_name, 10.5, MUTED, "middle")
    if panel.diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        if low < high:
            yield Curve(((x.at(low), y.at(low)), (x.at(high), y.at(high))), MUTED, 1.2, dashed=True)
    for level, colour in panel.levels:
        yield Curve(((left, y.at(level)), (right, y.at(level))), colour, 1.1, dashed=True)
    for trace in panel.traces:
        inside = tuple((x.at(a), y.at(b)) for a, b in trace.places if x.holds(a) and y.holds(b))
        if len(inside) > 1:
            yield Curve(inside, trace.colour, 1.4, dashed=trace.dashed)
    places = [(x.at(point.x), y.at(point.y)) for point in panel.points]
    for point, place in zip(panel.points, places, strict=True):
        yield from _mark(point.marker, *place, point.colour)
    lines = [(left, y.at(level) - 2, right, y.at(level) + 2) for level, _ in panel.levels]
    yield from _names(panel.points, places, lines, (left, top, right, bottom))


def _all(scatter: Scatter) -> list[Panel]:
    return [panel for row in scatter.panels for panel in row]


def _heights(panel: Panel) -> list[float]:
    return [point.y for point in panel.points] + [y for y, _ in panel.levels]


def _axis(scale: Scale, values: Sequence[float], start: float, end: float) -> _ScatterAxis:
    """With room around the values, and of some length also where they are all the same."""
    low, high = min(values), max(values)
    if scale == "log":
        room = max((high / low) ** 0.08, math.sqrt(1.5 * low / high), 1.05)
        return _ScatterAxis(scale, low / room, high * room, start, end)
    room = max(0.08 * (high - low), (0.2 * max(abs(high), abs(low), 1e-6) - (high - low)) / 2)
    return _ScatterAxis(scale, low - room, high + room, start, end)


_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    "up": ((0, -1.3), (1.2, 0.95), (-1.2, 0.95)),
    "down": ((0, 1.3), (1.2, -0.95), (-1.2, -0.95)),
    "star": tuple(
        (size * math.sin(at * math.pi / 5), -size * math.cos(at * math.pi / 5))
        for at in range(10)
        for size in ((1.6, 0.7)[at % 2],)
    ),
}


def _mark(marker: Marker, x: float, y: float, colour: str) -> Iterator[Shape]:
    """With a light rim, so that marks on one another can be told apart."""
    if marker == "circle":
        yield Dot(x, y, _RADIUS, colour)
        return
    for radius, fill in ((_RADIUS + 1.1, PAPER), (_RADIUS - 0.4, colour)):
        yield Curve(tuple((x + radius * dx, y + radius * dy) for dx, dy in _SHAPES[marker]), fill=fill)


def _names(
    points: Sequence[Point],
    places: Sequence[tuple[float, float]],
    lines: Sequence[tuple[float, ...]],
    panel: tuple[float, float, float, float],
) -> Iterator[Shape]:
    """Each to the right of its point, else to the left, above or below; else not at all."""
    taken: list[tuple[float, ...]] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    taken += lines
    for at, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        width = _LETTER * len(point.name)
        for left, base in ((x + 9, y + 3), (x - 9 - width, y + 3), (x - width / 2, y - 9), (x - width / 2, y + 16)):
            box = (left, base - 8, left + width, base + 2)
            inside = box[0] >= panel[0] and box[1] >= panel[1] - 6 and box[2] <= panel[2] + 24 and box[3] <= panel[3]
            others = [one for number, one in enumerate(taken) if number != at]
            if point.name and inside and not any(_overlap(box, other) for other in others):
                taken.append(box)
                yield Label(left, base, point.name, _NAME, point.colour)
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(scatter: Scatter, x: float, top: float) -> Iterator[Shape]:
    y = top + 8
    for name, colour in scatter.colours:
        yield Box(x, y - 9, 12, 12, colour)
        yield Label(x + 22, y + 1, name, 12, INK, bold=True)
        y += _LINE
    y += _LINE / 2
    for name, marker in scatter.markers:
        yield from _mark(marker, x + 6, y - 3, MUTED)
        yield Label(x + 22, y + 1, name, 12, INK)
        y += _LINE
    y += _LINE / 2
    for note in scatter.notes:
        yield Label(x, y, note, 11, MUTED)
        y += _LINE - 3
