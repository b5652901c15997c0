"""Pictures of patches: a text with its entropies, or all schemes under one another; as PNG or as an HTML page.

Every byte has a column of its own, so that borders and entropies stand exactly where they belong; a character of
several bytes is set across its columns. Colours tell neighbouring patches apart and mean nothing else; they are from
Paul Tol's light scheme, made for text on top and for every kind of colour vision, and a gap marks the border as well.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.patching.patched import PatchedText
from bltkit.views.compare import Comparison
from bltkit.views.facts import count, describe, draws_threshold, facts, statistics
from bltkit.views.glyphs import GlyphCell, cells, split, wrap
from bltkit.views.scene import Box, Curve, Dot, Label, Scene, Shape, png_glyphs

PAPER = "#ffffff"
INK = "#1c2430"
MUTED = "#6b7685"
HEX_INK = "#3d4756"
HAIRLINE = "#e3e7ec"
CURVE = "#004488"
CURVE_SHADE = "#e8eef6"
THRESHOLD = "#bb5566"
PATCHES = ("#a9cdee", "#f7d08f", "#b5dfc4", "#f3c3cf")
"""Backgrounds of patches, in turn."""

COLUMNS = 80
"""Bytes in a line."""
MAX_LINES = 120
"""Longest picture, in lines of text."""

_COLUMN = 11.0
_CELL_HEIGHT = 26.0
_FONT = 17.5
_HEX_FONT = 8.0
_CURVE_HEIGHT = 58.0
_MARGIN = 28.0
_GAP = 0.9


def write_picture(subject: PatchedText | Comparison, path: str | Path) -> Path:
    """Draw `subject` into a .png or .html file, written in one piece; returns its path.

    Raises ValueError for another suffix, an empty text, a text too long to draw, and for a PNG without matplotlib.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        data = draw(subject, png_glyphs()).to_png()
    elif path.suffix.lower() == ".html":
        data = html_page(subject).encode()
    else:
        raise ValueError(f"picture {str(path)!r}: its name must end in .png or .html")
    write_atomic(path, data)
    return path


def draw(subject: PatchedText | Comparison, shows: Callable[[str], bool] = str.isprintable) -> Scene:
    """Lay out a picture. shows: whether the medium has a glyph for a character; without one its bytes are hex.

    Raises ValueError for an empty text or one of more than MAX_LINES lines.
    """
    return _draw_patched(subject, shows) if isinstance(subject, PatchedText) else _draw_comparison(subject, shows)


def html_page(subject: PatchedText | Comparison) -> str:
    """A page that stands alone: one file, no scripts, nothing loaded."""
    scene = draw(subject)
    first = subject if isinstance(subject, PatchedText) else subject.schemes[0].patched
    name = "Patches" if isinstance(subject, PatchedText) else "Patching schemes"
    patched = [("", subject)] if isinstance(subject, PatchedText) else [(s.title, s.patched) for s in subject.schemes]
    tables = "\n".join(_patch_table(title, value) for title, value in patched)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} of {len(first.data)} bytes</title>
<style>
body {{ margin: 2rem auto; padding: 0 1rem; max-width: {scene.width:g}px; color: {INK}; background: {PAPER};
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
svg {{ display: block; max-width: 100%; height: auto; }}
svg text {{ white-space: pre; unicode-bidi: isolate; pointer-events: none; }}
details {{ margin: .5rem {_MARGIN:g}px; }}
summary {{ cursor: pointer; color: {MUTED}; }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid {HAIRLINE}; }}
th {{ color: {MUTED}; font-weight: 500; }}
.l {{ text-align: left; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; }}
</style>
</head>
<body>
{scene.to_svg(f"{name} of {len(first.data)} bytes")}
{tables}
</body>
</html>
"""


@dataclass(frozen=True)
class _Line:
    """Bytes start .. end - 1, drawn side by side from x = left on."""

    start: int
    end: int
    left: float

    def holds(self, offset: int) -> bool:
        """Is the byte in this line."""
        return self.start <= offset < self.end

    def x(self, offset: float) -> float:
        """Left edge of a byte's column."""
        return self.left + (offset - self.start) * _COLUMN


def _draw_patched(patched: PatchedText, shows: Callable[[str], bool]) -> Scene:
    lines = _checked(wrap(cells(patched.data, patched.starts, shows), COLUMNS, _num_bytes))
    left = _MARGIN + (34 if patched.scores is not None else 0)
    widest = max(line[-1].end - line[0].start for line in lines)
    about = " · ".join(facts(patched))
    width = max(left + widest * _COLUMN + 74, 2 * _MARGIN + 7.3 * len(about))
    title = f"{count(len(patched.starts), 'patch', 'patches')}, {patched.mean_patch_bytes:.2f} bytes on average"
    shapes: list[Shape] = [
        Label(_MARGIN, 44, title, 19, INK, bold=True),
        Label(_MARGIN, 66, about, 12.5, MUTED),
    ]
    y = 88.0
    for line in lines:
        place = _Line(line[0].start, line[-1].end, left)
        if patched.scores is not None:
            shapes += _curve(patched, place, y)
            y += _CURVE_HEIGHT + 5
        shapes += _row(patched, line, place, y)
        y += _CELL_HEIGHT + 22
    return Scene(width, y + 4, tuple(shapes), PAPER)


def _draw_comparison(comparison: Comparison, shows: Callable[[str], bool]) -> Scene:
    # Every row is cut into lines at the same bytes, so at borders of characters, which no row's cells reach over.
    lines = _checked(wrap(cells(comparison.data, (), shows), COLUMNS, _num_bytes, at_newlines=False))
    left = _MARGIN + 150
    right = left + max(line[-1].end - line[0].start for line in lines) * _COLUMN + 18
    columns = statistics(comparison)
    widths = [14 + 7.6 * max(len(line) for line in column.head) for column in columns]
    width = max(right + sum(widths) + _MARGIN, 900.0)
    about = f"{count(len(comparison.data), 'byte', 'bytes')} · a patch ends where the colour changes"
    shapes: list[Shape] = [
        Label(_MARGIN, 44, f"One text, {len(comparison.schemes)} ways to cut it into patches", 19, INK, bold=True),
        Label(_MARGIN, 66, about, 12.5, MUTED),
        *_columns([column.head[0] for column in columns], widths, right, 50, 12.5, MUTED),
        *_columns([column.head[1] for column in columns], widths, right, 66, 12.5, MUTED),
    ]
    y = 86.0
    ends = [line[-1].end for line in lines]
    rows = [split(cells(scheme.patched.data, scheme.patched.starts, shows), ends) for scheme in comparison.schemes]
    for number, line in enumerate(lines):
        place = _Line(line[0].start, line[-1].end, left)
        for row, scheme in enumerate(comparison.schemes):
            patched = scheme.patched
            if scheme.name == "entropy":
                y += 8
                shapes += _curve(patched, place, y)
                y += _CURVE_HEIGHT + 5
            shapes += [
                Label(_MARGIN, y + 12, scheme.title, 14, INK, bold=True),
                Label(_MARGIN, y + 25, describe(patched.rule), 10.5, MUTED),
            ]
            shapes += _row(patched, rows[row][number], place, y)
            if number == 0:
                shapes += _columns([column.values[row] for column in columns], widths, right, y + 18.5, 14.5, INK)
            y += _CELL_HEIGHT + 14
        y += 16
    return Scene(width, y - 4, tuple(shapes), PAPER)


def _row(patched: PatchedText, line: Sequence[GlyphCell], place: _Line, y: float) -> Iterator[Shape]:
    """Cells on their patches' backgrounds; a patch that goes on from the line before has no gap in front."""
    for number, (start, length) in enumerate(zip(patched.starts, patched.lengths, strict=True)):
        end = start + length
        if end <= place.start or start >= place.end:
            continue
        left = place.x(start) + _GAP if start >= place.start else place.x(place.start)
        right = place.x(end) - _GAP if end <= place.end else place.x(place.end)
        fill = PATCHES[number % len(PATCHES)]
        yield Box(left, y, right - left, _CELL_HEIGHT, fill, _tooltip(patched, number))
    for cell in line:
        middle = (place.x(cell.start) + place.x(cell.end)) / 2
        if cell.kind == "hex":
            yield Label(middle, y + 16, cell.text, _HEX_FONT, HEX_INK, "middle", mono=True)
        elif cell.text != " ":
            colour = MUTED if cell.kind == "symbol" else INK
            yield Label(middle, y + 18.5, cell.text, _FONT, colour, "middle", mono=True)


def _curve(patched: PatchedText, place: _Line, top: float) -> Iterator[Shape]:
    """The score of every byte of a line above its column, the threshold, and a dot where a patch opens."""
    assert patched.scores is not None
    threshold = patched.threshold if draws_threshold(patched) else None
    values = (*patched.scores, *(() if threshold is None else (threshold,)))
    low, high = min(0.0, *values), max(0.0, *values) or 1.0
    bottom = top + _CURVE_HEIGHT

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * (_CURVE_HEIGHT - 4)

    points = [(place.x(at + 0.5), height(patched.scores[at])) for at in range(place.start, place.end)]
    corners = ((points[0][0], bottom), *points, (points[-1][0], bottom))
    yield Curve(corners, fill=CURVE_SHADE)
    yield Box(place.x(place.start), bottom, (place.end - place.start) * _COLUMN, 1, HAIRLINE)
    unit = "nats" if patched.score_kind == "entropy" else "logit"
    for value, y in ((high, height(high) + 8), (low, bottom + 1)):
        yield Label(place.left - 7, y, f"{value:.1f}" if value else "0", 10.5, MUTED, "end")
    yield Label(place.left - 7, (height(high) + bottom) / 2 + 7, unit, 10.5, MUTED, "end")
    if threshold is not None:
        ends = ((place.x(place.start), height(threshold)), (place.x(place.end), height(threshold)))
        yield Curve(ends, THRESHOLD, 1.3, dashed=True)
        yield Label(place.x(place.end) + 6, height(threshold) + 4, f"θ = {threshold:.2f}", 11, THRESHOLD)
    yield Curve(tuple(points), CURVE, 1.6)
    for at in patched.starts:
        if place.holds(at):
            yield Dot(*points[at - place.start], 3.4, CURVE)


def _columns(
    texts: Sequence[str], widths: Sequence[float], left: float, y: float, size: float, fill: str
) -> Iterator[Shape]:
    for number, text in enumerate(texts):
        yield Label(left + sum(widths[: number + 1]), y, text, size, fill, "end")


def _checked(lines: tuple[tuple[GlyphCell, ...], ...]) -> tuple[tuple[GlyphCell, ...], ...]:
    if not lines:
        raise ValueError("the text is empty; there is nothing to draw")
    if len(lines) > MAX_LINES:
        raise ValueError(f"the text fills {len(lines)} lines, a picture holds {MAX_LINES}; draw a part of it")
    return lines


def _num_bytes(cell: GlyphCell) -> int:
    return cell.num_bytes


def _tooltip(patched: PatchedText, number: int) -> str:
    start, piece = patched.starts[number], patched.pieces[number]
    score = "" if patched.scores is None else f" · {patched.score_kind} {patched.scores[start]:.3f}"
    return f"patch {number + 1}: {count(len(piece), 'byte', 'bytes')} from {start} · {piece.hex(' ')}{score}"


def _patch_table(title: str, patched: PatchedText) -> str:
    """All patches, byte for byte: what the picture cannot say exactly, and what can be copied."""
    head = ["start", "bytes", *([] if patched.scores is None else [str(patched.score_kind)])]
    rows = []
    for start, piece in zip(patched.starts, patched.pieces, strict=True):
        text = "".join(cell.text for cell in cells(piece, (0,)))
        numbers = [str(start), str(len(piece)), *([] if patched.scores is None else [f"{patched.scores[start]:.4f}"])]
        cols = "".join(f"<td>{number}</td>" for number in numbers)
        rows.append(f'<tr>{cols}<td class="l">{piece.hex(" ")}</td><td class="l">{escape(text)}</td></tr>')
    names = "".join(f"<th>{name}</th>" for name in head)
    summary = " · ".join(filter(None, [escape(title), count(len(rows), "patch", "patches") + " in figures"]))
    return (
        f"<details><summary>{summary}</summary>\n<table>\n"
        f'<tr>{names}<th class="l">hex</th><th class="l">text</th></tr>\n' + "\n".join(rows) + "\n</table></details>"
    )
