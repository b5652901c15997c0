"""An engine that says what it is told to: for tests of what HTTP does with it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bltkit.generate import Chunk, Request
from bltkit.patching import parse_rule
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.serve.handle import EventStream
from bltkit.serve.limits import Limits
from bltkit.serve.messages import Cancel, Delta, Event, Failed, Figures, ModelInfo, Order, Prompted, Read
from bltkit.serve.settings import EngineSettings

Script = Callable[[int, Sequence[int], Sequence[Request]], Sequence[Event]]
"""Events of a request, by its key, ids and choices."""


def info(context: int = 100, record: Mapping[str, Any] | None = None, **limits: Any) -> ModelInfo:
    return ModelInfo(
        name="fake",
        parameters=1,
        context=context,
        strategies=("ar", "speculative"),
        record=record or {},
        rule="space",
        sequence_bytes=1000,
        memory=100_000,
        limits=Limits(**limits),
        device="cpu",
        weights="float32",
    )


class FakeEngine:
    """Stands in for `Engine`; `script` makes the events of each request, which arrive one turn of the loop apart."""

    def __init__(self, script: Script, model: ModelInfo | None = None, pause: float = 0.0) -> None:
        self.script, self.pause = script, pause
        self.info: ModelInfo | None = model or info()
        self.settings = EngineSettings("fake", limits=self.info.limits)
        self.state = "ready"
        self.figures = Figures(running=3, memory=100)
        self.waiting = 0
        self.orders: list[Order] = []
        self.submitted: list[tuple[tuple[int, ...], tuple[Request, ...], int | None, float | None]] = []
        self.is_full = False
        self._tasks: set[asyncio.Task[None]] = set()

    def full(self, choices: int, size: int) -> bool:
        return self.is_full

    def submit(
        self,
        ids: Sequence[int],
        choices: Sequence[Request] = (),
        prompt_logprobs: int | None = None,
        seconds: float | None = None,
    ) -> EventStream:
        self.submitted.append((tuple(ids), tuple(choices), prompt_logprobs, seconds))
        key = len(self.submitted)
        stream = EventStream(self, key, len(choices), len(ids))  # type: ignore[arg-type]
        events = self.script(key, ids, choices)

        async def feed() -> None:
            for event in events:
                await asyncio.sleep(self.pause)
                assert isinstance(event, Prompted | Delta | Failed)
                if not stream.over:
                    stream._feed(event)

        task = asyncio.get_running_loop().create_task(feed())
        self._tasks.add(task)
        return stream

    async def patch(self, data: bytes) -> PatchedText:
        return patch_text(data, parse_rule("space"))

    async def report(self) -> Figures:
        return self.figures

    def send(self, order: Order) -> None:
        self.orders.append(order)

    def forget(self, stream: EventStream) -> None:
        pass

    def read_bytes(self, choice: int = 0) -> int:
        return sum(order.size for order in self.orders if isinstance(order, Read) and order.choice == choice)

    @property
    def cancelled(self) -> bool:
        return any(isinstance(order, Cancel) for order in self.orders)


def says(*pieces: bytes, finish: Any = "length", logprobs: bool = False, top: int = 0) -> Script:
    """Every choice generates these pieces; log-probabilities count down from -0.5."""

    def script(key: int, ids: Sequence[int], choices: Sequence[Request]) -> list[Event]:
        events: list[Event] = []
        for choice in range(len(choices)):
            for at, data in enumerate(pieces):
                last = at == len(pieces) - 1
                chunk = Chunk(
                    data,
                    finish if last else None,
                    None,
                    tuple(-0.5 - i for i in range(len(data))) if logprobs else (),
                    tuple(i == 0 for i in range(len(data))),
                    tuple(tuple((4 + i, -1.0 - i) for i in range(top)) for _ in data) if top else (),
                    -0.125 if last and finish == "eos" and logprobs else None,
                )
                events.append(Delta(key, choice, chunk))
        return events

    return script


def scores(script: Script, top: int = 0) -> Script:
    """The prompt's log-probabilities -1, -2, ... first."""

    def scored(key: int, ids: Sequence[int], choices: Sequence[Request]) -> list[Event]:
        values = tuple(-1.0 - i for i in range(len(ids) - 1))
        tops = tuple(tuple((4 + i, -0.25 - i) for i in range(top)) for _ in values)
        return [Prompted(key, values, tops), *script(key, ids, choices)]

    return scored


def fails(reason: Any, *pieces: bytes) -> Script:
    """Fails after these pieces."""

    def script(key: int, ids: Sequence[int], choices: Sequence[Request]) -> list[Event]:
        deltas = [Delta(key, 0, Chunk(data)) for data in pieces]
        return [*deltas, Failed(key, reason, "it is over")]

    return script
