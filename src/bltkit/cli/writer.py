"""What `blt generate` puts on stdout: bytes as they are into pipes and files, readable text on a terminal.

On a terminal whole characters appear, control characters are escaped, the prompt stands in front, dim, and patches may
be told apart by two styles.
"""

import os
import sys
from collections.abc import Sequence

from bltkit.vocab import Utf8Stream

DIM = "\x1b[2m"
PATCH_STYLES = ("\x1b[34m", "\x1b[35m")
"""Blue and magenta: readable on light and dark backgrounds."""
RESET = "\x1b[0m"

MAX_ECHO = 2000
"""Bytes of a long prompt that are shown: its end."""


class Writer:
    """A continuation on its way to stdout."""

    def __init__(self, *, patches: bool = False) -> None:
        self.terminal = sys.stdout.isatty()
        self.styled = self.terminal and os.environ.get("TERM") != "dumb"
        self.patches = patches
        self._characters = Utf8Stream()
        self._patch = 0
        self._style = ""
        self._begun_in = ""

    @property
    def held_back(self) -> int:
        """Bytes of an unfinished character, which a terminal does not show."""
        return self._characters.pending if self.terminal else 0

    def prompt(self, prompt: bytes) -> None:
        """Show the end of the prompt, dim, where there are styles to set it apart."""
        if not self.styled or not prompt:
            return
        self._put(DIM + ("..." if len(prompt) > MAX_ECHO else ""))
        self._put(visible(self._characters.feed(prompt[-MAX_ECHO:])))
        self._put(RESET)

    def write(self, data: bytes, opens: Sequence[bool] = ()) -> None:
        """Hand out bytes; opens: of each, does it open a patch."""
        if not self.terminal:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        if not (self.patches and self.styled):
            self._put(visible(self._characters.feed(data)))
            return
        for byte, opening in zip(data, opens, strict=True):
            self._patch = 1 - self._patch if opening else self._patch
            if not self._characters.pending:  # a character has the style of the patch that it begins in
                self._begun_in = PATCH_STYLES[self._patch]
            text = self._characters.feed(bytes([byte]))
            if text:
                self._put((self._begun_in if self._style != self._begun_in else "") + visible(text))
                self._style = self._begun_in

    def end(self) -> None:
        """Close the line. An unfinished character is not shown on a terminal."""
        if self._style:
            self._put(RESET)
        self._put("\n")

    def _put(self, text: str) -> None:
        sys.stdout.buffer.write(text.encode(errors="replace"))
        sys.stdout.buffer.flush()


def visible(text: str) -> str:
    """The text with control characters escaped (`\\x1b`), line breaks and tabs left."""
    return "".join(
        character if character in "\n\t" or not (ord(character) < 32 or 127 <= ord(character) < 160) else escaped(character)
        for character in text
    )


def escaped(character: str) -> str:
    """A character by its number."""
    return f"\\x{ord(character):02x}"
