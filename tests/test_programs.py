"""HumanEval and MBPP: prompts, what is executed, pass@k; the data's own solutions pass, and others do not."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Continuation, Written
from bltkit.eval.sandbox import Sandbox, run
from bltkit.eval.tasks.humaneval import HumanEval
from bltkit.eval.tasks.mbpp import Mbpp
from bltkit.eval.tasks.programs import Programs, pass_at
from bltkit.eval.tasks.task import Item
from tests.eval_rows_programs import ROWS, TRUTHS
from tests.sandboxes import refusal
from tests.shared import SHARED

REFUSAL = refusal()
in_sandbox = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
with_data = pytest.mark.skipif(SHARED is None, reason="needs the material beside the repository")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for files in ROWS.values():
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
    return Place.of([tmp_path])


def asked(task: Programs, item: Item) -> list[Continuation]:
    requests = task.requests(item)
    assert all(isinstance(request, Continuation) for request in requests)
    return [request for request in requests if isinstance(request, Continuation)]


def answers(*texts: str) -> list[Written]:
    return [Written(text.encode(), "stop") for text in texts]


def test_humaneval_asks_the_prompt_as_it_is(place: Place) -> None:
    task = HumanEval()
    for item, line in zip(task.items(place), ROWS["humaneval"]["humaneval.jsonl"].splitlines(), strict=True):
        row = json.loads(line)
        (request,) = asked(task, item)
        assert request.context.decode() == row["prompt"]
        assert item.id == row["task_id"]
        assert request.temperature == 0
        for stop in ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n# "):
            assert any(stop.encode().startswith(known) for known in request.stop)
        assert not any(
            known in b"\n    def inner():\n        # why\n        if x: print(x)\n" for known in request.stop
        )


@in_sandbox
def test_humaneval_executes_the_clean_prompt(place: Place) -> None:
    task = HumanEval()
    item = next(task.items(place))
    damaged = Item(item.id, {**item.fields, "prompt": item["prompt"].upper()})
    assert asked(task, damaged)[0].context.decode() == item["prompt"].upper()
    assert task.grade(damaged, answers(item["canonical_solution"])).metrics == {"pass@1": 1.0}


def test_mbpp_shows_solved_items_and_never_asks_them(place: Place) -> None:
    task = Mbpp()
    items = list(task.items(place))
    assert [item.id for item in items] == ["511", "512"]
    (request,) = asked(task, items[0])
    assert request.stop == (b"[DONE]",)
    assert request.context.decode() == (
        "You are an expert Python programmer, and here is your task: Write a function to add. "
        "Your code should pass these tests:\n\nassert add(1, 2) == 3\n[BEGIN]\ndef add(a, b):\n    return a + b\n"
        "[DONE]\n"
        "You are an expert Python programmer, and here is your task: Write a function to subtract. "
        "Your code should pass these tests:\n\nassert less(1, 2) == -1\n[BEGIN]\ndef less(a, b):\n    return a - b\n"
        "[DONE]\n"
        "You are an expert Python programmer, and here is your task: Write a function to multiply. "
        "Your code should pass these tests:\n\nassert times(3, 2) == 6\n[BEGIN]\ndef times(a, b):\n    return a * b\n"
        "[DONE]\n"
        "You are an expert Python programmer, and here is your task: Write a function to count what a list holds. "
        "Your code should pass these tests:\n\nassert size([]) == 0\nassert size([5, 6]) == 2\n[BEGIN]\n"
    )
    none = asked(Mbpp(shots=0), next(iter(Mbpp(shots=0).items(place))))[0].context.decode()
    assert request.context.decode().endswith(none) and none.count("[BEGIN]") == 1


def test_mbpp_without_its_prompt_split_keeps_its_first_items_for_shots(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ROWS["mbpp"]["mbpp_small.jsonl"].splitlines()]
    moved = [{**row, "task_id": row["task_id"] + 600} for row in rows]
    path = tmp_path / "mbpp_test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in moved))
    items = list(Mbpp(shots=2).items(Place.of([tmp_path])))
    assert [item.id for item in items] == ["603", "604", "1111", "1112"]
    assert "gives 1" in asked(Mbpp(shots=2), items[0])[0].context.decode()
    with pytest.raises(ValueError, match="leave none to evaluate beside 6 shots"):
        list(Mbpp(shots=6).items(Place.of([tmp_path])))


@pytest.mark.parametrize("kind", ["humaneval", "mbpp"])
def test_a_row_without_a_field_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "humaneval.jsonl").write_text('{"prompt": "def f():"}\n')
    (tmp_path / "mbpp_x.jsonl").write_text('{"task_id": 1}\n')
    task = HumanEval() if kind == "humaneval" else Mbpp()
    with pytest.raises(ValueError, match=f"{kind}.*row 1: field '(test|text)' is missing"):
        list(task.items(Place.of([tmp_path])))


@in_sandbox
@pytest.mark.parametrize("task", [HumanEval(), Mbpp()], ids=lambda task: task.kind)
def test_right_programs_pass_and_wrong_ones_do_not(task: Programs, place: Place) -> None:
    task.prepare()
    for item in task.items(place):
        grade = task.grade(item, answers(*TRUTHS[task.kind](item)))
        assert grade.metrics == {"pass@1": 1.0} and grade.shown["reasons"] == [""]
        for wrong in ("    return None\n", "", "    import sys; sys.exit(0)\n", "import os; os._exit(0)\n", "\0", "("):
            grade = task.grade(item, answers(wrong))
            assert grade.metrics == {"pass@1": 0.0} and grade.shown["reasons"] != [""]


@in_sandbox
def test_samples_are_different_requests_and_counted_by_pass_at_k(place: Place) -> None:
    task = HumanEval(samples=10, k=(1, 10), seed=3)
    item = next(task.items(place))
    requests = asked(task, item)
    assert len({request.seed for request in requests}) == 10
    assert {request.temperature for request in requests} == {0.8}
    assert requests == asked(task, item) != asked(task.replace(seed=4), item)
    grade = task.grade(item, answers(*[item["canonical_solution"]] * 3, *["    pass\n"] * 7))
    assert grade.metrics == {"pass@1": pytest.approx(0.3), "pass@10": 1.0}
    assert (grade.shown["passed"], grade.shown["samples"]) == (3, 10)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for more samples"):
        HumanEval(k=(1, 10))
    with pytest.raises(ValueError, match="all would be the same"):
        Mbpp(samples=5, temperature=0)


def test_they_need_consent_and_refuse_without_a_sandbox(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "platform", "darwin")
    for task in (HumanEval(), Mbpp()):
        assert task.executes
        with pytest.raises(ValueError, match="needs Linux"):
            task.prepare()
        with pytest.raises(ValueError, match="needs Linux"):
            task.grade(next(iter(task.items(place))), answers("    pass"))


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, data: st.DataObject) -> None:
    """By counting: all ways to choose k of n samples."""
    passed, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([True] * passed + [False] * (n - passed), k))
    assert pass_at(k, n, passed) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_stable_for_many_samples() -> None:
    assert pass_at(1, 10**5, 1) == pytest.approx(1e-5)
    assert 0 < pass_at(100, 10**5, 1) < 0.002
    assert pass_at(100, 10**5, 10**5) == 1.0


@in_sandbox
@with_data
def test_the_solutions_of_humaneval_pass() -> None:
    assert SHARED is not None
    items = list(HumanEval().items(Place.of([SHARED / "data" / "eval"])))
    assert len(items) == 32
    assert failing(HumanEval(), items, [item["canonical_solution"] for item in items]) == []
    assert len(failing(HumanEval(), items, ["    return None\n"] * len(items))) == len(items)


@in_sandbox
@with_data
@pytest.mark.slow
def test_the_solutions_of_mbpp_pass() -> None:
    assert SHARED is not None
    items = list(Mbpp().items(Place.of([SHARED / "data" / "eval"])))
    assert len(items) == 464
    assert failing(Mbpp(), items, [item["code"] for item in items]) == []
    assert len(failing(Mbpp(), items, ["pass\n"] * len(items))) == len(items)


def failing(task: Programs, items: Sequence[Item], texts: Sequence[str]) -> list[tuple[str, str]]:
    programs = [task.program(item, text) for item, text in zip(items, texts, strict=True)]
    outcomes = Sandbox.open().run_all(programs)
    return [(item.id, outcome.reason) for item, outcome in zip(items, outcomes, strict=True) if not outcome.passed]
