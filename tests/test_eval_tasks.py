"""The contract of every evaluation task: its line in `TASKS` enrols it here."""

import inspect
import json
from pathlib import Path

import pytest

from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import parse_noise
from bltkit.eval.requests import Compression, Continuation, Likelihood
from bltkit.eval.runner import Settings, evaluate
from bltkit.eval.tasks import TASKS, Item, Task, parse_task, parse_tasks
from tests.eval_fakes import Chance, Known, Oracle, items_of
from tests.eval_rows import PUBLISHED, ROWS, TRUTHS, place_of
from tests.shared import SHARED

GUESSED = {  # a task's choices, and does it divide by their bytes
    "arc_easy": True,
    "arc_challenge": True,
    "piqa": True,
    "openbookqa": True,
    "hellaswag": True,
    "winogrande": False,
    "boolq": False,
    "mmlu": False,
    "blimp": False,
}
SLICE = 8
KINDS = sorted(TASKS)


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return place_of(tmp_path, *KINDS)


def variants(kind: str) -> list[Task]:
    """The task as it is, and with each field at its examples."""
    found = [TASKS[kind]()]
    for name, field in TASKS[kind].model_fields.items():
        found += [TASKS[kind](**{name: value}) for value in field.examples or ()]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_has_rows_truths_and_a_docstring_that_says_where_it_comes_from(kind: str) -> None:
    assert kind in ROWS and kind in TRUTHS
    said = " ".join((inspect.getdoc(TASKS[kind]) or "").split())
    for word in ("Source:", "Normalisation:", "Known difference"):
        assert word in said, f"{kind}: its docstring does not speak of {word!r}"
    assert next(iter(TASKS[kind].metrics))


@pytest.mark.parametrize("kind", KINDS)
def test_items_have_unique_ids_and_ask_the_same_twice(kind: str, place: Place) -> None:
    for task in variants(kind):
        items = items_of(task, place)
        assert items and len({item.id for item in items}) == len(items)
        again = items_of(task, place)
        for one, other in zip(items, again, strict=True):
            assert task.requests(one) == task.requests(other) != ()
        if task.level is not None:
            assert all(task.level in item.groups for item in items)


@pytest.mark.parametrize("kind", sorted(PUBLISHED - {"arithmetic"}))
def test_choices_follow_a_context_without_a_space_and_begin_with_one(kind: str, place: Place) -> None:
    for item in items_of(TASKS[kind](), place):
        for request in TASKS[kind]().requests(item):
            if isinstance(request, Likelihood) and request.context:
                assert not request.context.endswith((b" ", b"\n"))
                assert request.continuation.startswith(b" ")


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_bytes_that_ask_for_something(kind: str, place: Place) -> None:
    for task in variants(kind):
        for request in (request for item in items_of(task, place) for request in task.requests(item)):
            match request:
                case Likelihood():
                    assert type(request.context) is type(request.continuation) is bytes and request.continuation
                case Continuation():
                    assert type(request.context) is bytes and request.max_bytes > 0
                case Compression():
                    assert type(request.text) is bytes and request.text


@pytest.mark.parametrize("kind", KINDS)
def test_an_oracle_reaches_the_top_and_its_opposite_the_bottom(kind: str, place: Place) -> None:
    for task in variants(kind):
        _top_and_bottom(task, place, None)


@pytest.mark.skipif(SHARED is None, reason="needs the evaluation sets beside the repository")
@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_an_oracle_reaches_the_top_on_published_items(kind: str) -> None:
    assert SHARED is not None
    _top_and_bottom(TASKS[kind](), Place.of([SHARED / "data/eval", SHARED / "data/mt"]), SLICE)


def _top_and_bottom(task: Task, place: Place, limit: int | None) -> None:
    items = _limited(task, place, limit)
    settings = Settings(limit)
    best = evaluate(Oracle.of(task, items), [task], place, settings=settings, execute=True).results[str(task)]
    worst = evaluate(Oracle.of(task, items, lies=True), [task], place, settings=settings, execute=True)
    for name, metric in task.metrics.items():
        if name not in best["metrics"] or task.kind == "paired":
            continue  # it lacks its model on this machine; or it has no best answer: see tests/test_paired.py
        top, bottom = best["metrics"][name]["value"], worst.results[str(task)]["metrics"][name]["value"]
        if metric.better == "higher" and metric.highest is not None:
            assert top == pytest.approx(metric.highest), name
            assert bottom == pytest.approx(0.0, abs=0.02 * metric.highest), name
        else:
            assert top < bottom, name


def _limited(task: Task, place: Place, limit: int | None) -> list[Item]:
    """The items that the runner takes: the first of each group."""
    found: list[Item] = []
    taken: dict[str, int] = {}
    for item in task.items(place):
        group = item.groups[task.level] if task.level is not None else ""
        taken[group] = taken.get(group, 0) + 1
        if limit is None or taken[group] <= limit:
            found.append(item)
    return found


@pytest.mark.skipif(SHARED is None, reason="needs the evaluation sets beside the repository")
@pytest.mark.parametrize(("kind", "per_byte"), sorted(GUESSED.items()))
def test_guessing_scores_at_chance(kind: str, per_byte: bool) -> None:
    assert SHARED is not None
    task, place = TASKS[kind](), Place.of([SHARED / "data/eval"])
    items = items_of(task, place)
    chance = sum(1 / len(TRUTHS[kind](item)) for item in items) / len(items)
    result = evaluate(Chance(7, per_byte), [task], place).results[kind]
    # The main metric: a mean over items, or over groups of one size.
    deviation = (chance * (1 - chance) / len(items)) ** 0.5
    assert abs(result["value"] - chance) < 4 * deviation
    assert result["chance"] == pytest.approx(chance)
    # That of the share that was guessed, not of chance itself; BLiMP's is that of a mean over paradigms.
    assert result["stderr"] == pytest.approx(deviation, rel=0.35)


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_says_what_guessing_scores(kind: str, place: Place) -> None:
    """Metric by metric, None where there is no such level; a task that asks for the likeliest of several has one."""
    for task in variants(kind):
        items = items_of(task, place)
        for item in items:
            chance = task.chance(item)
            assert set(chance) == set(task.metrics), f"{kind}: say for each metric what guessing scores, or None"
            for name, level in chance.items():
                assert level is None or 0 <= level <= (task.metrics[name].highest or float("inf"))
            requests = task.requests(item)
            if len(requests) > 1 and all(isinstance(one, Likelihood) for one in requests):
                assert chance[next(iter(task.metrics))] == 1 / len(requests)
        result = evaluate(Known(), [task], place, execute=True).results[str(task)]
        for figures in (result, *result["metrics"].values(), *(result["macro"] or {}).values()):
            assert not isinstance(figures, dict) or "chance" in figures
        levels = [task.chance(item)[result["metric"]] for item in items]
        if not task.macro:
            mean = None if None in levels else sum(level or 0 for level in levels) / len(levels)
            assert result["chance"] == (None if mean is None else pytest.approx(mean))


def test_chance_is_exact_for_other_numbers_of_choices_and_for_means_over_groups(place: Place, tmp_path: Path) -> None:
    one = {"query": "Question: a?", "choices": ["a", "b", "c", "d"], "gold": 0}
    rows = [one, one, {**one, "choices": ["a", "b"]}, {**one, "choices": ["a", "b", "c", "d", "e"]}]
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(Known(), [parse_task("arc_easy")], Place.of([tmp_path])).results["arc_easy"]
    assert result["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 2 + 1 / 5) / 4) == result["metrics"]["acc"]["chance"]
    cute = evaluate(Known(), [parse_task("cute:spell,orth,sem,contains_char_rand")], place)
    (result,) = cute.results.values()
    assert result["chance"] == 3 / 8 and result["groups"]["task"]["spell"]["exact_match"]["chance"] == 0
    assert evaluate(Known(), [parse_task("lambada")], place).results["lambada"]["chance"] is None
    paired = evaluate(Known(), [parse_task("paired")], place).results["paired"]
    assert (paired["chance"], paired["metrics"]["clean_likelier"]["chance"]) == (None, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_changes_what_is_asked_and_what_may_be_right_stays(kind: str, place: Place) -> None:
    task = TASKS[kind]()
    clean = evaluate(Known(), [task], place, execute=True).results[kind]
    noisy = evaluate(Known(), [task], place, settings=Settings(noise=parse_noise("drop:0.4")), execute=True)
    again = evaluate(Known(), [task], place, settings=Settings(noise=parse_noise("drop:0.4")), execute=True)
    none = evaluate(Known(), [task], place, settings=Settings(noise=parse_noise("drop:0")), execute=True)
    assert (noisy.results[kind]["prompt_hash"] != clean["prompt_hash"]) == bool(task.damaged)
    assert noisy.results[kind]["prompt_hash"] == again.results[kind]["prompt_hash"]
    assert none.results[kind]["prompt_hash"] == clean["prompt_hash"]
    assert noisy.results[kind]["n"] == clean["n"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_read_back(kind: str) -> None:
    for task in variants(kind):
        assert parse_task(str(task)) == task


def test_lists_of_tasks_keep_parts_and_fields_with_their_task() -> None:
    names = [str(task) for task in parse_tasks(["cute:spell,orth,shots=2,arc_easy", "mmlu:shots=0,piqa"])]
    assert names == ["cute:spell,orth,shots=2", "arc_easy", "mmlu:shots=0", "piqa"]
    (task, other) = parse_tasks(["humaneval:samples=20,k=[1,10],temperature=0.5,piqa"])
    assert task == TASKS["humaneval"](samples=20, k=(1, 10), temperature=0.5) and other == TASKS["piqa"]()
    assert parse_task(str(task)) == task


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("helaswag", "did you mean 'hellaswag'"),
        ("hellaswag:easy", "has no parts"),
        ("mmlu:shot=3", "did you mean 'shots'"),
        ("mmlu:shots=-1", "shots = -1"),
        ("lambada:shots=1", "shots = 1"),
        ("hellaswag:shots=5", "shots = 5"),
        ("humaneval:shots=1", "shots = 1"),
        ("cute:spell,shots=1,shots=2", "shots is given twice"),
        ("arc_easy,helaswag", "did you mean 'hellaswag'"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        parse_tasks([text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["mmlu", "blimp", "cute", "g2p", "bpb", "translation"])
def test_an_unknown_part_is_refused(kind: str, place: Place) -> None:
    with pytest.raises(ValueError, match="nothing"):
        items_of(TASKS[kind](part=("nothing",)), place)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if ROWS[kind]])
def test_missing_data_name_the_file_and_the_remedy(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(put|give|leave|say)") as error:
        items_of(TASKS[kind](), Place.of([tmp_path]))
    assert "\n" not in str(error.value)


def test_a_row_without_its_fields_names_item_and_field(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text('{"query": "Question: x\\n", "choices": ["a", "b"]}\n')
    with pytest.raises(ValueError, match=r"piqa\.jsonl, item 1: field 'gold' is missing"):
        items_of(TASKS["piqa"](), Place.of([tmp_path]))


ITEM = {"query": "Q", "choices": ["a", "b"], "gold": 1}


@pytest.mark.parametrize(
    ("kind", "file", "content", "said"),
    [
        ("piqa", "piqa.jsonl", json.dumps({**ITEM, "gold": "1"}), r"item 1: the right choice is none of 0 \.\. 1"),
        ("piqa", "piqa.jsonl", json.dumps({**ITEM, "gold": 2}), "the right choice is none of"),
        ("piqa", "piqa.jsonl", json.dumps({**ITEM, "choices": "ab"}), "not a list of texts"),
        ("piqa", "piqa.jsonl", json.dumps({**ITEM, "query": None}), "query = None is no text"),
        ("piqa", "piqa.jsonl", b"\xff\xfe", r"piqa\.jsonl, line 1: .*UTF-16.*remove the line"),
        ("piqa", "piqa.jsonl.zst", b"\xff\xfe", r"piqa\.jsonl\.zst: neither .* fetch it again"),
        ("piqa", "piqa.jsonl.gz", b"\x1f\x8b\x08", r"piqa\.jsonl\.gz: .*cut short; fetch it again"),
        ("cute:spell", "cute/spell.tsv", b"input1\tlabel\n\xff", r"spell\.tsv, line 2: not UTF-8.* fetch it again"),
        ("cute:spell", "cute/spell.tsv", "input1\tlabel\na\tb\tc\n", "line 2: 3 columns, but the header names 2"),
        ("g2p", "g2p/fre_dev.tsv", b"a\tb\n\xff", r"fre_dev\.tsv, line 2: not UTF-8.* fetch it again"),
        (
            "winogrande",
            "winogrande.jsonl",
            json.dumps({"context_options": ["a", "b"], "continuation": "c", "gold": 2}),
            "no place of context_options",
        ),
    ],
)
def test_malformed_data_are_told_in_one_line(
    kind: str, file: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said) as error:
        evaluate(Known(), [parse_task(kind)], Place.of([tmp_path]))
    assert "\n" not in str(error.value)


def test_two_texts_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "text" / "more").mkdir(parents=True)
    for name in (".hidden", "a.txt", "more/b.txt"):
        (tmp_path / "text" / name).write_text("some text")
    assert [item.id for item in items_of(TASKS["bpb"](), Place.of([tmp_path]))] == ["a/0", "b/0"]
    (tmp_path / "text" / "more" / "a.log").write_text("other text")
    with pytest.raises(ValueError, match="'a' too"):
        items_of(TASKS["bpb"](), Place.of([tmp_path]))


def test_compression_asks_for_bytes_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "raw.bin").write_bytes(bytes(range(256)))
    (item,) = items_of(TASKS["bpb"](), Place.of([tmp_path]))
    assert TASKS["bpb"]().requests(item) == (Compression(bytes(range(256))),)
