"""The HTML page of patches: text that wraps, can be selected and follows light and dark, with a bar for every entropy.

Every byte has a column, as in the pictures; a cell holds the columns of its bytes and, across them, its character.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from bltkit.patching.patched import PatchedText
from bltkit.views.compare import Comparison
from bltkit.views.facts import count, describe, draws_threshold, facts, statistics
from bltkit.views.glyphs import GlyphCell, cells, split, text_lines
from bltkit.views.pages import Cell, CellLike, PageTable, render_page

COLOURS = 4
"""Colours of patches: the classes p0 to p3 of page.css."""
LEVELS = 24
"""Heights of bars: the classes h0 to h24 of page.css."""


@dataclass(frozen=True)
class PageCell:
    """What a page shows of a cell: its text, how, and the classes of its bytes' columns."""

    text: str
    kind: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class PagePatches:
    """Neighbouring cells that begin in one patch, and the hint that a browser shows."""

    hint: str
    cells: tuple[PageCell, ...]


@dataclass(frozen=True)
class PageRow:
    """A text, or a line of it, under one scheme. level: class of the threshold, or of nothing."""

    title: str
    rule: str
    level: str
    patches: tuple[PagePatches, ...]


def patch_page(subject: PatchedText | Comparison) -> str:
    """Write the page: one file, which loads nothing.

    Raises ValueError for an empty text or one of more lines than a picture holds.
    """
    if isinstance(subject, PatchedText):
        return _text_page(subject)
    return _comparison_page(subject)


def _text_page(patched: PatchedText) -> str:
    lines = text_lines(patched.data, patched.starts)
    scale = _Scale(patched)
    # The page wraps lines by itself; only those that end with a newline stay apart.
    joined: list[list[GlyphCell]] = [[]]
    for line in lines:
        if joined[-1] and joined[-1][-1].text in ("↵", "0A"):
            joined.append([])
        joined[-1] += line
    return render_page(
        "views/patches.html.j2",
        f"Patches of {count(len(patched.data), 'byte', 'bytes')}",
        heading=f"{count(len(patched.starts), 'patch', 'patches')}, {patched.mean_patch_bytes:.2f} bytes on average",
        about=" · ".join(facts(patched)),
        groups=[[PageRow("", "", scale.level, scale.patches(line))] for line in joined],
        scale=scale.words,
        figures=None,
        tables=[_patch_table("", patched)],
    )


def _comparison_page(comparison: Comparison) -> str:
    lines = text_lines(comparison.data, at_newlines=False)
    ends = [line[-1].end for line in lines]
    schemes = comparison.schemes
    rows = [split(cells(scheme.patched.data, scheme.patched.starts), ends) for scheme in schemes]
    scales = [_Scale(scheme.patched, shown=scheme.name == "entropy") for scheme in schemes]
    groups = [
        [
            PageRow(scheme.title, describe(scheme.patched.rule), scale.level, scale.patches(row[number]))
            for scheme, scale, row in zip(schemes, scales, rows, strict=True)
        ]
        for number in range(len(lines))
    ]
    columns = statistics(comparison)
    heads = ["scheme", "rule", *(" ".join(filter(None, column.head)) for column in columns)]
    figures: list[list[CellLike]] = [
        [Cell(scheme.title), Cell(describe(scheme.patched.rule), kind="quiet"), *(one.values[row] for one in columns)]
        for row, scheme in enumerate(schemes)
    ]
    about = f"{count(len(comparison.data), 'byte', 'bytes')} · a patch ends where the colour changes"
    return render_page(
        "views/patches.html.j2",
        f"Patching schemes of {count(len(comparison.data), 'byte', 'bytes')}",
        heading=f"One text, {len(schemes)} ways to cut it into patches",
        about=about,
        groups=groups,
        scale=next((scale.words for scale in scales if scale.words), ""),
        figures=PageTable("figures of all schemes", heads, figures, texts=2),
        tables=[_patch_table(scheme.title, scheme.patched) for scheme in schemes],
    )


class _Scale:
    """Scores of a text as heights of bars. shown: are they drawn."""

    def __init__(self, patched: PatchedText, shown: bool = True) -> None:
        self._patched = patched
        self._starts = frozenset(patched.starts)
        self._scores = patched.scores if shown else None
        self.level = self.words = ""
        if self._scores is None:
            return
        threshold = patched.threshold if draws_threshold(patched) else None
        values = [0.0, *self._scores, *([] if threshold is None else [threshold])]
        self._low, self._high = min(values), max(values) or 1.0
        name, unit = ("entropy", " nats") if patched.score_kind == "entropy" else ("boundary logit", "")
        ends = f"{self._low:.2f} to {self._high:.2f}{unit}"
        self.words = f"Bars: {name} of each byte, {ends}; in full colour where a patch opens."
        if threshold is not None:
            self.level = f"scored threshold t{self._height(threshold)}"
            self.words += f" Dashed line: the threshold θ = {threshold:.2f}."
        else:
            self.level = "scored"

    def patches(self, line: Sequence[GlyphCell]) -> tuple[PagePatches, ...]:
        """A line's cells, those together that begin in the same patch."""
        return tuple(
            PagePatches(
                "\n".join(_hint(self._patched, at) for at in self._numbers(group)), tuple(map(self._cell, group))
            )
            for group in (list(run) for _, run in groupby(line, lambda cell: self._number(cell.start)))
        )

    def _numbers(self, group: Sequence[GlyphCell]) -> range:
        return range(self._number(group[0].start), self._number(group[-1].end - 1) + 1)

    def _number(self, offset: int) -> int:
        return bisect_right(self._patched.starts, offset) - 1

    def _height(self, score: float) -> int:
        return round(LEVELS * (score - self._low) / (self._high - self._low))

    def _cell(self, cell: GlyphCell) -> PageCell:
        return PageCell(cell.text, cell.kind, tuple(map(self._column, range(cell.start, cell.end))))

    def _column(self, offset: int) -> str:
        names = [f"p{self._number(offset) % COLOURS}"]
        if offset in self._starts:
            names.append("o")
        if self._scores is not None:
            names.append(f"h{self._height(self._scores[offset])}")
        return " ".join(names)


def _hint(patched: PatchedText, number: int) -> str:
    start, piece = patched.starts[number], patched.pieces[number]
    score = "" if patched.scores is None else f" · {patched.score_kind} {patched.scores[start]:.3f}"
    return f"patch {number + 1}: {count(len(piece), 'byte', 'bytes')} from {start} · {piece.hex(' ')}{score}"


def _patch_table(title: str, patched: PatchedText) -> tuple[str, PageTable]:
    """All patches, byte for byte, with exact figures to copy; and the line above them."""
    scores = patched.scores
    kind = [] if scores is None else [str(patched.score_kind)]
    heads: list[CellLike] = ["start", "bytes", *kind, Cell("hex", kind="t"), Cell("text", kind="t")]
    rows: list[list[CellLike]] = [
        [start, len(piece), *([] if scores is None else [f"{scores[start]:.4f}"]), *_texts(piece)]
        for start, piece in zip(patched.starts, patched.pieces, strict=True)
    ]
    summary = " · ".join(filter(None, (title, f"{count(len(rows), 'patch', 'patches')} in figures")))
    return summary, PageTable(summary, heads, rows, texts=0)


def _texts(piece: bytes) -> Iterator[Cell]:
    for text in (piece.hex(" "), "".join(cell.text for cell in cells(piece, (0,)))):
        yield Cell(text, kind="t mono")
