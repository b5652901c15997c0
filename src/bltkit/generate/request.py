"""What is asked of a generation, and what is handed out as it goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from bltkit.generate.constraint import Constraint
from bltkit.generate.ledger import Stats
from bltkit.generate.sampling import Sampling
from bltkit.generate.strategies import Autoregressive, Strategy
from bltkit.generate.top_logprobs import Tops

Finish = Literal["eos", "stop", "length"]
"""Why a generation ended: the model said so or its constraint was complete, a stop string appeared, or `max_bytes` were
made."""

MAX_BYTES = 10**9
"""More than memory holds the state of."""

MAX_TOPS = 20
"""Most alternatives of a byte that a request may ask for."""


@dataclass(frozen=True)
class Request:
    """What a row is to become.

    strategy: decoding strategy; all that are `exact` give the same bytes.
    max_bytes: bytes made at most, those of a stop string included.
    stop: byte strings that end the generation; they are not handed out.
    constraint: the state of a constraint in front of the first byte made.
    logprobs: hand out the log-probability of every byte: the model's own, read from left to right, however the byte
        was found.
    top_logprobs: 0 to 20; hand out for every byte so many of the most probable ids, with log-probabilities of the same
        distribution; fewer where a constraint allows fewer.

    Raises ValueError for max_bytes outside 0 to `MAX_BYTES`, an empty stop string, or top_logprobs outside 0 to 20.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_bytes: int = 256
    stop: tuple[bytes, ...] = ()
    constraint: Constraint | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    strategy: Strategy = field(default_factory=Autoregressive)

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes = {self.max_bytes}: must be 0 or more")
        if self.max_bytes > MAX_BYTES:
            raise ValueError(f"max_bytes is too large: at most {MAX_BYTES:,} bytes")
        if b"" in self.stop:
            raise ValueError("stop = b'': a stop string must hold at least one byte")
        if not 0 <= self.top_logprobs <= MAX_TOPS:
            raise ValueError(f"top_logprobs = {self.top_logprobs}: must be 0 to {MAX_TOPS}")


@dataclass(frozen=True)
class Chunk:
    """Bytes as they become certain. A generation's last chunk, and no other, has `finish` and `stats`."""

    data: bytes
    finish: Finish | None = None
    stats: Stats | None = None
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of each byte's probability, where asked for."""
    opens: tuple[bool, ...] = ()
    """Does each byte open a patch."""
    top_logprobs: tuple[Tops, ...] = ()
    """The most probable ids in each byte's place, where asked for."""
    eos_logprob: float | None = None
    """Of EOS where it ended the text, if log-probabilities are asked for."""
    eos_top_logprobs: Tops = ()
    """The most probable ids in its place."""


@dataclass(frozen=True)
class Generation:
    """A finished continuation: its bytes (prompt and stop strings left out), why it ended, and what it cost."""

    data: bytes
    finish: Finish
    stats: Stats
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of each byte's probability, where asked for."""
    opens: tuple[bool, ...] = ()
    """Does each byte open a patch."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """The most probable ids in each byte's place, with their log-probabilities, where asked for."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Self:
        """All of a generation's chunks together."""
        finish, stats = chunks[-1].finish, chunks[-1].stats
        assert finish is not None and stats is not None
        logprobs = tuple(value for chunk in chunks for value in chunk.logprobs)
        opens = tuple(value for chunk in chunks for value in chunk.opens)
        tops = tuple(value for chunk in chunks for value in chunk.top_logprobs)
        return cls(b"".join(chunk.data for chunk in chunks), finish, stats, logprobs, opens, tops)

    @property
    def text(self) -> str:
        """The bytes as text; what is not UTF-8 shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")
