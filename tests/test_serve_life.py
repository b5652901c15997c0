"""A server's life as its operator sees it: start, keys, deadlines, draining, the death of its engine, bad options.

Every server here is a process of its own; all are random models, small enough to load at once.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bltkit.bench.load import ServerProcess, free_port
from tests.serve_client import (
    BARRED,
    Served,
    checked_error,
    children_of,
    events_of,
    eventually,
    raw_exchange,
    saved_model,
    serve,
    streamed,
)

KEY = "sk-test-Zq7"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "random", chat=True)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Served]:
    """For tests that leave it as it was."""
    with serve(directory) as served:
        yield served


def refused_start(*options: str) -> str:
    """The one line of a server that does not start for its options."""
    done = subprocess.run(
        [sys.executable, "-m", "bltkit", "serve", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


class Stream(threading.Thread):
    """A streamed completion that is read in a thread of its own."""

    def __init__(self, served: Served, **fields: Any) -> None:
        super().__init__()
        self.client = httpx.Client(base_url=served.url, headers=served.http.headers, timeout=60)
        self.body = {
            "model": served.model,
            "prompt": "x",
            "stream": True,
            "bytes": True,
            "logit_bias": BARRED,
            **fields,
        }
        self.started = threading.Event()
        self.lines: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self.client, self.client.stream("POST", "/v1/completions", json=self.body) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
                    self.started.set()
        except Exception as error:  # shown by the test
            self.error = error
        self.started.set()


def test_sigterm_drains(directory: Path) -> None:
    """Running answers finish, new ones are refused, and the server ends with 0."""
    with serve(directory, "--drain-seconds", "30", "--context", "1500") as served:
        stream = Stream(served, max_tokens=700)
        stream.start()
        assert stream.started.wait(30) and stream.error is None
        served.server.process.send_signal(signal.SIGTERM)

        def draining() -> bool:
            try:
                return served.http.get("/health").status_code == 503
            except httpx.TransportError:
                return served.server.process.poll() is not None

        assert eventually(draining)
        if served.server.process.poll() is None and stream.is_alive():
            response = served.http.post("/v1/completions", json={"model": served.model, "prompt": "x"})
            checked_error(response, 503)
        stream.join(60)
        assert stream.error is None and stream.lines[-2:] == ["data: [DONE]", ""], stream.lines[-3:]
        events = [json.loads(line.removeprefix("data: ")) for line in stream.lines if line.startswith("data: {")]
        _, data, finish = streamed(events)
        assert (len(data), finish) == (700, "length")
        assert served.server.process.wait(30) == 0, served.server.messages
        assert "Traceback" not in served.server.messages


@pytest.mark.slow
def test_draining_has_a_deadline(directory: Path) -> None:
    """What runs then ends with what it has, in a complete stream."""
    with serve(directory, "--drain-seconds", "1", "--context", "100000") as served:
        stream = Stream(served, max_tokens=90_000)
        stream.start()
        assert stream.started.wait(30) and stream.error is None
        served.server.process.send_signal(signal.SIGTERM)
        assert served.server.process.wait(30) == 0, served.server.messages
        stream.join(30)
        assert stream.error is None, stream.error
        assert "data: [DONE]" in stream.lines[-3:] or any('"error"' in line for line in stream.lines[-4:])
        assert len(stream.lines) > 2


@pytest.mark.slow
def test_requests_have_a_deadline(directory: Path) -> None:
    with serve(directory, "--timeout", "1", "--context", "100000") as served:
        body = {"model": served.model, "prompt": "x", "max_tokens": 90_000, "logit_bias": BARRED}
        began = time.monotonic()
        response = served.http.post("/v1/completions", json=body)
        assert time.monotonic() - began < 30
        if response.status_code == 200:
            assert 0 < len(response.json()["choices"][0]["text"]) < 90_000
        else:
            assert "time" in checked_error(response, response.status_code)["message"]
            assert response.status_code in (408, 503, 504)
        assert eventually(served.idle) and served.alive()


def test_the_engine_dies(directory: Path) -> None:
    """Requests fail in one line, nobody hangs, and the server ends with an error."""
    with serve(directory, "--context", "100000") as served:
        stream = Stream(served, max_tokens=90_000)
        stream.start()
        assert stream.started.wait(30) and stream.error is None
        for child in children_of(served.server.pid):
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
        stream.join(30)
        assert not stream.is_alive(), "the open request hangs"
        assert served.server.process.wait(30) not in (0, None)
        assert "Traceback" not in served.server.messages, served.server.messages


def test_an_api_key(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    with serve(directory, "--api-key-file", str(file), key=KEY) as served:
        assert served.alive()
        good = {"model": served.model, "prompt": "x", "max_tokens": 2}
        for headers in (
            {},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": "Bearer"},
            {"Authorization": KEY},
            {"Authorization": "Basic x"},
            {"Authorization": b"Bearer \xff\xfe"},
        ):
            for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize")):
                content = json.dumps(good).encode() if method == "POST" else None
                response = httpx.request(method, served.url + path, headers=headers, content=content, trust_env=False)
                error = checked_error(response, 401)
                assert "Zq7" not in str(error)
        assert "Zq7" not in served.server.messages


def test_an_empty_key_is_refused(directory: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "empty" in refused_start("--model", str(directory), "--api-key-file", str(empty))
    assert "nowhere" in refused_start("--model", str(directory), "--api-key-file", str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_options_that_cannot_be(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused_start("--model", str(directory), "--port", port)
    assert "nowhere" in refused_start("--model", "nowhere", "--port", str(free_port()))
    assert "context" in refused_start("--model", str(directory), "--context", "0")
    assert "device" in refused_start("--model", str(directory), "--device", "toaster")


def test_lines_on_the_terminal_are_safe(directory: Path) -> None:
    """Control characters of a request's path and headers do not reach the operator's terminal."""
    with serve(directory, "--log-requests") as served:
        raw_exchange(served.url, b"GET /a\x1b[31m%1b%0a HTTP/1.1\r\nHost: x\x1b[0m\r\n\r\n", 3)
        served.http.get("/%1b%5b31m%0aINFO")
        checked_error(served.http.get("/v1/models/%1b%5b31m..%2f..%2fetc%2fpasswd"), 404)
        assert "GET /v1/models/" in served.server.messages and "\x1b" not in served.server.messages


def test_routes_and_methods_that_are_not_there(server: Served) -> None:
    assert server.url in server.server.messages, "the first line says where it listens"
    assert server.server.messages.count("\n") == 1, server.server.messages
    checked_error(server.http.get("/v1/nothing"), 404)
    checked_error(server.http.post("/v1/embeddings", json={}), 404)
    checked_error(server.http.get("/v1/completions"), 405)
    error = server.refused({"model": "../../etc/passwd", "prompt": "x"}, status=404)
    assert "passwd" not in error["message"]
    response = server.http.get("/v1/models", headers={"Origin": "http://example.org"})
    assert "access-control-allow-origin" not in response.headers, "CORS is off by default"
    page = server.http.get("/docs")
    assert page.status_code == 200
    assert not [word for word in page.text.split('"') if word.startswith(("http://", "https://", "//"))]
    huge = b'{"prompt": "' + b"x" * 50_000_000 + b'"}'
    response = server.http.post("/v1/completions", content=huge, headers={"content-type": "application/json"})
    checked_error(response, response.status_code)
    assert response.status_code in (400, 413)
    assert server.alive()


@pytest.mark.slow
def test_nobody_may_ask_while_it_loads(directory: Path) -> None:
    """503 of the same shape, or nobody listens yet; then it is ready."""
    server = ServerProcess("--model", str(directory), "--threads", "1")
    statuses = set()
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                response = httpx.get(server.url + "/ready", timeout=5, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            statuses.add(response.status_code)
            if response.status_code == 200:
                break
            checked_error(response, 503) if response.headers.get("content-type") == "application/json" else None
        assert statuses <= {200, 503} and 200 in statuses
        served = Served(server)
        with served.streaming("x", max_tokens=3, logit_bias=BARRED) as answer:
            assert len(streamed(events_of(answer))[1]) == 3
        served.close()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0, "an interrupt drains, too"
    finally:
        server.close()
