"""Bytes as something to look at: characters where they can be shown, hex where they cannot.

Patches are cut between bytes, screens show characters. A cell is the least that can be shown as a whole: a character
with all its bytes and the accents that combine with it, or one byte as two hex digits, where bytes are no UTF-8 or the
character has no glyph. A patch may begin inside a character: its cell says where, and the medium marks it.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

SYMBOLS = {"\n": "↵", "\t": "⇥"}
"""Stand-ins for the control characters that texts are full of; all others are shown as hex."""


PICTURE_COLUMNS = 80
"""Bytes in a line of a picture."""
MAX_PICTURE_LINES = 120
"""Lines of the longest picture."""

DOTTED_CIRCLE = "\u25cc"
"""What an accent is set on that has no character before it."""


@dataclass(frozen=True)
class GlyphCell:
    """What stands for bytes start .. start + num_bytes - 1 of a text."""

    start: int
    num_bytes: int
    text: str
    kind: Literal["text", "symbol", "hex"]
    inside: tuple[int, ...] = ()
    """Offsets at which a patch begins inside the cell; one that begins with it is not among them."""

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.start + self.num_bytes


def cells(data: bytes, starts: Sequence[int], shows: Callable[[str], bool] = str.isprintable) -> tuple[GlyphCell, ...]:
    """The cells of `data`, in order and without gaps; the same ones whatever `starts` are.

    starts: offsets of patches, rising, for `GlyphCell.inside`.
    shows: whether the medium has a glyph for a character. Accents that combine with the character before them share
        its cell; characters that order, join or hide others without being seen (category Cf) are never shown as text.
    """
    content: list[GlyphCell] = []
    position = 0
    for character in data.decode("utf-8", "surrogateescape"):
        stray = "\udc80" <= character <= "\udcff"  # a byte that is no UTF-8
        num_bytes = 1 if stray else len(character.encode())
        end = position + num_bytes
        symbol = SYMBOLS.get(character)
        combines = unicodedata.category(character) in ("Mn", "Mc", "Me")
        if symbol is not None and shows(symbol):
            content.append(GlyphCell(position, num_bytes, symbol, "symbol"))
        elif not (character.isprintable() and shows(character)):
            content += [GlyphCell(at, 1, f"{data[at]:02X}", "hex") for at in range(position, end)]
        elif combines and content and content[-1].kind == "text":
            before = content[-1]
            content[-1] = replace(before, num_bytes=end - before.start, text=before.text + character)
        elif combines and not shows(DOTTED_CIRCLE):
            content += [GlyphCell(at, 1, f"{data[at]:02X}", "hex") for at in range(position, end)]
        else:
            content.append(GlyphCell(position, num_bytes, DOTTED_CIRCLE + character if combines else character, "text"))
        position = end
    return tuple(_with_borders(content, starts))


def _with_borders(content: Sequence[GlyphCell], starts: Sequence[int]) -> Iterator[GlyphCell]:
    for cell in content:
        first, last = bisect_right(starts, cell.start), bisect_left(starts, cell.end)
        yield replace(cell, inside=tuple(starts[first:last])) if first < last else cell


def wrap(
    content: Sequence[GlyphCell], columns: int, width_of: Callable[[GlyphCell], int], *, at_newlines: bool = True
) -> tuple[tuple[GlyphCell, ...], ...]:
    """Cut cells into lines of at most `columns`, and where a newline is followed by other text (`at_newlines`).

    Newlines behind one another stay in one line: blank lines would be empty pictures. A cell wider than a line has
    a line of its own.
    """
    lines: list[list[GlyphCell]] = [[]]
    used = 0
    for cell in content:
        width = width_of(cell)
        before = lines[-1][-1] if lines[-1] else None
        turns = at_newlines and before is not None and _is_newline(before) and not _is_newline(cell)
        if before is not None and (used + width > columns or turns):
            lines.append([])
            used = 0
        lines[-1].append(cell)
        used += width
    return tuple(tuple(line) for line in lines if line)


def text_lines(
    data: bytes,
    starts: Sequence[int] = (),
    shows: Callable[[str], bool] = str.isprintable,
    *,
    at_newlines: bool = True,
) -> tuple[tuple[GlyphCell, ...], ...]:
    """Lines of a picture: cells of `PICTURE_COLUMNS` bytes at most, cut as `wrap` does.

    Raises ValueError for an empty text or one of more than MAX_PICTURE_LINES lines.
    """
    lines = wrap(cells(data, starts, shows), PICTURE_COLUMNS, lambda cell: cell.num_bytes, at_newlines=at_newlines)
    if not lines:
        raise ValueError("the text is empty; there is nothing to draw")
    if len(lines) > MAX_PICTURE_LINES:
        raise ValueError(f"the text fills {len(lines)} lines, a picture holds {MAX_PICTURE_LINES}; draw a part of it")
    return lines


def split(content: Sequence[GlyphCell], ends: Sequence[int]) -> list[list[GlyphCell]]:
    """The cells in front of each of the offsets `ends` (rising) and behind the one before it."""
    lines: list[list[GlyphCell]] = [[] for _ in ends]
    for cell in content:
        lines[bisect_right(ends, cell.start)].append(cell)
    return lines


def _is_newline(cell: GlyphCell) -> bool:
    return (cell.kind, cell.text) in (("symbol", SYMBOLS["\n"]), ("hex", "0A"))
