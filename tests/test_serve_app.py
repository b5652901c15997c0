"""The HTTP application in front of an engine that is told what to say."""

import asyncio
import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from bltkit.data.template import RECORD_KEY, ChatTemplate
from bltkit.patching import parse_rule
from bltkit.patching.patched import patch_text
from bltkit.serve.app import make_app
from bltkit.serve.security import Access
from bltkit.serve.server import Server
from bltkit.serve.tokens import BOS_NAME, EOS_NAME
from bltkit.vocab import OFFSET
from tests.serve_fake import FakeEngine, Script, fails, info, says, scores

CHAT_RECORD = {RECORD_KEY: ChatTemplate().model_dump()}
Message = dict[str, Any]


class Client:
    """Requests to an application, and the engine behind it."""

    def __init__(self, script: Script = says(b"ab", b"c"), model: Any = None, **server: Any) -> None:  # noqa: B008
        self.engine = FakeEngine(script, model)
        self.server = Server(self.engine, **server)  # type: ignore[arg-type]
        self.http = TestClient(make_app(self.server), raise_server_exceptions=True)

    def post(self, path: str, body: Any, status: int = 200, **options: Any) -> Any:
        response = self.http.post(path, json=body, **options)
        assert response.status_code == status, response.text
        if status != 200:
            return error_of(response)
        return response.json()

    def complete(self, **fields: Any) -> Any:
        return self.post("/v1/completions", {"prompt": "x", "seed": 5, **fields})

    def refused(self, path: str = "/v1/completions", status: int = 400, **fields: Any) -> Any:
        return self.post(path, {"prompt": "x", **fields}, status)

    def events(self, path: str = "/v1/completions", **fields: Any) -> list[Any]:
        response = self.http.post(path, json={"stream": True, "seed": 5, **fields})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.text.split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2] if not block.startswith(":")]


def error_of(response: Any) -> Any:
    content = response.json()
    assert set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["message"] and "\n" not in content["error"]["message"]
    return content["error"]


def test_a_completion() -> None:
    client = Client()
    answer = client.complete(prompt=["x", "yz"], n=2, bytes=True)
    assert answer["object"] == "text_completion" and answer["model"] == "fake"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["seed"] for choice in answer["choices"]] == [5, 6, 5, 6]
    for choice in answer["choices"]:
        assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("abc", "length", None)
        assert base64.b64decode(choice["bytes"]) == b"abc"
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "unit": "byte",
        "completion_patches": 8,
    }
    assert client.engine.read_bytes(0) + client.engine.read_bytes(1) >= 8
    assert not client.engine.cancelled


def test_a_stream_has_the_same_answer() -> None:
    client = Client(says("é".encode()[:1], "é".encode()[1:] + b"a", b"\xf0\x9f"))
    whole = client.complete(n=2)["choices"]
    events = client.events(prompt="x", n=2, bytes=True, stream_options={"include_usage": True})
    for index in (0, 1):
        mine = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == whole[index]["text"] == "éa\ufffd"
        assert b"".join(base64.b64decode(choice["bytes"]) for choice in mine) == "éa".encode() + b"\xf0\x9f"
        for choice in mine:
            assert base64.b64decode(choice["bytes"]).decode("utf-8", "replace") == choice["text"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]
        assert mine[-1]["seed"] == 5 + index
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 10
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1
    assert "usage" not in client.events(prompt="x")[-1]


@pytest.mark.parametrize(("finish", "reason"), [("eos", "stop"), ("stop", "stop"), ("length", "length")])
def test_finish_reasons_are_openais(finish: str, reason: str) -> None:
    choice = Client(says(b"a", finish=finish)).complete()["choices"][0]
    assert (choice["finish_reason"], choice["ending"]) == (reason, finish)


def test_a_chat() -> None:
    client = Client(model=info(record=CHAT_RECORD))
    body = {"messages": [{"role": "user", "content": "x"}], "n": 2}
    answer = client.post("/v1/chat/completions", body)
    assert answer["object"] == "chat.completion"
    assert [choice["message"] for choice in answer["choices"]] == [
        {"role": "assistant", "content": "abc", "refusal": None}
    ] * 2
    ids, choices, _, _ = client.engine.submitted[0]
    prompt = ChatTemplate().render(body["messages"], add_generation_prompt=True).data
    assert bytes(value - OFFSET for value in ids[1:]) == prompt
    assert choices[0].stop == (ChatTemplate().stop,) and choices[0].max_bytes == 100 - len(prompt)
    events = client.events("/v1/chat/completions", **body)
    mine = [choice for event in events for choice in event["choices"] if choice["index"] == 1]
    assert mine[0]["delta"]["role"] == "assistant" and all("role" not in choice["delta"] for choice in mine[1:])
    assert "".join(choice["delta"].get("content", "") for choice in mine) == "abc"
    assert events[0]["object"] == "chat.completion.chunk"
    error = Client().refused("/v1/chat/completions", prompt=None, messages=body["messages"])
    assert error["param"] == "prompt"
    error = Client().post("/v1/chat/completions", body, 400)
    assert error["code"] == "no_chat_template"


def test_log_probabilities_of_a_completion() -> None:
    client = Client(says(b"a\xff", logprobs=True, top=2))
    choice = client.complete(logprobs=2)["choices"][0]
    assert choice["logprobs"] == {
        "tokens": ["a", r"bytes:\xff"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"\x00": -1.0, "\x01": -2.0, "a": -0.5}, {"\x00": -1.0, "\x01": -2.0, r"bytes:\xff": -1.5}],
        "text_offset": [0, 1],
        "bytes": [[97], [255]],
    }
    assert client.engine.submitted[0][1][0].top_logprobs == 2


def test_log_probabilities_of_a_chat() -> None:
    client = Client(says("é".encode(), logprobs=True, top=1), info(record=CHAT_RECORD))
    body = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1}
    content = client.post("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
    assert content[0]["top_logprobs"] == [{"token": "\x00", "logprob": -1.0, "bytes": [0]}]
    (event, *_) = client.events("/v1/chat/completions", **body)
    assert len(event["choices"][0]["logprobs"]["content"]) == 2, "both bytes, with their character"


def test_echo() -> None:
    client = Client(says(b"ab"))
    assert client.complete(prompt="xé", echo=True)["choices"][0]["text"] == "xéab"
    assert client.engine.submitted[0][2] is None, "nothing is scored where nobody asks"
    assert client.complete(prompt=[1, 70], echo=True)["choices"][0]["text"] == "Bab"
    events = client.events(prompt="x", echo=True, n=2)
    for index in (0, 1):
        assert "".join(c["text"] for e in events for c in e["choices"] if c["index"] == index) == "xab"
    # A character that the prompt begins and the answer ends.
    split = Client(says(b"\xa9"))
    assert split.complete(prompt=[0xC3 + OFFSET], echo=True)["choices"][0]["text"] == "é"
    assert split.complete(prompt=[0xC3 + OFFSET])["choices"][0]["text"] == "\ufffd"


def test_echo_with_log_probabilities_has_exactly_one_entry_for_each_id_and_byte() -> None:
    client = Client(scores(says(b"c", logprobs=True, top=1), top=1))
    choice = client.complete(prompt="ab", echo=True, logprobs=1, max_tokens=1, temperature=0)["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "abc" and logprobs["tokens"] == ["a", "b", "c"]
    assert logprobs["token_logprobs"] == [None, -2.0, -0.5]
    assert logprobs["top_logprobs"] == [None, {"\x00": -0.25, "b": -2.0}, {"\x00": -1.0, "c": -0.5}]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert client.engine.submitted[0][2] == 1
    # With BOS, as the harness writes an empty context.
    logprobs = client.complete(prompt=[[1, 101, 102]], echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [BOS_NAME, "a", "b", "c"]
    assert logprobs["token_logprobs"] == [None, -1.0, -2.0, -0.5]
    assert logprobs["bytes"] == [[], [97], [98], [99]]
    # EOS in place of the byte that was asked for: it has the entry, so that the last one is never the prompt's.
    ended = Client(scores(says(b"", finish="eos", logprobs=True)))
    choice = ended.complete(prompt="ab", echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert choice["text"] == "ab" and choice["logprobs"]["tokens"] == ["a", "b", EOS_NAME]
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -0.125]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    # Nothing at all.
    empty = Client(scores(says(b"", logprobs=True)))
    choice = empty.complete(prompt="", echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert choice["text"] == "" and choice["logprobs"]["tokens"] == []


def test_more_choices_than_places_are_several_requests() -> None:
    client = Client(model=info(sequences=2))
    answer = client.complete(n=5)
    assert [len(choices) for _, choices, _, _ in client.engine.submitted] == [2, 2, 1]
    assert [choice["seed"] for choice in answer["choices"]] == [5, 6, 7, 8, 9]


def test_tokens() -> None:
    client = Client(model=info(record=CHAT_RECORD))
    answer = client.post("/tokenize", {"prompt": "Aé", "add_special_tokens": False})
    assert answer == {"tokens": [69, 199, 173], "count": 3, "max_model_len": 100}
    assert client.post("/tokenize", {"prompt": "A"})["tokens"] == [1, 69]
    assert client.post("/detokenize", {"tokens": [1, 69, 199]}) == {
        "prompt": "A\ufffd",
        "bytes": base64.b64encode(b"A\xc3").decode(),
    }
    information = client.http.get("/tokenizer_info").json()
    for name, chosen in ((information["bos_token"], 1), (information["eos_token"], 2)):
        for special in (True, False, None):
            body = {"prompt": name, "add_special_tokens": special}
            assert client.post("/tokenize", body)["tokens"] == [chosen]
        assert client.post("/detokenize", {"tokens": [chosen]})["prompt"] == name
    assert "messages" in information["chat_template"]
    assert Client().http.get("/tokenizer_info").json()["chat_template"] is None


def test_patches_are_those_of_the_command() -> None:
    answer = Client().post("/v1/patches", {"input": "two words"})
    assert answer == json.loads(json.dumps(patch_text(b"two words", parse_rule("space")).to_json()))
    assert Client().post("/v1/patches", {"input": [1, 69]})["num_bytes"] == 1
    assert Client().post("/v1/patches", {"input": "x" * 101}, 400)["code"] == "context_length_exceeded"


def test_scores() -> None:
    client = Client(scores(lambda key, ids, choices: []))
    answer = client.post("/v1/score", {"input": ["ab", ""], "logprobs": True})
    first, second = answer["data"]
    assert first["logprob"] == -3.0 and first["logprobs"] == [-1.0, -2.0]
    assert first["bits_per_byte"] == pytest.approx(1.5 / math.log(2))
    assert (second["logprob"], second["bits_per_byte"], second["index"]) == (0.0, None, 1)
    assert all(not choices and top == 0 for _, choices, top, _ in client.engine.submitted)
    assert Client(fails("internal")).post("/v1/score", {"input": "x"}, 500)["code"] == "internal_error"


def test_models() -> None:
    client = Client()
    (model,) = client.http.get("/v1/models").json()["data"]
    assert model["id"] == "fake" and model["object"] == "model" and model["context_bytes"] == 100
    assert client.http.get("/v1/models/fake").json() == model
    for name in ("other", "..%2f..%2fetc%2fpasswd", "a/b"):
        error = error_of(client.http.get(f"/v1/models/{name}"))
        assert error["code"] == "model_not_found" and "passwd" not in error["message"]
    assert client.complete(model="fake")["choices"]
    assert client.refused(status=404, model="SECRET")["message"].count("SECRET") == 0


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("too_long", 400),
        ("no_memory", 400),
        ("unsupported", 400),
        ("timeout", 408),
        ("draining", 503),
        ("internal", 500),
    ],
)
def test_a_request_that_fails(reason: str, status: int) -> None:
    for fields in ({}, {"stream": True}):
        client = Client(fails(reason))
        response = client.http.post("/v1/completions", json={"prompt": "x", **fields})
        assert response.status_code == status
        assert error_of(response)["code"]
        assert (response.headers.get("retry-after") is not None) == (reason in ("timeout", "draining"))


@pytest.mark.parametrize("reason", ["timeout", "draining"])
def test_a_request_whose_time_is_over_ends_with_what_it_has(reason: str) -> None:
    client = Client(fails(reason, b"ab", b"\xc3"))
    choice = client.complete()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["ending"]) == ("ab\ufffd", "length", reason)
    events = client.events(prompt="x")
    assert "".join(event["choices"][0]["text"] for event in events) == "ab\ufffd"
    assert events[-1]["choices"][0]["ending"] == reason


def test_a_fault_in_the_middle_of_a_stream_is_an_event() -> None:
    events = Client(fails("internal", b"ab")).events(prompt="x")
    assert events[0]["choices"][0]["text"] == "ab"
    assert events[-1]["error"]["code"] == "internal_error"


def test_the_deadline_is_that_of_the_server() -> None:
    client = Client(seconds=7.0)
    client.complete()
    assert client.engine.submitted[0][3] == 7.0


@pytest.mark.parametrize("state", ["loading", "draining", "ended"])
def test_503_unless_requests_are_taken(state: str) -> None:
    client = Client()
    client.engine.state = state
    if state == "loading":
        client.engine.info = None
    for path in ("/health", "/ready", "/v1/models", "/tokenizer_info"):
        response = client.http.get(path)
        assert response.status_code == 503 and error_of(response)["code"] == state
        assert int(response.headers["retry-after"]) >= 1
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/patches", "/v1/score"):
        assert client.post(path, {"prompt": "x"}, 503)["code"] == state
    assert client.http.get("/metrics").status_code == 200
    assert not client.engine.submitted


def test_health() -> None:
    assert Client().http.get("/health").json()["status"] == "ok"
    assert Client().http.get("/ready").json() == {"status": "ready"}


def test_429_where_the_queue_is_full() -> None:
    client = Client()
    client.engine.is_full, client.engine.waiting = True, 70
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/score", {"input": "x"}),
        ("/v1/patches", {"input": "x"}),
    ):
        response = client.http.post(path, json=body)
        assert response.status_code == 429 and error_of(response)["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    client = Client(model=info(sequences=2, waiting=4))
    assert client.refused(n=7)["param"] == "n"
    assert client.refused(prompt=["x"] * 4, n=2)["param"] == "n"


def test_keys() -> None:
    client = Client(access=Access(keys=(b"one", "zwö".encode())))
    for headers in ({}, {"Authorization": "Bearer on"}, {"Authorization": "one"}, {"Authorization": "Basic one"}):
        for path in ("/v1/models", "/metrics", "/nothing"):
            response = client.http.get(path, headers=headers)
            assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/completions", {"prompt": "x"}, 401, headers=headers)
    for key in (b"Bearer one", "Bearer zwö".encode(), b"bearer one"):
        assert client.http.get("/v1/models", headers={"Authorization": key}).status_code == 200
    for path in ("/health", "/ready", "/openapi.json"):
        assert client.http.get(path).status_code == 200


def test_pages_of_other_origins_may_not_ask() -> None:
    client = Client()
    for origin in ("https://evil.example", "null", "http://evil.example:80"):
        headers = {"Origin": origin, "Host": origin.removeprefix("http://")}
        response = client.http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        assert response.status_code == 403 and error_of(response)
        assert "access-control-allow-origin" not in response.headers
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        headers = {"Origin": f"http://{host}", "Host": host}
        assert client.post("/v1/completions", {"prompt": "x"}, headers=headers)
    client = Client(access=Access(keys=(b"one",), origins=("https://good.example",)))
    asked = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
    response = client.http.options("/v1/completions", headers=asked)
    assert response.headers["access-control-allow-origin"] == "https://good.example"
    headers = {"Origin": "https://good.example", "Authorization": "Bearer one"}
    response = client.http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert response.headers["access-control-allow-origin"] == "https://good.example"


BODIES: list[tuple[bytes, Mapping[str, str], int]] = [
    (b'{"prompt": "\xe9"}', {}, 400),
    ('{"prompt": "x"}'.encode("utf-16"), {}, 400),
    (b'{"prompt": "x"}', {"content-type": "application/json; charset=utf-16"}, 415),
    (b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}, 415),
    (b'{"prompt": "x"}', {"content-type": "text/plain"}, 415),
    (b"\x1f\x8b", {"content-encoding": "gzip"}, 415),
    (b"", {}, 400),
    (b"null", {}, 400),
    (b"[1", {}, 400),
    (b'{"prompt": NaN}', {}, 400),
    (b'{"temperature": 1e999}', {}, 400),
    (b'{"prompt": "\\ud800"}', {}, 400),
    (b"[" * 100_000, {}, 400),
    (b'{"n": ' + b"9" * 5000 + b"}", {}, 400),
    (b'{"prompt": "' + b"x" * 3000 + b'"}', {}, 413),
]


@pytest.mark.parametrize(("content", "headers", "status"), BODIES)
def test_bodies_that_are_no_json_of_utf8(content: bytes, headers: Mapping[str, str], status: int) -> None:
    client = Client(access=Access(body_bytes=200_000 if len(content) > 10**4 else 2500 if status == 413 else 10**6))
    for path in ("/v1/completions", "/tokenize"):
        response = client.http.post(path, content=content, headers={"content-type": "application/json", **headers})
        assert response.status_code == status, response.text
        error_of(response)
    assert not client.engine.submitted


def test_a_body_in_pieces_is_bounded_too() -> None:
    def pieces() -> Any:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 100

    client = Client(access=Access(body_bytes=2000))
    response = client.http.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and error_of(response)
    assert Client().http.post("/v1/completions", content=b'{"prompt": "x"}').status_code == 200, "nothing is said of it"


def test_routes_that_there_are_not() -> None:
    client = Client()
    assert error_of(client.http.get("/v1/nothing"))
    response = client.http.get("/v1/completions")
    assert response.status_code == 405 and error_of(response) and response.headers["allow"] == "POST"


def test_metrics() -> None:
    client = Client()
    client.complete(n=2)
    client.refused(n=0)
    client.http.get("/v1/typo")
    text = client.http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines["bltkit:num_requests_running"] == "3.0"
    assert lines['bltkit:request_success_total{finished_reason="length"}'] == "2.0"
    assert lines["bltkit:time_to_first_token_seconds_count"] == "2.0"
    assert lines["bltkit:e2e_request_latency_seconds_count"] == "1.0"
    assert lines['bltkit:http_requests_total{route="/v1/completions",status="200"}'] == "1.0"
    assert lines['bltkit:http_requests_total{route="/v1/completions",status="400"}'] == "1.0"
    assert lines['bltkit:http_requests_total{route="none",status="404"}'] == "1.0"
    assert "typo" not in text


def test_the_log_shows_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    client = Client(log=True)
    client.http.get("/a%1b%5b2J%0ab")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(r"GET /a\x1b[2J\nb 404 ")


def test_the_document_and_its_page() -> None:
    client = Client()
    document = client.http.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/score", "/tokenize", "/metrics"} <= set(document["paths"])
    text = json.dumps(document)
    for name in json.loads(text)["components"]["schemas"]:
        assert name
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
    page = client.http.get("/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources and all(source.startswith("/docs/files/") for source in sources), sources
    for source in sources:
        assert client.http.get(source).status_code == 200
    assert client.http.get("/docs/files/../../../__init__.py").status_code == 404


class Connection:
    """A connection that is driven by hand."""

    def __init__(self, app: Any, body: Any) -> None:
        self.app, self.sent = app, list[Message]()
        self._body = json.dumps(body).encode()
        self._asked = False
        self.gone = asyncio.Event()
        self.open = asyncio.Event()
        """Does it take data."""
        self.open.set()

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.open.wait()
        self.sent.append(message)

    async def run(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "headers": [(b"content-type", b"application/json"), (b"host", b"h")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self.app(scope, self.receive, self.send)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


def driven(script: Script, body: Any, steer: Callable[[FakeEngine, Connection], Any], pause: float = 0.0) -> Connection:
    async def run() -> Connection:
        engine = FakeEngine(script, pause=pause)
        connection = Connection(make_app(Server(engine)), body)  # type: ignore[arg-type]
        asked = asyncio.create_task(connection.run())
        await steer(engine, connection)
        async with asyncio.timeout(10):
            await asked
        return connection

    return asyncio.run(run())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pieces", [[], [b"a"] * 10_000])
def test_a_client_that_goes_ends_the_work(stream: bool, pieces: Sequence[bytes]) -> None:
    """Also while it waits in silence, for its first byte."""

    def script(key: int, ids: Sequence[int], choices: Any) -> Any:
        return says(*pieces, b"")(key, ids, choices) if pieces else []

    async def steer(engine: FakeEngine, connection: Connection) -> None:
        await until(lambda: bool(engine.submitted))
        if pieces:
            await until(lambda: engine.read_bytes() > 2)
        connection.gone.set()
        await until(lambda: engine.cancelled)

    connection = driven(script, {"prompt": "x", "stream": stream}, steer, pause=0.001)
    assert "[DONE]" not in connection.text


def test_bytes_count_as_read_when_the_connection_took_them() -> None:
    async def steer(engine: FakeEngine, connection: Connection) -> None:
        await until(lambda: engine.read_bytes() >= 3)
        connection.open.clear()
        await asyncio.sleep(0.05)
        before = engine.read_bytes()
        await asyncio.sleep(0.05)
        assert engine.read_bytes() == before, "a connection that takes nothing has read nothing"
        assert before < 200
        connection.open.set()

    connection = driven(says(*[b"a"] * 200), {"prompt": "x", "stream": True}, steer, pause=0.0005)
    events = [json.loads(line[6:]) for line in connection.text.split("\n\n") if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == "a" * 200
    assert len(events) < 200, "what waited came together"


def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bltkit.serve.sse.PING_SECONDS", 0.01)

    async def steer(engine: FakeEngine, connection: Connection) -> None:
        await until(lambda: ": ping\n\n" in connection.text)

    connection = driven(says(b"a", b"b"), {"prompt": "x", "stream": True}, steer, pause=0.1)
    assert connection.text.endswith("data: [DONE]\n\n")
    assert connection.sent[0]["status"] == 200


def test_a_fault_of_ours_is_a_500_that_tells_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(key: int, ids: Sequence[int], choices: Any) -> Any:
        raise RuntimeError("SECRET")

    response = Client(broken).http.post("/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500 and "SECRET" not in response.text
    assert error_of(response)["code"] == "internal_error"
    assert "SECRET" in capfd.readouterr().err
