"""The HTTP application: routes, errors, and what a request passes on its way in."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bltkit.data.template import ChatTemplate
from bltkit.serve.answers import ChatShape, CompletionShape
from bltkit.serve.errors import ApiError
from bltkit.serve.gate import Gate
from bltkit.serve.messages import ModelInfo
from bltkit.serve.openapi import DESCRIPTION, add_docs, documented
from bltkit.serve.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationBody,
    PatchesRequest,
    ScoreRequest,
    TokenizeRequest,
)
from bltkit.serve.server import Server
from bltkit.serve.sse import StreamResponse, WholeResponse, error_response, json_bytes
from bltkit.serve.text_routes import detokenized, patches, score, tokenized, tokenizer_info
from bltkit.serve.work import CompletionWork, chat_work, completion_work

B = TypeVar("B", bound=Body)


def make_app(server: Server) -> FastAPI:
    """The application."""
    app = FastAPI(title="bltkit", description=DESCRIPTION, docs_url=None, redoc_url=None, openapi_url=None)
    _add_generation(app, server)
    _add_text(app, server)
    _add_state(app, server)
    add_docs(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, server=server)
    if server.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return app


def _add_generation(app: FastAPI, server: Server) -> None:
    @app.post("/v1/completions", **documented("completion", CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue prompts. With `stream` the answer comes as server-sent events, the last of which is `[DONE]`."""
        body = await server.body(request, CompletionRequest)
        work = await _prepared(body, lambda: completion_work(body, server.info))
        kind = StreamResponse if work.stream else WholeResponse
        return kind(server.delivery(work), CompletionShape(work, server.info.name))

    @app.post("/v1/chat/completions", **documented("chat", ChatRequest))
    async def chat(request: Request) -> Response:
        """Answer a conversation, with the chat template that the model was trained with."""
        body = await server.body(request, ChatRequest)
        work = await _prepared(body, lambda: chat_work(body, server.info, server.template))
        kind = StreamResponse if work.stream else WholeResponse
        return kind(server.delivery(work), ChatShape(work, server.info.name))


async def _prepared(body: GenerationBody, prepare: Callable[[], CompletionWork]) -> CompletionWork:
    """The work of a body; in a thread where a grammar is compiled, which may take a while."""
    return await asyncio.to_thread(prepare) if body.structured else prepare()


def _add_text(app: FastAPI, server: Server) -> None:
    def route(path: str, name: str, kind: type[B], answer: Callable[[Server, B, Request], Awaitable[Any]]) -> None:
        @app.post(path, name=name, description=answer.__doc__, **documented(name, kind))
        async def endpoint(request: Request) -> Response:
            return _json(await answer(server, await server.body(request, kind), request))

    route("/v1/patches", "patches", PatchesRequest, patches)
    route("/v1/score", "score", ScoreRequest, score)
    route("/tokenize", "tokenize", TokenizeRequest, tokenized)
    route("/detokenize", "detokenize", DetokenizeRequest, detokenized)

    @app.get("/tokenizer_info", **documented("tokenizer_info"))
    async def info(request: Request) -> Response:
        """The tokenizer: names of special ids, and the chat template."""
        return _json(tokenizer_info(server.info, server.template))


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", **documented("models"))
    async def models(request: Request) -> Response:
        """The served model."""
        return _json({"object": "list", "data": [_model(server.info)]})

    @app.get("/v1/models/{model:path}", **documented("model"))
    async def model(model: str, request: Request) -> Response:
        """The served model, by its name."""
        server.check_model(model)
        return _json(_model(server.info))

    @app.get("/health", **documented("health"))
    async def health(request: Request) -> Response:
        """200 while requests are taken; 503 while the model is loaded, while the server ends, and once it is broken."""
        server.check_ready()
        figures = server.engine.figures
        return _json({"status": "ok", "running": figures.running, "waiting": server.engine.waiting})

    @app.get("/ready", **documented("ready"))
    async def ready(request: Request) -> Response:
        """200 while requests are taken, else 503."""
        server.check_ready()
        return _json({"status": "ready"})

    @app.get("/metrics", **documented("metrics"))
    async def metrics(request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        page = server.meter.page(await server.figures())
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": 0,
        "owned_by": "bltkit",
        "context_bytes": info.context,
        "parameters": info.parameters,
        "strategies": list(info.strategies),
        "patching": info.rule,
        "sequence_cache_bytes": info.sequence_bytes,
        "cache_limit_bytes": info.memory,
        "device": info.device,
        "weights": info.weights,
        "chat": ChatTemplate.of_record(info.record) is not None,
    }


def _json(value: Any) -> Response:
    return Response(json_bytes(value), media_type="application/json")


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Routes that there are not, and methods that they do not have."""
    assert isinstance(error, HTTPException)
    text = {404: "there is no such route; /docs shows all", 405: "the route does not take this method"}
    response = error_response(ApiError(error.status_code, text.get(error.status_code, "the request is not right")))
    response.headers.update(error.headers or {})
    return response
