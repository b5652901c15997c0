"""A drawing as a value, and the two ways to put it on paper: PNG (matplotlib) and SVG (by hand, for HTML).

Both draw the same few shapes, so what is laid out once looks the same in either. Units are pixels at 100 %, y grows
downward; a shape covers those before it.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any, Literal, assert_never

Anchor = Literal["start", "middle", "end"]

MONO = ("DejaVu Sans Mono", "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace")
SANS = ("DejaVu Sans", "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif")
"""Font of the PNG (it comes with matplotlib), and fonts of the HTML page."""

FALLBACKS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Emoji",
    "Symbola",
)
"""Fonts that a PNG takes a character from that its own has not, as far as they are installed."""

MAX_PIXELS = 2**15
"""Longest side of a PNG; image libraries get into trouble beyond."""


@dataclass(frozen=True)
class Box:
    """A filled rectangle; `title` is what a browser shows when the mouse rests on it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str = ""


@dataclass(frozen=True)
class Label:
    """One line of text; y is its base line."""

    x: float
    y: float
    text: str
    size: float
    fill: str
    anchor: Anchor = "start"
    mono: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Curve:
    """A line through points; `fill` instead paints what it encloses."""

    points: tuple[tuple[float, float], ...]
    stroke: str | None = None
    width: float = 1.5
    dashed: bool = False
    fill: str | None = None


@dataclass(frozen=True)
class Dot:
    """A filled circle with a light rim."""

    x: float
    y: float
    radius: float
    fill: str


Shape = Box | Label | Curve | Dot


@dataclass(frozen=True)
class Scene:
    """Shapes on a `background` of width x height pixels."""

    width: float
    height: float
    shapes: tuple[Shape, ...]
    background: str

    def to_svg(self, description: str) -> str:
        """An <svg> element for an HTML page. Reads nothing from elsewhere; `description` is for screen readers."""
        body = "\n".join(_svg(shape, self.background) for shape in self.shapes)
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" role="img" '
            f'aria-label="{escape(description)}">\n{body}\n</svg>'
        )

    def to_png(self, scale: float = 2.0) -> bytes:
        """A PNG file of scale x width by scale x height pixels.

        Raises ValueError without matplotlib, and for a scene that no PNG can hold.
        """
        if max(self.width, self.height) * scale > MAX_PIXELS:
            raise ValueError(
                f"the picture would be {self.width * scale:.0f} x {self.height * scale:.0f} pixels, more than "
                f"{MAX_PIXELS} on a side; draw a shorter text, or write .html"
            )
        figure_type = matplotlib_figure()
        dpi = 100.0
        figure = figure_type(figsize=(self.width / dpi, self.height / dpi), dpi=dpi * scale, facecolor=self.background)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        for order, shape in enumerate(self.shapes):
            _paint(axes, shape, order, 72 / dpi, self.background)
        file = io.BytesIO()
        # Without the library's version in it, the file depends on the drawing alone.
        figure.savefig(file, format="png", facecolor=self.background, metadata={"Software": None})
        return file.getvalue()


def matplotlib_figure() -> type[Any]:
    """matplotlib's `Figure`. Raises ValueError that names the extra where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "PNG pictures need matplotlib: pip install 'bltkit[plot]'; a picture named .html needs nothing"
        ) from None
    return Figure


def png_glyphs() -> Callable[[str], bool]:
    """Whether a PNG's fonts have a glyph for a character. Raises ValueError without matplotlib."""
    matplotlib_figure()
    from matplotlib.font_manager import findfont, get_font

    fonts = [get_font(findfont(name)) for name in png_families(MONO[0])]

    @cache
    def shows(character: str) -> bool:
        return any(font.get_char_index(ord(character)) for font in fonts)

    return shows


@cache
def png_families(first: str) -> tuple[str, ...]:
    """A font of matplotlib's and the installed `FALLBACKS`, in the order in which a glyph is looked for."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return tuple(dict.fromkeys((first, *(name for name in FALLBACKS if name in installed))))


def _paint(axes: Any, shape: Shape, order: int, points_per_pixel: float, background: str) -> None:
    from matplotlib.patches import Circle, Polygon, Rectangle

    match shape:
        case Box():
            corner = (shape.x, shape.y)
            axes.add_patch(Rectangle(corner, shape.width, shape.height, color=shape.fill, linewidth=0, zorder=order))
        case Label():
            axes.text(
                shape.x,
                shape.y,
                shape.text,
                fontsize=shape.size * points_per_pixel,
                color=shape.fill,
                ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor],
                va="baseline",
                family=list(png_families((MONO if shape.mono else SANS)[0])),
                weight="bold" if shape.bold else "normal",
                parse_math=False,
                zorder=order,
            )
        case Curve():
            if shape.fill is not None:
                axes.add_patch(Polygon(shape.points, closed=True, color=shape.fill, linewidth=0, zorder=order))
            if shape.stroke is not None:
                xs, ys = zip(*shape.points, strict=True)
                style: tuple[float, tuple[float, float] | None] = (0, (3, 2.5) if shape.dashed else None)
                width = shape.width * points_per_pixel
                axes.plot(xs, ys, color=shape.stroke, linewidth=width, linestyle=style, zorder=order)
        case Dot():
            radius, edge = shape.radius, 1.2 * points_per_pixel
            centre = (shape.x, shape.y)
            axes.add_patch(Circle(centre, radius, fc=shape.fill, ec=background, linewidth=edge, zorder=order))
        case _:
            assert_never(shape)


def _svg(shape: Shape, background: str) -> str:
    match shape:
        case Box():
            size = f'x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}"'
            title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
            return f'<rect {size} fill="{shape.fill}">{title}</rect>'
        case Label():
            family = (MONO if shape.mono else SANS)[1]
            bold = ' font-weight="600"' if shape.bold else ""
            return (
                f'<text x="{shape.x:g}" y="{shape.y:g}" font-family="{family}" font-size="{shape.size:g}"{bold} '
                f'fill="{shape.fill}" text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
            )
        case Curve():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            stroke = f'stroke="{shape.stroke}" stroke-width="{shape.width:g}"' if shape.stroke else ""
            dashes = ' stroke-dasharray="4.5 3.5"' if shape.dashed else ""
            return f'<polyline points="{points}" fill="{shape.fill or "none"}" {stroke}{dashes}/>'
        case Dot():
            place = f'cx="{shape.x:g}" cy="{shape.y:g}" r="{shape.radius:g}"'
            return f'<circle {place} fill="{shape.fill}" stroke="{background}" stroke-width="1.2"/>'
        case _:
            assert_never(shape)
