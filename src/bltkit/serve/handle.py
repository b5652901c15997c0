"""The HTTP side's handle of the process that owns the model: it starts, watches and ends it, and routes its events.

A thread reads lists of events from the pipe and hands each list to the event loop at once. Orders go out from a thread
too, so that a full pipe never stops the loop.
"""

import asyncio
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal

from bltkit.generate import Request
from bltkit.patching.patched import PatchedText
from bltkit.serve.messages import (
    Cancel,
    Delta,
    Drain,
    Drained,
    Event,
    Failed,
    Figures,
    ModelInfo,
    Order,
    Patch,
    Patched,
    Prompted,
    Read,
    Ready,
    Refused,
    Report,
    Started,
    Submit,
)
from bltkit.serve.settings import EngineSettings

State = Literal["loading", "ready", "draining", "ended"]

GONE = "the process that owns the model has ended"


class EventStream:
    """The events of one request, as an asynchronous iterator that ends behind the last of them.

    Whoever leaves it early calls `cancel`; whoever hands bytes on calls `read`, or the sequence pauses.
    """

    def __init__(self, engine: "Engine", key: int, choices: int, prompt_bytes: int) -> None:
        self.key = key
        self.choices = choices
        self.prompt_bytes = prompt_bytes
        self.started = False
        """Is the prompt being read, or has it been."""
        self._engine = engine
        self._open = choices
        self.arrived = asyncio.Event()
        """Set when there are events, or the end. Several streams that are read together may share one."""
        self._events: deque[Prompted | Delta | Failed] = deque()
        self._ended = False

    def __aiter__(self) -> "EventStream":
        """Itself: a stream is read once."""
        return self

    async def __anext__(self) -> Prompted | Delta | Failed:
        """The next event. Failing of the engine is a `Failed`, too."""
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self.arrived.clear()
            await self.arrived.wait()
        return self._events.popleft()

    def take(self) -> list[Prompted | Delta | Failed]:
        """All events that have arrived and are not taken yet."""
        events = list(self._events)
        self._events.clear()
        return events

    @property
    def has_events(self) -> bool:
        """Are there events that were not taken."""
        return bool(self._events)

    @property
    def over(self) -> bool:
        """Will no further event arrive."""
        return self._ended

    def read(self, choice: int, size: int) -> None:
        """The client took `size` bytes of a choice."""
        if size and not self._ended:
            self._engine.send(Read(self.key, choice, size))

    def cancel(self) -> None:
        """Nobody waits for it; harmless behind its end."""
        if not self._ended:
            self._engine.send(Cancel(self.key))
            self._end()

    def _feed(self, event: Prompted | Delta | Failed) -> None:
        self._events.append(event)
        if isinstance(event, Delta) and event.chunk.finish is not None:
            self._open -= 1
        if isinstance(event, Failed) or not self._open:
            self._end()
        self.arrived.set()

    def _end(self) -> None:
        self._ended = True
        self._engine.forget(self)
        self.arrived.set()


class Engine:
    """The process that owns the model, seen from an event loop; all methods are called there.

    state: `loading`, then `ready`, perhaps `draining`, then `ended`. info: of the model, once it is ready.
    figures: the latest ones.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.state: State = "loading"
        self.info: ModelInfo | None = None
        self.figures = Figures()
        self.waiting, self.waiting_bytes = 0, 0
        """Sequences, and bytes of prompts, that were submitted and are not started."""
        self._streams: dict[int, EventStream] = {}
        self._patches: dict[int, asyncio.Future[PatchedText]] = {}
        self._reports: list[asyncio.Future[Figures]] = []
        self._next_key = 0
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._drained = False

    async def start(self) -> ModelInfo:
        """Start the process and wait until the model is loaded. Raises ValueError with one line where it cannot be."""
        from bltkit.serve.engine_process import main

        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[ModelInfo] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(self.settings, theirs), name="bltkit-engine", daemon=True)
        await self._loop.run_in_executor(None, self._process.start)
        theirs.close()
        threading.Thread(target=self._listen, args=(ours,), name="engine-events", daemon=True).start()
        threading.Thread(target=self._speak, args=(ours,), name="engine-orders", daemon=True).start()
        return await self._loaded

    def full(self, choices: int, size: int) -> bool:
        """Does a request of `choices` choices and a prompt of `size` bytes exceed the queue limits."""
        limits = self.settings.limits
        waits = self.waiting + max(1, choices) > limits.waiting
        return self.waiting > 0 and (waits or self.waiting_bytes + size > limits.waiting_bytes)

    def submit(
        self,
        ids: Sequence[int],
        choices: Sequence[Request] = (),
        prompt_logprobs: int | None = None,
        seconds: float | None = None,
    ) -> EventStream:
        """A new request; see `Submit`. Without choices it is only scored."""
        if not choices and prompt_logprobs is None:
            raise ValueError("choices = []: nothing is asked for; give choices or prompt_logprobs")
        stream = EventStream(self, self._key(), len(choices), len(ids))
        self._streams[stream.key] = stream
        self._count(stream, 1)
        if self.state == "ended":
            stream._feed(Failed(stream.key, "internal", GONE))
        else:
            self.send(Submit(stream.key, tuple(ids), tuple(choices), prompt_logprobs, seconds))
        return stream

    async def patch(self, data: bytes) -> PatchedText:
        """The patches of a text. Raises RuntimeError where the engine fails."""
        key = self._key()
        future: asyncio.Future[PatchedText] = self._loop.create_future()
        self._patches[key] = future
        self.send(Patch(key, data))
        return await future

    async def report(self) -> Figures:
        """The figures of now. Raises RuntimeError where the engine has ended."""
        future: asyncio.Future[Figures] = self._loop.create_future()
        self._reports.append(future)
        self.send(Report())
        return await future

    async def drain(self, seconds: float) -> None:
        """End what runs within `seconds`, then the process; new requests fail as `draining`."""
        if self.state != "ended":
            self.state = "draining"
            self.send(Drain(seconds))
        with suppress(RuntimeError):
            await self.ended()

    async def ended(self) -> None:
        """Wait for the end of the process. Raises RuntimeError unless it was drained."""
        await asyncio.wait([self._over])
        await self._loop.run_in_executor(None, self._process.join, 10)
        self._over.result()

    @property
    def pid(self) -> int | None:
        """Number of the process; None before it was started."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit status of the process; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def send(self, order: Order) -> None:
        """Queue an order; orders of one turn of the loop travel together."""
        if self.state == "ended":
            self._refuse(order)
        else:
            self._orders.put(order)

    def forget(self, stream: EventStream) -> None:
        """A stream has ended."""
        if self._streams.pop(stream.key, None) is not None and not stream.started:
            self._count(stream, -1)

    def _key(self) -> int:
        self._next_key += 1
        return self._next_key

    def _count(self, stream: EventStream, sign: int) -> None:
        self.waiting += sign * max(1, stream.choices)
        self.waiting_bytes += sign * stream.prompt_bytes

    def _refuse(self, order: Order) -> None:
        if isinstance(order, Patch) and order.key in self._patches:
            self._patches.pop(order.key).set_exception(RuntimeError(GONE))
        elif isinstance(order, Report):
            self._end()

    def _listen(self, pipe: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                events: list[Event] = pipe.recv()
                self._loop.call_soon_threadsafe(self._handle, events)
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._end)
        self._orders.put(None)

    def _speak(self, pipe: Connection) -> None:
        """Orders, as many together as there are."""
        with suppress(OSError):
            while True:
                orders = [self._orders.get()]
                with suppress(queue.Empty):
                    while True:
                        orders.append(self._orders.get_nowait())
                pipe.send([order for order in orders if order is not None])
                if None in orders:
                    return

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Prompted() | Delta() | Failed():
                    if event.key in self._patches and isinstance(event, Failed):
                        self._settle(self._patches.pop(event.key), RuntimeError(event.text))
                    elif event.key in self._streams:
                        self._streams[event.key]._feed(event)
                case Started():
                    stream = self._streams.get(event.key)
                    if stream is not None and not stream.started:
                        stream.started = True
                        self._count(stream, -1)
                case Figures():
                    self.figures = event
                    for future in self._reports:
                        self._settle(future, event)
                    self._reports.clear()
                case Patched():
                    if event.key in self._patches:
                        self._settle(self._patches.pop(event.key), event.text)
                case Ready():
                    self.info, self.state = event.info, "ready"
                    self._settle(self._loaded, event.info)
                case Refused():
                    self._settle(self._loaded, ValueError(event.text))
                case Drained():
                    self._drained = True

    def _end(self) -> None:
        """The process has ended: so has everything that it owed."""
        self.state = "ended"
        for stream in list(self._streams.values()):
            stream._feed(Failed(stream.key, "internal", GONE))
        owed: list[asyncio.Future[Any]] = [*self._patches.values(), *self._reports]
        for waiting in owed:
            self._settle(waiting, RuntimeError(GONE))
        self._patches.clear()
        self._reports.clear()
        self._settle(self._loaded, RuntimeError(f"{GONE} while it loaded the model"))
        self._settle(self._over, None if self._drained else RuntimeError(GONE))

    @staticmethod
    def _settle(future: "asyncio.Future[Any]", value: object) -> None:
        if future.done():
            return
        if isinstance(value, Exception):
            future.set_exception(value)
            future.exception()  # it may be that nobody asks, which is no fault
        else:
            future.set_result(value)
