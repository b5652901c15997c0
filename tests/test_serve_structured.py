"""Structured output over HTTP: answers that are valid within max_tokens, and refusals that name the field."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve_client import Library, Served, raw, saved_model, serve
from tests.serve_fake import info
from tests.test_serve_app import CHAT_RECORD, Client

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["old", "new"]}}},
    "required": ["city", "tags"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "A city?"}]


def schema_format(schema: Any = SCHEMA, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True, **fields}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "random", chat=True)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Served]:
    with serve(directory, "--dtype", "float64") as served:
        yield served


def test_answers_are_valid_and_those_of_the_library(server: Served, directory: Path) -> None:
    with Library(directory) as library:
        for seed, strategy in enumerate(["ar", "speculative", "auto"]):
            options: Any = {"seed": seed, "temperature": 1.0, "strategy": strategy}
            answer = server.complete("City: ", max_tokens=50, response_format=schema_format(), **options)
            (choice,) = answer["choices"]
            jsonschema.validate(json.loads(choice["text"]), SCHEMA)
            assert choice["finish_reason"] == "stop"
            expected = library.generate("City: ", max_bytes=50, json_schema=SCHEMA, **options)
            assert raw(choice) == expected.data


def test_chats_and_expressions(server: Served) -> None:
    answer = server.chat(MESSAGES, max_tokens=50, seed=1, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)
    answer = server.complete("Year ", max_tokens=4, seed=1, guided_regex="(19|20)[0-9]{2}", n=3)
    for choice in answer["choices"]:
        assert re.fullmatch("(19|20)[0-9]{2}", choice["text"]) and choice["finish_reason"] == "stop"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": schema_format({"uniqueItems": True})}, "response_format", "uniqueItems"),
    ({"response_format": schema_format({"type": "object", "secret": 1})}, "response_format", "does not know"),
    ({"response_format": schema_format({"type": "secret"})}, "response_format", "'type' has a wrong value"),
    ({"response_format": schema_format(True)}, "response_format.json_schema.schema", "object"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema: belongs to type json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"response_format": {"type": "json_object"}, "stop": ["}"]}, "stop", "cuts structured output short"),
    ({"response_format": schema_format(), "max_tokens": 5}, "max_tokens", "max_tokens = 5: the shortest output"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "excludes response_format"),
    ({"guided_regex": "(secret"}, "guided_regex", "cannot be enforced"),
    ({"guided_regex": ""}, "guided_regex", "at least 1"),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
@pytest.mark.parametrize("chat", [False, True])
def test_what_cannot_be_enforced_is_a_400(fields: dict[str, Any], param: str, message: str, chat: bool) -> None:
    client = Client(model=info(record=CHAT_RECORD if chat else None))
    path, prompt = ("/v1/chat/completions", {"messages": MESSAGES}) if chat else ("/v1/completions", {"prompt": "x"})
    error = client.post(path, {"max_tokens": 40, **prompt, **fields}, 400)
    assert error["param"] == param and message in error["message"], error
    assert "secret" not in error["message"] and "\n" not in error["message"]


def test_free_text_takes_no_constraint() -> None:
    client = Client()
    assert client.complete(response_format={"type": "text"})["choices"]
    assert client.complete(response_format=None)["choices"]
