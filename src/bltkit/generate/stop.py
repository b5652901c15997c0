"""Stop strings in bytes that arrive in pieces: what may be the beginning of one is held back."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class StopStrings:
    """Finds the first stop string in bytes that arrive in pieces.

    The string that is complete first counts; of several that are complete at the same byte, the longest.
    """

    strings: tuple[bytes, ...]
    held: bytes = b""
    """Arrived, but not handed out; the beginning of some stop string."""
    found: bool = False

    def feed(self, data: bytes) -> tuple[bytes, Self]:
        """What is certain not to be part of a stop string, and the state after; nothing follows a stop."""
        if self.found:
            return b"", self
        text = self.held + data
        for end in range(len(self.held) + 1, len(text) + 1):
            complete = [stop for stop in self.strings if text.endswith(stop, 0, end)]
            if complete:
                return text[: end - max(map(len, complete))], replace(self, held=b"", found=True)
        certain = len(text) - max((_overlap(text, stop) for stop in self.strings), default=0)
        return text[:certain], replace(self, held=text[certain:])


def _overlap(text: bytes, stop: bytes) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
