"""The page of one evaluation: its numbers are those of results.json, its texts are harmless, its size is bounded."""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bltkit.eval.report import write_page
from bltkit.eval.report.items import asked_texts, shared_context, visible
from bltkit.eval.report.page import MAX_BYTES
from bltkit.eval.report.plots import DotPanel, PlotMark, PlotRow, dot_whisker, histogram
from tests.eval_runs import write_run
from tests.html_pages import HOSTILE, Page, check_alone, pictures

NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")


def read(directory: Path) -> Page:
    return check_alone(write_page(directory).read_text(encoding="utf-8"))


def rows_named(page: Page, first: str) -> list[int]:
    """Places of the rows whose header is `first`."""
    return [at for at, row in enumerate(page.rows) if row[0] == first]


def exact(page: Page, row: int) -> set[float]:
    """The numbers that a row is sorted by."""
    return {float(value) for cell in page.cells[row] if (value := cell.get("data-v")) is not None}


def test_every_number_of_the_results_is_in_the_page(tmp_path: Path) -> None:
    """Exactly, where rows are sorted by it, and rounded to three places, or to one on a scale to 100."""
    page = read(write_run(tmp_path / "run", seed=3, limit=40, noise="drop:0.1"))
    results = json.loads((tmp_path / "run/results.json").read_text())
    for key in ("noise", "command"):
        assert results[key] in page.text
    assert results["model"]["name"] in page.text and results["model"]["fingerprint"][:10] in page.text
    for name, task in results["results"].items():
        summary = rows_named(page, name)[0]
        figures = {task[key] for key in ("value", "stderr", "chance", "n", "cut_contexts")} - {None}
        assert figures <= exact(page, summary)
        assert page.rows[summary][1:4] == [name_of(task), shown(task["value"], task), between(task["interval"], task)]
        assert task["prompt_hash"][:10] in page.rows[summary][-1]
        for metric, figure in task["metrics"].items():
            found = [at for at in rows_named(page, metric) if figure["value"] in exact(page, at)]
            assert found and page.rows[found[-1]][1:3] == [
                shown(figure["value"], figure),
                between(figure["interval"], figure),
            ]
        for groups in task["groups"].values():
            if len(groups) < 2:
                continue
            for group, figures in groups.items():
                (row,) = rows_named(page, group)
                assert {one["value"] for one in figures.values()} <= exact(page, row)
                assert between(figures[task["metric"]]["interval"], task) in page.rows[row]
    macro = results["results"]["mmlu"]["macro"]["acc"]
    assert macro["value"] in exact(page, rows_named(page, "acc by subject")[0])


def name_of(task: dict[str, Any]) -> str:
    return task["metric"] if task["mean_over"] == "items" else f"{task['metric']} by {task['mean_over']}"


def shown(value: float, metric: dict[str, Any]) -> str:
    return f"{value:.1f}" if metric["highest"] == 100 else f"{value:.3f}"


def between(ends: Sequence[float] | None, metric: dict[str, Any]) -> str:
    if ends is None:
        return "no spread"
    return f"{shown(ends[0], metric)} to {shown(ends[1], metric)}"


def test_groups_stand_best_first(tmp_path: Path) -> None:
    """Where lower is better, the lowest."""
    page = read(write_run(tmp_path / "run", tasks=("mmlu", "bits_per_byte")))
    for level, best in (("subject", max), ("script", min)):
        (head,) = rows_named(page, level)
        count = 20 if level == "subject" else 4
        values = [float(page.rows[at][1]) for at in range(head + 1, head + 1 + count)]
        assert values == sorted(values, reverse=best is max) and values[0] == best(values)


def swollen(value: Any, more: str) -> Any:
    return value + more if isinstance(value, str) else value


def test_hostile_texts_of_every_field_stay_texts(tmp_path: Path) -> None:
    """Ids, groups, prompts, answers, golds, the model's name and the command; none becomes markup."""

    def spoil(task: str, item: dict[str, Any]) -> dict[str, Any]:
        shown = {**item["shown"], HOSTILE: HOSTILE, "nested": {"<b>": [HOSTILE]}}
        groups = {level: f"{group}{HOSTILE}" for level, group in item["groups"].items()}
        requests = [{key: swollen(value, HOSTILE) for key, value in one.items()} for one in item["requests"]]
        answers = [{**one, "text": HOSTILE} if "text" in one else one for one in item["answers"]]
        return item | {
            "id": item["id"] + HOSTILE, "groups": groups, "shown": shown, "requests": requests, "answers": answers,
        }  # fmt: skip

    page = read(write_run(tmp_path / "run", name=HOSTILE, change=spoil))
    assert page.text.count("alert") > 50 and "\ufffd" in page.text
    assert not any("alert" in script for script in page.scripts)


def test_right_and_wrong_items_are_shown_with_what_was_asked_and_answered(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", tasks=("hellaswag", "cute:spell"))
    page = read(directory)
    records = {
        one["id"]: one for one in map(json.loads, (directory / "records/hellaswag.jsonl").read_text().splitlines())
    }
    right = sum(one["metrics"]["acc_norm"] == 1 for one in records.values())
    assert f"Items: 4 of {right} right, 4 of {len(records) - right} wrong" in page.text
    headings = re.findall(r"(right|wrong) · (item-\d+)", page.text)
    assert len(headings) == 8 and len(set(headings)) == 8
    text = page.text.replace("·", " ")
    for verdict, item in headings:
        record = records[item]
        assert (verdict == "right") == (record["metrics"]["acc_norm"] == 1)
        assert record["requests"][0]["context"] in text
        for number, (request, answer) in enumerate(zip(record["requests"], record["answers"], strict=True)):
            at = [row for row in page.rows if row[0].replace("·", " ") == request["continuation"]]
            share = answer["logprob"] / len(request["continuation"])
            assert [[f"{answer['logprob']:.2f}", f"{share:.2f}"]] == [row[1:3] for row in at]
            is_gold = number == record["shown"]["gold"]
            assert ("gold" in at[0][3]) == is_gold


def test_a_page_stays_small_and_readable_with_many_large_items(tmp_path: Path) -> None:
    def swell(task: str, item: dict[str, Any]) -> dict[str, Any]:
        return item | {
            "requests": [
                {key: swollen(value, "<&\n " * 2000) for key, value in one.items()} for one in item["requests"]
            ],
            "id": item["id"] + "&" * 200,
        }

    names = tuple(f"cute:{number}" for number in range(20))
    directory = write_run(tmp_path / "run", tasks=("hellaswag",), count=40, change=swell)
    results = json.loads((directory / "results.json").read_text())
    records = (directory / "records/hellaswag.jsonl").read_bytes()
    results["results"] = dict.fromkeys(names, results["results"]["hellaswag"])
    (directory / "results.json").write_text(json.dumps(results))
    for name in names:
        (directory / f"records/{name}.jsonl").write_bytes(records)
    place = write_page(directory)
    assert place.stat().st_size <= MAX_BYTES
    page = check_alone(place.read_text(encoding="utf-8"))
    assert len(names) <= len(page.named("article")) < 8 * len(names)


@given(st.text(st.characters(exclude_categories=(), exclude_characters="↵⇥⍽·U…"), max_size=60), st.integers(0, 80))
@example("  a \n\t b  \u202e\u00a0\r\ud800", 60)
def test_white_space_is_seen_and_nothing_else_is_changed(text: str, budget: int) -> None:
    found = "".join(piece for piece, _ in visible(text, budget))
    if len(text) > budget:
        assert f"{len(text) - budget:,} characters" in found
        return
    assert not re.search("[\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\x00-\x08\x0b-\x1f]|^ | $|  ", found)
    back = found.replace("↵\n", "\n").replace("⇥\t", "\t").replace("⍽", "\u00a0").replace("·", " ")
    back = re.sub(r"U\+([0-9A-F]{4})", lambda code: chr(int(code[1], 16)), back)
    controls = {chr(0x2400 + code): chr(code) for code in range(32)}
    back, text = ("".join(controls.get(one, one) for one in each) for each in (back, text))
    assert back == text


def test_what_requests_share_ends_at_a_word() -> None:
    assert shared_context(["Answer: A", "Answer: B"]) == "Answer:"
    assert shared_context(["the cat sat", "the car sat"]) == "the"
    assert shared_context(["the cat", "the cat sat"]) == "the cat"
    assert (
        shared_context(["abc", "abd"]) == "" and shared_context(["only one "]) == "only one " and not shared_context([])
    )
    requests = [{"context": "a", "continuation": " b"}, {"continuation": " c"}, {"context": "", "continuation": "d"}]
    assert asked_texts(requests) == ["a b", "a c", "d"]
    assert asked_texts([{"context": "q", "max_bytes": 4, "stop": []}, {"max_bytes": 4}]) == ["q", "q"]
    assert asked_texts([{"text": "whole", "bytes": 5}]) == ["whole"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_scales_hold_every_value(values: list[float]) -> None:
    """Also one at 0 or without width; differences have 0 in the middle."""
    rows = tuple(PlotRow("x", (PlotMark(value, (value - 1, value + 1)),), chance=0.25) for value in values)
    low, high = DotPanel("p", rows).limits
    assert low <= min(0, min(values) - 1) and high >= max(values) + 1 and low < high
    low, high = DotPanel("p", rows, centred=True).limits
    assert low == -high and max(map(abs, values)) <= high
    assert DotPanel("p", rows, highest=1.0).limits[1] == 1.0
    assert DotPanel("p", (PlotRow("x", (PlotMark(math.nan),)),)).limits[1] > 0


def test_dots_lie_at_their_values_with_their_intervals() -> None:
    pytest.importorskip("matplotlib")
    rows = (
        PlotRow("a", (PlotMark(0.3, (0.2, 0.5)), PlotMark(0.6, None, 9)), "0.300", 0.25),
        PlotRow("b", (PlotMark(math.nan),)),
    )
    figure = dot_whisker([DotPanel("higher is better", rows, 1.0), DotPanel("lower is better", rows[:1])])
    axes, other = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0.3], [0.6]] and len(other.lines) == 2
    spans = [path.vertices[:, 0].tolist() for lines in axes.collections for path in lines.get_paths()]
    assert [0.2, 0.5] in spans and [0.25, 0.25] in spans
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row is at the top"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.booleans())
@settings(max_examples=15, deadline=None)
def test_histograms_count_every_value_once(values: list[float], signed: bool) -> None:
    pytest.importorskip("matplotlib")
    (axes,) = histogram(values, signed=signed).axes
    assert sum(bar.get_height() for bar in axes.patches) == len(values)


def test_zero_divides_the_bars_of_margins() -> None:
    """Those at 0 or above are of the right one's colour."""
    pytest.importorskip("matplotlib")
    (axes,) = histogram([-2.0, -0.001, 0.0, 0.001, 3.0, 3.1], signed=True).axes
    counts: dict[Any, float] = {}
    for bar in axes.patches:
        counts[bar.get_facecolor()] = counts.get(bar.get_facecolor(), 0) + bar.get_height()
    assert list(counts.values()) == [2, 4]


def test_chance_and_cut_contexts_are_said(tmp_path: Path) -> None:
    page = read(write_run(tmp_path / "run", tasks=("hellaswag", "g2p")))
    assert re.search(r"hellaswag, acc_norm: [^;]*, chance 0.250; ", page.named("img")[0]["alt"] or "")
    assert "480 contexts cut" not in page.text
    page = read(write_run(tmp_path / "mmlu", tasks=("mmlu",)))
    assert page.rows[rows_named(page, "mmlu")[0]][-2] == "3 of 480"
    assert "3 of 480 contexts cut on the left, the model is shown 2,047 bytes at once" in page.text


def test_pictures_show_the_values_and_are_left_out_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    directory = write_run(tmp_path / "run")
    page = read(directory)
    results = json.loads((directory / "results.json").read_text())["results"]
    overview = pictures(page)[0]
    assert all(f">{name}</text>" in overview and shown(one["value"], one) in overview for name, one in results.items())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = read(directory)
    assert not without.named("img") and without.rows == page.rows
    assert without.text.count("pip install 'bltkit[plot]'") == 1 and "bltkit[plot]" not in page.text


def test_a_value_that_is_missing_is_a_dash(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", tasks=("g2p",))
    results = json.loads((directory / "results.json").read_text())
    for one in (results["results"]["g2p"], results["results"]["g2p"]["metrics"]["exact_match"]):
        one.update(value=None, stderr=math.nan, interval=None, interval_method=None)
    (directory / "results.json").write_text(json.dumps(results))
    page = read(directory)
    assert page.rows[rows_named(page, "g2p")[0]][2:5] == ["—", "—", "—"]
