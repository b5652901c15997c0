"""Patches in a terminal: backgrounds in turn, bars of entropy below; border marks where there is no colour.

rich asks a renderable for its lines once it knows the console, so one value fits a wide colour terminal, a narrow
one, and a pipe. A border inside a character is marked behind it, with colour and without.
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
from bltkit.terminal.palette import ASCII_BORDER, BORDER, INSIDE, patch_style
from bltkit.views.compare import Comparison
from bltkit.views.facts import count, describe, facts, statistics
from bltkit.views.glyphs import GlyphCell, cells, split, wrap

MAX_LINES = 40
"""Lines of a text, bars included, that `blt patch` shows unless it is asked for all."""

_BYTES_PER_COLUMN = 16
"""Bytes of a text that are looked at for each column that may be shown: characters, with room for accents."""

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.:-=+*#"


def render(subject: PatchedText | Comparison, max_lines: int | None = None) -> "PatchView | ComparisonView":
    """What `rich.console.Console.print` shows of a text or of a comparison.

    max_lines: of the text, about; a longer one is cut, and a note says so. All of it by default.
    """
    return PatchView(subject, max_lines) if isinstance(subject, PatchedText) else ComparisonView(subject, max_lines)


@dataclass(frozen=True)
class PatchView:
    """A text in its patches; below each line a bar per cell, dim where the byte goes on with a patch."""

    patched: PatchedText
    max_lines: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        patched = self.patched
        look = _Look.of(console, options)
        levels = _levels(patched)
        borders = frozenset(patched.starts)
        most = None if self.max_lines is None else max(1, self.max_lines // (1 if levels is None else 2))
        data = _beginning(patched.data, most, options.max_width)
        content = cells(data, patched.starts, look.shows)
        lines = wrap(content, options.max_width, lambda cell: look.columns(cell, borders))
        shown = _first_lines(lines, most, len(data) < len(patched.data))
        for line in shown:
            yield look.line(patched, line)
            if levels is not None:
                yield look.bars(patched, line, levels)
        yield from _note(shown, len(patched.data))
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
    max_lines: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        comparison = self.comparison
        look = _Look.of(console, options)
        margin = max(len(scheme.title) for scheme in comparison.schemes) + 2
        room = max(8, options.max_width - margin)
        most = None if self.max_lines is None else max(1, self.max_lines // (len(comparison.schemes) + 1))
        data = _beginning(comparison.data, most, room)
        content = cells(data, (), look.shows)
        # Without colour every byte of the byte row has a border mark beside it.
        columns = room if look.color else room // 2
        lines = wrap(content, columns, _most_columns, at_newlines=False)
        shown = _first_lines(lines, most, len(data) < len(comparison.data))
        ends = [line[-1].end for line in shown]
        # Every scheme has the same cells, which know different borders.
        rows = [
            split(cells(data[: ends[-1]], scheme.patched.starts, look.shows), ends) for scheme in comparison.schemes
        ]
        for own_cells in zip(*rows, strict=True):
            for scheme, own in zip(comparison.schemes, own_cells, strict=True):
                yield Text(scheme.title.ljust(margin), "bold", end="")
                yield look.line(scheme.patched, own, aligned=True)
            yield Text()
        yield from _note(shown, len(comparison.data))
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

    color_system: str | None
    unicode: bool

    @classmethod
    def of(cls, console: Console, options: ConsoleOptions) -> "_Look":
        return cls(None if console.no_color else console.color_system, not options.ascii_only)

    @property
    def color(self) -> bool:
        """Are patches told apart by colour."""
        return self.color_system is not None

    @property
    def border(self) -> str:
        """The mark between patches where there is no colour."""
        return BORDER if self.unicode else ASCII_BORDER

    @property
    def shows(self) -> Callable[[str], bool]:
        """Characters that are shown; others stand as hex."""
        return str.isprintable if self.unicode else str.isascii

    def line(self, patched: PatchedText, line: Sequence[GlyphCell], *, aligned: bool = False) -> Text:
        """The cells of a line, patches marked. aligned: as wide as the bytes of the line can get, in any cut."""
        text = Text(no_wrap=True, overflow="ignore")
        for cell, number, opens in _in_patches(patched, line):
            if not self.color and opens and cell.start:
                text.append(self.border)
            text.append(cell.text, self._style(cell, number))
            for further in range(1, len(cell.inside) + 1):
                text.append(INSIDE, patch_style(number + further, self.color_system))
            padding = _most_columns(cell) - _columns(cell) - len(cell.inside) if aligned and self.color else 0
            text.append(" " * padding, patch_style(number + len(cell.inside), self.color_system))
        return text

    def bars(self, patched: PatchedText, line: Sequence[GlyphCell], levels: Sequence[int]) -> Text:
        """A bar below each cell: the highest score among its bytes."""
        glyphs = BARS if self.unicode else ASCII_BARS
        text = Text(no_wrap=True, overflow="ignore")
        for cell, _, opens in _in_patches(patched, line):
            if not self.color and opens and cell.start:
                text.append(" ")
            bar = glyphs[max(levels[cell.start : cell.end])]
            text.append(bar * _columns(cell) + " " * len(cell.inside), "cyan" if opens else "dim")
        return text

    def columns(self, cell: GlyphCell, borders: frozenset[int]) -> int:
        """Columns that a cell takes, its border mark included."""
        return _columns(cell) + len(cell.inside) + (not self.color and cell.start in borders)

    def _style(self, cell: GlyphCell, number: int) -> Style:
        style = patch_style(number, self.color_system)
        return style + Style(italic=True) if self.color and cell.kind == "hex" else style


def _beginning(data: bytes, max_lines: int | None, columns: int) -> bytes:
    """As much of a text as can come into so many lines, so that a long one costs no more."""
    return data if max_lines is None else data[: max_lines * columns * _BYTES_PER_COLUMN]


def _first_lines(
    lines: Sequence[tuple[GlyphCell, ...]], max_lines: int | None, is_cut: bool
) -> Sequence[tuple[GlyphCell, ...]]:
    """Those that are shown. is_cut: the text goes on, so the last line may end within a character."""
    if max_lines is None:
        return lines
    return lines[: min(max_lines, max(1, len(lines) - 1))] if is_cut else lines[:max_lines]


def _note(shown: Sequence[tuple[GlyphCell, ...]], num_bytes: int) -> Iterator[Text]:
    end = shown[-1][-1].end if shown else 0
    if end < num_bytes:
        yield Text(f"the first {end:,} of {num_bytes:,} bytes are shown; --all shows all, --stats figures only", "dim")


def _in_patches(patched: PatchedText, line: Sequence[GlyphCell]) -> Iterator[tuple[GlyphCell, int, bool]]:
    """Each cell, the number of its patch, and whether it opens it."""
    for cell in line:
        number = bisect_right(patched.starts, cell.start) - 1
        yield cell, number, patched.starts[number] == cell.start


def _columns(cell: GlyphCell) -> int:
    return max(1, cell_len(cell.text))


def _most_columns(cell: GlyphCell) -> int:
    """Columns of the cell in the cut that begins a patch at each of its bytes."""
    return _columns(cell) + cell.num_bytes - 1


def _levels(patched: PatchedText) -> tuple[int, ...] | None:
    """Height of each byte's bar, 0 to the highest score of the text in eight steps; None without scores."""
    if not patched.scores:
        return None
    top = max(*patched.scores, 1e-9)
    return tuple(min(len(BARS) - 1, max(0, int(score / top * len(BARS)))) for score in patched.scores)
