"""A server under test in a process of its own, and what tests say to it over HTTP.

Bytes are compared with `lm.generate` of the same model in this process: the server must give them whatever else runs.
"""

import base64
import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import torch

from bltkit.api import ByteLM, Generation
from bltkit.bench.load import ServerProcess
from bltkit.bench.side_process import Remote
from bltkit.checkpoint import Bundle, save_bundle
from bltkit.data.template import RECORD_KEY, ChatTemplate
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig
from bltkit.patching import parse_rule
from bltkit.vocab import BOS, OFFSET
from tests.tiny import fill

TINY = "bltkit:tiny"
BARRED = {"2": -100}
"""Logit bias that keeps EOS out, so that an answer has all of its bytes."""
ASCII_ONLY = BARRED | {str(OFFSET + byte): -100 for byte in range(128, 256)}


class Served:
    """A running server with a client of its own."""

    def __init__(self, server: ServerProcess, key: str | None = None) -> None:
        self.server, self.url, self.key = server, server.url, key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False)
        self.model = self.http.get("/v1/models").json()["data"][0]["id"]

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        """A completion, with the raw bytes. Fails unless it is answered with 200."""
        return self.posted("/v1/completions", {"model": self.model, "prompt": prompt, "bytes": True, **fields})

    def chat(self, messages: Any, **fields: Any) -> dict[str, Any]:
        return self.posted("/v1/chat/completions", {"model": self.model, "messages": messages, "bytes": True, **fields})

    def posted(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def data(self, prompt: Any, **fields: Any) -> bytes:
        """The bytes of the first choice."""
        return raw(self.complete(prompt, **fields)["choices"][0])

    def refused(self, body: Any, path: str = "/v1/completions", status: int = 400) -> dict[str, Any]:
        """The error that answers a bad request; it has OpenAI's shape, and one line says what is wrong."""
        if isinstance(body, Mapping):
            body = {"model": self.model, **body}
        return checked_error(self.http.post(path, json=body), status)

    def events(self, prompt: Any, path: str = "/v1/completions", **fields: Any) -> list[dict[str, Any]]:
        """The events of a streamed completion, without the closing [DONE], which must be there."""
        with self.streaming(prompt, path, **fields) as response:
            return events_of(response)

    @contextlib.contextmanager
    def streaming(self, prompt: Any, path: str = "/v1/completions", **fields: Any) -> Iterator[httpx.Response]:
        asked = {"messages": prompt} if "chat" in path else {"prompt": prompt}
        body = {"model": self.model, "bytes": True, "stream": True, **asked, **fields}
        with self.http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                response.read()
            assert response.status_code == 200, response.text
            assert response.headers["content-type"].startswith("text/event-stream")
            yield response

    def metrics(self) -> dict[str, float]:
        """Values by `name{labels}`, as the page writes them."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        values = [value for key, value in self.metrics().items() if key.partition("{")[0] == f"bltkit:{name}"]
        assert values, f"no metric bltkit:{name}"
        return sum(values)

    def idle(self) -> bool:
        """Does nothing run or wait?"""
        return self.metric("num_requests_running") == 0 and self.metric("num_requests_waiting") == 0

    def alive(self) -> bool:
        """Does it answer as if nothing had been?"""
        assert self.server.process.poll() is None, self.server.messages
        assert self.http.get("/health").status_code == 200
        return len(self.data("The ", max_tokens=3, logit_bias=BARRED)) == 3

    def close(self) -> None:
        self.http.close()


@contextlib.contextmanager
def serve(
    model: str | Path = TINY, *options: str, key: str | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """A server of `model`, one thread, ended whatever happens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(env or {})}
    with ServerProcess("--model", str(model), "--threads", "1", *options, env=environment) as server:
        served = Served(server, key)
        try:
            yield served
        finally:
            served.close()


def raw(choice: Mapping[str, Any]) -> bytes:
    """The bytes that stand beside a choice's text."""
    return base64.b64decode(choice["bytes"], validate=True)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Events up to [DONE]; fails where that is missing, or where something follows."""
    events: list[dict[str, Any]] = []
    done = False
    for line in response.iter_lines():
        if not line or line.startswith(":"):
            continue
        assert line.startswith("data: ") and not done, line
        if line == "data: [DONE]":
            done = True
        else:
            events.append(json.loads(line.removeprefix("data: ")))
    assert done, "the stream ended without [DONE]"
    return events


def streamed(events: Sequence[Mapping[str, Any]], index: int = 0) -> tuple[str, bytes, str | None]:
    """Text, bytes and finish reason of a choice of a streamed completion."""
    mine = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    finishes = [choice["finish_reason"] for choice in mine if choice.get("finish_reason")]
    assert len(finishes) <= 1, finishes
    data = b"".join(raw(choice) for choice in mine if choice.get("bytes"))
    return "".join(choice["text"] for choice in mine), data, finishes[0] if finishes else None


def checked_error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The one JSON error of a response with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json"), response.headers
    content = response.json()
    assert set(content) == {"error"}, content
    error = content["error"]
    assert {"message", "type", "param", "code"} <= set(error), error
    assert isinstance(error["message"], str) and error["message"] and "\n" not in error["message"]
    return dict(error)


def eventually(true: Callable[[], bool], seconds: float = 20.0, every: float = 0.05) -> bool:
    """Does it become true?"""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True


def raw_exchange(url: str, data: bytes, seconds: float = 20.0) -> bytes:
    """What the server answers to these bytes, up to where it closes the connection or says nothing for long."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
                length = re.search(rb"(?i)content-length: (\d+)\r\n", answer)
                head, _, body = answer.partition(b"\r\n\r\n")
                if head and length and len(body) >= int(length[1]):
                    break
        return answer


def children_of(pid: int) -> list[int]:
    """Processes that a process started, from whatever thread."""
    several = [file.read_text(encoding="ascii").split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for each in several for child in each]


def resident_bytes(pid: int) -> int:
    """Memory of a process and all that it started."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    size = next(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))
    return size + sum(map(resident_bytes, children_of(pid)))


def random_bundle(seed: int = 0, record: Mapping[str, Any] | None = None, width: int = 16) -> Bundle:
    """A small random model that cuts by entropies, with weights that make every branch count; in float64."""
    stack = StackConfig(width=width, layers=1, heads=2, ffn_width=2 * width, window=24)
    config = BltConfig(
        encoder=stack,
        latent=stack.replace(width=2 * width, window=None),
        decoder=stack,
        ngrams=NgramConfig(buckets=61),
        diffusion_block=4,
    )
    model: Blt = fill(Blt(config).double(), seed)
    scorer: EntropyModel = fill(
        EntropyModel(EntropyConfig(width=8, layers=1, heads=2, ffn_width=16, window=16)).double(), seed + 1, head=4.0
    )
    # In the middle of what random text scores, so that patches of several lengths occur.
    ids = torch.randint(OFFSET, OFFSET + 256, (1, 200), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        scores = scorer.scores(torch.cat((torch.tensor([[BOS]]), ids), 1))
    rule = parse_rule(f"threshold:threshold={float(scores.double().quantile(0.75))}")
    return Bundle(model.eval(), scorer.eval(), rule, dict(record or {}))


def saved_model(directory: Path, seed: int = 0, chat: bool = False) -> Path:
    """A checkpoint of `random_bundle`, with a chat template if asked for."""
    record = {RECORD_KEY: ChatTemplate().model_dump()} if chat else {}
    return Path(save_bundle(directory, random_bundle(seed, record)))


class Library:
    """A model's `ByteLM`, in a process without the tests' type checks, which would slow it down."""

    def __init__(self, model: str | Path, dtype: torch.dtype = torch.float64) -> None:
        self._remote = Remote("the library", LibraryModel, model, dtype)

    def generate(self, prompt: str | bytes, **options: Any) -> Generation:
        """See `ByteLM.generate`."""
        result: Generation = self._remote.call("generate", prompt, options)
        return result

    def logits(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """See `ByteLM.logits`."""
        return torch.from_numpy(self._remote.call("logits", [int(value) for value in ids]))

    def patches(self, text: str | bytes) -> dict[str, Any]:
        """What `blt patch --json` writes."""
        return dict(self._remote.call("patches", text))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._remote.close()


class LibraryModel:
    """The other process's side of `Library`."""

    def __init__(self, model: str | Path, dtype: torch.dtype) -> None:
        torch.set_num_threads(1)
        self.lm = ByteLM.load(model, dtype=dtype)

    def generate(self, prompt: str | bytes, options: Mapping[str, Any]) -> Generation:
        return self.lm.generate(prompt, **options)

    def logits(self, ids: Sequence[int]) -> Any:
        return self.lm.logits(ids).numpy()

    def patches(self, text: str | bytes) -> dict[str, Any]:
        return self.lm.patches(text).to_json()
