"""Patches in a terminal: backgrounds in turn, bars of entropy below; borders as `|` where there is no colour.

rich asks a renderable for its lines once it knows the console, so one value fits a wide colour terminal, a narrow
one, and a pipe.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.table import Table
from rich.text import Text

from bltkit.patching.patched import PatchedText
from bltkit.study.compare import Comparison
from bltkit.study.glyphs import Cell, cells, split, wrap
from bltkit.study.report import count, describe, facts, statistics

BACKGROUNDS = ("#a9cdee", "#f7d08f", "#b5dfc4", "#f3c3cf")
INK = "#1c2430"
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.:-=+*#"


def render(subject: PatchedText | Comparison) -> "PatchView | ComparisonView":
    """What `rich.console.Console.print` shows of a text or of a comparison."""
    return PatchView(subject) if isinstance(subject, PatchedText) else ComparisonView(subject)


@dataclass(frozen=True)
class PatchView:
    """A text in its patches; below each line a bar per cell, dim where the byte goes on with a patch."""

    patched: PatchedText

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        patched = self.patched
        look = _Look.of(console, options)
        content = cells(patched.data, patched.starts, look.shows)
        levels = _levels(patched)
        borders = frozenset(patched.starts)
        for line in wrap(content, options.max_width, lambda cell: look.columns(cell, borders)):
            yield look.line(patched, line)
            if levels is not None:
                yield look.bars(patched, line, levels)
        if patched.starts:
            patches = count(len(patched.starts), "patch", "patches")
            yield Text(f"{patches}, {patched.mean_patch_bytes:.2f} bytes on average", "bold")
        yield Text(" · ".join(facts(patched)) if look.unicode else ", ".join(facts(patched)), "dim")
        if patched.scores:
            kind = "entropy, 0 to {:.2f} nats" if patched.score_kind == "entropy" else "boundary logit, 0 to {:.2f}"
            yield Text("bars: " + kind.format(max(patched.scores)), "dim")


@dataclass(frozen=True)
class ComparisonView:
    """The schemes' cuts under one another, a table of their figures, and what was left out and why."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        comparison = self.comparison
        look = _Look.of(console, options)
        margin = max(len(scheme.title) for scheme in comparison.schemes) + 2
        room = max(8, options.max_width - margin)
        content = cells(comparison.data, (), look.shows)
        # Without colour every byte of the byte row has a border mark beside it.
        columns = room if look.color else room // 2
        lines = wrap(content, columns, _most_columns, at_newlines=False)
        ends = [line[-1].end for line in lines]
        rows = [
            split(cells(scheme.patched.data, scheme.patched.starts, look.shows), ends) for scheme in comparison.schemes
        ]
        for own_cells in zip(*rows, strict=True):
            for scheme, own in zip(comparison.schemes, own_cells, strict=True):
                yield Text(scheme.title.ljust(margin), "bold", end="")
                yield look.line(scheme.patched, own, aligned=True)
            yield Text()
        yield _figures(comparison)
        for left_out in comparison.left_out:
            yield Text(f"{left_out.title} left out: {left_out.reason}", "dim")


def _figures(comparison: Comparison) -> Table:
    columns = statistics(comparison)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("scheme", no_wrap=True, overflow="crop")
    for column in columns:
        table.add_column("\n".join(column.head), justify="right", no_wrap=True, overflow="crop")
    table.add_column("rule", style="dim", overflow="fold")
    for row, scheme in enumerate(comparison.schemes):
        figures = (column.values[row] for column in columns)
        table.add_row(Text(scheme.title, "bold"), *figures, Text(describe(scheme.patched.rule)))
    return table


@dataclass(frozen=True)
class _Look:
    """What the console can do."""

    color: bool
    unicode: bool

    @classmethod
    def of(cls, console: Console, options: ConsoleOptions) -> "_Look":
        color = console.color_system is not None and not console.no_color
        return cls(color, not options.ascii_only)

    @property
    def shows(self) -> Callable[[str], bool]:
        """Characters that are shown; others stand as hex."""
        return str.isprintable if self.unicode else str.isascii

    def line(self, patched: PatchedText, line: Sequence[Cell], *, aligned: bool = False) -> Text:
        """The cells of a line, patches marked. aligned: as wide as the bytes of the line can get, in any cut."""
        text = Text(no_wrap=True, overflow="ignore")
        for cell, number, opens in _in_patches(patched, line):
            if not self.color and opens and cell.start:
                text.append("|")
            padding = _most_columns(cell) - _columns(cell) if aligned else 0
            text.append(cell.text + " " * padding, self._style(cell, number))
        return text

    def bars(self, patched: PatchedText, line: Sequence[Cell], levels: Sequence[int]) -> Text:
        """A bar below each cell: the highest score among its bytes."""
        glyphs = BARS if self.unicode else ASCII_BARS
        text = Text(no_wrap=True, overflow="ignore")
        for cell, _, opens in _in_patches(patched, line):
            if not self.color and opens and cell.start:
                text.append(" ")
            bar = glyphs[max(levels[cell.start : cell.end])]
            text.append(bar * _columns(cell), "cyan" if opens else "dim")
        return text

    def columns(self, cell: Cell, borders: frozenset[int]) -> int:
        """Columns that a cell takes, its border mark included."""
        return _columns(cell) + (not self.color and cell.start in borders)

    def _style(self, cell: Cell, number: int) -> Style:
        if not self.color:
            return Style()
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        return Style(
            color=INK, bgcolor=background, dim=cell.kind == "symbol" or None, italic=cell.kind == "hex" or None
        )


def _in_patches(patched: PatchedText, line: Sequence[Cell]) -> Iterator[tuple[Cell, int, bool]]:
    """Each cell, the number of its patch, and whether it opens it."""
    for cell in line:
        number = bisect_right(patched.starts, cell.start) - 1
        yield cell, number, patched.starts[number] == cell.start


def _columns(cell: Cell) -> int:
    return max(1, cell_len(cell.text))


def _most_columns(cell: Cell) -> int:
    """Columns of the cell in the cut that shows its bytes as hex."""
    return _columns(cell) if cell.num_bytes == 1 else 2 * cell.num_bytes


def _levels(patched: PatchedText) -> tuple[int, ...] | None:
    """Height of each byte's bar, 0 to the highest score of the text in eight steps; None without scores."""
    if not patched.scores:
        return None
    top = max(*patched.scores, 1e-9)
    return tuple(min(len(BARS) - 1, max(0, int(score / top * len(BARS)))) for score in patched.scores)
