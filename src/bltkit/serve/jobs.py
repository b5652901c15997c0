"""Requests that the scheduler has taken: their choices, their prompt while it is read, and their deadline."""

from dataclasses import dataclass

from bltkit.generate import Request
from bltkit.generate.group import Parked
from bltkit.serve.messages import Submit
from bltkit.serve.prompt_reading import PromptReader


@dataclass(eq=False)
class JobChoice:
    """One continuation of a request's prompt."""

    request: Request
    row: int | None = None
    """Its key in the batch, from its admission on."""
    unread: int = 0
    """Bytes that were handed out and not read."""
    parked: Parked | None = None
    over: bool = False


@dataclass(eq=False)
class Job:
    """A request on its way."""

    order: Submit
    arrived: float
    deadline: float | None
    choices: list[JobChoice]
    due: float = 0.0
    """Prompts are read in the order of these times."""
    prompt: PromptReader | None = None
    """While the prompt is being read."""

    @classmethod
    def of(cls, order: Submit, now: float) -> "Job":
        """A request that arrives now."""
        deadline = None if order.seconds is None else now + order.seconds
        return cls(order, now, deadline, [JobChoice(request) for request in order.choices])

    @property
    def key(self) -> int:
        """The request's key."""
        return self.order.key

    @property
    def places(self) -> int:
        """Sequences that it takes."""
        return max(1, len(self.choices))

    @property
    def over(self) -> bool:
        """Have all choices ended, of a request that has some."""
        return bool(self.choices) and all(choice.over for choice in self.choices)

    @property
    def longest(self) -> int:
        """Ids of prompt and longest continuation."""
        return len(self.order.ids) + max((choice.request.max_bytes for choice in self.choices), default=0)
