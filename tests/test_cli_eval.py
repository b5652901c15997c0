"""The verb `eval` as a user meets it: what it prints, what it leaves, what it says of mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import bltkit
from bltkit.cli import main
from bltkit.cli.evaluation import print_table, task_cells
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
    assert printed.splitlines()[0].split() == ["task", "n", "metric", "value", "95", "%", "chance", "cut"]
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["piqa", "cute:spell,shots=1"]
    found = json.loads((out / "results.json").read_text())
    assert found["results"]["piqa"]["n"] == 2
    assert "report.html" in {path.name for path in out.iterdir()}
    before = (out / "results.json").read_bytes()
    assert main([*line, "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["results"]["piqa"]["prompt_hash"] == found["results"]["piqa"]["prompt_hash"]
    assert set(json.loads(before)["results"]) == set(again["results"])


GOLDEN = """\
task                  n  metric           value  95 %              chance             cut
piqa              1,838  acc_norm        0.6120  0.5895 .. 0.6340  0.5000               0
mmlu              1,531  acc             0.2500  0.2290 .. 0.2723  0.2500  1,628 of 6,124
cute                280  exact_match     0.0000  0.0000 .. 0.0135  0.1429               0
bpb                  12  bpb             2.4312  2.3100 .. 2.5500       -               -
lambada               1  acc             1.0000  one item               -               0
translation, gap      9  bleu_char       0.0000  no spread              -               -
paired                0  likelihood_gap       -  no items               -               -
old                   3  acc             0.0000  -                      -               3
"""


def estimated(n: int, metric: str, value: float | None, ends: Any, chance: float | None, **more: int) -> dict[str, Any]:
    interval, method = (None, ends) if isinstance(ends, str) else (ends, "wilson")
    result = {"n": n, "metric": metric, "value": value, "interval": interval, "interval_method": method}
    return result | {"chance": chance} | more


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    cut = {"cut_contexts": 0, "contexts": 8}
    results = {
        "piqa": estimated(1838, "acc_norm", 0.612, [0.5895, 0.634], 0.5, **cut),
        "mmlu": estimated(1531, "acc", 0.25, [0.229, 0.2723], 0.25, cut_contexts=1628, contexts=6124),
        "cute": estimated(280, "exact_match", 0.0, [0.0, 0.0135], 1 / 7, **cut),
        "bpb": estimated(12, "bpb", 2.43117, [2.31, 2.55], None, cut_contexts=0, contexts=0),
        "lambada": estimated(1, "acc", 1.0, "one item", None, **cut),
        "translation, gap": estimated(9, "bleu_char", 0.0, "no spread", None),
        "paired": estimated(0, "likelihood_gap", None, "no items", None, cut_contexts=0, contexts=0),
        # Of an evaluation by version 0.1.0, which --resume keeps.
        "old": {"n": 3, "metric": "acc", "value": 0.0, "stderr": 0.0, "interval": [0.0, 0.0], "cut_contexts": 3},
    }
    print_table([task_cells(name, result) for name, result in results.items()])
    assert capsys.readouterr().out == GOLDEN


def test_cut_contexts_are_told_in_one_line(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of scored choices and of prompts that are continued; the remedy is one that cuts nothing."""
    line = ["eval", "--tasks", "piqa,cute:spell,bpb", "--data", data]
    assert main([*line, "--context", "40", "--out", str(tmp_path / "short")]) == 0
    captured = capsys.readouterr()
    warnings = [one for one in captured.err.splitlines() if one.startswith("warning: ")]
    assert [one.split(": ")[1] for one in warnings] == ["piqa", "cute:spell"]
    assert "4 of 4 contexts lost their beginning, the model is shown 40 bytes at once; --context " in warnings[0]
    assert "fewer shots" in warnings[1] and "fewer shots" not in warnings[0]
    found = json.loads((tmp_path / "short/results.json").read_text())["results"]
    assert found["piqa"]["window"] == {"size": 40, "unit": "bytes"} and found["bpb"]["contexts"] == 0
    figures = [found["piqa"][name] for name in ("cut_contexts", "contexts", "cut_items", "n")]
    assert figures == [4, 4, 2, 2] and "4 of 4 contexts cut" in (tmp_path / "short/report.html").read_text()
    assert [row.split()[-3:] for row in captured.out.splitlines()[1:2]] == [["4", "of", "4"]]
    enough = max(int(re.findall(r"--context (\d+)", one)[0]) for one in warnings)
    assert main([*line, "--context", str(enough)]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*line, "--context", str(enough - 1)]) == 0
    assert capsys.readouterr().err.count("warning") == 1


def test_cut_contexts_of_pairs_are_told_for_both_sides(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"clean": "Bees make", "noisy": "Bse mkae"}) + "\n")
    line = ["eval", "--tasks", "openbookqa", "--data", data, "--paired", str(pairs), "--context", "6"]
    assert main(line) == 0
    warnings = [one for one in capsys.readouterr().err.splitlines() if one.startswith("warning: ")]
    assert [one.split(":")[1] for one in warnings] == [" openbookqa, clean", " openbookqa, noisy"]


def test_an_evaluation_of_version_0_1_0_is_resumed(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["eval", "--tasks", "piqa,boolq", "--data", data, "--out", str(out)]
    assert main(line) == 0
    results = json.loads((out / "results.json").read_text())
    del results["model"]["strategy"]
    for result in results["results"].values():
        for name in ("interval_method", "chance", "contexts", "window", "cut_items", "longest_bytes"):
            del result[name]
    (out / "results.json").write_text(json.dumps(results))
    assert set(json.loads((out / "run.json").read_text())["model"]) == {"name", "kind", "fingerprint"}
    assert main(["eval", "--tasks", "boolq", "--data", data, "--out", str(out), "--resume"]) == 0
    found = json.loads((out / "results.json").read_text())["results"]
    assert found["boolq"]["chance"] == 0.5 and "chance" not in found["piqa"]
    assert main(["study", "evaluations", str(out)]) == 0


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
        ([], "tasks: none is named"),
        (["--tasks", "helaswag"], "did you mean 'hellaswag'"),
        (["--tasks", "piqa", "--noise", "drip:0.1"], "unknown noise 'drip'"),
        (["--tasks", "piqa", "--noise", "drop:2"], "intensity"),
        (["--tasks", "piqa", "--limit", "0"], "limit = 0"),
        (["--tasks", "piqa", "--resume"], "name it with out"),
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
