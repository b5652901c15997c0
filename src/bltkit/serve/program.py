"""The server as a program: it listens, loads the model, answers, and ends when it is told to."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn

from bltkit.serve.app import make_app
from bltkit.serve.handle import Engine
from bltkit.serve.messages import ModelInfo
from bltkit.serve.security import Access
from bltkit.serve.server import Server
from bltkit.serve.settings import EngineSettings
from bltkit.terminal.control_characters import visible
from bltkit.terminal.streams import flush_result, say, write_json

KEEP_ALIVE_SECONDS = 75
"""For an idle connection; longer than clients and proxies keep one, so that it is they who close it."""
CLOSING_SECONDS = 5
"""For the last bytes of answers to be read, once the engine has ended."""
BACKLOG = 2048


@dataclass(frozen=True)
class ServerSettings:
    """A server.

    seconds: from a request's arrival to its deadline; None: there is none. drain_seconds: for what runs, when the
    server is told to end. log: write a line for each request. as_json: once it is ready, print where it listens as JSON
    on stdout.
    """

    engine: EngineSettings
    host: str = "127.0.0.1"
    port: int = 8000
    access: Access = field(default_factory=Access)
    seconds: float | None = None
    drain_seconds: float = 30.0
    log: bool = False
    as_json: bool = False


def serve(settings: ServerSettings) -> int:
    """Run until SIGTERM or SIGINT; the exit status.

    Raises ValueError with one line where the address cannot be listened on or the model cannot be served.
    """
    listener = listen(settings.host, settings.port)
    with contextlib.closing(listener):
        return asyncio.run(_serve(settings, listener))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError that names address and remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen on {host}:{port}: {why}; choose another --port or --host") from None


async def _serve(settings: ServerSettings, listener: socket.socket) -> int:
    engine = Engine(settings.engine)
    server = Server(engine, settings.access, settings.seconds, settings.log)
    http = _HttpServer(_config(make_app(server)))
    told = _Signals()
    listening = asyncio.create_task(http.serve(sockets=[listener]))
    try:
        return await _run(settings, engine, told, _url(settings.host, listener))
    finally:
        http.should_exit = True
        await listening


async def _run(settings: ServerSettings, engine: Engine, told: "_Signals", url: str) -> int:
    loading = asyncio.create_task(engine.start())
    stopped = asyncio.create_task(told.first.wait())
    await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        engine.kill()
        return 0
    try:
        info = loading.result()
    except RuntimeError as error:
        say(f"blt serve: {error}")
        return 1
    say(_greeting(info, url, settings))
    if settings.as_json:
        write_json({"url": url, "model": info.name, "context": info.context, "device": info.device})
        flush_result()
    ended = asyncio.create_task(engine.ended())
    await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        ended.cancel()
        draining = asyncio.create_task(engine.drain(settings.drain_seconds))
        again = asyncio.create_task(told.second.wait())
        await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if draining.done():
            return 0
        engine.kill()
        await draining
        return 1
    stopped.cancel()
    say(f"blt serve: {ended.exception() or 'the process that owns the model has ended'}; the server ends")
    await asyncio.sleep(0.5)  # so that those who wait are told
    return 1


class _Signals:
    """SIGTERM and SIGINT: the first drains, the second ends at once."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._told)

    def _told(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_Signals`: while requests are drained, new ones are answered, too."""
        yield


def _config(app: object) -> uvicorn.Config:
    logger = logging.getLogger("uvicorn.error")
    logger.handlers = [_Log()]
    logger.propagate = False
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )


class _Log(logging.Handler):
    """uvicorn's warnings, as our messages."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            say(visible(self.format(record)))


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _greeting(info: ModelInfo, url: str, settings: ServerSettings) -> str:
    where = f"{info.weights} on {info.device}"
    room = f"context {info.context:,} bytes, {info.limits.sequences} sequences, {info.memory / 2**20:,.0f} MiB of cache"
    keys = ", API key needed" if settings.access.keys else ""
    return visible(f"serving {info.name} at {url} ({where}, {room}{keys}; page at {url}/docs)")
