"""Several evaluations side by side: paired differences are those of the plain computation, unlike runs are refused."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltkit.cli import main
from bltkit.eval.intervals import paired_shares, paired_shares_over_groups
from bltkit.eval.report import compare, differences, write_comparison, write_page
from bltkit.eval.report.differences import DRAWS, Difference
from bltkit.eval.report.pairing import MAX_RUNS
from bltkit.eval.tasks.translation import Translation
from tests.eval_runs import METRICS, Item, value_of, write_run
from tests.html_pages import HOSTILE, Page, check_alone

Records = dict[str, Item]


def records(directory: Path, task: str) -> Records:
    lines = (directory / f"records/{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["id"]: one for one in map(json.loads, lines)}


def resampled(first: Records, other: Records, value: Callable[[Sequence[Item]], float]) -> tuple[float, list[float]]:
    """Difference and paired interval."""
    exact, gains = drawn_gains(first, other, value)
    return exact, list(np.quantile(gains, [0.025, 0.975]))


def drawn_gains(first: Records, other: Records, value: Callable[[Sequence[Item]], float]) -> tuple[float, list[float]]:
    """The difference, and that of every draw, which is a list of items, some of them several times."""
    ids = [item for item in first if item in other]
    draws = np.random.default_rng(0).multinomial(len(ids), [1 / len(ids)] * len(ids), size=DRAWS)
    gains = []
    for times in draws:
        drawn = [item for item, count in zip(ids, times, strict=True) for _ in range(count)]
        gains.append(value([other[item] for item in drawn]) - value([first[item] for item in drawn]))
    return value([other[item] for item in ids]) - value([first[item] for item in ids]), gains


def resampled_by_group(first: Records, other: Records) -> tuple[float, list[float]]:
    """The same of the mean over subjects, items drawn within their own."""
    groups: dict[str, Records] = {}
    for item, record in first.items():
        if item in other:
            groups.setdefault(record["groups"]["subject"], {})[item] = record
    found = [drawn_gains(group, other, lambda items: value_of("acc", items)) for group in groups.values()]
    exact, gains = (np.mean([one[part] for one in found], axis=0) for part in (0, 1))
    return float(exact), list(np.quantile(gains, [0.025, 0.975]))


def plain_interval(first: Records, other: Records, metric: str, level: str | None) -> list[float]:
    """Of shares, from counts of who is right."""
    groups: dict[str, list[float]] = {}
    for item, record in first.items():
        if item in other:
            gain = other[item]["metrics"][metric] - record["metrics"][metric]
            groups.setdefault(record["groups"][level] if level else "", []).append(gain)
    return list(paired_shares_over_groups([(g.count(1.0), g.count(-1.0), len(g)) for g in groups.values()]))


def found(differences: Sequence[Difference], metric: str, level: str | None = None) -> Difference:
    (one,) = (one for one in differences if (one.metric, one.level) == (metric, level))
    return one


@pytest.mark.parametrize("task", [name for name in METRICS if name != "translation"])
def test_paired_intervals_equal_the_plain_computation(task: str, tmp_path: Path) -> None:
    """Over means, quotients of sums and macro means, on the common items of runs that answered different ones."""
    keep = {"first": range(50), "other": range(8, 70)}
    one, two = (
        write_run(
            tmp_path / name,
            name=name,
            tasks=(task,),
            count=70,
            change=lambda _, item, name=name: item if int(re.findall(r"\d+", item["id"])[0]) in keep[name] else None,
        )
        for name in keep
    )
    (pair,) = compare([one, two]).pairs
    assert (pair.common, pair.only_first, pair.only_other) == (42, 8, 20)
    a, b = records(one, task), records(two, task)
    cases = {(metric, None): resampled(a, b, partial(value_of, metric)) for metric in METRICS[task]}
    if task == "mmlu":
        cases["acc", "subject"] = resampled_by_group(a, b)
    assert len(pair.differences) == len(cases) and not pair.unknown
    for (metric, level), (exact, interval) in cases.items():
        difference = found(pair.differences, metric, level)
        assert difference.interval is not None
        if difference.method != "bootstrap":  # a share: see tests/test_intervals.py
            assert difference.method == ("bonett-price" if level is None else "bonett-price by group")
            assert all({0.0, 1.0} >= {item["metrics"][metric] for item in side.values()} for side in (a, b))
            interval = plain_interval(a, b, metric, level)
        assert [difference.value, *difference.interval] == pytest.approx([exact, *interval], abs=1e-12)
        assert difference.n == 42


def test_metrics_of_many_sums_are_resampled_as_their_task_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLEU; of a task that this version does not know nothing is claimed."""
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(differences, "TASKS", {"translation": Translation})
    runs = [write_run(tmp_path / name, name=name, tasks=("translation",), count=30) for name in "ab"]
    a, b = (records(one, "translation") for one in runs)
    exact, interval = resampled(a, b, lambda items: value_of("bleu_char", items))
    difference = found(compare(runs).pairs[0].differences, "bleu_char")
    assert difference.interval is not None
    assert [difference.value, *difference.interval] == pytest.approx([exact, *interval], abs=1e-9)
    monkeypatch.setattr(differences, "TASKS", {})
    pair = write_comparison(runs, tmp_path / "page.html").pairs[0]
    assert pair.unknown == ("bleu_char",) and not pair.differences
    assert "No difference can be worked out for translation (bleu_char)" in read(tmp_path / "page.html").text


def test_missing_metrics_of_items_are_left_out_on_both_sides(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", tasks=("g2p",), count=30)
    two = write_run(tmp_path / "two", name="other", tasks=("g2p",), count=30)
    left = [item for item in records(one, "g2p") if int(item.split("-")[1]) % 3]
    lines = [item if key in left else item | {"metrics": {}} for key, item in records(two, "g2p").items()]
    (two / "records/g2p.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    (two / "results.json").write_text((two / "results.json").read_text().replace('"n": 30', '"n": 20'))
    (pair,) = compare([one, two]).pairs
    for metric in METRICS["g2p"]:
        a, b = (value_of(metric, [records(each, "g2p")[item] for item in left]) for each in (one, two))
        difference = found(pair.differences, metric)
        assert (difference.n, difference.value) == (20, pytest.approx(b - a))


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_what_is_better_depends_on_the_metric(better: str, tmp_path: Path) -> None:
    task = "cute:spell" if better == "higher" else "bits_per_byte"
    weak, strong = (
        write_run(tmp_path / str(skill), skill=skill, tasks=(task,), name=f"m{skill}") for skill in (0.2, 0.9)
    )
    (forth,), (back,) = compare([weak, strong]).pairs, compare([strong, weak]).pairs
    assert [one.statement for one in forth.differences] == ["better"]
    assert [one.statement for one in back.differences] == ["worse"]
    assert len(forth.other_better) > len(forth.first_better)
    assert back.first_better == forth.other_better and back.other_better == forth.first_better
    (same,) = compare([weak, shutil.copytree(weak, tmp_path / "copy")]).pairs
    assert [(one.value, one.statement) for one in same.differences] == [(0, "not clear")]


def test_items_are_counted_by_who_got_them_right(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name=name, tasks=("hellaswag",)) for name in "ab"]
    pair = compare(runs).pairs[0]
    a, b = (records(one, "hellaswag") for one in runs)
    verdicts = {item: (a[item]["metrics"]["acc_norm"], b[item]["metrics"]["acc_norm"]) for item in a}
    assert set(pair.first_better) == {item for item, both in verdicts.items() if both == (1, 0)}
    assert set(pair.other_better) == {item for item, both in verdicts.items() if both == (0, 1)}
    assert pair.both_right == sum(both == (1, 1) for both in verdicts.values())
    assert pair.alike == len(a) - len(pair.first_better) - len(pair.other_better)


def read(place: Path) -> Page:
    return check_alone(place.read_text(encoding="utf-8"))


def test_the_page_shows_values_differences_and_disagreements(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name=name, skill=skill) for name, skill in (("a", 0.4), ("b", 0.6), ("c", 0.9))]
    comparison = write_comparison(runs, tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    sorted_by = [{float(v) for cell in row if (v := cell.get("data-v")) is not None} for row in page.cells]
    for at, directory in enumerate(runs):
        for task, result in json.loads((directory / "results.json").read_text())["results"].items():
            for metric, figure in result["metrics"].items():
                rows = [n for n, row in enumerate(page.rows) if row[:2] == [task, metric] and len(row) == 6]
                assert float(page.cells[rows[0]][3 + at]["data-v"] or "") == figure["value"]
    for pair in comparison.pairs:
        for one in pair.differences:
            assert any({one.first, one.other, one.value, one.n} <= values for values in sorted_by)
    assert page.text.count("3 of ") >= 10 and "b against a" in page.text and "c against a" in page.text
    assert "not compared" not in page.text and not any(one.get("class") == "warning" for one in page.named("p"))


def other_data(task: str, item: Item) -> Item:
    changed = [{**one, "continuation": one["continuation"] + "!"} for one in item["requests"]]
    return item | {"requests": changed} if item["id"] == "item-3" else item


def asked_otherwise(item: Item) -> Item:
    """As noise changes it: other prompts, the same right answers."""
    return item | {"requests": [{**one, "continuation": one["continuation"].upper()} for one in item["requests"]]}


def other_gold(task: str, item: Item) -> Item:
    changed = {**item["shown"], "gold": item["shown"]["gold"] + 1}
    return asked_otherwise(item) | ({"shown": changed} if item["id"] in ("item-3", "item-5") else {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"change": other_data}, "1 of 120 common items were asked otherwise, such as 'item-3'"),
        ({"change": other_gold, "noise": "drop:0.1"}, "2 of 120 common items have another right answer, such as "),
        ({"change": lambda _, item: item | {"id": "x" + item["id"]}}, "no item is in both"),
    ],
)
def test_what_is_not_comparable_is_said_and_not_compared(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "one", tasks=("hellaswag",)),
        write_run(tmp_path / "two", name="other", tasks=("hellaswag",), **changes),
    ]
    comparison = write_comparison(runs, tmp_path / "page.html")
    (pair,) = comparison.pairs
    assert not pair.differences and not pair.first_better and words in pair.reasons[0]
    page = read(tmp_path / "page.html")
    assert words in page.text and [one for one in page.named("p") if one.get("class") == "warning"]
    assert "Item by item" not in page.text and "difference" not in [cell for row in page.rows for cell in row]
    assert words in comparison.summary() and comparison.to_json()["pairs"][0]["not_compared"] == list(pair.reasons)


def test_settings_that_differ_are_named_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise, the limit with its items, the window and the strategy."""
    clean = write_run(tmp_path / "clean", tasks=("hellaswag", "mmlu"))
    noisy = write_run(
        tmp_path / "noisy",
        tasks=("hellaswag", "mmlu"),
        noise="drop:0.1",
        limit=100,
        count=100,
        change=lambda _, item: asked_otherwise(item),
    )
    for directory, strategy in ((clean, "ar"), (noisy, "speculative:draft=8")):
        results = json.loads((directory / "results.json").read_text())
        results["model"]["strategy"] = strategy
        if directory is noisy:
            results["results"]["mmlu"]["window"]["size"] = 511
        (directory / "results.json").write_text(json.dumps(results))
    comparison = write_comparison([clean, noisy], tmp_path / "page.html")
    hellaswag, mmlu = comparison.pairs
    assert not hellaswag.reasons and {one.metric for one in hellaswag.differences} == {"acc_norm", "acc"}
    assert hellaswag.differences[0].n == 100
    noise = "noise differs: none and drop:0.1; `blt study robustness` measures it at intensities"
    others = (
        "the strategy differs: ar and speculative:draft=8",
        "100 items of both are compared, 20 and 0 are in one only (limits none and 100)",
    )
    assert hellaswag.settings == (noise, *others)
    window = "the models are shown 2,047 bytes and 511 bytes at once, 3 and 3 contexts are cut"
    assert mmlu.settings == (noise, window, *others)
    page = read(tmp_path / "page.html").text
    for said in mmlu.settings:
        assert said in page and said in comparison.summary()
    assert comparison.to_json()["pairs"][0]["settings"] == [noise, *others] and "not compared" not in page
    assert main(["study", "evaluations", str(clean), str(noisy), "--out", str(tmp_path / "again.html")]) == 0
    assert noise in capsys.readouterr().out


def test_results_of_version_0_1_0_are_read_without_their_false_certainty(tmp_path: Path) -> None:
    """They have no method, chance, window or strategy; shares at 0 have intervals without width."""
    runs = [write_run(tmp_path / name, name=name, tasks=("cute:spell",), skill=-1.0, count=20) for name in "ab"]
    for directory in runs:
        results = json.loads((directory / "results.json").read_text())
        task = results["results"]["cute:spell"]
        for one in (task, task["metrics"]["exact_match"]):
            del one["interval_method"], one["chance"]
            one.update(stderr=0.0, interval=[0.0, 0.0])
        del task["contexts"], task["window"]
        (directory / "results.json").write_text(json.dumps(results))
    page = check_alone(write_page(runs[0]).read_text(encoding="utf-8"))
    assert "0.000 to 0.000" not in page.text
    (pair,) = write_comparison(runs, tmp_path / "page.html").pairs
    assert pair.settings == () and pair.differences[0].interval == pytest.approx(paired_shares(0, 0, 20))
    assert "0.000 to 0.000" not in read(tmp_path / "page.html").text


def test_one_item_and_items_that_all_differ_by_the_same_have_no_interval(tmp_path: Path) -> None:
    def alike(task: str, item: Item) -> Item:
        return item | {"metrics": {name: [float(name_of_run[-1]), 2.0] for name in item["metrics"]}}

    for count, tasks, words in ((1, ("hellaswag",), "one item"), (9, ("g2p",), "no spread")):
        runs = []
        for name_of_run in ("run-1", "run-2"):
            change = alike if tasks == ("g2p",) else lambda _, item: item
            place = tmp_path / f"{count}-{name_of_run}"
            runs.append(write_run(place, name=name_of_run, tasks=tasks, count=count, change=change))
        comparison = compare(runs)
        for one in comparison.pairs[0].differences:
            assert (one.interval, one.method, one.statement) == (None, words, "not clear")
        assert f", {words}, not clear, {count} item" in comparison.summary()


def test_runs_without_a_common_task_and_hostile_names(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "one", name=HOSTILE, tasks=("hellaswag",)),
        write_run(tmp_path / "two", name=HOSTILE, tasks=("g2p",)),
    ]
    comparison = write_comparison(runs, tmp_path / "page.html")
    assert comparison.labels == (f"{HOSTILE} (one)", f"{HOSTILE} (two)") and not comparison.pairs
    assert "no task in common" in read(tmp_path / "page.html").text


def broken(directory: Path, name: str, text: str | None) -> None:
    path = directory / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("results.json", None, "no results.json in it"),
        ("results.json", '{"format": 1', "not JSON"),
        ("results.json", '{"format": 7}', "format 7"),
        ("results.json", '{"format": 1, "model": 3, "seed": 0, "results": {}}', "model"),
        ("records/hellaswag.jsonl", None, "--resume"),
        ("records/hellaswag.jsonl", "", "0 items, results.json counts 120"),
        ("records/hellaswag.jsonl", '{"id": 3}\n', "line 1: not an item's record"),
        ("records/hellaswag.jsonl", "[]\n", "line 1: not an item's record"),
    ],
)
def test_what_is_no_finished_evaluation_is_refused_in_one_line(
    name: str, text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_run(tmp_path / "run", tasks=("hellaswag",))
    good = write_run(tmp_path / "good", name="good", tasks=("hellaswag",))
    broken(directory, name, text)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        write_page(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)
    with pytest.raises(ValueError, match=re.escape(words)):
        write_comparison([good, directory], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists() and not (directory / "report.html").exists()
    assert main(["study", "evaluations", str(directory)]) == 2
    assert words in capsys.readouterr().err


def test_the_command_writes_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (str(write_run(tmp_path / name, name=name, tasks=("g2p",))) for name in "ab")
    out = str(tmp_path / "runs.html")
    assert main(["study", "evaluations", one]) == 0 and Path(one, "report.html").is_file()
    capsys.readouterr()
    assert main(["study", "evaluations", one, two, "--out", out, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"] == out and said["pairs"][0]["differences"][0]["metric"] == "exact_match"
    assert main(["study", "evaluations", one, two, "--out", out]) == 0
    assert capsys.readouterr().out == compare([Path(one), Path(two)]).summary()
    for wrong in (
        [one, two],
        [one, one, "--out", out],
        [one, "--out", "page.txt"],
        [one, *[two] * MAX_RUNS, "--out", out],
    ):
        assert main(["study", "evaluations", *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_runs_without_a_common_task_are_said_to_have_none(tmp_path: Path) -> None:
    first, other = write_run(tmp_path / "a", tasks=("hellaswag",)), write_run(tmp_path / "b", tasks=("g2p",))
    assert compare([first, other]).summary().endswith(": no task in common\n")
