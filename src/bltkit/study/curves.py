"""Small charts with linear axes for HTML pages: lines over a share from 0 to 1, each with its interval as a band.

Drawn as SVG in the page's own colours, so they follow the reader's choice of light or dark; lines differ by the shape
of their dots as well. Each says in its title what it shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bltkit.eval.report.lanes import Axis, axis, symbol
from bltkit.views.html import Html, tag

SERIES = 8
"""Colours and shapes that there are; they repeat from the ninth line on."""

_WIDTH, _HEIGHT = 430.0, 218.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 14.0, 12.0, 40.0
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class At:
    """A point: x from 0 to 1, y and its interval; ring marks it. title: what the mouse is told."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    ring: bool = False
    title: str = ""


@dataclass(frozen=True)
class Line:
    """Points by ascending x. series: gives colour and shape."""

    name: str
    points: tuple[At, ...]
    series: int = 0


def draw_curves(
    lines: Sequence[Line], title: str, *, x_name: str, scale: Axis, level: float | None = None, level_name: str = ""
) -> Html:
    """The lines over x from 0 to 1. level: a dashed line across, such as chance. Raises ValueError for no lines."""
    if not lines:
        raise ValueError(f"chart {title!r} has no lines to draw")
    return tag(
        "svg",
        tag("title", title),
        list(_grid(scale, x_name)),
        _level(scale, level, level_name) if level is not None and scale.low <= level <= scale.high else None,
        [_band(line, scale) for line in lines],
        [_stroke(line, scale) for line in lines],
        [_dots(line, scale) for line in lines],
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        width="100%",
        role="img",
        class_="ticks curves",
    )


def scale_of(lines: Sequence[Line], level: float | None = None) -> Axis:
    """An axis that holds all lines and intervals, and 0; charts that share one can be compared."""
    values = [value for line in lines for point in line.points for value in (point.y, *(point.interval or ()))]
    return axis([*values, *([] if level is None else [level])])


def legend(names: Sequence[str]) -> Html:
    """Which line is whose."""
    return tag("ul", [tag("li", symbol(at), name) for at, name in enumerate(names)], class_="legend")


def _x(share: float) -> float:
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)


def _y(scale: Axis, value: float) -> float:
    share = (min(max(value, scale.low), scale.high) - scale.low) / (scale.high - scale.low)
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 2)


def _grid(scale: Axis, x_name: str) -> Iterator[Html]:
    for value in scale.ticks:
        y = _y(scale, value)
        yield tag("line", x1=_x(0), x2=_x(1), y1=y, y2=y, class_="z" if value == scale.low else "g")
        shown = f"{round(value, 9):g}".replace("-", "\u2212")
        yield tag("text", shown, x=_LEFT - 8, y=y + 4, text_anchor="end")
    bottom = _HEIGHT - _BOTTOM
    for share in _TICKS:
        yield tag("line", x1=_x(share), x2=_x(share), y1=bottom, y2=bottom + 4, class_="z")
        name = "clean" if share == 0 else f"{share:g}"
        yield tag("text", name, x=_x(share), y=bottom + 18, text_anchor="middle")
    yield tag("text", x_name, x=_x(0.5), y=_HEIGHT - 5, text_anchor="middle")


def _level(scale: Axis, level: float, name: str) -> Html:
    y = _y(scale, level)
    line = tag("line", x1=_x(0), x2=_x(1), y1=y, y2=y, class_="z", stroke_dasharray="3 4")
    return tag("g", line, tag("text", name, x=_x(0) + 5, y=y - 5))


def _band(line: Line, scale: Axis) -> Html | None:
    known = [(point.x, *point.interval) for point in line.points if point.interval is not None]
    if len(known) < 2:
        return None
    upper = [f"{_x(x)},{_y(scale, high)}" for x, _, high in known]
    lower = [f"{_x(x)},{_y(scale, low)}" for x, low, _ in reversed(known)]
    return tag("polygon", points=" ".join([*upper, *lower]), fill=_colour(line), fill_opacity=0.13)


def _stroke(line: Line, scale: Axis) -> Html:
    points = " ".join(f"{_x(point.x)},{_y(scale, point.y)}" for point in line.points)
    return tag("polyline", points=points, fill="none", class_=f"w s{line.series % SERIES}")


def _dots(line: Line, scale: Axis) -> Html:
    found = []
    for point in line.points:
        x, y = _x(point.x), _y(scale, point.y)
        if point.ring:
            found.append(tag("circle", cx=x, cy=y, r=8, fill="none", stroke=_colour(line), stroke_width=1.2))
        # The symbol is 16 by 14 with its dot in the middle.
        dot = symbol(line.series, point.title or line.name)
        found.append(tag("g", dot, transform=f"translate({x - 8:g} {y - 7:g})"))
    return tag("g", found)


def _colour(line: Line) -> str:
    return f"var(--c{line.series % SERIES})"
