"""What an evaluation task is (seam 6): items, what is asked about each, and how the answers are graded.

A task is a frozen config. Its docstring names its source, the normalisation, and where it is known to differ from the
published protocol. Everything else (batching, noise, statistics, records, resuming) is the runner's and the same for
all.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias

from pydantic import Field, NonNegativeInt, model_validator

from bltkit.config import Config, nearest
from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Answer, Request

Numbers: TypeAlias = tuple[float, ...]
"""What an item contributes to a metric; contributions are summed over items."""


def quotient(sums: Sequence[float]) -> float:
    """(above, below) -> above / below: a mean, or a rate such as bits per byte."""
    return sums[0] / sums[1] if sums[1] else float("nan")


@dataclass(frozen=True)
class Metric:
    """A number that is reported.

    of: the items' contributions, summed -> the value; a mean unless said otherwise.
    better: "higher" or "lower".
    highest: the scale's top, where the best possible result stands (1, for BLEU 100); None where there is none.
    """

    better: str = "higher"
    of: Callable[[Sequence[float]], float] = quotient
    highest: float | None = 1.0


@dataclass(frozen=True)
class Item:
    """One question of a task.

    id: within the task, the same wherever the data come from a file in the same order.
    fields: what the file's row says, by name; texts that noise may damage are strings or lists of strings.
    groups: what it belongs to, by level, such as {"subject": "astronomy"}; the first level is what `part` names.
    """

    id: str
    fields: Mapping[str, Any]
    groups: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True)
class Grade:
    """What an item's answers came to.

    metrics: by name, a number (which is averaged over items) or the contribution to a metric's sums. A metric may be
        missing in some items.
    shown: anything else worth keeping in the item's record, as plain JSON values: the answer as it was read, the gold.
    """

    metrics: Mapping[str, float | Numbers]
    shown: Mapping[str, Any] = field(default_factory=dict)


class Task(Config):
    """Base of every task."""

    metrics: ClassVar[Mapping[str, Metric]]
    """By name; the first is the task's main one, which tables show."""
    damaged: ClassVar[tuple[str, ...]] = ()
    """Fields of an item that noise is applied to."""
    level: ClassVar[str | None] = None
    """Of `Item.groups`: the task's result is also given as the mean over the groups of this level, each weighing the
    same (macro); and `part` names them."""
    macro: ClassVar[bool] = False
    """Is that mean the task's main result, not the mean over items."""
    executes: ClassVar[bool] = False
    """Does grading run programs that a model wrote. Then it needs the user's consent."""

    kind: str
    part: tuple[str, ...] = Field(default=(), description="Only these groups of the task's level; all where empty.")
    shots: NonNegativeInt = Field(
        default=0, le=0, description="Solved examples in front of each item; a task that has some declares how many."
    )
    seed: int = Field(default=0, description="Of whatever is drawn: shots, samples.")

    @model_validator(mode="after")
    def _known_parts(self) -> Self:
        if self.part and self.level is None:
            raise ValueError(f"{self.kind}:{self.part[0]}: this task has no parts; name it alone")
        return self

    def prepare(self) -> None:
        """Called once by the runner before anything is asked: tries what grading needs, so that a long run does not
        fail at its end. Raises ValueError where it cannot be had, with the remedy."""

    def chosen_parts(self, known: Sequence[str]) -> list[str]:
        """Those of `part`, in their order there; all that are known where it is empty.

        Raises ValueError for one that is not known.
        """
        for name in self.part:
            if name not in known:
                raise ValueError(f"{self.kind}:{name}: no such part{nearest(name, known)}")
        return list(self.part or known)

    @abstractmethod
    def items(self, place: Place) -> Iterator[Item]:
        """The items in order. With `part`, of these groups only.

        Raises ValueError where the data are missing or malformed, naming the file and line or the data set.
        """

    @abstractmethod
    def requests(self, item: Item) -> tuple[Request, ...]:
        """What is asked about the item, damaged or not; the same item always asks the same."""

    @abstractmethod
    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        """What the answers to `requests(item)`, in their order, are worth. A function of its arguments alone."""

    def chance(self, item: Item) -> Mapping[str, float | None]:
        """What guessing scores on the item, by metric: 1 / number of choices where the answer is one of several.

        None for a metric without such a level; that is every metric of a task whose answers are open.
        """
        return dict.fromkeys(self.metrics)

    @classmethod
    def example(cls) -> Mapping[str, str]:
        """A few rows in the task's local format, for the contract tests: file name -> content. Empty for a task that
        makes its items itself."""
        return {}

    def truths(self, item: Item) -> Sequence[bool | str]:
        """The right answers to `requests(item)`, for the contract tests: what a generation writes, and whether a
        continuation is the right one; by default each is."""
        return (True,) * len(self.requests(item))

    def __str__(self) -> str:
        """As `parse_task` reads it; fields at their defaults are left out."""
        values = self.model_dump(exclude_defaults=True, exclude={"kind", "part"})
        said = [*self.part, *(f"{name}={_plain(value)}" for name, value in values.items())]
        return f"{self.kind}:{','.join(said)}" if said else self.kind


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
