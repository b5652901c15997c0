"""The page of one evaluation: its numbers are those of results.json, its texts are harmless, its size is bounded."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from bltkit.eval.report import write_page
from bltkit.eval.report.items import asked_texts, shared_context, visible
from bltkit.eval.report.lanes import Mark, axis, centred, histogram, lane
from bltkit.eval.report.page import MAX_BYTES
from tests.eval_runs import write_run
from tests.html_pages import Page, check_alone
from tests.test_html import HOSTILE, Texts

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
        values = [float(page.rows[at][2]) for at in range(head + 1, head + 1 + count)]
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

    names = tuple(f"cute:{number}" for number in range(30))
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
    assert len(page.named("article")) >= len(names)


@given(st.text(st.characters(exclude_categories=(), exclude_characters="↵⇥⍽·U…"), max_size=60), st.integers(0, 80))
@example("  a \n\t b  \u202e\u00a0\r\ud800", 60)
def test_white_space_is_seen_and_nothing_else_is_changed(text: str, budget: int) -> None:
    found = Texts(visible(text, budget)).text
    if len(text) > budget:
        assert f"{len(text) - budget:,} characters" in found
        return
    assert not re.search("[\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\x00-\x08\x0b-\x1f]|^ | $|  ", found)
    back = found.replace("↵\n", "\n").replace("⇥\t", "\t").replace("⍽", "\u00a0").replace("·", " ")
    back = re.sub(r"U\+([0-9A-F]{4})", lambda code: chr(int(code[1], 16)), back)
    controls = {chr(0x2400 + code): chr(code) for code in range(32)}
    back, text = ("".join(controls.get(one, one) for one in each) for each in (back, text))
    assert back == re.sub("[\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)


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


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.sampled_from([None, 1.0, 100.0]))
def test_drawings_hold_every_value(values: list[float], highest: float | None) -> None:
    """Axes reach over all values (or are the scale), and a histogram's bars count every value once."""
    scale = axis(values, highest)
    assert scale.low < scale.high and scale.ticks == tuple(sorted(set(scale.ticks))) and 2 <= len(scale.ticks) <= 13
    if highest is None:
        assert scale.low <= min(values) and max(values) <= scale.high
    middle = centred(values)
    assert middle.low == -middle.high and 0.0 in middle.ticks and max(map(abs, values)) <= middle.high
    markup = lane(scale, [Mark(value, (value, value), at) for at, value in enumerate(values[:8])], "t")
    places = [float(place) for place in re.findall(r'x1?="(-?[\d.e+-]+)%"', markup)]
    assert all(0 <= place <= 100 for place in places)
    for signed in (False, True):
        counts = re.findall(r"<rect.*?: (\d+)</title>", histogram(values, "t", signed=signed))
        assert sum(map(int, counts)) == len(values)


def test_zero_divides_the_bars_of_margins() -> None:
    """Those at 0 or above are of the right one's colour."""
    markup = histogram([-2.0, -0.001, 0.0, 0.001, 3.0, 3.1], "t", signed=True)
    kinds = {kind: sum(map(int, re.findall(rf'class="{kind}"><title>[^<]*: (\d+)<', markup))) for kind in "np"}
    assert kinds == {"n": 2, "p": 4}


def test_chance_is_a_line_where_there_is_one_and_cut_contexts_are_said(tmp_path: Path) -> None:
    place = write_page(write_run(tmp_path / "run", tasks=("hellaswag", "g2p")))
    markup = place.read_text(encoding="utf-8")
    assert markup.count('class="z chance"') == 1 and 'x1="25%" x2="25%" y2="22" class="z chance"' in markup
    assert re.search(r"hellaswag, acc_norm: [^<]*, chance 0.250</title>", markup)
    assert "480 contexts cut" not in markup
    page = read(write_run(tmp_path / "mmlu", tasks=("mmlu",)))
    assert page.rows[rows_named(page, "mmlu")[0]][-2] == "3 of 480"
    assert "3 of 480 contexts cut on the left, the model is shown 2,047 bytes at once" in page.text


def test_a_value_that_is_missing_is_a_dash(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", tasks=("g2p",))
    results = json.loads((directory / "results.json").read_text())
    for one in (results["results"]["g2p"], results["results"]["g2p"]["metrics"]["exact_match"]):
        one.update(value=None, stderr=math.nan, interval=None, interval_method=None)
    (directory / "results.json").write_text(json.dumps(results))
    page = read(directory)
    assert page.rows[rows_named(page, "g2p")[0]][2:5] == ["—", "—", "—"]
