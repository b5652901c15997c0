"""What `blt generate` puts on stdout: bytes as they are into pipes and files, readable text on a terminal.

On a terminal whole characters appear, control characters are escaped, the prompt stands in front, dim, and patches may
be told apart, by the colours and marks of `blt patch`. Every piece of styled text ends its own style, so that an
interruption leaves the terminal as it was.
"""

import sys
from collections.abc import Sequence

from rich.console import COLOR_SYSTEMS
from rich.style import Style

from bltkit.terminal.control_characters import visible
from bltkit.terminal.palette import ASCII_BORDER, BORDER, INSIDE, patch_style
from bltkit.terminal.streams import console, is_terminal, write_bytes
from bltkit.vocab import Utf8Stream

DIM = Style(dim=True)

MAX_ECHO = 2000
"""Bytes of a long prompt that are shown: its end."""


class Writer:
    """A continuation on its way to stdout."""

    def __init__(self, prompt: bytes = b"", *, patches: bool = False) -> None:
        """prompt: shown in front on a terminal that has styles to set it apart; of a long one the end.

        patches: tell them apart on a terminal, by colours, or by border marks where there are none (NO_COLOR).
        """
        self._terminal = is_terminal(sys.stdout)
        screen = console()
        self._colors = screen.color_system if self._terminal and not screen.no_color else None
        self._patches = patches and self._terminal
        self._characters = Utf8Stream()
        self._patch = self._inside = 0
        self._opens = False
        """Of the next character: its patch, how many patches begin inside it, and whether it opens its own."""
        if self._colors is not None and prompt:
            is_cut = len(prompt) > MAX_ECHO
            shown = prompt[-MAX_ECHO:].lstrip(bytes(range(0x80, 0xC0))) if is_cut else prompt
            self._put(self._styled("..." * is_cut + visible(self._characters.feed(shown)), DIM))

    def write(self, data: bytes, opens: Sequence[bool] = ()) -> None:
        """Hand out bytes; opens: of each, does it open a patch."""
        if not self._terminal:
            write_bytes(data)
            return
        if not self._patches:
            self._put(visible(self._characters.feed(data)))
            return
        for byte, opening in zip(data, opens, strict=True):
            if self._characters.pending:
                self._inside += opening
            else:
                self._patch += opening
                self._opens = opening
            if text := self._characters.feed(bytes([byte])):
                self._put(self._marked(visible(text)))
                self._patch += self._inside
                self._inside, self._opens = 0, False

    def end(self) -> int:
        """Close the line. Returns how many bytes a terminal does not show: they begin a character."""
        self._put("\n")
        return self._characters.pending if self._terminal else 0

    def _marked(self, text: str) -> str:
        """A character in the colour of its patch, or behind a border; marks behind it for borders inside it."""
        border = (BORDER if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII_BORDER) * self._opens
        pieces = [text, *[INSIDE] * self._inside]
        styled = (
            self._styled(piece, patch_style(number, self._colors)) for number, piece in enumerate(pieces, self._patch)
        )
        return ("" if self._colors else border) + "".join(styled)

    def _styled(self, text: str, style: Style) -> str:
        """`text` in a style that no line break is part of: a terminal would colour the rest of the line."""
        if self._colors is None:
            return text
        system = COLOR_SYSTEMS[self._colors]
        return "\n".join(style.render(line, color_system=system) for line in text.split("\n"))

    def _put(self, text: str) -> None:
        write_bytes(text.encode(errors="replace"))
