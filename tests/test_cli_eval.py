"""The verb `eval` as a user meets it: what it prints, what it leaves, what it says of mistakes."""

import json
from pathlib import Path

import pytest

import bltkit
from bltkit.cli import main
from bltkit.eval.tasks import TASKS
from tests.eval_rows import PUBLISHED, place_of
from tests.shared import SHARED
from tests.token_models import tiny_llama


@pytest.fixture
def data(tmp_path: Path) -> str:
    place_of(tmp_path / "data", *TASKS)
    return str(tmp_path / "data")


def test_results_records_and_a_page(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = ["eval", "--tasks", "piqa,cute:spell,shots=1", "--data", data, "--out", str(out)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["task", "n", "metric", "value", "stderr", "95", "%"]
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["piqa", "cute:spell,shots=1"]
    found = json.loads((out / "results.json").read_text())
    assert found["results"]["piqa"]["n"] == 2
    assert "report.html" in {path.name for path in out.iterdir()}
    before = (out / "results.json").read_bytes()
    assert main([*line, "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["results"]["piqa"]["prompt_hash"] == found["results"]["piqa"]["prompt_hash"]
    assert set(json.loads(before)["results"]) == set(again["results"])


def test_python_says_the_same(data: str) -> None:
    found = bltkit.evaluate("bltkit:tiny", "piqa", data=data)
    line = json.loads(json.dumps(found.to_json()))
    assert line["results"]["piqa"]["value"] in (0.0, 0.5, 1.0)
    assert (
        bltkit.evaluate("bltkit:tiny", ["piqa"], data=[data]).results["piqa"]["value"]
        == (line["results"]["piqa"]["value"])
    )


def test_pairs(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"clean": "Bees make", "noisy": "Bse mkae"}) + "\n")
    line = ["eval", "--tasks", "openbookqa", "--data", data, "--paired", str(pairs)]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    for name in ("paired", "openbookqa, clean", "openbookqa, noisy", "openbookqa, gap"):
        assert name in captured.out
    assert captured.err.count("report.html") == 3
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gaps"]["openbookqa"]["n"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--tasks is missing"),
        (["--tasks", "helaswag"], "did you mean 'hellaswag'"),
        (["--tasks", "piqa", "--noise", "drip:0.1"], "unknown noise 'drip'"),
        (["--tasks", "piqa", "--noise", "drop:2"], "intensity"),
        (["--tasks", "piqa", "--limit", "0"], "limit = 0"),
        (["--tasks", "piqa", "--resume"], "add --out"),
        (["--tasks", "piqa", "--strategy", "speculatve"], "did you mean 'speculative'"),
        (["--tasks", "piqa", "--strategy", "diffusion"], "block-diffusion"),
        (["--tasks", "humaneval"], "--allow-code-execution"),
        (["--tasks", "piqa", "--model", "bltkit:tinny"], "did you mean 'tiny'"),
        (["--tasks", "piqa", "--batch", "0"], "batch = 0"),
        (["--tasks", "piqa", "--context", "0"], "context = 0"),
        (["--tasks", "piqa", "--noise", "drop", "--paired", "x.jsonl"], "not both"),
        (["--tasks", "piqa", "--paired", "no-such.jsonl"], "no-such.jsonl"),
        (["--tasks", "piqa", "--model", "token:nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    options: list[str], said: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    extra = [] if "--resume" in options else ["--out", str(out)]
    assert main(["eval", *options, "--data", data, *extra]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""
    assert captured.err.count("\n") == 1
    assert not out.exists() or not any(out.iterdir())


def test_missing_data_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["eval", "--tasks", "piqa", "--data", str(tmp_path), "--out", str(out)]) == 2
    assert "piqa.jsonl" in capsys.readouterr().err
    assert not out.exists()


EVERY = ",".join(sorted(PUBLISHED - {"cute", "g2p", "translation", "blimp", "mmlu"}))
PARTS = "cute:spell,g2p:fre,translation:vec_Latn-eng_Latn,blimp:adjunct_island,mmlu:astronomy"


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="needs the evaluation sets beside the repository")
@pytest.mark.parametrize("model", ["bltkit:tiny", "token"])
def test_every_task_runs_on_published_items(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert SHARED is not None
    if model == "token":
        tiny_llama(tmp_path / "llama")
        model = f"token:{tmp_path / 'llama'}"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "paired.jsonl").write_text(json.dumps({"clean": "A cat.", "noisy": "A kat."}) + "\n")
    folders = [SHARED / "data" / "eval", SHARED / "data" / "mt", SHARED / "data", tmp_path / "data"]
    line = ["eval", "--model", model, "--limit", "2", "--allow-code-execution", "--json"]
    line += ["--tasks", f"{EVERY},{PARTS},bpb:udhr,max_bytes=300,paired"]
    assert main([*line, *(word for folder in folders for word in ("--data", str(folder)))]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert {name.partition(":")[0] for name in found} == PUBLISHED | {"bpb", "paired"}
    assert all(result["n"] >= 1 and result["value"] is not None for result in found.values())
