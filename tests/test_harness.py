"""The model type of lm-evaluation-harness, against the harness itself: local tasks, numbers computed directly."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bltkit.api import ByteLM
from bltkit.eval import harness
from bltkit.eval.requests import Continuation
from bltkit.eval.score import score
from bltkit.vocab import encode
from tests.token_models import tiny_llama

ROWS = (
    (
        "Question: What is the colour of the sky? Answer:",
        ("blue", "a green field", "Größe"),
        0,
        "The sky is blue today.",
    ),
    ("Question: How many legs has a dog? Answer:", ("two", "four", "it has seven"), 1, "Über die Brücke und zurück."),
    ("Question: Where does a river end? Answer:", ("in the sea", "up", "x"), 2, "In the village\nthere are 89 houses."),
)
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
WRITING = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 10, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
TASKS = {"choice": CHOICE, "rolling": ROLLING, "writing": WRITING}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of local tasks, as users of the harness write them."""
    pytest.importorskip("lm_eval")
    directory = tmp_path_factory.mktemp("tasks")
    names = ("question", "choices", "gold", "text")
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS))
    for name, task in TASKS.items():
        files = f"dataset_kwargs: {{data_files: {{test: {rows}}}}}"
        (directory / f"{name}.yaml").write_text(
            f"task: bltkit_{name}\ndataset_path: json\n{files}\ntest_split: test\n{task}\nmetadata: {{version: 1.0}}\n"
        )
    return directory


@pytest.fixture(scope="module", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Data sets are prepared in a directory of the test's own."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def evaluate(tasks: Path, names: Sequence[str], model: Any, **more: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model, tasks=[f"bltkit_{name}" for name in names], task_manager=manager, bootstrap_iters=0, **more
    )
    assert found is not None
    return dict(found)


def answers(found: dict[str, Any], name: str) -> list[Any]:
    """What the model said to each request, in the order of the rows."""
    samples = sorted(found["samples"][f"bltkit_{name}"], key=lambda sample: sample["doc_id"])
    return [[one for (one,) in sample["resps"]] for sample in samples]


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, at) for at, one in enumerate(arguments)]  # type: ignore[arg-type]


def directly(model: ByteLM, context: str, continuation: str) -> tuple[float, bool]:
    """From the logits of the whole text, computed at once."""
    data, begin = (context + continuation).encode(), len(context.encode())
    logits = model.logits(encode(data)[:-1]).double()
    each, targets = logits.log_softmax(-1), [byte + 4 for byte in data]
    total = sum(float(each[at, targets[at]]) for at in range(begin, len(data)))
    logits[:, [0, 1, 3]] = -math.inf
    return total, all(int(logits[at].argmax()) == targets[at] for at in range(begin, len(data)))


def test_the_harness_tasks_give_what_is_computed_directly(tasks: Path) -> None:
    harness.register()
    harness.register()  # a second time changes nothing
    found = evaluate(tasks, list(TASKS), "bltkit", model_args="pretrained=bltkit:tiny", device="cpu", batch_size=1)
    model = ByteLM.load("bltkit:tiny")
    results = {name: found["results"][f"bltkit_{name}"] for name in TASKS}

    right = 0
    for (question, choices, gold, _), said in zip(ROWS, answers(found, "choice"), strict=True):
        expected = [directly(model, question, f" {choice}") for choice in choices]
        assert [logprob for logprob, _ in said] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in said] == [greedy for _, greedy in expected]
        right += max(range(3), key=lambda at: expected[at][0]) == gold
    assert results["choice"]["acc,none"] == pytest.approx(right / len(ROWS))

    scores = [score(model.bundle, text) for *_, text in ROWS]
    assert [one for (one,) in answers(found, "rolling")] == pytest.approx([-one.nll_nats for one in scores], abs=1e-4)
    bits = sum(one.nll_nats for one in scores) / math.log(2) / sum(one.num_bytes for one in scores)
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-5)

    expected_texts = [
        model.generate(question, max_bytes=40, temperature=0, stop=["e", "\n"]).text for question, *_ in ROWS
    ]
    assert [one for (one,) in answers(found, "writing")] == expected_texts

    assert found["config"]["model_name"] == "bltkit:tiny"
    assert len(found["config"]["model_sha"]) == 64


def test_a_token_model_agrees_with_the_harness_own(tasks: Path, llama: Path) -> None:
    arguments = {"pretrained": str(llama), "dtype": "float32"}
    options: dict[str, Any] = {"device": "cpu", "batch_size": 2}
    ours = evaluate(tasks, list(TASKS), harness.model_class()(f"token:{llama}", bytes_per_token=100))
    theirs = evaluate(tasks, ["choice", "writing"], "hf", model_args=arguments, **options)
    for said, expected in zip(answers(ours, "choice"), answers(theirs, "choice"), strict=True):
        assert [logprob for logprob, _ in said] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in said] == [bool(greedy) for _, greedy in expected]
    # With a tokenizer that puts BOS in front, theirs scores that BOS behind another one, unless told not to.
    rolling = evaluate(tasks, ["rolling"], "hf", model_args=arguments | {"add_bos_token": False}, **options)
    said, expected = answers(ours, "rolling"), answers(rolling, "rolling")
    assert [one for (one,) in said] == pytest.approx([one for (one,) in expected], abs=1e-4)
    for (said,), (expected,) in zip(answers(ours, "writing"), answers(theirs, "writing"), strict=True):
        assert said.startswith(expected), "theirs ends after 10 tokens, ours after 1000 bytes"


def test_answers_come_in_the_requests_order_with_their_edge_cases() -> None:
    model = ByteLM.load("bltkit:tiny")
    lm = harness.model_class()("bltkit:tiny")
    pairs = [("The sky is", " blue"), ("", "A"), ("The sky is", ""), ("a" * 40, " b"), ("The sky is", " grey, Größe")]
    found = lm.loglikelihood(instances("loglikelihood", pairs))
    assert found[2] == (0.0, True)
    for at in (0, 1, 3, 4):
        logprob, greedy = directly(model, *pairs[at])
        assert found[at][0] == pytest.approx(logprob, abs=1e-4)
        assert found[at][1] == greedy
    best = model.generate("The sky is", max_bytes=6, temperature=0).text
    assert lm.loglikelihood(instances("loglikelihood", [("The sky is", best)]))[0][1]
    assert lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("",), ("A",)])) == pytest.approx(
        [0.0, found[1][0]], abs=1e-4
    )
    assert (lm.rank, lm.world_size) == (0, 1)


def test_long_texts_are_scored_in_windows_of_the_context() -> None:
    text = " ".join(row[0] for row in ROWS)
    lm = harness.model_class()("bltkit:tiny", context=32)
    expected = score(ByteLM.load("bltkit:tiny").bundle, text, context=32)
    assert lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)])) == pytest.approx(
        [-expected.nll_nats], abs=1e-4
    )


def test_samples_differ_by_repetition_and_repeat_themselves() -> None:
    lm = harness.model_class()("bltkit:tiny", seed=3)
    settings = {"until": [], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0}
    asked = instances("generate_until", [("The", settings)] * 3)
    first = lm.generate_until(asked)
    assert len(set(first)) == 3
    assert lm.generate_until(asked) == first
    model = ByteLM.load("bltkit:tiny")
    assert first == [model.generate("The", max_bytes=20, temperature=1.0, seed=seed).text for seed in (3, 4, 5)]


def test_every_answer_is_offered_to_the_cache() -> None:
    lm = harness.model_class()("bltkit:tiny")
    kept: list[tuple[str, Any, Any]] = []

    class Hook:
        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            kept.append((attr, req, res))

    lm.set_cache_hook(Hook())
    settings = {"until": "e", "max_gen_toks": 2}
    pair = lm.loglikelihood(instances("loglikelihood", [("a", "b")]))
    rolling = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("ab",)]))
    written = lm.generate_until(instances("generate_until", [("a", settings)]))
    assert kept == [
        ("loglikelihood", ("a", "b"), pair[0]),
        ("loglikelihood_rolling", ("ab",), rolling[0]),
        ("generate_until", ("a", settings), written[0]),
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1024, (), 0.0)),
        ({"until": "\n", "max_gen_toks": 10}, (40, (b"\n",), 0.0)),
        ({"until": ["é", ""], "max_new_tokens": 3, "temperature": 0.0}, (12, ("é".encode(),), 0.0)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, (1024, (), 0.0)),
        ({"do_sample": True}, (1024, (), 1.0)),
        ({"temperature": 0.7, "top_p": 1.0, "top_k": 0}, (1024, (), 0.7)),
    ],
)
def test_generation_settings(settings: dict[str, Any], expected: tuple[int, tuple[bytes, ...], float]) -> None:
    assert harness.generation_of("ü", settings, 4, 7) == Continuation("ü".encode(), *expected, 7)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"until": 5}, "until = 5: give a string"),
        ({"until": ["a", 5]}, "until = "),
        ({"until": ["a", None]}, "until = "),
        ({"until": [["a"]]}, "until = "),
        ({"until": {"a": 1}}, "until = "),
        ({"max_gen_toks": 0}, "max_gen_toks = 0: give a whole number from 1"),
        ({"max_gen_toks": -3}, "max_gen_toks = -3"),
        ({"max_tokens": "12"}, "max_tokens = '12'"),
        ({"max_new_tokens": 2.5}, "max_new_tokens = 2.5"),
        ({"max_gen_toks": math.nan}, "max_gen_toks = nan"),
        ({"max_gen_toks": math.inf}, "max_gen_toks = inf"),
        ({"max_gen_toks": True}, "max_gen_toks = True"),
        ({"max_gen_toks": [3]}, "max_gen_toks ="),
        ({"max_gen_toks": 10**30}, "max_gen_toks ="),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"temperature": -1}, "temperature = -1"),
        ({"do_sample": True, "temperature": math.nan}, "temperature = nan"),
        ({"do_sample": "false"}, "do_sample = 'false'"),
        ({"do_sample": []}, "do_sample ="),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="generation setting") as error:
        harness.generation_of("a", settings, 4, 0)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"bytes_per_token": "abc"}, "bytes_per_token = 'abc'"),
        ({"bytes_per_token": True}, "bytes_per_token = True"),
        ({"context": "x"}, "context = 'x'"),
        ({"context": 2.5}, "context = 2.5"),
        ({"batch_bytes": "auto"}, "batch_bytes = 'auto'"),
        ({"batch_bytes": 10**400}, "batch = 1000"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"strategy": 5}, "strategy = 5"),
        ({"device": 0}, "device = 0"),
        ({"contxt": 1}, "no setting 'contxt'; did you mean 'context'"),
    ],
)
def test_a_setting_of_the_model_of_another_kind(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        harness.HarnessModel("bltkit:tiny", **setting)


@pytest.mark.parametrize("settings", [None, "\n", ["a"]])
def test_settings_that_are_no_mapping(settings: Any) -> None:
    with pytest.raises(ValueError, match="generation settings"):
        harness.generation_of("a", settings, 4, 0)


@pytest.mark.parametrize("until", [None, "", [], (), [""]])
def test_no_stop_string(until: Any) -> None:
    assert harness.generation_of("a", {"until": until, "max_gen_toks": 2.0}, 4, 0) == Continuation(b"a", 8)


def test_cut_contexts_are_told_once_a_question(caplog: pytest.LogCaptureFixture) -> None:
    lm = harness.model_class()("bltkit:tiny", context=16)
    lm.loglikelihood(instances("loglikelihood", [("a" * 40, " b"), ("a", " b"), ("c" * 50, " d")]))
    lm.generate_until(instances("generate_until", [("a" * 40, {"max_gen_toks": 1})]))
    lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("a" * 40,)]))  # in windows: nothing is lost
    said = [record.getMessage() for record in caplog.records if "lost their beginning" in record.getMessage()]
    assert said == [
        "loglikelihood: 2 of 3 contexts lost their beginning, the model is shown 16 bytes at once; "
        "--model_args context=N shows more",
        "generate_until: 1 of 1 contexts lost their beginning, the model is shown 16 bytes at once; "
        "--model_args context=N shows more",
    ]


def test_mistakes() -> None:
    for wrong in (float("nan"), float("inf"), -1):
        with pytest.raises(ValueError, match="bytes_per_token = "):
            harness.model_class()("bltkit:tiny", bytes_per_token=wrong)
    with pytest.raises(ValueError, match=r"top_p = 0\.9"):
        harness.generation_of("a", {"do_sample": True, "top_p": 0.9}, 4, 0)
    with pytest.raises(ValueError, match="num_beams = 4"):
        harness.generation_of("a", {"num_beams": 4}, 4, 0)
    with pytest.raises(ValueError, match="bytes_per_token = 0"):
        harness.model_class()("bltkit:tiny", bytes_per_token=0)
    with pytest.raises(ValueError, match="leave it out"):
        harness.model_class()("token:nowhere", strategy="diffusion")


def test_without_the_harness_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ValueError, match=r"pip install 'bltkit\[harness\]'"):
        harness.model_class.__wrapped__()


@pytest.mark.slow
def test_the_command(tasks: Path) -> None:
    arguments = ["--tasks", "bltkit_choice", "--include_path", str(tasks)]
    run = subprocess.run(
        [sys.executable, "-m", "bltkit.eval.harness", "--model_args", "pretrained=bltkit:tiny", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "bltkit_choice" in run.stdout
