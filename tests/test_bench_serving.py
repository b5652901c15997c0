"""The load generator of `blt bench serve` against a small server of this file, and what is made of its answers."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bltkit.bench import Timing
from bltkit.bench.load import Answer, ServerProcess, closed_loop, free_port, served_model
from bltkit.bench.server_load import Alone, ServingRow, percentile, steady_rate
from bltkit.cli import main
from bltkit.generate import Request, Sampling
from bltkit.vocab import OFFSET

pytest.importorskip("httpx")


class Letters(BaseHTTPRequestHandler):
    """Streams the letter that the prompt begins with, a piece at a time."""

    running = 0
    most = 0
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "letters"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["stream"] is True
        if body["prompt"] == "refused":
            self._send(429, {"error": {"message": "full"}})
            return
        with self.lock:
            Letters.running += 1
            Letters.most = max(Letters.most, Letters.running)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number in range(body["max_tokens"]):
            time.sleep(0.02)
            finish = "length" if number == body["max_tokens"] - 1 else None
            choice = {"index": 0, "text": body["prompt"][0], "finish_reason": finish}
            self.wfile.write(b": nothing new\n\ndata: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        self.wfile.write(b'data: {"choices": [], "usage": {}}\n\n')
        if body["prompt"] == "failing":
            self.wfile.write(b'data: {"error": {"message": "broken"}}\n\n')
        if body["prompt"] != "cut off":
            self.wfile.write(b"data: [DONE]\n\n")
        with self.lock:
            Letters.running -= 1

    def _send(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def letters() -> Iterator[str]:
    Letters.running = Letters.most = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Letters)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_clients_send_the_next_request_when_the_last_is_answered(letters: str) -> None:
    assert served_model(letters) == "letters"
    bodies = [{"prompt": letter, "max_tokens": 3} for letter in "abcdefg"]
    answers = closed_loop(letters, bodies, clients=3)
    assert [answer.index for answer in answers] == list(range(7))
    assert [answer.text for answer in answers] == ["aaa", "bbb", "ccc", "ddd", "eee", "fff", "ggg"]
    assert {answer.finish for answer in answers} == {"length"}
    assert Letters.most == 3
    for answer in answers:
        assert 0 < answer.first_byte_seconds < answer.ended - answer.sent
        assert len(answer.gaps) == 2 and sum(answer.gaps) <= answer.ended - answer.sent
    assert max(answer.sent for answer in answers) > min(answer.ended for answer in answers)


def test_clients_may_start_apart(letters: str) -> None:
    first, second = closed_loop(letters, [{"prompt": "a", "max_tokens": 30}] * 2, clients=2, delays=[0.0, 0.3])
    assert second.sent - first.sent > 0.2


@pytest.mark.parametrize(
    ("prompt", "said"), [("refused", "status 429: .*full"), ("failing", "broken"), ("cut off", "without \\[DONE\\]")]
)
def test_an_answer_that_is_none_ends_the_measurement(letters: str, prompt: str, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        closed_loop(letters, [{"prompt": prompt, "max_tokens": 1}], clients=1)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ValueError, match=r"ended with status 2: .*nowhere"), ServerProcess("--model", "nowhere"):
        pass


def test_a_port_is_free() -> None:
    assert 1024 < free_port() < 65536


def test_the_engine_alone_gives_each_prompt_its_bytes() -> None:
    from bltkit.api import ByteLM

    lm, alone = ByteLM.load("bltkit:tiny"), Alone("bltkit:tiny", "cpu", 1, "fp32")
    prompts = [b"def ", b"class ", b"import ", b"x", b""]
    requests = [Request(Sampling(seed=seed), 8) for seed in range(5)]
    seconds, answers = alone.run(prompts, requests, 2)
    assert seconds > 0
    assert answers == [lm.generate(prompt, max_bytes=8, seed=seed).data for seed, prompt in enumerate(prompts)]


def test_a_percentile_is_one_of_the_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.2, 0.5, 0.95, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert percentile([7.0], 0.95) == 7.0


def row() -> ServingRow:
    return ServingRow(
        preset="m",
        context=256,
        max_bytes=100,
        clients=2,
        requests=4,
        threads=1,
        weights="fp32",
        batch=Timing(400, (1.0, 2.0, 4.0)),
        many=Timing(400, (2.0, 2.0, 5.0)),
        steady=(300.0, 300.0, 100.0),
        single=Timing(600, (6.0, 6.0, 6.0)),
        first_byte_single=(0.1, 0.2, 0.3),
        first_byte_many=((0.3, 0.4), (0.4, 0.6), (0.5, 0.5)),
        rounds=(0.01, 0.02, 0.01),
        longest_waits=(2.0, 3.0, 2.5),
        late_waits=(1.5, 2.0, 1.0),
        identical=12,
        compared=12,
        commit=None,
        machine={},
        command="blt bench serve",
    )


def test_ratios_are_medians_of_runs() -> None:
    content = row().to_json()
    assert content["whole_against_batch"] == 0.8  # of 0.5, 1.0 and 0.8
    assert content["against_batch"] == 1.0  # of 300 / 400, 300 / 200 and 100 / 100
    assert content["against_single"] == 3.0
    assert content["first_byte_ratio"] == 2.5
    assert content["longest_wait"] == 3.0
    assert content["many"] == 200.0 and content["runs"]["many"]["seconds"] == [2.0, 2.0, 5.0]
    json.dumps(content, allow_nan=False)
    assert "1.00 times Batch alone (0.80 with start and end), 3.00 times one client" in row().summary()


def test_the_steady_rate_leaves_out_start_and_end() -> None:
    """Two clients with two requests each: from the second answer's end to when the last request was sent."""
    answers = [
        Answer(0, 0.0, ((1.0, "ab"), (2.0, "cd")), "length", 2.0),
        Answer(1, 0.0, ((2.0, "ab"), (3.0, "cd")), "length", 3.0),
        Answer(2, 2.0, ((3.5, "ab"), (6.0, "cd")), "length", 6.0),
        Answer(3, 5.0, ((5.5, "ab"), (7.0, "cd")), "length", 7.0),
    ]
    assert steady_rate(answers, 2) == 2 / (5.0 - 3.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "2"], "--batch"),
        (["--peer", "transformers"], "--peer"),
        (["--strategy", "ar"], "--strategy"),
        (["--file", "x"], "--file"),
        (["--weights", "fp23"], "fp23"),
        (["--clients", "0"], "clients = 0"),
        (["--max-bytes", "0"], "max_bytes = 0"),
        (["--context", "300000"], "room for"),
    ],
)
def test_mistakes(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--model", "bltkit:tiny", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_clients_are_for_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--clients", "3"]) == 2
    assert "No such option: --clients" in capsys.readouterr().err


def test_without_httpx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ValueError, match=r"pip install 'bltkit\[serve\]'"):
        served_model("http://127.0.0.1:1")


@pytest.mark.slow
def test_a_server_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    options = ["--clients", "3", "--context", "40", "--max-bytes", "10", "--repeats", "2", "--out", str(out)]
    assert main(["bench", "serve", "--model", "bltkit:tiny", *options]) == 0
    (content,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert content["identical"] == content["compared"] == 2 * 15
    assert content["what"] == "serve" and content["against_batch"] > 0
    assert OFFSET == 4, "prompts are sent as ids"
