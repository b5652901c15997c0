"""A scheduler in the test's own process: driven turn by turn, with a clock of the test's, and its events collected."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bltkit.checkpoint import Bundle
from bltkit.generate import Chunk, Request, generate
from bltkit.serve.limits import Limits
from bltkit.serve.messages import Delta, Drained, Event, Failed, Patched, Prompted, Started, Submit
from bltkit.serve.scheduler import Scheduler
from tests.rows import start
from tests.tiny import Case

MIB = 2**20
LIMITS = Limits(context=4096, memory=64 * MIB)


@dataclass
class Clock:
    """Time that passes only when a test says so, or by `step` whenever somebody looks."""

    now: float = 0.0
    step: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@dataclass
class Answer:
    """All events of one request."""

    started: bool = False
    prompted: Prompted | None = None
    chunks: dict[int, list[Chunk]] = field(default_factory=lambda: defaultdict(list))
    failed: Failed | None = None
    after_end: int = 0
    """Events that came when all had ended."""

    def data(self, choice: int = 0) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks[choice])

    def finish(self, choice: int = 0) -> str | None:
        return self.chunks[choice][-1].finish if self.chunks[choice] else None


class Turns:
    """A scheduler and what it has said."""

    def __init__(self, case: Case, limits: Limits = LIMITS, clock: Clock | None = None) -> None:
        self.case, self.clock = case, clock or Clock()
        self.scheduler = Scheduler(bundle_of(case), limits, self.clock)
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.patched: list[Patched | Failed] = []
        self.drained = 0
        self.next_key = 0

    def submit(
        self,
        ids: Sequence[int],
        choices: Sequence[Request] = (),
        prompt_logprobs: int | None = None,
        seconds: float | None = None,
    ) -> int:
        """The key of a new request."""
        self.next_key += 1
        self.scheduler.submit(Submit(self.next_key, tuple(ids), tuple(choices), prompt_logprobs, seconds))
        return self.next_key

    def turn(self, read: bool = True) -> list[Event]:
        """One turn. read: clients take all bytes at once."""
        events = self.scheduler.turn()
        for event in events:
            match event:
                case Started():
                    self.answers[event.key].started = True
                case Prompted():
                    assert self.answers[event.key].prompted is None
                    self.answers[event.key].prompted = event
                case Delta():
                    answer = self.answers[event.key]
                    assert answer.failed is None and answer.finish(event.choice) is None, "nothing follows the end"
                    answer.chunks[event.choice].append(event.chunk)
                    if read:
                        self.scheduler.read(event.key, event.choice, len(event.chunk.data))
                case Failed() if event.key not in self.answers and event.key < 0:
                    self.patched.append(event)
                case Failed():
                    assert self.answers[event.key].failed is None
                    self.answers[event.key].failed = event
                case Patched():
                    self.patched.append(event)
                case Drained():
                    self.drained += 1
        return events

    def run(self, read: bool = True, turns: int = 10_000) -> None:
        """Turns until nothing more happens."""
        for _ in range(turns):
            self.turn(read)
            if not self.scheduler.busy:
                return
        raise AssertionError("the scheduler does not come to rest")

    def until(self, reached: Callable[[], object], turns: int = 2000) -> None:
        """Turns until something is so."""
        for _ in range(turns):
            if reached():
                return
            self.turn()
        raise AssertionError("it does not come to that")

    def alone(self, ids: Sequence[int], request: Request) -> list[Chunk]:
        """What becomes of a request that has the model for itself."""
        return list(generate(start(self.case).extend(ids), request))


def bundle_of(case: Case) -> Bundle:
    """The case's model as a checkpoint holds it."""
    return Bundle(case.model, case.scorer, case.rule)  # type: ignore[arg-type]
