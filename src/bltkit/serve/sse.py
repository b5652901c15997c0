"""Responses that take their time: whole ones and streams of server-sent events.

While one is being made the connection is watched: a client that goes ends the work. A stream sends an event only when
the connection takes it, and the engine is told of bytes when they were sent; so a slow client pauses its own sequence.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from bltkit.serve.answers import Shape
from bltkit.serve.byte_text import Piece
from bltkit.serve.delivery import ChoicePart, Delivery
from bltkit.serve.errors import ApiError

PING_SECONDS = 15.0
"""Silence after which a comment is sent, for proxies that close silent connections."""

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def json_bytes(value: Any) -> bytes:
    """Compact JSON in UTF-8. Text of ours holds no lone surrogates; numbers are finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def error_response(error: ApiError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.content, error.status, error.headers)


class WatchedResponse(Response):
    """A response that is made while the connection is watched."""

    def __init__(self, delivery: Delivery, shape: Shape) -> None:
        super().__init__()
        self.delivery, self.shape = delivery, shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        work = asyncio.create_task(self.deliver(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            self.delivery.cancel()
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        raise NotImplementedError


class WholeResponse(WatchedResponse):
    """The answer as one JSON object."""

    async def deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `WatchedResponse`."""
        response: Response
        try:
            pieces: list[list[Piece]] = [[] for _ in self.delivery.choices]
            async for parts in self.delivery.parts():
                for part in parts:
                    pieces[part.index].append(part.piece)
            whole = [joined(several) for several in pieces]
            answer = self.shape.whole(self.delivery.choices, whole, self.delivery.usage)
            response = Response(json_bytes(answer), media_type="application/json")
        except ApiError as error:
            response = error_response(error)
        await response(scope, receive, send)


class StreamResponse(WatchedResponse):
    """The answer as server-sent events.

    The response begins with the first event, so that a request which fails before has its status, but no later than
    after `PING_SECONDS`. What fails later is an event with `error`.
    """

    async def deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `WatchedResponse`."""
        begun = False

        async def write(data: bytes, more: bool = True) -> None:
            nonlocal begun
            if not begun:
                begun = True
                start = Response(headers=_HEADERS, media_type="text/event-stream")
                headers = [pair for pair in start.raw_headers if pair[0] != b"content-length"]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            await self._send_parts(write)
            last = b""
            if self.shape.work.include_usage:
                last = _event(self.shape.usage_event(self.delivery.usage))
            await write(last + DONE, more=False)
        except ApiError as error:
            if not begun:
                await error_response(error)(scope, receive, send)
            else:
                await write(_event(error.content) + DONE, more=False)

    async def _send_parts(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        begun = set[int]()
        parts = self.delivery.parts()
        try:
            coming = asyncio.ensure_future(anext(parts, None))
            while True:
                done, _ = await asyncio.wait((coming,), timeout=PING_SECONDS)
                if not done:
                    await write(PING)
                    continue
                several = coming.result()
                if several is None:
                    return
                await write(b"".join(self._events(several, begun)))
                coming = asyncio.ensure_future(anext(parts, None))
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await coming
            await parts.aclose()

    def _events(self, parts: Sequence[ChoicePart], begun: set[int]) -> list[bytes]:
        events = []
        for part in merged(parts):
            choice = self.delivery.choices[part.index]
            events.append(_event(self.shape.event(choice, part, part.index not in begun)))
            begun.add(part.index)
        return events


def merged(parts: Sequence[ChoicePart]) -> list[ChoicePart]:
    """Parts that came together, one for each choice: the later the reader, the larger the events."""
    if len(parts) < 2:
        return list(parts)
    by_choice: dict[int, list[ChoicePart]] = {}
    for part in parts:
        by_choice.setdefault(part.index, []).append(part)
    return [
        ChoicePart(index, joined([part.piece for part in several]), several[-1].ending)
        for index, several in by_choice.items()
    ]


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces together."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        b"".join(piece.data for piece in pieces),
        tuple(entry for piece in pieces for entry in piece.entries),
    )


def _event(value: Any) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
