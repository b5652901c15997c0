"""The decoding loop: a session and a sampling in, bytes out in chunks, the ledger with the last one.

Nothing here knows text: bytes that are not UTF-8 are bytes like others, and stop strings are bytes too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, Self

from bltkit.generate.ledger import Passes, Stats
from bltkit.generate.sampling import Sampling
from bltkit.generate.session import Session
from bltkit.vocab import BOS, EOS, OFFSET

Finish = Literal["eos", "stop", "length"]
"""Why a generation ended: the model said so, a stop string appeared, or `max_bytes` were made."""


@dataclass(frozen=True)
class Chunk:
    """Bytes as they become certain. A generation's last chunk, and no other, has `finish` and `stats`."""

    data: bytes
    finish: Finish | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class StopStrings:
    """Finds the first stop string in bytes that arrive in pieces; holds back what may be the beginning of one.

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


def generate(session: Session, sampling: Sampling, max_bytes: int, stop: tuple[bytes, ...] = ()) -> Iterator[Chunk]:
    """Continue `session`, which stays as it was; an empty one begins with BOS.

    max_bytes: bytes made at most, those of a stop string included.
    stop: byte strings that end the generation; they are not handed out.

    Raises ValueError at once for a negative max_bytes or an empty stop string.
    """
    if max_bytes < 0:
        raise ValueError(f"max_bytes = {max_bytes}: must be 0 or more")
    if b"" in stop:
        raise ValueError("stop = b'': a stop string must hold at least one byte")
    return _generate(session, sampling, max_bytes, StopStrings(stop))


def _generate(session: Session, sampling: Sampling, max_bytes: int, stop: StopStrings) -> Iterator[Chunk]:
    before: Passes = session.passes
    finish: Finish = "length"
    num_bytes, seconds, resumed = 0, 0.0, perf_counter()
    if not session.position:
        session = session.extend([BOS])
    chosen: int | None = None
    for _ in range(max_bytes):
        if chosen is not None:
            session = session.extend([chosen])
        chosen = sampling.pick(session.logits, session.position)
        if chosen == EOS:
            finish = "eos"
            break
        data, stop = stop.feed(bytes([chosen - OFFSET]))
        num_bytes += len(data)
        if data:
            seconds += perf_counter() - resumed
            yield Chunk(data)
            resumed = perf_counter()
        if stop.found:
            finish = "stop"
            break
    num_bytes += len(stop.held)
    seconds += perf_counter() - resumed
    passes = session.passes - before
    yield Chunk(stop.held, finish, Stats.of(session.model, session.scorer, passes, num_bytes, seconds))


def _overlap(text: bytes, stop: bytes) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
