"""Subjects that are no models: one that knows all answers, one that knows what to avoid, one that guesses."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Answer, Coded, Compression, Continuation, Likelihood, Request, Scored, Written
from bltkit.eval.tasks.task import Item, Task
from bltkit.vocab import to_bytes
from tests.eval_rows import TRUTHS


class Fake:
    """What a subject has beside its answers."""

    name = "fake"
    kind = "bltkit"
    fingerprint = "0" * 64


class Oracle(Fake):
    """Answers from a list of truths, aligned with the requests as the runner asks them: item by item.

    lies: it knows them, and says the opposite.
    """

    def __init__(self, truths: Sequence[Any], lies: bool = False) -> None:
        self.truths, self.lies, self.asked = truths, lies, 0

    @classmethod
    def of(cls, task: Task, items: Sequence[Item], lies: bool = False) -> "Oracle":
        truths: list[Any] = []
        for item in items:
            own = TRUTHS[task.kind](item)
            truths += own * (len(task.requests(item)) // len(own))  # several samples have the same truth
        return cls(truths, lies)

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        first, self.asked = self.asked, self.asked + len(requests)
        found = [self._answer(one, self.truths[first + at]) for at, one in enumerate(requests)]
        yield from reversed(list(enumerate(found)))

    def _answer(self, request: Request, truth: Any) -> Answer:
        if isinstance(request, Continuation):
            data = b"\xff" * request.max_bytes if self.lies else to_bytes(truth)
            return Written(data, "length" if self.lies else "stop")
        right = bool(truth) != self.lies
        if isinstance(request, Likelihood):
            return Scored(-1.0 if right else -1e6, right)
        return Coded((1e-3 if right else 8.0) * len(request.text), len(request.text))


class Chance(Fake):
    """Guesses: a number that follows from the request and a seed. per_byte: times the continuation's bytes."""

    def __init__(self, seed: int = 0, per_byte: bool = False) -> None:
        self.seed, self.per_byte = seed, per_byte

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        for at, request in enumerate(requests):
            assert isinstance(request, Likelihood)
            digest = hashlib.sha256(f"{self.seed}{request}".encode()).digest()
            guess = int.from_bytes(digest[:6]) / 2**48
            yield at, Scored(-guess * (len(request.continuation) if self.per_byte else 1), False)


class Counted(Fake):
    """Another subject, and how many requests it was asked; breaks off after `limit` answers."""

    def __init__(self, inner: Any, limit: int | None = None) -> None:
        self.inner, self.limit, self.count = inner, limit, 0

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        for found in self.inner.answers(requests):
            if self.limit is not None and self.count >= self.limit:
                raise KeyboardInterrupt
            self.count += 1
            yield found


class Known(Fake):
    """Answers that follow from the request alone."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        for at, request in enumerate(requests):
            digest = hashlib.sha256(repr(request).encode()).digest()
            if isinstance(request, Likelihood):
                yield at, Scored(-digest[0] / 16, digest[1] % 2 == 0)
            elif isinstance(request, Continuation):
                yield at, Written(digest[: request.max_bytes], "length")
            else:
                assert isinstance(request, Compression)
                yield at, Coded(digest[0] / 100 * len(request.text), len(request.text))


def items_of(task: Task, place: Place, count: int | None = None) -> list[Item]:
    """The first items of a task."""
    return list(task.items(place))[:count]
