"""What is asked of a generation, and what is handed out as it goes."""

from dataclasses import dataclass, field
from typing import Literal

from bltkit.generate.constraint import Constraint
from bltkit.generate.ledger import Stats
from bltkit.generate.sampling import Sampling

Finish = Literal["eos", "stop", "length"]
"""Why a generation ended: the model said so, a stop string appeared, or `max_bytes` were made."""


MAX_BYTES = 10**9
"""More than memory holds the state of."""


@dataclass(frozen=True)
class Request:
    """What a row is to become.

    max_bytes: bytes made at most, those of a stop string included.
    stop: byte strings that end the generation; they are not handed out.
    constraint: the state of a constraint in front of the first byte made.
    logprobs: hand out the log-probability of every byte: the model's own, read from left to right, however the byte
        was found.

    Raises ValueError for max_bytes outside 0 to `MAX_BYTES` or an empty stop string.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_bytes: int = 256
    stop: tuple[bytes, ...] = ()
    constraint: Constraint | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes = {self.max_bytes}: must be 0 or more")
        if self.max_bytes > MAX_BYTES:
            raise ValueError(f"max_bytes is too large: at most {MAX_BYTES:,} bytes")
        if b"" in self.stop:
            raise ValueError("stop = b'': a stop string must hold at least one byte")


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
