"""What tasks share whose answer is written by the model: reading it, drawing shots."""

import random
from collections.abc import Sequence
from typing import TypeVar

from bltkit.eval.requests import Answer, Written

T = TypeVar("T")


def written(answers: Sequence[Answer]) -> Written:
    """The answer to an item's only request, a `Continuation`."""
    (answer,) = answers
    assert isinstance(answer, Written), answer
    return answer


def drawn(rows: Sequence[T], count: int, seed: int) -> tuple[T, ...]:
    """`count` of the rows, in an order of their own. The same seed draws the same, on any machine and Python.

    A larger count begins with what a smaller one draws.
    """
    # Only `random()` itself is promised to stay the same across versions of Python; `sample` is not.
    order = random.Random(seed)
    keys = [order.random() for _ in rows]
    return tuple(rows[at] for at in sorted(range(len(rows)), key=keys.__getitem__)[:count])
