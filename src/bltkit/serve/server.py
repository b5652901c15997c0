"""The state that all routes share: the engine, who may ask, and what a body and a model name pass."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from bltkit.data.template import ChatTemplate
from bltkit.files import parse_json
from bltkit.serve.delivery import Delivery
from bltkit.serve.errors import ApiError, explained
from bltkit.serve.handle import Engine
from bltkit.serve.messages import Figures, ModelInfo
from bltkit.serve.prometheus import Meter
from bltkit.serve.protocol import Body
from bltkit.serve.security import Access, read_body
from bltkit.serve.work import CompletionWork

LARGE = 2**16
"""Bytes of a body whose reading takes longer than a round."""
REPORT_SECONDS = 2.0
"""For the engine to say its figures; it does so between two rounds."""

B = TypeVar("B", bound=Body)


@dataclass
class Server:
    """What all routes share. seconds: from a request's arrival to its deadline."""

    engine: Engine
    access: Access = field(default_factory=Access)
    seconds: float | None = None
    log: bool = False
    """Write a line on stderr for each request."""
    meter: Meter = field(default_factory=Meter)

    @property
    def info(self) -> ModelInfo:
        """Of the served model. Raises ApiError with status 503 before it is loaded and once it is gone."""
        self.check_ready()
        assert self.engine.info is not None
        return self.engine.info

    @property
    def template(self) -> ChatTemplate | None:
        """Of the served model, if it has one."""
        return ChatTemplate.of_record(self.info.record)

    def check_ready(self) -> None:
        """Raises ApiError with status 503 unless requests are taken."""
        text = {
            "loading": "the model is being loaded; try again soon",
            "draining": "the server is ending; try another one",
            "ended": "the process that owns the model has ended; the server ends, too",
        }.get(self.engine.state)
        if text is not None:
            raise ApiError(503, text, code=self.engine.state, kind="server_error", retry_after=1)

    async def body(self, request: Request, kind: type[B]) -> B:
        """The checked body. Raises ApiError."""
        data = await read_body(request, self.access)
        self.check_ready()
        # Streams go on while a large body is read.
        parsed = self._parsed(data, kind) if len(data) < LARGE else await asyncio.to_thread(self._parsed, data, kind)
        self.check_model(getattr(parsed, "model", None))
        return parsed

    @staticmethod
    def _parsed(data: bytes, kind: type[B]) -> B:
        try:
            value = parse_json(data, "the body", finite=True)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_json") from None
        if not isinstance(value, dict):
            raise ApiError(400, "the body must be a JSON object", code="invalid_json")
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise explained(error, kind) from None

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served here."""
        served = self.info.name
        if name not in (None, served):
            raise ApiError(
                404, f"model: not served here; this server has {served}", param="model", code="model_not_found"
            )

    def check_room(self, choices: int, size: int) -> None:
        """Raises ApiError with status 429 where as many requests wait as may; 400 for one that could never wait."""
        limits = self.info.limits
        if size > limits.waiting_bytes:
            raise ApiError(400, f"prompt: {size:,} bytes together; the server takes {limits.waiting_bytes:,} at once")
        if self.engine.full(choices, size):
            wait = 1 + self.engine.waiting // limits.sequences
            raise ApiError(
                429,
                f"{self.engine.waiting} sequences wait already; try again in {wait} s",
                code="queue_full",
                kind="rate_limit_error",
                retry_after=min(60, wait),
            )

    def delivery(self, work: CompletionWork) -> Delivery:
        """Submit a request. Raises ApiError where there is no room."""
        self.check_room(work.choices, work.prompt_bytes)
        return Delivery(self.engine, work, self.seconds, self.meter)

    async def figures(self) -> Figures:
        """The engine's figures of now, or the latest ones where it does not answer soon."""
        with suppress(TimeoutError, RuntimeError):
            if self.engine.state in ("ready", "draining"):
                async with asyncio.timeout(REPORT_SECONDS):
                    return await self.engine.report()
        return self.engine.figures
