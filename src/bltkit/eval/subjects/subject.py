"""What an evaluation needs of a model: its questions answered, and a name that holds its weights to account."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from bltkit.eval.requests import Answer, Request
from bltkit.generate import Strategy


@dataclass(frozen=True)
class ContextWindow:
    """How much of a text a model is shown at once, context and what follows it together."""

    size: int
    unit: Literal["bytes", "tokens"]

    def __str__(self) -> str:
        return f"{self.size:,} {self.unit}"


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


def window_of(subject: Subject) -> ContextWindow | None:
    """The subject's `window` where it has one; a subject without one, such as an oracle, cuts nothing."""
    window: ContextWindow | None = getattr(subject, "window", None)
    return window


def strategy_name(subject: Subject) -> str | None:
    """How the subject writes, as `--strategy` reads it; None for one that has no strategies."""
    strategy: Strategy | None = getattr(subject, "strategy", None)
    if strategy is None:
        return None
    fields = strategy.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    said = ",".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
    return f"{strategy.kind}:{said}" if said else strategy.kind
