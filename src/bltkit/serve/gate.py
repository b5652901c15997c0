"""What every request passes: who may ask, counting, a line in the log, and the last resort for faults of ours."""

import time
import traceback

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bltkit.serve.errors import ApiError
from bltkit.serve.server import Server
from bltkit.serve.sse import error_response
from bltkit.terminal.control_characters import visible
from bltkit.terminal.streams import say


class Gate:
    """Middleware around all routes."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.server.meter.answered(_route(scope), status)
            await send(message)

        try:
            try:
                self.server.access.check(Request(scope))
            except ApiError as error:
                await error_response(error)(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        except Exception:
            say(visible(traceback.format_exc().rstrip()))
            if not status:
                text = "the server failed; its log says why"
                failure = ApiError(500, text, code="internal_error", kind="server_error")
                await error_response(failure)(scope, receive, counted)
        finally:
            if self.server.log:
                seconds = time.perf_counter() - began
                say(f"{_oneline(scope['method'])} {_oneline(scope['path'])} {status or 'left'} {seconds:.3f} s")


def _route(scope: Scope) -> str:
    """The route's own path: what clients write is no label, or every typo would be a time series."""
    route = scope.get("route")
    return str(getattr(route, "path", "none"))


def _oneline(text: str) -> str:
    """Text of the client's for a line of the log."""
    return visible(text[:200]).replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
