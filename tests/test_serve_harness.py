"""lm-evaluation-harness over HTTP (`lm_eval --model local-completions`): the figures of the adapter in this process.

The first test holds the harness itself to the contract that the server was written for, against a fake server: when a
new pin changes it, the assertion that fails says what moved.
"""

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit.api import ByteLM
from bltkit.cli import main
from bltkit.generate import Sampling
from bltkit.vocab import encode
from tests.serve_client import TINY, Library, Served, serve
from tests.shared import SHARED
from tests.test_harness import ROWS, WRITING, answers, evaluate
from tests.test_session import TIE, nearest_tie

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval speaks HTTP only with tenacity")

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
LOCAL = ("arc_easy", "arc_challenge", "piqa", "openbook_qa")
ITEMS = 15
"""Of each file, in the slow test."""
MAX_LENGTH = 1500
"""Ids that the harness sends at most."""


@pytest.fixture(scope="module", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets are prepared in a directory of the test's own."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": query, "query": query, "choices": list(choices), "gold": gold, "text": text}
        for query, choices, gold, text in ROWS
    ]
    rows[0]["choices"] = ["blue", " a green field", "Größe"]
    write_task(directory, "choice", CHOICE, [json.dumps(row) for row in rows])
    write_task(directory, "rolling", ROLLING, [json.dumps(row) for row in rows])
    write_task(directory, "writing", WRITING, [json.dumps(row) for row in rows])
    for name in LOCAL:
        if SHARED is not None:
            lines = (SHARED / "data" / "eval" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            write_task(directory, name, CHOICE, lines[:ITEMS])
    return directory


def write_task(directory: Path, name: str, task: str, lines: Sequence[str]) -> None:
    rows = directory / f"{name}.jsonl"
    rows.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (directory / f"{name}.yaml").write_text(
        f"task: bltkit_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
        f"{task}\nmetadata: {{version: 1.0}}\n"
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serve(TINY) as served:
        yield served


def over_http(url: str, **more: Any) -> dict[str, Any]:
    """Arguments of `local-completions`."""
    return {"model": "tiny", "base_url": f"{url}/v1/completions", "max_length": MAX_LENGTH, "max_retries": 1, **more}


def both(tasks: Path, server: Served, names: Sequence[str], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the harness gives over HTTP, and with the adapter."""
    arguments = over_http(server.url, **{"model": server.model, "num_concurrent": 4, **more})
    http = evaluate(tasks, names, "local-completions", model_args=arguments)
    adapter = {"pretrained": TINY, "bytes_per_token": 1}
    from bltkit.eval import harness

    harness.register()
    return http, evaluate(tasks, names, "bltkit", model_args=adapter, device="cpu", batch_size=1)


def assert_equal_choices(http: dict[str, Any], adapter: dict[str, Any], name: str) -> None:
    for metric in ("acc,none", "acc_norm,none"):
        assert http["results"][f"bltkit_{name}"][metric] == adapter["results"][f"bltkit_{name}"][metric]
    for said, expected in zip(answers(http, name), answers(adapter, name), strict=True):
        assert [logprob for logprob, _ in said] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
        assert [bool(greedy) for _, greedy in said] == [greedy for _, greedy in expected]


def test_figures_are_those_of_the_adapter(tasks: Path, server: Served) -> None:
    http, adapter = both(tasks, server, ["choice", "rolling", "writing"])
    assert_equal_choices(http, adapter, "choice")
    said, expected = answers(http, "rolling"), answers(adapter, "rolling")
    assert [value for (value,) in said] == pytest.approx([value for (value,) in expected], abs=1e-4)
    bits = [run["results"]["bltkit_rolling"]["bits_per_byte,none"] for run in (http, adapter)]
    assert bits[0] == pytest.approx(bits[1], abs=1e-5)
    assert answers(http, "writing") == answers(adapter, "writing")
    assert any(text for (text,) in answers(http, "writing")), "nothing was written"


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="needs the tasks' files")
@pytest.mark.parametrize("more", [{"num_concurrent": 8}, {"num_concurrent": 1, "batch_size": 5}])
def test_four_tasks_are_those_of_the_adapter(tasks: Path, server: Served, more: dict[str, Any]) -> None:
    http, adapter = both(tasks, server, LOCAL, **more)
    for name in LOCAL:
        assert_equal_choices(http, adapter, name)


def test_the_names_of_bos_and_eos(server: Served) -> None:
    info = server.http.get("/tokenizer_info").json()
    bos, eos = info["bos_token"], info["eos_token"]
    encode = {"add_special_tokens": False}
    assert server.posted("/tokenize", {"prompt": bos, **encode})["tokens"] == [1]
    assert server.posted("/tokenize", {"prompt": eos, **encode})["tokens"] == [2]
    assert server.posted("/tokenize", {"prompt": "Aé", **encode})["tokens"] == [69, 199, 173]
    assert server.posted("/detokenize", {"tokens": [69, 199, 173]})["prompt"] == "Aé"
    # A text that only looks like it is bytes.
    assert server.posted("/tokenize", {"prompt": eos[:-1], **encode})["tokens"] != [2]
    # As a stop string it means the model's own end, and no byte is looked for.
    plain = server.complete("The ", max_tokens=30, seed=1)["choices"][0]
    assert server.complete("The ", max_tokens=30, seed=1, stop=[eos])["choices"][0] == plain


def test_bytes_are_those_of_the_command(server: Served, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    options = ["--temperature", "0.7", "--seed", "5", "--max-bytes", "40", "--top-p", "0.9"]
    assert main(["generate", "The first", "--model", TINY, *options]) == 0
    said = capsysbinary.readouterr().out
    data = server.data("The first", temperature=0.7, seed=5, max_tokens=40, top_p=0.9)
    assert said.rstrip(b"\n") == data.rstrip(b"\n") and len(data) == 40


class Exact:
    """A model in float64, as `nearest_tie` asks for one."""

    def __init__(self) -> None:
        self.lm = ByteLM.load(TINY, dtype=torch.float64)
        self.scorer, self.rule = self.lm.scorer, self.lm.rule

    def in_float64(self) -> "Exact":
        return self

    def run(self, ids: Sequence[int]) -> tuple[torch.Tensor, None]:
        return self.lm.logits(ids), None


def test_fp32_differs_only_on_ties(server: Served) -> None:
    """Of a trained model in fp32, whose rows round otherwise in another company."""
    asked = []
    for seed in range(12):
        options = {"temperature": (0.0, 0.8)[seed % 2], "seed": seed, "strategy": ("ar", "speculative")[seed // 2 % 2]}
        asked.append((ROWS[seed % len(ROWS)][0][: 20 + seed], options))
    with ThreadPoolExecutor(12) as pool:
        served = list(pool.map(lambda item: server.data(item[0], max_tokens=30, **item[1]), asked))
    ties = 0
    with Library(TINY, torch.float32) as lm:
        for (prompt, options), data in zip(asked, served, strict=True):
            expected = lm.generate(prompt, max_bytes=30, **options).data
            if data != expected:
                pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(data, expected, strict=False))
                same = bytes(value for value, _ in pairs)
                sampling = Sampling(temperature=options["temperature"], seed=options["seed"])
                margin = nearest_tie(Exact(), encode(prompt.encode() + same).tolist(), sampling)  # type: ignore[arg-type]
                assert margin < TIE, (prompt, options)
                ties += 1
    print(f"{ties} ties")
    assert ties < len(asked) / 2


class Recorder(BaseHTTPRequestHandler):
    """Answers as the contract says, and remembers what it was asked."""

    asked: list[tuple[str, str, Any]] = []  # noqa: RUF012  one server in this file

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path, None))
        self._send({"eos_token": "<eos>", "bos_token": "<bos>"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(("POST", self.path, body))
        if self.path == "/tokenize":
            special = {"<bos>": [1], "<eos>": [2]}
            text = body["prompt"]
            self._send({"tokens": special.get(text, [byte + 4 for byte in text.encode()])})
            return
        choices = []
        for index, ids in enumerate(body["prompt"]):
            size = len(ids) + 1
            values = [None, *(-float(at) for at in range(1, size))]
            # Greedy but for the id 105 ("e").
            tops = [
                None,
                *({"x": -float(at) + (0.5 if at < len(ids) and ids[at] == 105 else 0)} for at in range(1, size)),
            ]
            logprobs = {"token_logprobs": values, "top_logprobs": tops}
            choices.insert(0, {"index": index, "text": f"text {index}", "logprobs": logprobs})  # in any order
        self._send({"choices": choices})

    def _send(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[str]:
    Recorder.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_contract_of_the_harness(fake: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [Instance(kind, {}, one, at) for at, one in enumerate(arguments)]  # type: ignore[arg-type]

    lm = get_model("local-completions")(**over_http(fake, batch_size=2))
    paths = [(verb, path) for verb, path, _ in Recorder.asked]
    assert ("GET", "/tokenizer_info") in paths, "it no longer asks GET /tokenizer_info"
    probe = next((body for verb, path, body in Recorder.asked if path == "/tokenize"), None)
    assert probe is not None, "it no longer asks POST /tokenize"
    assert set(probe) == {"prompt", "add_special_tokens"}, "fields of /tokenize moved"
    assert probe["add_special_tokens"] is False, "it asks /tokenize for special tokens now"
    assert lm.eos_string == "<eos>", "eos_token of /tokenizer_info is not what eos_string is made of"
    assert lm.prefix_token_id == 1, "an empty context is no longer bos_token of /tokenizer_info"

    Recorder.asked.clear()
    pairs = [("abc", " de"), ("", "xy")]
    found = lm.loglikelihood(instances("loglikelihood", pairs))
    bodies = [body for _, path, body in Recorder.asked if path == "/v1/completions"]
    assert bodies, "it no longer posts to base_url"
    expected = {"model", "prompt", "temperature", "max_tokens", "logprobs", "seed", "echo"}
    assert set(bodies[0]) == expected, "fields of a likelihood request moved"
    said = {name: bodies[0][name] for name in ("temperature", "max_tokens", "logprobs", "echo")}
    assert said == {"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}, (
        "values of a likelihood request moved"
    )
    prompts = [ids for body in bodies for ids in body["prompt"]]
    assert [101, 102, 103, 36, 104, 105] in prompts, "prompts are no longer arrays of ids without BOS"
    assert [1, 124, 125] in prompts, "an empty context is no longer BOS alone"
    # token_logprobs[ctxlen:-1]: from the context's end, without the byte generated behind the echoed ones.
    assert found[0][0] == -(3.0 + 4.0 + 5.0), "the slice of token_logprobs that it sums moved"
    assert found[1][0] == -(1.0 + 2.0), "the slice of token_logprobs that it sums moved"
    assert not found[0][1] and found[1][1], "greedy is no longer: equal to the largest of top_logprobs"

    Recorder.asked.clear()
    (rolling,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("xyz",)]))
    prompts = [ids for _, path, body in Recorder.asked if path == "/v1/completions" for ids in body["prompt"]]
    assert prompts == [[1, 124, 125, 126]], "a rolling window no longer begins with BOS"
    assert rolling == -(1.0 + 2.0 + 3.0), "the slice of token_logprobs of a rolling window moved"

    Recorder.asked.clear()
    settings = {"until": ["\n"], "max_gen_toks": 7, "do_sample": False}
    texts = lm.generate_until(instances("generate_until", [("abc", settings), ("abd", settings)]))
    (body,) = [body for _, path, body in Recorder.asked if path == "/v1/completions"]
    expected = {"model", "prompt", "temperature", "max_tokens", "stop", "seed"}
    assert set(body) == expected, "fields of a generation request moved"
    assert (body["max_tokens"], body["temperature"]) == (7, 0), "max_gen_toks is no longer max_tokens"
    assert body["stop"] == ["\n", "<eos>"], "the name of EOS is no longer one of the stop strings"
    assert texts == ["text 0", "text 1"], "choices are no longer put in order by index"
