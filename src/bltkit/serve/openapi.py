"""The OpenAPI document and its page at `/docs`, whose files come from the machine itself.

Bodies are read and checked by the routes (bounds, messages that quote nothing), so their schemas are written here.
"""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from bltkit.serve.answers import (
    ChatResponse,
    CompletionResponse,
    DetokenizeResponse,
    ErrorResponse,
    ScoreResponse,
    TokenizeResponse,
)
from bltkit.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    PatchesRequest,
    ScoreRequest,
    TokenizeRequest,
)

DESCRIPTION = (
    "A language model of bytes behind OpenAI's interface. max_tokens counts bytes; a token is a byte. "
    "Fields that OpenAI does not have go into `extra_body` of its Python client."
)

_REQUESTS: tuple[type[BaseModel], ...] = (
    CompletionRequest,
    ChatRequest,
    TokenizeRequest,
    DetokenizeRequest,
    PatchesRequest,
    ScoreRequest,
)
_ANSWERS: dict[str, type[BaseModel]] = {
    "completion": CompletionResponse,
    "chat": ChatResponse,
    "tokenize": TokenizeResponse,
    "detokenize": DetokenizeResponse,
    "score": ScoreResponse,
}
_ERRORS = {
    400: "A field is wrong; the message names it.",
    401: "No valid API key.",
    403: "A web page of an origin that is not allowed.",
    404: "No such route or model.",
    405: "The route does not take this method.",
    408: "The request's time was over before anything was generated.",
    413: "The body is too large.",
    415: "The body is no JSON in UTF-8.",
    429: "Too many requests wait; Retry-After says when to try again.",
    503: "The model is being loaded, or the server ends.",
}
_PATHS_WITHOUT_BODY = (401, 403, 404, 405, 503)


def documented(name: str, body: type[BaseModel] | None = None) -> dict[str, Any]:
    """Arguments of a route: what it takes and answers."""
    statuses = _ERRORS if body is not None else {status: _ERRORS[status] for status in _PATHS_WITHOUT_BODY}
    errors = _content("ErrorResponse")
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": errors} for status, text in statuses.items()
    }
    responses[200] = {"description": "The answer.", "content": _answer(name)}
    more: dict[str, Any] = {"responses": responses}
    if body is not None:
        more["requestBody"] = {"required": True, "content": _content(body.__name__)}
    return {"openapi_extra": more, "response_model": None, "operation_id": name}


def _answer(name: str) -> dict[str, Any]:
    if name == "metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    if name not in _ANSWERS:
        return {"application/json": {"schema": {"type": "object"}}}
    streamed = {"text/event-stream": {"schema": {"type": "string"}}} if name in ("completion", "chat") else {}
    return _content(_ANSWERS[name].__name__) | streamed


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    document = get_openapi(title=app.title, version=version("bltkit"), description=app.description, routes=app.routes)
    models: list[Any] = [(model, "validation") for model in _REQUESTS]
    models += [(model, "serialization") for model in (*_ANSWERS.values(), ErrorResponse)]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    components = document.setdefault("components", {})
    components["schemas"] = {**definitions["$defs"]}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    return document


def add_docs(app: FastAPI) -> None:
    """`/openapi.json`, and `/docs` where the files of its page are installed."""

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        if app.openapi_schema is None:
            app.openapi_schema = schema(app)
        return JSONResponse(app.openapi_schema)

    files = _files()
    if files is None:
        return
    app.mount("/docs/files", StaticFiles(directory=files), name="docs-files")

    @app.get("/docs", include_in_schema=False)
    async def page(request: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="bltkit",
            swagger_js_url="/docs/files/swagger-ui-bundle.js",
            swagger_css_url="/docs/files/swagger-ui.css",
            swagger_favicon_url="/docs/files/favicon.png",
        )


def _files() -> Path | None:
    spec = find_spec("fastapi_offline")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "static"
