"""Fifteen faults that servers of language models have had, each as a test against a running server.

The model is random, in float64: it writes any bytes, most of them no UTF-8, and its answers can be compared exactly
with those of the same model in this process.
"""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from bltkit.vocab import OFFSET, encode
from tests.serve_client import (
    ASCII_ONLY,
    BARRED,
    Library,
    Served,
    checked_error,
    eventually,
    raw,
    raw_exchange,
    saved_model,
    serve,
    streamed,
)

CONTEXT = 20_000
E_ACUTE = {str(OFFSET + byte): 0 for byte in "é".encode()}
ONLY_E_ACUTE = {str(value): (0 if str(value) in E_ACUTE else -100) for value in range(2, OFFSET + 256) if value != 3}
"""Logit bias that leaves the two bytes of one character, in any order."""
SECRET = "Zq7 secret \u2603"
"""Text that no error may repeat."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "random", chat=True)


@pytest.fixture(scope="module")
def lm(directory: Path) -> Iterator[Library]:
    with Library(directory) as library:
        yield library


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Served]:
    with serve(directory, "--dtype", "float64", "--context", str(CONTEXT)) as served:
        yield served
        assert eventually(served.idle), "sequences were left behind"
        assert "Traceback" not in served.server.messages, served.server.messages


@pytest.fixture(scope="module")
def small_server(directory: Path) -> Iterator[Served]:
    """Two sequences at once, and four that may wait."""
    options = ("--max-sequences", "2", "--max-waiting", "4", "--context", "400", "--dtype", "float64")
    with serve(directory, *options) as served:
        yield served


def log_probabilities(lm: Library, data: bytes) -> list[float]:
    """Of every byte behind BOS, by one uncached pass."""
    ids = encode(data)
    table = lm.logits(ids[:-1]).log_softmax(-1)
    return [float(table[at, value]) for at, value in enumerate(ids[1:].tolist())]


def test_1_the_limit_may_cut_a_character(server: Served) -> None:
    whole = server.data("x", max_tokens=60, seed=3, logit_bias=ONLY_E_ACUTE)
    at = whole.rindex("é".encode()) + 1  # the first byte of a character, and not the second
    assert server.data("x", max_tokens=at, seed=3, logit_bias=ONLY_E_ACUTE) == whole[:at]
    answer = server.complete("x", max_tokens=at, seed=3, logit_bias=ONLY_E_ACUTE)
    assert answer["choices"][0]["text"] == whole[:at].decode("utf-8", "replace")
    assert answer["choices"][0]["text"].endswith("\ufffd")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == at
    events = server.events("x", max_tokens=at, seed=3, logit_bias=ONLY_E_ACUTE)
    assert streamed(events) == (whole[:at].decode("utf-8", "replace"), whole[:at], "length")


def test_2_output_that_is_no_utf8_and_errors_that_do_not_repeat_text(server: Served, lm: Library) -> None:
    data = server.data("x", max_tokens=80, seed=1, logit_bias=BARRED)
    with pytest.raises(UnicodeDecodeError):
        data.decode()
    assert server.complete("x", max_tokens=80, seed=1, logit_bias=BARRED)["choices"][0]["text"] == data.decode(
        "utf-8", "replace"
    )
    # As JSON allows it to be written; as text it cannot be encoded.
    lone = b'{"model": "%b", "prompt": "\\ud800", "max_tokens": 4, "bytes": true}' % server.model.encode()
    response = server.http.post("/v1/completions", content=lone, headers={"content-type": "application/json"})
    if response.status_code == 200:
        expected = lm.generate("\ud800", max_bytes=4, temperature=1.0).data
        assert raw(response.json()["choices"][0]) == expected
    else:
        checked_error(response, 400)
    for body in (
        {"prompt": {SECRET: SECRET}},
        {"prompt": [SECRET, 5]},
        {"prompt": "x", "stop": [SECRET, 1]},
        {"prompt": "x", "stop": [SECRET] * 1000},
        {"prompt": "x", "max_tokens": SECRET},
        {"prompt": "x", "user": [SECRET]},
        {"prompt": "x", "strategy": SECRET},
        {"prompt": "x", "logit_bias": {SECRET: 1}},
        {"prompt": "x", "logit_bias": {"70": SECRET}},
        {"prompt": SECRET * 2000},
        {"prompt": "x", "stream_options": SECRET},
        {"prompt": "x", "model": SECRET},
    ):
        response = server.http.post("/v1/completions", json={"model": server.model, **body})
        assert 400 <= response.status_code < 500, (body, response.text)
        checked_error(response, response.status_code)
        assert "Zq7" not in response.text and "secret" not in response.text, response.text
    for messages in (
        [{"role": SECRET, "content": "x"}],
        [{"role": "user", "content": SECRET + "\x03"}],
        [{"role": "user", "content": [{"type": SECRET}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}],
        SECRET,
    ):
        error = server.refused({"messages": messages}, "/v1/chat/completions")
        assert "Zq7" not in str(error) and "secret" not in str(error), error
    surrogate = b'{"model": "m", "prompt": "x", "\\ud800": 1}'
    checked_error(server.http.post("/v1/completions", content=surrogate), 400)
    assert server.alive()


def bytes_of_name(name: str) -> bytes:
    r"""A byte's or a text's name in `logprobs`: `bytes:\xf0` where the bytes are no text by themselves."""
    if not name.startswith("bytes:"):
        return name.encode()
    assert re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name), name
    return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))


def test_3_log_probabilities_of_a_part_of_a_character_have_its_byte(server: Served, lm: Library) -> None:
    asked: dict[str, Any] = {"max_tokens": 40, "seed": 5, "logit_bias": BARRED}
    choice = server.complete("x", logprobs=3, **asked)["choices"][0]
    data = raw(choice)
    assert len(data) == 40
    assert b"".join(bytes_of_name(name) for name in choice["logprobs"]["tokens"]) == data
    bias = {int(value): bias for value, bias in BARRED.items()}
    expected = lm.generate("x", max_bytes=40, seed=5, temperature=1.0, logit_bias=bias, logprobs=True, top_logprobs=3)
    assert data == expected.data
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(list(expected.logprobs), abs=1e-9)
    eos = server.http.get("/tokenizer_info").json()["eos_token"]
    for top, chunk in zip(choice["logprobs"]["top_logprobs"], expected.top_logprobs, strict=True):
        alternatives = {bytes([value - OFFSET]): logprob for value, logprob in chunk if value >= OFFSET}
        named = {bytes_of_name(name): value for name, value in top.items() if name != eos}
        assert {byte: named[byte] for byte in alternatives} == pytest.approx(alternatives, abs=1e-9)
    chat = server.chat([{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2, **asked)["choices"][0]
    content = chat["logprobs"]["content"]
    said = b"".join(bytes(entry["bytes"]) for entry in content)
    assert said.decode("utf-8", "replace") == chat["message"]["content"]
    assert all(len(entry["bytes"]) == 1 and len(entry["top_logprobs"]) == 2 for entry in content)
    assert all(bytes_of_name(entry["token"]) == bytes(entry["bytes"]) for entry in content)
    assert any(entry["bytes"][0] >= 0x80 for entry in content)


def test_4_names_of_bytes_are_text_and_json(server: Served) -> None:
    body = {"model": server.model, "prompt": "x", "max_tokens": 60, "logprobs": 5, "logit_bias": BARRED}
    response = server.http.post("/v1/completions", json=body)
    logprobs = json.loads(response.content.decode("utf-8"))["choices"][0]["logprobs"]
    names = [*logprobs["tokens"], *(name for top in logprobs["top_logprobs"] for name in top)]
    assert any(name.startswith("bytes:") for name in names)
    for name in names:
        name.encode("utf-8")  # no lone surrogates
    # One name, one id: nothing is lost where the names are the keys of an object.
    assert all(len(top) >= 5 for top in logprobs["top_logprobs"])
    assert len({bytes_of_name(name) for name in names}) == len(set(names))
    assert len(logprobs["text_offset"]) == 60
    for event in server.events("x", max_tokens=20, logprobs=2, logit_bias=BARRED):
        json.dumps(event, ensure_ascii=False).encode("utf-8")


def test_5_characters_are_whole_in_every_event(server: Served) -> None:
    events = server.events("x", max_tokens=120, seed=2, logit_bias=ONLY_E_ACUTE)
    text, data, _ = streamed(events)
    assert text == data.decode("utf-8", "replace")
    # Each event by itself: what it holds never needs the next one.
    for event in events:
        for choice in event["choices"]:
            if choice.get("bytes"):
                assert raw(choice).decode("utf-8", "replace") == choice["text"]
    assert any(choice["text"] == "é" for event in events for choice in event["choices"])
    valid = server.events("x", max_tokens=90, seed=2, valid_utf8=True, logit_bias=BARRED)
    text, data, _ = streamed(valid)
    assert text == data.decode() and "\ufffd" not in text


def test_6_a_body_that_is_no_json_of_utf8(server: Served) -> None:
    good = json.dumps({"model": server.model, "prompt": "x", "max_tokens": 1})
    for content, headers in [
        (b'{"model": "m", "prompt": "\xe9"}', {"content-type": "application/json"}),
        (good.encode("utf-16"), {"content-type": "application/json; charset=utf-16"}),
        (good.encode("utf-16"), {"content-type": "application/json"}),
        (b"\x1f\x8b\x08 not gzip", {"content-type": "application/json", "content-encoding": "gzip"}),
        (b"", {"content-type": "application/json"}),
        (b"null", {"content-type": "application/json"}),
        (b"[1, 2", {"content-type": "application/json"}),
        (b"NaN", {"content-type": "application/json"}),
        (b'{"prompt": NaN}', {"content-type": "application/json"}),
        (b"[" * 100_000, {"content-type": "application/json"}),
        (b'{"n": ' + b"9" * 5000 + b"}", {"content-type": "application/json"}),
        (b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}),
    ]:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
            response = server.http.post(path, content=content, headers=headers)
            assert response.status_code in (400, 413, 415), (content[:40], response.status_code, response.text)
            checked_error(response, response.status_code)
    # Requests that are no HTTP end in one answer or a closed connection.
    for broken in (
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ):
        answer = raw_exchange(server.url, broken, 5)
        assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d", answer), answer
    assert server.alive()


def test_7_a_stop_string_over_two_events_is_never_begun(server: Served, lm: Library) -> None:
    asked: dict[str, Any] = {"max_tokens": 100, "seed": 4, "logit_bias": ASCII_ONLY}
    text = server.data("x", **asked).decode()
    for at in (1, 10, 57, 97):
        stop = text[at : at + 3]
        kept = text[: text.index(stop)]
        answer = server.complete("x", stop=stop, **asked)
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (kept, "stop")
        events = server.events("x", stop=[stop, "\x00 never"], **asked)
        assert streamed(events) == (kept, kept.encode(), "stop")
    # A stop string of part of a character, found within bytes.
    data = server.data("x", max_tokens=50, seed=6, logit_bias=ONLY_E_ACUTE)
    at = data.index("é".encode())
    assert server.data("x", max_tokens=50, seed=6, logit_bias=ONLY_E_ACUTE, stop="é") == data[:at]
    # The engine in this process says the same.
    free = lm.generate("x", max_bytes=60, temperature=1.0, seed=8).data
    ascii_pairs = [free[i : i + 2] for i in range(len(free) - 1) if max(free[i : i + 2]) < 128]
    for pair in ascii_pairs[:2]:
        expected = lm.generate("x", max_bytes=60, temperature=1.0, seed=8, stop=pair)
        events = server.events("x", max_tokens=60, seed=8, stop=pair.decode())
        assert streamed(events)[1:] == (expected.data, "stop")


def test_8_what_was_held_back_is_handed_out_at_the_end(server: Served) -> None:
    asked: dict[str, Any] = {"max_tokens": 30, "seed": 9, "logit_bias": ASCII_ONLY}
    text = server.data("x", **asked).decode()
    for held in (1, 2, 5, 30):
        stop = text[-held:] + "\x00"
        assert server.complete("x", stop=stop, **asked)["choices"][0]["text"] == text
        events = server.events("x", stop=stop, **asked)
        assert streamed(events) == (text, text.encode(), "length")
    newlines = {str(value): (0 if value == OFFSET + 10 else -100) for value in range(2, OFFSET + 256) if value != 3}
    events = server.events("x", max_tokens=1, stop="\n\n", logit_bias=newlines)
    assert streamed(events) == ("\n", b"\n", "length")
    events = server.events("x", max_tokens=2, stop="\n\n", logit_bias=newlines)
    assert streamed(events) == ("", b"", "stop")


def test_9_work_ends_when_the_client_goes(server: Served, lm: Library) -> None:
    long = CONTEXT - 10
    for streaming in (True, False):
        assert eventually(server.idle)
        before = server.metric("generation_tokens_total")
        body = {"model": server.model, "prompt": "x", "max_tokens": long, "stream": streaming, "logit_bias": BARRED}
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + content)
            assert eventually(lambda: server.metric("num_requests_running") == 1), "the request never ran"
            if streaming:
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert eventually(server.idle, 10), "it runs on"
        made = server.metric("generation_tokens_total") - before
        assert made < long / 2, f"{made} bytes were generated for nobody"
        # No zombie's bytes are in the next answer.
        assert server.data("x", max_tokens=20, seed=1) == lm.generate("x", max_bytes=20, seed=1, temperature=1.0).data


@pytest.mark.slow
def test_10_a_slow_reader_pauses_its_own_sequence(server: Served, lm: Library) -> None:
    """It is paused once the buffers on its way are full."""
    size = 9000
    body = {"model": server.model, "prompt": "slow", "max_tokens": size, "stream": True, "bytes": True, "seed": 2}
    content = json.dumps({**body, "logprobs": 20, "logit_bias": BARRED}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        # Before it connects: the kernel must not take the whole answer.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(120)
        connection.connect((host, int(port)))
        connection.sendall(head + content)
        assert eventually(lambda: server.metric("num_requests_paused") == 1, 120), "the sequence was never paused"
        # Others are served as ever.
        assert server.data("y", max_tokens=20, seed=3) == lm.generate("y", max_bytes=20, seed=3, temperature=1.0).data
        assert server.metric("num_requests_paused") == 1
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = connection.recv(2**20)
            assert part, "the connection was closed"
            answer += part
    lines = re.findall(rb'^data: (\{"id".*\})\r?$', answer.partition(b"\r\n\r\n")[2], re.MULTILINE)
    _, data, finish = streamed([json.loads(line) for line in lines])
    assert b"data: [DONE]" in answer and (len(data), finish) == (size, "length")
    short = lm.generate("slow", max_bytes=600, seed=2, temperature=1.0, logit_bias={2: -100})
    assert data.startswith(short.data)


def test_11_the_waiting_queue_has_limits(small_server: Served) -> None:
    body = {"model": small_server.model, "prompt": "x", "max_tokens": 150, "logit_bias": BARRED, "bytes": True}
    with ThreadPoolExecutor(24) as pool, httpx.Client(base_url=small_server.url, timeout=120) as client:
        responses = list(pool.map(lambda seed: client.post("/v1/completions", json={**body, "seed": seed}), range(24)))
    answered = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code != 200]
    assert len(answered) >= 4, "four may wait at least"
    assert refused, "24 at once are more than six"
    for response in refused:
        checked_error(response, 429)
        assert int(response.headers["retry-after"]) >= 1
    assert all(len(raw(response.json()["choices"][0])) == 150 for response in answered)
    # n counts n: more than may ever wait and run is refused, however idle the server is.
    assert eventually(small_server.idle)
    response = small_server.http.post("/v1/completions", json={**body, "n": 60, "max_tokens": 2})
    assert response.status_code in (400, 429), response.text
    checked_error(response, response.status_code)
    several = small_server.complete("x", n=4, max_tokens=5, logit_bias=BARRED)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]


def test_12_bos_alone_is_a_prompt(server: Served, lm: Library) -> None:
    expected = lm.generate("", max_bytes=20, temperature=1.0, seed=1).data
    for prompt in ("", [], [1], [""], [[1]]):
        assert server.data(prompt, max_tokens=20, seed=1) == expected, prompt
    several = server.complete(["", "x", ""], max_tokens=20, seed=1)["choices"]
    assert [raw(choice) for choice in several] == [
        expected,
        lm.generate("x", max_bytes=20, temperature=1.0, seed=1).data,
        expected,
    ]
    assert server.alive()


def test_13_echo_without_any_new_byte_scores_the_prompt(server: Served, lm: Library) -> None:
    prompt = "Größe, 大きさ"
    choice = server.complete(prompt, echo=True, max_tokens=0, logprobs=1)["choices"][0]
    assert choice["text"] == prompt
    assert choice["finish_reason"] == "length"
    assert b"".join(bytes_of_name(name) for name in choice["logprobs"]["tokens"]) == prompt.encode()
    expected = log_probabilities(lm, prompt.encode())
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected[1:], abs=1e-5)
    empty = server.complete("", echo=True, max_tokens=0, logprobs=1)["choices"][0]
    assert empty["text"] == "" and empty["logprobs"]["token_logprobs"] in ([], [None])
    # Without echo nothing is asked for and nothing is made.
    assert server.complete(prompt, max_tokens=0)["choices"][0]["text"] == ""


def test_14_nothing_is_ignored_silently(server: Served, lm: Library) -> None:
    prompt = "The sky is blue."
    choice = server.complete(prompt, echo=True, max_tokens=1, logprobs=2, temperature=0)["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"])
    assert len(logprobs["token_logprobs"]) == len(prompt) + 1
    assert logprobs["token_logprobs"][1:-1] == pytest.approx(log_probabilities(lm, prompt.encode())[1:], abs=1e-5)
    for at, value in enumerate(logprobs["token_logprobs"][1:-1], 1):
        assert value <= max(logprobs["top_logprobs"][at].values()) + 1e-12
    for field, value in {
        "suffix": "x",
        "best_of": 2,
        "frequency_penalty": 0.5,
        "presence_penalty": -1,
        "guided_json": {},
        "tempreature": 1,
        "stream_options": {"include_usage": True},  # without stream
    }.items():
        error = server.refused({"prompt": "x", "max_tokens": 1, field: value})
        assert field in error["message"] or error["param"] == field, error
    assert "temperature" in server.refused({"prompt": "x", "tempreature": 1})["message"]
    messages = [{"role": "user", "content": "x"}]
    for field, value in {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}},
        "modalities": ["audio"],
        "audio": {"voice": "x", "format": "wav"},
        "functions": [{}],
        "reasoning_effort": "high",
        "presence_penalty": 0.1,
    }.items():
        error = server.refused({"messages": messages, "max_tokens": 1, field: value}, "/v1/chat/completions")
        assert field in error["message"] or error["param"] == field, error
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "best_of": 1,
        "suffix": None,
        "logprobs": None,
        "user": "u",
    }
    assert server.complete("x", max_tokens=1, **neutral)["choices"]
    neutral = {"tools": [], "tool_choice": None, "frequency_penalty": 0, "response_format": {"type": "text"}}
    assert server.chat(messages, max_tokens=1, **neutral)["choices"]


def test_15_neighbours_change_no_byte_and_long_prompts_are_refused(server: Served, lm: Library) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(
                lambda seed: server.data(f"prompt {seed % 5}", max_tokens=5 + 3 * (seed % 7), seed=seed), range(32)
            )
        )
    for seed, data in enumerate(found):
        expected = lm.generate(f"prompt {seed % 5}", max_bytes=5 + 3 * (seed % 7), seed=seed, temperature=1.0)
        assert data == expected.data
    for prompt, max_tokens in (("x" * (CONTEXT + 1), 1), ("x" * (CONTEXT - 10), 50)):
        error = server.refused({"prompt": prompt, "max_tokens": max_tokens})
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", error["message"])]
        assert CONTEXT in numbers and any(number > CONTEXT for number in numbers), error
    assert server.data("x" * 500, max_tokens=5) != b"", "what fits is answered"
