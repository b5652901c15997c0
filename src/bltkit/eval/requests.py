"""What a task asks of a model, and what the model answers: plain values, between tasks and subjects.

Texts are bytes, for token models as well: what is not UTF-8 a tokenizer sees as U+FFFD.
"""

from dataclasses import dataclass
from typing import TypeAlias

from bltkit.generate.request import Finish
from bltkit.vocab import to_bytes


@dataclass(frozen=True)
class Likelihood:
    """How probable is `continuation` behind BOS and `context`? It holds at least one byte; no EOS is counted."""

    context: bytes
    continuation: bytes

    def __post_init__(self) -> None:
        if not self.continuation:
            raise ValueError("continuation: empty, so there is nothing to score; give at least one byte")


@dataclass(frozen=True)
class Continuation:
    """What does the model write behind BOS and `context`?

    max_bytes: at most, those of a stop string included. temperature: 0 is greedy. seed: of a sample.
    """

    context: bytes
    max_bytes: int
    stop: tuple[bytes, ...] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Compression:
    """What does the whole text cost, in windows, every byte scored once (`eval/score.py`)?"""

    text: bytes


@dataclass(frozen=True)
class Scored:
    """To a `Likelihood`.

    logprob: natural logarithm, summed over the continuation's bytes (a token model: its tokens).
    greedy: is every byte (token) of it the most probable one that can be emitted.
    cut: bytes of the context that were cut off on its left because the model's row is shorter.
    """

    logprob: float
    greedy: bool
    cut: int = 0


@dataclass(frozen=True)
class Written:
    """To a `Continuation`: what precedes the first stop string, and why it ended."""

    data: bytes
    finish: Finish
    cut: int = 0

    @property
    def text(self) -> str:
        """What is not UTF-8 shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class Coded:
    """To a `Compression`: -ln p of all bytes together."""

    nats: float
    num_bytes: int


Request: TypeAlias = Likelihood | Continuation | Compression
Answer: TypeAlias = Scored | Written | Coded


def likelihood(context: str | bytes, continuation: str | bytes) -> Likelihood:
    """A `Likelihood` of texts."""
    return Likelihood(to_bytes(context), to_bytes(continuation))


def generation(
    context: str | bytes, max_bytes: int, stop: tuple[str, ...] = (), *, temperature: float = 0.0, seed: int = 0
) -> Continuation:
    """A `Continuation` of texts."""
    return Continuation(to_bytes(context), max_bytes, tuple(map(to_bytes, stop)), temperature, seed)
