"""A load generator for servers of OpenAI's completions: it speaks HTTP and knows nothing of what answers.

Clients stream their answers in a closed loop, each sending its next request when the answer to the last one is
complete. What is measured is what a client sees: when the first byte arrives, when the others do, and what they are.
"""

import asyncio
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bltkit.files import parse_json

if TYPE_CHECKING:
    import httpx

READY_SECONDS = 300.0
"""For a server to load its model; more is taken for a failure."""
ANSWER_SECONDS = 900.0
"""For an answer; more is taken for a server that hangs."""
ENDING_SECONDS = 60.0
"""For a server to end once it was told to."""
POLL_SECONDS = 0.05
USERS_MISTAKE = 2
"""Exit status of `blt` for options that are wrong."""
SHOWN = 2000
"""Characters of a failed server's messages that an error repeats."""

Body = Mapping[str, Any]
"""A request's JSON."""


@dataclass(frozen=True)
class Answer:
    """A streamed answer; all times are of `time.perf_counter`."""

    index: int
    """The request's place in the sequence of requests."""
    sent: float
    arrivals: tuple[tuple[float, str], ...]
    """Pieces of text and when they arrived; empty pieces are left out."""
    finish: str | None
    ended: float
    """When the stream was complete."""

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(piece for _, piece in self.arrivals)

    @property
    def first_byte_seconds(self) -> float:
        """From sending the request to the first piece, or to the end of an answer without text."""
        return (self.arrivals[0][0] if self.arrivals else self.ended) - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        times = [at for at, _ in self.arrivals]
        return [later - earlier for earlier, later in pairwise(times)]


def closed_loop(
    url: str, bodies: Sequence[Body], clients: int, delays: Sequence[float] = (), key: str | None = None
) -> list[Answer]:
    """Send all bodies to `url`/v1/completions as streams, from `clients` clients at once; answers in the bodies' order.

    delays: seconds that each client waits before its first request; none by default. key: the API key, if any.

    Raises ValueError where httpx is not installed, RuntimeError with status and message of an answer that is an error
    or a stream that breaks off.
    """
    try:
        return asyncio.run(_closed_loop(url, bodies, clients, delays or [0.0] * clients, key))
    except ExceptionGroup as group:  # one client's error ends all of them
        raise group.exceptions[0] from None


async def _closed_loop(
    url: str, bodies: Sequence[Body], clients: int, delays: Sequence[float], key: str | None
) -> list[Answer]:
    library = httpx_module()
    waiting: Iterator[tuple[int, Body]] = iter(enumerate(bodies))
    answers: list[Answer] = []
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def client(delay: float, connection: "httpx.AsyncClient") -> None:
        await asyncio.sleep(delay)
        for index, body in waiting:  # one iterator for all clients
            answers.append(await ask(connection, index, body))

    limits = library.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with (
        library.AsyncClient(
            base_url=url, headers=headers, limits=limits, timeout=ANSWER_SECONDS, trust_env=False
        ) as connection,
        asyncio.TaskGroup() as group,
    ):
        for delay in delays:
            group.create_task(client(delay, connection))
    return sorted(answers, key=lambda answer: answer.index)


async def ask(connection: "httpx.AsyncClient", index: int, body: Body) -> Answer:
    """One streamed completion. Raises RuntimeError where it is no complete stream."""
    arrivals: list[tuple[float, str]] = []
    finish: str | None = None
    complete = False
    sent = time.perf_counter()
    async with connection.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            message = (await response.aread()).decode("utf-8", "replace")
            raise RuntimeError(f"request {index} was answered with status {response.status_code}: {message:.500}")
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue  # comments keep a silent connection alive
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                complete = True
                break
            event = parse_json(data, f"request {index}: an event")
            if "error" in event:
                raise RuntimeError(f"request {index} failed while it ran: {event['error']!s:.500}")
            for choice in event["choices"]:
                if choice["text"]:
                    arrivals.append((time.perf_counter(), choice["text"]))
                finish = choice.get("finish_reason") or finish
    if not complete:
        raise RuntimeError(f"request {index}: the stream ended without [DONE]")
    return Answer(index, sent, tuple(arrivals), finish, time.perf_counter())


def served_model(url: str, key: str | None = None) -> str:
    """The name that a server's requests must carry: that of its first model."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx_module().Client(base_url=url, headers=headers, trust_env=False) as client:
        return str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])


def httpx_module() -> Any:
    """The HTTP client. Raises ValueError that names the extra where it is not installed."""
    try:
        import httpx
    except ImportError:
        raise ValueError("httpx, which sends the requests, is not installed: pip install 'bltkit[serve]'") from None
    return httpx


class ServerProcess:
    """`blt serve` with these options in a process of its own, on a free port of the loopback interface.

    Use it in a `with`: entering waits until the server is ready (`wait_until_ready`), leaving ends it.
    """

    def __init__(self, *options: str, env: Mapping[str, str] | None = None, seconds: float = READY_SECONDS) -> None:
        """env: the process's environment; None: that of this process. seconds: for the server to become ready."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._seconds = seconds
        # A file and not a pipe: nobody reads while the server runs, and a full pipe would stop it.
        self._messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.command = [sys.executable, "-m", "bltkit", "serve", "--host", "127.0.0.1", "--port", str(port), *options]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self._messages, stderr=self._messages, env=env
        )

    @property
    def pid(self) -> int:
        """Of the process that speaks HTTP."""
        return self.process.pid

    @property
    def messages(self) -> str:
        """What the server has said so far."""
        self._messages.flush()
        self._messages.seek(0)
        return self._messages.read()

    def wait_until_ready(self) -> None:
        """Returns once `/ready` answers 200.

        Raises ValueError where the server refuses its options, RuntimeError where it ends otherwise or takes too long.
        """
        library = httpx_module()
        until = time.monotonic() + self._seconds
        with library.Client(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < until:
                if (status := self.process.poll()) is not None:
                    kind = ValueError if status == USERS_MISTAKE else RuntimeError
                    raise kind(f"the server ended with status {status}: {self._last_messages()}")
                try:
                    if client.get("/ready").status_code == 200:
                        return
                except library.TransportError:
                    pass  # nobody listens yet
                time.sleep(POLL_SECONDS)
        raise RuntimeError(f"the server was not ready after {self._seconds:g} s: {self._last_messages()}")

    def stop(self, seconds: float = ENDING_SECONDS) -> int:
        """Send SIGTERM and return the exit status; the process is killed when the timeout passes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def close(self) -> None:
        """End the server, if it runs, and forget its messages."""
        self.stop()
        self._messages.close()

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _last_messages(self) -> str:
        return re.sub(r"\s*\n\s*", "; ", self.messages.strip())[-SHOWN:]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
