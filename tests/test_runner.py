"""The runner: resumable, deterministic, honest about what it left out; and the statistics of its results."""

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import parse_noise
from bltkit.eval.paired_noise import evaluate_pairs
from bltkit.eval.report.stored_runs import read_run
from bltkit.eval.runner import RESULTS, Settings, evaluate, file_name
from bltkit.eval.statistics import estimate, mean_of
from bltkit.eval.tasks import TASKS, Metric, Task, parse_task, parse_tasks
from bltkit.eval.tasks.gsm8k import Gsm8k
from tests.eval_fakes import Chance, Counted, Known, Oracle, items_of
from tests.eval_rows import place_of

NAMES = ["hellaswag", "mmlu", "blimp", "g2p", "bpb"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path / "data", *TASKS)


def tasks() -> tuple[Task, ...]:
    return parse_tasks(NAMES)


def written(out: Path) -> dict[str, bytes]:
    """What an evaluation left, without the time it took."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    results = json.loads(files.pop(RESULTS))
    for result in results["results"].values():
        assert result.pop("seconds") >= 0
    return {**files, RESULTS: json.dumps(results).encode()}


def test_an_evaluation_that_broke_off_goes_on_where_it_was(place: Place, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = Counted(Known())
    evaluate(first, tasks(), place, out=whole)
    count = 0
    for limit in (0, 1, 5, 9, 10_000):
        subject = Counted(Known(), limit)
        try:
            evaluate(subject, tasks(), place, out=broken, resume=count > 0 or broken.exists())
        except KeyboardInterrupt:
            assert not (broken / RESULTS).exists()
        count += subject.count
    assert written(whole) == written(broken)
    # An item whose requests were answered in part is asked anew; nothing else is.
    assert first.count <= count <= first.count + 4 * 4
    again = Counted(Known())
    evaluate(again, tasks(), place, out=broken, resume=True)
    assert again.count == 0
    assert written(whole) == written(broken)


def test_a_line_that_was_cut_off_is_asked_anew(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), tasks(), place, out=out)
    before = written(out)
    journal = out / "records" / "blimp.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    subject = Counted(Known())
    evaluate(subject, tasks(), place, out=out, resume=True)
    assert subject.count == 2
    assert written(out) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", {"acc": float("nan")}),
        ("metrics", {"acc": [1.0, float("inf")]}),
        ("metrics", {"acc": 10**400}),
        ("metrics", {"acc": ["a", "b"]}),
        ("metrics", []),
        ("cut", "x"),
        ("cut", -5),
        ("groups", ["a"]),
        ("shown", [1]),
        ("answers", 5),
        ("id", [1]),
        ("id", 5),
        ("asked", None),
    ],
)
def test_a_record_that_is_damaged_is_named(field: str, value: object, place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), parse_tasks(["blimp"]), place, out=out)
    journal = out / "records" / "blimp.jsonl"
    first, *others = journal.read_text().splitlines(keepends=True)
    journal.write_text(json.dumps({**json.loads(first), field: value}) + "\n" + "".join(others))
    with pytest.raises(ValueError, match=r"^[^\n]*blimp\.jsonl, line 1[^\n]*$"):
        evaluate(Known(), parse_tasks(["blimp"]), place, out=out, resume=True)
    if field != "cut":  # which pages take from results.json
        with pytest.raises(ValueError, match=r"^[^\n]*blimp\.jsonl, line 1[^\n]*$"):
            dict(read_run(out).entries)


@pytest.mark.parametrize(
    "result", [{}, {"n": 1}, {"n": 1, "metric": "acc", "value": "x"}, {"n": 1, "metric": "acc", "value": math.nan}, []]
)
def test_a_kept_result_that_is_damaged_is_named(result: object, place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), parse_tasks(["piqa"]), place, out=out)
    (out / RESULTS).write_text(json.dumps({"results": {"boolq": result}}))
    with pytest.raises(ValueError, match=r"^[^\n]*results\.json[^\n]*remove it and resume with all tasks"):
        evaluate(Known(), parse_tasks(["piqa"]), place, out=out, resume=True)


def test_a_pipe_in_place_of_records_is_named(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), parse_tasks(["piqa"]), place, out=out)
    (out / "records" / "piqa.jsonl").unlink()
    os.mkfifo(out / "records" / "piqa.jsonl")
    with pytest.raises(ValueError, match=r"piqa\.jsonl is a named pipe"):
        evaluate(Known(), parse_tasks(["piqa"]), place, out=out, resume=True)


def test_results_are_the_same_whatever_the_order_of_tasks(place: Place) -> None:
    forth = evaluate(Known(), tasks(), place).results
    back = evaluate(Known(), tasks()[::-1], place).results
    for name in NAMES:
        assert {**forth[name], "seconds": 0} == {**back[name], "seconds": 0}


def test_other_settings_are_another_evaluation(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), tasks(), place, out=out)
    with pytest.raises(ValueError, match="--resume"):
        evaluate(Known(), tasks(), place, out=out)
    with pytest.raises(ValueError, match=r"limit was null, and is 1"):
        evaluate(Known(), tasks(), place, out=out, resume=True, settings=Settings(limit=1))
    with pytest.raises(ValueError, match="holds no evaluation"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
        evaluate(Known(), tasks(), place, out=tmp_path / "mine", resume=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not touch"


def test_further_tasks_join_an_evaluation(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), parse_tasks(["piqa"]), place, out=out)
    found = evaluate(Known(), parse_tasks(["boolq"]), place, out=out, resume=True)
    assert list(found.results) == ["piqa", "boolq"]
    assert json.loads((out / RESULTS).read_text())["results"].keys() == found.results.keys()


def test_changed_data_are_asked_anew(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Known(), parse_tasks(["piqa"]), place, out=out)
    file = tmp_path / "data" / "piqa.jsonl"
    file.write_text(file.read_text().replace("Wait a while", "Wait an hour"))
    subject = Counted(Known())
    evaluate(subject, parse_tasks(["piqa"]), place, out=out, resume=True)
    assert subject.count == 2


def test_a_limit_holds_for_each_part(place: Place) -> None:
    found = evaluate(Known(), parse_tasks(["mmlu", "arc_easy"]), place, settings=Settings(limit=1)).results
    assert (found["mmlu"]["n"], found["arc_easy"]["n"]) == (2, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Settings(limit=0)


def test_a_task_twice_and_code_without_consent_are_refused_before_anything_is_asked(place: Place) -> None:
    subject = Counted(Known())
    with pytest.raises(ValueError, match="twice"):
        evaluate(subject, parse_tasks(["piqa,piqa"]), place)
    with pytest.raises(ValueError, match="--allow-code-execution"):
        evaluate(subject, parse_tasks(["piqa,humaneval"]), place)
    assert subject.count == 0


def test_a_result_says_what_it_is_of(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    noise = parse_noise("drop:0.2")
    found = evaluate(Known(), tasks(), place, out=out, settings=Settings(noise=noise), command="blt eval").to_json()
    assert found["noise"] == "drop:0.2" and found["command"] == "blt eval"
    assert found["model"] == {"name": "fake", "kind": "bltkit", "fingerprint": "0" * 64, "strategy": None}
    assert json.loads((out / RESULTS).read_text()) == json.loads(json.dumps(found))
    for name, result in found["results"].items():
        lines = (out / result["records"]).read_text().splitlines()
        assert len(lines) == sum(1 for _ in items_of(parse_task(name), place))
        assert set(json.loads(lines[0])) >= {"id", "groups", "metrics", "shown", "requests", "answers"}
    mmlu = found["results"]["mmlu"]
    assert mmlu["groups"]["subject"].keys() == {"sums", "high_sums"}
    assert mmlu["macro"]["level"] == "subject"
    means = [group["acc"]["value"] for group in mmlu["groups"]["subject"].values()]
    assert mmlu["macro"]["acc"]["value"] == pytest.approx(sum(means) / 2)


def test_pairs_compare_the_same_items_clean_and_noisy(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "real.jsonl"
    pair = {"clean": "Question: What has feathers?", "noisy": "Qestion: wht has fethers"}
    file.write_text(json.dumps(pair) + "\n" + json.dumps({"clean": "Bees make", "noisy": "Bes mak"}) + "\n")
    task = parse_task("arc_easy")
    item = [one for one in items_of(task, place) if one["query"] == pair["clean"]]

    class Fooled(Oracle):
        """Knows the clean item, and believes the opposite of the noisy one."""

        def answers(self, requests):  # type: ignore[no-untyped-def]
            self.asked = 0
            self.lies = b"fethers" in getattr(requests[0], "context", b"")
            self.truths = Oracle.of(task, item).truths if hasattr(requests[0], "context") else [True, False] * 2
            yield from super().answers(requests)

    found = evaluate_pairs(Fooled([]), [task], place, file, tmp_path / "out")
    assert found.clean is not None and found.noisy is not None
    clean, noisy = found.clean.results["arc_easy"], found.noisy.results["arc_easy"]
    assert (clean["n"], clean["value"], clean["left_out"]) == (1, 1.0, 2)
    assert (noisy["n"], noisy["value"], noisy["left_out"]) == (1, 0.0, 2)
    assert found.gaps["arc_easy"]["value"] == -1.0
    assert found.texts.results["paired"]["n"] == 2
    with pytest.raises(ValueError, match="covers none of its 2 items"):
        evaluate_pairs(Known(), [parse_task("boolq")], place, file, tmp_path / "none")


def test_a_gap_is_a_mean_over_groups_where_the_result_is_one(place: Place, tmp_path: Path) -> None:
    task = parse_task("blimp")
    texts = {item[name] for item in items_of(task, place) for name in task.damaged}
    file = tmp_path / "real.jsonl"
    file.write_text("".join(json.dumps({"clean": text, "noisy": f"{text} x"}) + "\n" for text in sorted(texts)))
    found = evaluate_pairs(Known(), [task], place, file, tmp_path / "out")
    assert found.clean is not None and found.noisy is not None
    values = [side.results["blimp"]["value"] for side in (found.noisy, found.clean)]
    assert found.gaps["blimp"]["value"] == pytest.approx(values[0] - values[1])


def test_pairs_go_into_no_directory_of_another_evaluation_nor_leave_half_of_theirs(
    place: Place, tmp_path: Path
) -> None:
    file, out = tmp_path / "real.jsonl", tmp_path / "out"
    file.write_text(json.dumps({"clean": "Nothing of the data.", "noisy": "nothing"}) + "\n")
    with pytest.raises(ValueError, match="covers none"):
        evaluate_pairs(Known(), [parse_task("boolq")], place, file, out)
    assert not out.exists()
    evaluate(Known(), parse_tasks(["piqa"]), place, out=out)
    with pytest.raises(ValueError, match="--resume"):
        evaluate_pairs(Known(), [], place, file, out)
    assert not (out / "texts").exists()


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(0, 9))
def test_a_share_has_the_binomial_error_and_an_interval_around_it(right: list[bool], seed: int) -> None:
    found = estimate(Metric(), [(float(one), 1.0) for one in right], (seed,)).estimate
    share = sum(right) / len(right)
    assert found.value == pytest.approx(share)
    error = (share * (1 - share) / len(right)) ** 0.5
    assert found.stderr == (pytest.approx(error) if error else None)
    assert found.interval is not None and 0 <= found.interval[0] <= share <= found.interval[1] <= 1


def test_the_short_way_of_a_share_draws_what_the_long_way_does() -> None:
    right = [1.0] * 30 + [0.0] * 70
    short = estimate(Metric(), [(one, 1.0) for one in right], (0,))
    # Twice the weight each: the same mean, by the way of any rate.
    long = estimate(Metric(), [(2 * one, 2.0) for one in right], (0,))
    assert short.estimate.value == long.estimate.value == 0.3
    assert short.resampled.std() == pytest.approx(long.resampled.std(), rel=0.1)
    assert long.estimate.stderr == pytest.approx(short.estimate.stderr, rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_a_rate_is_that_of_the_sums(items: list[tuple[float, int]]) -> None:
    found = estimate(Metric("lower"), [(above, float(below)) for above, below in items], (1,)).estimate
    assert found.value == pytest.approx(sum(above for above, _ in items) / sum(below for _, below in items))
    assert found.interval is None or found.interval[0] < found.interval[1]


def test_a_mean_over_groups_weighs_them_the_same() -> None:
    groups = {
        "small": estimate(Metric(), [(1.0, 1.0)] * 3 + [(0.0, 1.0)], (0,)),
        "large": estimate(Metric(), [(0.0, 1.0)] * 99 + [(1.0, 1.0)], (0,)),
    }
    found = mean_of(groups)
    error = (0.75 * 0.25 / 4 + 0.01 * 0.99 / 100) ** 0.5 / 2
    assert (found.n, found.value, found.stderr) == (104, pytest.approx(0.38), pytest.approx(error))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        items = [(float(value), 1.0) for value in rng.normal(5, 2, size=40)]
        interval = estimate(Metric(), items, (trial,)).estimate.interval
        assert interval is not None
        hits += interval[0] <= 5 <= interval[1]
    assert 175 <= hits <= 199


def test_file_names_are_plain_and_no_two_tasks_have_the_same() -> None:
    assert file_name("cute:spell") == "cute-spell"
    names = [
        "bpb:a,b",
        "bpb:a-b",
        "bpb:a",
        "bpb:a,max_bytes=2",
        "bpb-a",
        "bpb:" + "x" * 300,
        "bpb:" + "x" * 301,
        "ä" * 99,
    ]
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(len(f"{name}.jsonl".encode()) < 200 and "/" not in name for name in found)


def test_a_gold_that_was_corrected_is_graded_anew(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = parse_task("arc_easy")
    before = evaluate(Oracle.of(task, items_of(task, place)), [task], place, out=out).results["arc_easy"]
    file = tmp_path / "data" / "arc_easy.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    truths = [at == row["gold"] for row in rows for at in range(len(row["choices"]))][: len(rows[0]["choices"])]
    rows[0]["gold"] = (rows[0]["gold"] + 1) % len(rows[0]["choices"])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = evaluate(Oracle(truths), [task], place, out=out, resume=True).results["arc_easy"]
    assert before["value"] == 1.0
    assert after["metrics"]["acc"]["value"] == pytest.approx(1 - 1 / len(rows))
    assert after["prompt_hash"] == before["prompt_hash"]


class Broken(Known):
    """Its weights are not numbers."""

    def answers(self, requests):  # type: ignore[no-untyped-def]
        for at, answer in super().answers(requests):
            name = "logprob" if hasattr(answer, "logprob") else "nats"
            yield at, replace(answer, **{name: float("nan")})


@pytest.mark.parametrize("name", ["piqa", "bpb"])
def test_what_is_not_a_number_is_no_result(name: str, place: Place) -> None:
    with pytest.raises(ValueError, match="no finite probabilities"):
        evaluate(Broken(), parse_tasks([name]), place)


def test_programs_are_graded_side_by_side_and_counted_in_order(place: Place, tmp_path: Path) -> None:
    class Slow(Gsm8k):
        executes: ClassVar[bool] = True

        def grade(self, item, answers):  # type: ignore[no-untyped-def]
            time.sleep(0.05 if item.id == "0" else 0.0)  # the first is ready last
            return super().grade(item, answers)

    plain = evaluate(Known(), [Gsm8k()], place, out=tmp_path / "plain")
    slow = evaluate(Known(), [Slow()], place, out=tmp_path / "slow", execute=True)
    assert {**slow.results["gsm8k"], "seconds": 0} == {**plain.results["gsm8k"], "seconds": 0}
    assert written(tmp_path / "slow") == written(tmp_path / "plain")


def test_a_grade_that_fails_ends_the_evaluation(place: Place, tmp_path: Path) -> None:
    class Refused(Gsm8k):
        executes: ClassVar[bool] = True

        def grade(self, item, answers):  # type: ignore[no-untyped-def]
            raise ValueError("sandbox: refused")

    with pytest.raises(ValueError, match="sandbox: refused"):
        evaluate(Known(), [Refused()], place, out=tmp_path / "out", execute=True)
    assert not (tmp_path / "out" / RESULTS).exists()


@pytest.mark.parametrize(("settings", "said"), [({"seed": -1}, "seed = -1"), ({"limit": 0}, "limit = 0")])
def test_settings_that_cannot_be_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**settings)


def test_no_task_and_an_item_twice_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task"):
        evaluate(Known(), parse_tasks([","]), place)
    file = next((tmp_path / "data").glob("mbpp_*.jsonl"))
    (file.parent / "mbpp_again.jsonl").write_text(file.read_text())
    with pytest.raises(ValueError, match="twice"):
        evaluate(Known(), parse_tasks(["mbpp"]), place, execute=True)


def test_progress_counts_items(place: Place) -> None:
    told: list[tuple[int, int]] = []
    evaluate(Chance(), parse_tasks(["piqa,boolq"]), place, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
