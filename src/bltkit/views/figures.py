"""Figures in the house style: matplotlib's settings, colours, and how a figure becomes a file or part of a page.

matplotlib is imported where a figure is drawn. Colours are Paul Tol's and further ones of their kind; each of them has
a lighter counterpart for pages on a dark ground.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bltkit.checkpoint import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    Axes = Figure = Any

PAPER = "#ffffff"
INK = "#1c2430"
MUTED = "#6b7685"
HAIRLINE = "#e3e7ec"
COLOURS = (
    "#004488", "#bb5566", "#228833", "#aa7700", "#aa3377", "#3399bb", "#4d4d4d", "#7a5cc9", "#8c510a", "#5a8f00",
)  # fmt: skip
"""Colours of compared lines, in turn; dark enough for text on white."""
MARKERS = ("o", "s", "D", "^", "v", "o", "|", "P")
"""Markers of compared runs, so that colour is not needed to tell them apart; those of `symbol` in macros.html.j2."""
HOLLOW = 5
"""Index of the marker that is drawn as a ring."""

_DARK = dict(
    zip(
        (PAPER, INK, MUTED, HAIRLINE, *COLOURS),
        (
            "#14181d", "#e4e8ee", "#9ca8b6", "#2d3640", "#7fb2e5", "#f08ea0", "#6fcb86", "#dfb04a", "#e08cc4",
            "#6cc8e6", "#c4c4c4", "#b3a2f2", "#d9a066", "#a5d05a",
        ),
        strict=True,
    )
)  # fmt: skip
"""Counterpart of a colour on a dark ground."""

FALLBACKS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Emoji",
    "Symbola",
)  # fmt: skip
"""Fonts that a picture takes a character from that its own has not, as far as they are installed."""

MARGIN = 28.0
"""Pixels at 100 % beside a figure's title."""
MAX_PIXELS = 2**15
"""Longest side of a PNG; image libraries get into trouble beyond."""
PNG_DPI = 200

_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "bltkit",  # ids that depend on the drawing alone
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
}


def displayable(text: str) -> str:
    """Replace by U+FFFD the characters that no page and no picture may hold: control characters but tab and line feed,
    halves of surrogate pairs, noncharacters.
    """
    return _UNFIT.sub("\ufffd", text)


def has_matplotlib() -> bool:
    """Is matplotlib installed."""
    return find_spec("matplotlib") is not None


@contextmanager
def house_style(font_size: float = 8.0) -> Iterator[None]:
    """Settings under which figures are drawn, letters of `font_size` points; also a decorator.

    Raises ValueError that names the extra where matplotlib is not installed.
    """
    if not has_matplotlib():
        raise ValueError("PNG and SVG pictures need matplotlib: pip install 'bltkit[plot]'; .html needs nothing")
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS | {"font.size": font_size, "axes.labelsize": font_size}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Figure of width x height pixels at 100 %, without axes. Call it in `house_style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 100, height / 100), facecolor=PAPER)


def to_png(figure: Figure) -> bytes:
    """PNG file at twice the figure's pixels. Raises ValueError for a figure that no PNG can hold."""
    pixels = [round(side * PNG_DPI) for side in figure.get_size_inches()]
    if max(pixels) > MAX_PIXELS:
        raise ValueError(
            f"the picture would be {pixels[0]} x {pixels[1]} pixels, more than {MAX_PIXELS} on a side; draw a shorter "
            "text, or write .svg or .html"
        )
    # Without the library's version in it, the file depends on the drawing alone.
    return _saved(figure, format="png", dpi=PNG_DPI, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """SVG file; letters are outlines, so that it looks the same wherever it is shown."""
    text = _saved(figure, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))).decode()
    return re.sub(r"<!DOCTYPE.*?>\n?", "", text, count=1, flags=re.DOTALL)


def to_page_svg(figure: Figure) -> str:
    """SVG image for a page: letters in the reader's fonts, colours by the reader's choice of light or dark."""
    import matplotlib as mpl

    figure.patch.set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none"}):
        svg = to_svg(figure)
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in _DARK)
    dark = "".join(f"--c{colour[1:]}:{other};" for colour, other in _DARK.items())
    svg = re.sub("|".join(_DARK), lambda colour: f"var(--c{colour.group()[1:]})", svg)
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme: dark){{svg{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{style}\n<defs>", 1)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a .png or .svg file, in one piece."""
    write_atomic(path, to_png(figure) if path.suffix.lower() == ".png" else to_svg(figure).encode())


def check_suffix(path: str | Path, *suffixes: str) -> str:
    """The suffix of a picture's path in lower case. Raises ValueError for one that is not among `suffixes`."""
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        names = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
        raise ValueError(f"picture {str(path)!r}: its name must end in {names}")
    return suffix


def titled(figure: Figure, title: str, about: str, top: float = 0.0) -> None:
    """Title and, below it, a muted line, at the left of the part of a figure that begins `top` pixels from above."""
    write(figure, MARGIN, top + 44, title, size=13.5, weight="bold")
    write(figure, MARGIN, top + 66, about, size=9, color=MUTED)


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text whose base line begins at x, y: pixels at 100 % from the figure's upper left."""
    width, height = figure.get_size_inches() * 100
    figure.text(x / width, 1 - y / height, displayable(text), **style)


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels at 100 %, from the figure's upper left."""
    across, down = figure.get_size_inches() * 100
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def number(value: float) -> str:
    """Three digits that mean something, thousands apart: 0.18, 3.5, 293, 16,384."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


@cache
def families(first: str) -> tuple[str, ...]:
    """A font of matplotlib's and the installed `FALLBACKS`, in the order in which a glyph is looked for."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return tuple(dict.fromkeys((first, *(name for name in FALLBACKS if name in installed))))


def has_glyph(character: str) -> bool:
    """Do the fonts of pictures have a glyph for a character. Raises ValueError without matplotlib."""
    return any(font.get_char_index(ord(character)) for font in _fonts())


@cache
@house_style()
def _fonts() -> Sequence[Any]:
    from matplotlib.font_manager import findfont, get_font

    return [get_font(findfont(name)) for name in families("DejaVu Sans Mono")]


@house_style()
def _saved(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that no installed font has is a box in a PNG, and itself in a page.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, **options)
    return file.getvalue()
