"""Dots with whiskers on a scale, and histograms: small drawings that stand in a line of a table or of a plot.

Places are percentages of the width, sizes are pixels, so a drawing is as wide as there is room and its dots and letters
stay as large as they are. Every drawing says in its title what it shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bltkit.views.html import Html, Node, tag

_STEP = 12.0
"""Between dots of one lane, which stand below one another."""
_ROOM = 10.0
_SERIES = 8
MARKS = ("circle", "square", "diamond", "up", "down", "ring", "bar", "cross")
"""Shapes of compared runs, so that colour is not needed to tell them apart."""
_PATHS = {
    "square": "M-4-4H4V4H-4z",
    "diamond": "M0-5.6L5.6 0L0 5.6L-5.6 0z",
    "up": "M0-5.2L5.2 4H-5.2z",
    "down": "M0 5.2L5.2-4H-5.2z",
    "bar": "M-2-6H2V6H-2z",
    "cross": "M-5-2H-2V-5H2V-2H5V2H2V5H-2V2H-5z",
}


@dataclass(frozen=True)
class Axis:
    """low .. high, with round numbers in between."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> str:
        """Its place, as a percentage of the width; what is beyond stands at the end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{100 * share:.4g}%"


@dataclass(frozen=True)
class Mark:
    """A dot with its interval; `series` gives colour and shape."""

    value: float
    interval: tuple[float, float] | None = None
    series: int = 0


def axis(values: Sequence[float], highest: float | None = None) -> Axis:
    """From 0 (or below, where there are such values) to the scale's top, or to a round number beyond all values."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known]) if highest is None else highest
    if low < 0 and highest is None:  # differences: both sides alike
        low, high = -max(-low, high), max(-low, high)
    if high <= low:
        high = low + 1
    step = _step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), high / step
    end = math.ceil(last - 1e-9) if highest is None else math.floor(last + 1e-9)
    ticks = tuple(at * step for at in range(first, end + 1))
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), ticks)


def centred(values: Sequence[float]) -> Axis:
    """An axis for differences, 0 in its middle."""
    reach = max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
    return axis((-reach, reach))


def lane(scale: Axis, marks: Sequence[Mark], title: str, chance: float | None = None) -> Html:
    """The marks, one below the other, over the scale's lines; a line at 0 is stronger where there is less than 0.

    chance: a dashed line, at what guessing scores.
    """
    height = _ROOM + _STEP * len(marks)
    lines = [
        tag("line", x1=scale.at(tick), x2=scale.at(tick), y2=height, class_="z" if scale.low < 0 and not tick else "g")
        for tick in scale.ticks
    ]
    if chance is not None and math.isfinite(chance):
        at_chance = scale.at(chance)
        lines.append(tag("line", x1=at_chance, x2=at_chance, y2=height, class_="z chance", stroke_dasharray="3 3"))
    shapes = []
    for at, mark in enumerate(marks):
        if not math.isfinite(mark.value):
            continue
        y = (_ROOM + _STEP) / 2 + _STEP * at
        name = f"s{mark.series % _SERIES}"
        if mark.interval is not None:
            low, high = map(scale.at, mark.interval)
            shapes.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"w {name}"))
        shapes.append(_dot(scale.at(mark.value), y, mark.series))
    return tag("svg", tag("title", title), lines, shapes, height=height, role="img")


def head(scale: Axis) -> Html:
    """The scale's numbers, for the line above lanes."""
    texts = [
        tag("text", f"{round(tick, 9):g}".replace("-", "\u2212"), x=scale.at(tick), y=12, text_anchor="middle")
        for tick in scale.ticks
    ]
    return tag("svg", texts, height=16, aria_hidden="true", class_="ticks")


def plot_line(name: Node, drawing: Html, value: Node = None, kind: str = "") -> Html:
    """A line of a plot (an element of class `plot`): what it is of, the drawing, a figure behind it."""
    parts = (("name", name), ("lane", drawing), ("value", value))
    return tag("div", [tag("div", part, class_=f"{what}{kind}") for what, part in parts], class_="row")


def symbol(series: int, title: str = "") -> Html:
    """A run's mark within a text: beside the run's name, or alone, and then `title` says it."""
    dot = _dot("50%", 7, series)
    if not title:
        return tag("svg", dot, width=16, height=14, class_="symbol", aria_hidden="true")
    return tag("svg", tag("title", title), dot, width=16, height=14, class_="symbol", role="img")


def histogram(values: Sequence[float], title: str, *, left: str = "", right: str = "", signed: bool = False) -> Html:
    """How often which value. What lies beyond the 1st and 99th percentile is counted in the outermost bars.

    signed: 0 is a border between bars; those below it are of one colour, those above of another, named by `left` and
    `right`.
    """
    assert values, title
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    if signed:
        low, high = min(low, 0.0), max(high, 0.0)
    step = _step((high - low or 1.0) / 30)
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    counts = [0] * (last - first)
    for value in values:
        counts[min(max(math.floor(value / step + 1e-9) - first, 0), len(counts) - 1)] += 1
    scale, top, height = Axis(first * step, last * step, ()), max(counts), 96
    bars = []
    for at, count in enumerate(counts):
        if not count:
            continue
        low, high = (first + at) * step, (first + at + 1) * step
        size = max(1.0, height * count / top)
        kind = "b" if not signed else "n" if high <= 1e-9 * step else "p"
        about = tag("title", f"{low:.4g} to {high:.4g}: {count}")
        width = f"{100 / len(counts):.4g}%"
        bars.append(tag("rect", about, x=scale.at(low), y=14 + height - size, width=width, height=size, class_=kind))
    zero = scale.at(0.0)
    marks = [
        tag("line", x1="0%", x2="100%", y1=14 + height, y2=14 + height, class_="z"),
        tag("text", f"{scale.low:.4g}", x="0%", y=126, class_="q"),
        tag("text", f"{scale.high:.4g}", x="100%", y=126, text_anchor="end", class_="q"),
    ]
    if signed and scale.low < 0 < scale.high:
        inside = 0.08 < -scale.low / (scale.high - scale.low) < 0.92
        marks.append(tag("line", x1=zero, x2=zero, y1=0, y2=14 + height, class_="z"))
        marks.append(tag("text", "0", x=zero, y=126, text_anchor="middle", class_="q") if inside else Html(""))
    if signed:
        marks.append(tag("text", left, x="0%", y=9, class_="nt"))
        marks.append(tag("text", right, x="100%", y=9, text_anchor="end", class_="pt"))
    return tag("svg", tag("title", title), bars, marks, width="100%", height=130, role="img", class_="histogram")


def _dot(x: str, y: float, series: int) -> Html:
    shape, name = MARKS[series % _SERIES], f"s{series % _SERIES}"
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=4.5, class_=f"d {name}")
    if shape == "ring":
        return tag("circle", cx=x, cy=y, r=4, class_=f"r {name}")
    return tag("svg", tag("path", d=_PATHS[shape], class_=f"d {name}"), x=x, y=y)


def _step(raw: float) -> float:
    """The round number (1, 2, 5 times a power of ten) at or above."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
