"""What `blt generate` puts on stdout: bytes as they are into pipes and files, readable text on a terminal.

On a terminal whole characters appear, control characters are escaped, the prompt stands in front, dim, and patches may
be told apart by two styles.
"""

import os
import sys
from collections.abc import Sequence

from bltkit.terminal.characters import visible
from bltkit.terminal.streams import is_terminal, write_bytes
from bltkit.vocab import Utf8Stream

DIM = "\x1b[2m"
PATCH_STYLES = ("\x1b[34m", "\x1b[35m")
"""Blue and magenta: readable on light and dark backgrounds."""
RESET = "\x1b[0m"

MAX_ECHO = 2000
"""Bytes of a long prompt that are shown: its end."""


class Writer:
    """A continuation on its way to stdout."""

    def __init__(self, prompt: bytes = b"", *, patches: bool = False) -> None:
        """prompt: shown in front on a terminal that has styles to set it apart; of a long one the end."""
        self._terminal = is_terminal(sys.stdout)
        self._styled = self._terminal and os.environ.get("TERM") != "dumb"
        self._patches = patches and self._styled
        self._characters = Utf8Stream()
        self._patch = 0
        self._style = self._character_style = ""
        if self._styled and prompt:
            cut = "..." if len(prompt) > MAX_ECHO else ""
            self._put(DIM + cut + visible(self._characters.feed(prompt[-MAX_ECHO:])) + RESET)

    def write(self, data: bytes, opens: Sequence[bool] = ()) -> None:
        """Hand out bytes; opens: of each, does it open a patch."""
        if not self._terminal:
            write_bytes(data)
            return
        if not self._patches:
            self._put(visible(self._characters.feed(data)))
            return
        for byte, opening in zip(data, opens, strict=True):
            self._patch = 1 - self._patch if opening else self._patch
            if not self._characters.pending:  # a character has the style of the patch that it begins in
                self._character_style = PATCH_STYLES[self._patch]
            text = self._characters.feed(bytes([byte]))
            if text:
                self._put((self._character_style if self._style != self._character_style else "") + visible(text))
                self._style = self._character_style

    def end(self) -> int:
        """Close the line. Returns how many bytes a terminal does not show: they begin a character."""
        self._put((RESET if self._style else "") + "\n")
        return self._characters.pending if self._terminal else 0

    def _put(self, text: str) -> None:
        write_bytes(text.encode(errors="replace"))
