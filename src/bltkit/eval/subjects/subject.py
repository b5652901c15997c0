"""What an evaluation needs of a model: its questions answered, and a name that holds its weights to account."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from bltkit.eval.requests import Answer, Request


@runtime_checkable
class Subject(Protocol):
    """A model under evaluation: a BLT, a token model, in tests an oracle."""

    @property
    def name(self) -> str:
        """As the user named it."""

    @property
    def kind(self) -> str:
        """`bltkit` or `token`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, as hex, of all that decides its answers: weights, configuration, rule or tokenizer, context."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """(index of the request, its answer), each exactly once, in whatever order is fast.

        An answer depends on its own request alone: not on the others, their order, or how many are computed at once
        (beyond rounding).
        """
