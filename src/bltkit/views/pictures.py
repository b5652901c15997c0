"""Pictures of patches: a text with its entropies, or all schemes under one another; as PNG, SVG or an HTML page.

In PNG and SVG every byte has a column of its own, so that borders and entropies stand exactly where they belong; a
character of several bytes is set across its columns. Colours tell neighbouring patches apart and mean nothing else;
they are from Paul Tol's light scheme, made for text on top and for every kind of colour vision, and a gap marks the
border as well.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.patching.patched import PatchedText
from bltkit.views.compare import Comparison
from bltkit.views.facts import count, describe, draws_threshold, facts, statistics
from bltkit.views.figures import (
    COLOURS,
    HAIRLINE,
    INK,
    MARGIN,
    MUTED,
    Figure,
    add_axes,
    check_suffix,
    families,
    has_glyph,
    house_style,
    new_figure,
    titled,
    write,
    write_figure,
)
from bltkit.views.glyphs import GlyphCell, cells, split, text_lines
from bltkit.views.patch_page import patch_page

PATCHES = ("#a9cdee", "#f7d08f", "#b5dfc4", "#f3c3cf")
"""Backgrounds of patches, in turn."""
HEX_INK = "#3d4756"
SHADE = "#e8eef6"

_COLUMN = 11.0
_CELL_HEIGHT = 26.0
_CURVE_HEIGHT = 54.0
_GAP = 0.08
"""Between patches, in columns, on either side of a border."""


def write_picture(subject: PatchedText | Comparison, path: str | Path) -> Path:
    """Draw `subject` into a .png, .svg or .html file, written in one piece; returns its path.

    Raises ValueError for another suffix, an empty text, a text too long to draw, and for a picture that is not a page
    without matplotlib.
    """
    path = Path(path)
    if check_suffix(path, ".png", ".svg", ".html") == ".html":
        write_atomic(path, patch_page(subject).encode())
    else:
        write_figure(draw(subject), path)
    return path


@house_style()
def draw(subject: PatchedText | Comparison) -> Figure:
    """Figure of the patches.

    Raises ValueError for an empty text or one of more than MAX_PICTURE_LINES lines, and without matplotlib.
    """
    return _draw_patched(subject) if isinstance(subject, PatchedText) else _draw_comparison(subject)


def _draw_patched(patched: PatchedText) -> Figure:
    lines = text_lines(patched.data, patched.starts, has_glyph)
    left = MARGIN + (34 if patched.scores is not None else 0)
    widest = max(line[-1].end - line[0].start for line in lines)
    about = " · ".join(facts(patched))
    curve = _CURVE_HEIGHT + 9 if patched.scores is not None else 0.0
    step = curve + _CELL_HEIGHT + 22
    width = max(left + widest * _COLUMN + 74, 2 * MARGIN + 7.3 * len(about))
    figure = new_figure(width, 92 + step * len(lines))
    title = f"{count(len(patched.starts), 'patch', 'patches')}, {patched.mean_patch_bytes:.2f} bytes on average"
    titled(figure, title, about)
    for number, line in enumerate(lines):
        top = 88 + number * step
        if patched.scores is not None:
            _curve(figure, patched, line, left, top)
        _band(figure, patched, line, left, top + curve)
    return figure


def _draw_comparison(comparison: Comparison) -> Figure:
    # Every row is cut into lines at the same bytes, so at borders of characters, which no row's cells reach over.
    lines = text_lines(comparison.data, shows=has_glyph, at_newlines=False)
    ends = [line[-1].end for line in lines]
    schemes = comparison.schemes
    rows = [split(cells(scheme.patched.data, scheme.patched.starts, has_glyph), ends) for scheme in schemes]
    left = MARGIN + 150
    right = left + max(line[-1].end - line[0].start for line in lines) * _COLUMN + 18
    columns = statistics(comparison)
    widths = [14 + 7.6 * max(len(line) for line in column.head) for column in columns]
    has_curve = any(scheme.name == "entropy" for scheme in schemes)
    per_line = len(schemes) * (_CELL_HEIGHT + 14) + (_CURVE_HEIGHT + 17 if has_curve else 0) + 16
    figure = new_figure(max(right + sum(widths) + MARGIN, 900.0), 82 + per_line * len(lines))
    about = f"{count(len(comparison.data), 'byte', 'bytes')} · a patch ends where the colour changes"
    titled(figure, f"One text, {len(schemes)} ways to cut it into patches", about)
    places = [right + sum(widths[: number + 1]) for number in range(len(widths))]
    for place, column in zip(places, columns, strict=True):
        for y, word in zip((50, 66), column.head, strict=True):
            write(figure, place, y, word, size=9, color=MUTED, ha="right")
    top = 86.0
    for number in range(len(lines)):
        for row, scheme in enumerate(schemes):
            if scheme.name == "entropy":
                _curve(figure, scheme.patched, rows[row][number], left, top + 8)
                top += _CURVE_HEIGHT + 17
            write(figure, MARGIN, top + 12, scheme.title, size=10, weight="bold")
            write(figure, MARGIN, top + 25, describe(scheme.patched.rule), size=7.5, color=MUTED)
            _band(figure, scheme.patched, rows[row][number], left, top)
            if number == 0:
                for place, column in zip(places, columns, strict=True):
                    write(figure, place, top + 18.5, column.values[row], size=10.5, ha="right")
            top += _CELL_HEIGHT + 14
        top += 16
    return figure


def _band(figure: Figure, patched: PatchedText, line: Sequence[GlyphCell], left: float, top: float) -> None:
    """Cells on their patches' backgrounds; a patch that continues from the line before has no gap in front."""
    begin, end = line[0].start, line[-1].end
    axes = add_axes(figure, left, top, (end - begin) * _COLUMN, _CELL_HEIGHT)
    axes.set(xlim=(begin, end), ylim=(0, 1))
    axes.set_axis_off()
    inside = range(bisect_right(patched.starts, begin) - 1, bisect_left(patched.starts, end))
    spans = []
    for number in inside:
        start, after = patched.starts[number], patched.starts[number] + patched.lengths[number]
        low = start + _GAP if start >= begin else begin
        spans.append((low, (after - _GAP if after <= end else end) - low))
    axes.broken_barh(spans, (0, 1), facecolors=[PATCHES[number % len(PATCHES)] for number in inside])
    family = list(families("DejaVu Sans Mono"))
    for cell in line:
        if cell.text != " ":
            size, colour = (5.8, HEX_INK) if cell.kind == "hex" else (12.6, MUTED if cell.kind == "symbol" else INK)
            y = 0.38 if cell.kind == "hex" else 0.29
            axes.text((cell.start + cell.end) / 2, y, cell.text, size=size, color=colour, ha="center", family=family)


def _curve(figure: Figure, patched: PatchedText, line: Sequence[GlyphCell], left: float, top: float) -> None:
    """The score of every byte of a line above its column, the threshold, and a dot where a patch opens."""
    assert patched.scores is not None
    begin, end = line[0].start, line[-1].end
    threshold = patched.threshold if draws_threshold(patched) else None
    values = (*patched.scores, *(() if threshold is None else (threshold,)))
    low, high = min(0.0, *values), max(0.0, *values) or 1.0
    axes = add_axes(figure, left, top, (end - begin) * _COLUMN, _CURVE_HEIGHT + 4)
    axes.set(xlim=(begin, end), ylim=(low, high + (high - low) / 14), xticks=[])
    axes.spines["bottom"].set_color(HAIRLINE)
    axes.grid(visible=False)
    unit = "nats" if patched.score_kind == "entropy" else "logit"
    least, most = (f"{value:.1f}" if value else "0" for value in (low, high))
    axes.set_yticks([low, (low + high) / 2, high], [least, unit, most])
    middles = [at + 0.5 for at in range(begin, end)]
    scores = patched.scores[begin:end]
    axes.fill_between(middles, scores, low, color=SHADE, linewidth=0)
    if threshold is not None:
        axes.axhline(threshold, color=COLOURS[1], linewidth=0.95, dashes=(3, 2.5))
        axes.annotate(
            f"θ = {threshold:.2f}",
            (1, threshold),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=COLOURS[1],
            va="center",
        )
    opens = [at - begin for at in patched.starts if begin <= at < end]
    axes.plot(
        middles, scores, color=COLOURS[0], linewidth=1.15, marker="o", markevery=opens, markersize=5.4,
        markeredgecolor="white", markeredgewidth=0.9, clip_on=False,
    )  # fmt: skip
