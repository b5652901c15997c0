"""Tasks whose answer the model writes: what exactly is asked, and what the best and the worst model get for it."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bltkit.config import parse
from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Answer, Continuation, Likelihood, Request, Scored, Written
from bltkit.eval.tasks.arithmetic import Arithmetic
from bltkit.eval.tasks.cute import OF_WORDS, PARTS, RANDOM, TASKS, Cute
from bltkit.eval.tasks.cute_prompts import PROMPTS
from bltkit.eval.tasks.g2p import G2p
from bltkit.eval.tasks.gsm8k import SOLVED, Gsm8k, last_number
from bltkit.eval.tasks.task import Item, Task
from bltkit.eval.tasks.translation import Translation
from bltkit.eval.tasks.utf8 import Utf8Task
from bltkit.vocab import to_bytes
from tests.eval_rows_writing import TRUTHS, contexts, items_of

ALL: list[Task] = [Gsm8k(), Arithmetic(), Cute(), Cute(part=("spell_rand", "orth")), G2p(), Translation(), Utf8Task()]

Answering = Callable[[Request, Any], Answer]


def truth(request: Request, right: Any) -> Answer:
    if isinstance(request, Likelihood):
        return Scored(-0.1, greedy=right)
    assert isinstance(request, Continuation)
    data = to_bytes(right)
    assert len(data) < request.max_bytes and not any(stop in data for stop in request.stop)
    return Written(data, "stop" if request.stop else "eos")


def lie(request: Request, right: Any) -> Answer:
    if isinstance(request, Likelihood):
        return Scored(-9.0, greedy=not right)
    assert isinstance(request, Continuation)
    return Written(b"\xff" * request.max_bytes, "length")


def values(task: Task, items: list[Item], answering: Answering) -> dict[str, float]:
    """By hand what the runner does: contributions summed, sums turned into values."""
    sums: dict[str, list[float]] = {}
    for item in items:
        asked = task.requests(item)
        answers = [answering(one, right) for one, right in zip(asked, TRUTHS[task.kind](item), strict=True)]
        for name, given in task.grade(item, answers).metrics.items():
            numbers = given if isinstance(given, tuple) else (given, 1.0)
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * len(numbers)), numbers, strict=True)]
    return {name: task.metrics[name].of(found) for name, found in sums.items()}


@pytest.mark.parametrize("task", ALL, ids=str)
def test_who_knows_everything_gets_the_best_and_who_knows_nothing_the_worst(task: Task, tmp_path: Path) -> None:
    if task.kind == "translation":
        pytest.importorskip("sacrebleu")
    items = items_of(task, tmp_path)
    assert items
    best, worst = values(task, items, truth), values(task, items, lie)
    main = next(iter(task.metrics))
    assert main in best
    for name, value in best.items():
        assert value == pytest.approx(task.metrics[name].highest if task.metrics[name].better == "higher" else 0.0)
    for name, value in worst.items():
        # Phonemes: a wrong one for each right one, and only one is written.
        most = {"invalid_bytes": 1.0, "per": 1.0}.get(name, 0.0)
        assert value == most, name


@pytest.mark.parametrize("task", ALL, ids=str)
def test_items_are_named_once_and_what_noise_damages_is_text(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    items = items_of(task, tmp_path)
    assert all(count == 1 for count in Counter(item.id for item in items).values())
    for item in items:
        for name in task.damaged:
            value = item[name]
            assert isinstance(value, str) or all(isinstance(text, str) for text in value)
            # Damaged texts are asked about, and the rest of the prompt stays.
            changed = "#" if isinstance(value, str) else ["#"] * len(value)
            damaged = Item(item.id, {**item.fields, name: changed}, item.groups)
            assert task.requests(damaged) != task.requests(item) == task.requests(item)
        if task.level is not None:
            assert next(iter(item.groups)) == task.level


def test_gsm8k_asks_behind_solved_items(tmp_path: Path) -> None:
    first = contexts(Gsm8k(shots=1), tmp_path)[0]
    assert first == (
        "Question: A bakery bakes 12 trays of rolls each morning, with 15 rolls on every tray. By noon 134 rolls are "
        "sold. How many rolls are left?\n"
        "Answer: 12 trays with 15 rolls each are 12 * 15 = 180 rolls.\n"
        "After the sale of 134 rolls, 180 - 134 = 46 rolls are left.\n"
        "The answer is 46.\n\n"
        "Question: Lea has 3 pens and buys 4. How many has she?\n"
        "Answer:"
    )
    assert contexts(Gsm8k(shots=0), tmp_path)[0] == "Question: Lea has 3 pens and buys 4. How many has she?\nAnswer:"
    assert contexts(Gsm8k(), tmp_path)[0].count("Question: ") == 6
    (request,) = Gsm8k().requests(items_of(Gsm8k(), tmp_path)[0])
    assert isinstance(request, Continuation)
    assert (request.max_bytes, request.stop, request.temperature) == (1024, (b"\n\n", b"\nQuestion:"), 0.0)


def test_every_step_of_the_solved_items_is_right() -> None:
    for _, solution in SOLVED:
        *steps, end = solution.split("\n")
        results = []
        for step in steps:
            (equation,) = re.findall(r"[0-9]+(?: [-+*/] [0-9]+)+ = [0-9]+", step)
            left, right = equation.split(" = ")
            assert eval(left) == int(right), step
            results.append(right)
        assert end == f"The answer is {results[-1]}."
        assert not any(stop in solution for stop in ("\n\n", "Question:"))
        assert str(last_number(solution)) == results[-1]


def test_gsm8k_takes_the_last_number_however_written(tmp_path: Path) -> None:
    task = Gsm8k()
    item = items_of(task, tmp_path)[1]
    for text, right in ((" It is $65,960.00.", 1.0), (" 65960", 1.0), (" 65960 = 1", 0.0), (" none", 0.0)):
        assert task.grade(item, [Written(text.encode(), "stop")]).metrics == {"exact_match": right}


def test_arithmetic_asks_for_the_likelihood_of_the_result(tmp_path: Path) -> None:
    task = Arithmetic()
    assert [task.requests(item) for item in items_of(task, tmp_path)] == [
        (Likelihood(b"7-9=", b"-2"),),
        (Likelihood(b"20+22=", b"42"),),
    ]


CUTE_SPELL = """\
Spell out each word, with a space between its letters.

1. Spell out the word "garden". Answer: "g a r d e n"
2. Spell out the word "lamp". Answer: "l a m p"
3. Spell out the word "whisper". Answer: "w h i s p e r"
4. Spell out the word "coffee". Answer: "c o f f e e"
5. Spell out the word "apple". Answer: \""""


def test_cute_asks_in_the_form_of_its_examples(tmp_path: Path) -> None:
    assert contexts(Cute(part=("spell",)), tmp_path)[0] == CUTE_SPELL
    short = contexts(Cute(part=("sub_word",), shots=1), tmp_path)[0]
    assert short == (
        "Replace every occurrence of a word in each sentence by another word.\n\n"
        '1. Replace every "old" by "lemon" in "The old mill stands by the old bridge.". Answer: "The lemon mill stands '
        'by the lemon bridge."\n'
        '2. Replace every "up" by "old" in "The moon is up.". Answer: "'
    )
    (request,) = Cute().requests(items_of(Cute(), tmp_path)[0])
    assert isinstance(request, Continuation) and request.stop == (b'"',)


def test_cute_has_fourteen_tasks_in_two_kinds_and_three_skills(tmp_path: Path) -> None:
    items = items_of(Cute(), tmp_path)
    groups = {item.groups["task"]: (item.groups["kind"], item.groups["skill"]) for item in items}
    assert len(TASKS) == 14 and tuple(groups) == TASKS
    assert Counter(kind for kind, _ in groups.values()) == {"character": 8, "word": 6}
    assert Counter(skill for _, skill in groups.values()) == {"composition": 4, "similarity": 2, "manipulation": 8}
    assert {name for name, (kind, _) in groups.items() if kind == "word"} == set(OF_WORDS)
    assert len(PARTS) == 14 + 7
    drawn = items_of(Cute(part=("swap_char_rand",)), tmp_path)
    assert [item.groups["task"] for item in drawn] == ["swap_char_rand"]


@pytest.mark.parametrize("text", ["A P p l e", "ａ p p l e"])
def test_cute_compares_without_case_alone(text: str, tmp_path: Path) -> None:
    item, task = items_of(Cute(), tmp_path)[0], Cute()
    item = Item(item.id, {**item.fields, "label": "a p p l e"}, item.groups)
    right = text.isascii()
    assert task.grade(item, [Written(text.encode(), "stop")]).metrics == {"exact_match": float(right)}
    assert task.grade(item, [Written(f" {text}".encode(), "stop")]).metrics == {"exact_match": 0.0}


def _distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    same = _distance(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, _distance(one[1:], other) + 1, _distance(one, other[1:]) + 1)


def _words(sentence: str, change: Callable[[str], str]) -> str:
    """Each word changed; spaces in front of what is dropped go with it."""
    return re.sub(r" ?[A-Za-z]+", lambda found: change(found[0]), sentence)


def _word(word: str, change: Callable[[str], str | None]) -> str:
    space = " " if word.startswith(" ") else ""
    changed = change(word.strip())
    return "" if changed is None else space + changed


def _derived(name: str, inputs: tuple[str, ...]) -> str:
    """What the task's rule makes of the inputs, for the 13 tasks that have one."""
    a, b, c = (*inputs, "", "")[:3]
    match name:
        case "spell":
            return " ".join(a)
        case "spell_inverse":
            return a.replace(" ", "")
        case "contains_char":
            return "Yes" if a in b else "No"
        case "contains_word":
            return "Yes" if a in re.findall("[A-Za-z]+", b) else "No"
        case "orth":
            return b if _distance(a, b) < _distance(a, c) else c
        case "ins_char":
            return c.replace(b, b + a)
        case "del_char":
            return b.replace(a, "")
        case "sub_char":
            return c.replace(a, b)
        case "swap_char":
            return c.translate({ord(a): b, ord(b): a})
        case "ins_word":
            return _words(c, lambda word: _word(word, lambda one: f"{one} {a}" if one == b else one))
        case "del_word":
            return _words(b, lambda word: _word(word, lambda one: None if one == a else one)).strip()
        case "sub_word":
            return _words(c, lambda word: _word(word, lambda one: b if one == a else one))
        case "swap_word":
            return _words(c, lambda word: _word(word, lambda one: {a: b, b: a}.get(one, one)))
    raise AssertionError(name)


@pytest.mark.parametrize("name", TASKS)
def test_every_worked_example_of_cute_is_right(name: str) -> None:
    prompt = PROMPTS[name]
    assert len(prompt.examples) == 4 == len(set(prompt.examples))
    for *inputs, label in prompt.examples:
        if name == "sem":
            # No rule decides this; at least it is not the word spelled alike, which is the wrong choice.
            assert label in inputs[1:] and label != _derived("orth", tuple(inputs))
        else:
            assert label == _derived(name, tuple(inputs))
        assert not any('"' in text for text in (*inputs, label))
        assert all(f'"{{{at}}}"' in prompt.form for at in range(len(inputs)))
    if name in ("orth", "sem"):
        assert Counter(example[1:].index(example[3]) for example in prompt.examples) == {0: 2, 1: 2}
    if name.startswith("contains"):
        assert Counter(example[-1] for example in prompt.examples) == {"Yes": 2, "No": 2}
    assert prompt.instruction.endswith((".", "?")) and "\n" not in prompt.instruction


def test_the_small_rows_of_cute_follow_its_rules(tmp_path: Path) -> None:
    for item in items_of(Cute(part=(*TASKS, *(f"{name}_rand" for name in RANDOM))), tmp_path):
        name = item.groups["task"].removesuffix("_rand")
        if name != "sem":
            assert item["label"] == _derived(name, tuple(item["inputs"])), item.id


def test_mistaken_fields_are_refused() -> None:
    for kind, field, part in (
        (Translation, "part", ("eng_Latn",)),
        (Translation, "part", ("eng_Latn-eng_Latn",)),
        (Gsm8k, "shots", 6),
        (Cute, "shots", 5),
        (Translation, "shots", 17),
        (Arithmetic, "shots", 1),
        (Utf8Task, "shots", 1),
    ):
        with pytest.raises(ValueError, match=r"part|shots"):
            parse(kind, {field: part}, "--tasks")
    for task, message in (
        (Cute(part=("spel",)), "cute:spel: .*did you mean 'spell'"),
        (Utf8Task(part=("grek",)), "utf8:grek: .*did you mean 'greek'"),
    ):
        with pytest.raises(ValueError, match=message):
            next(task.items(Place()))


@pytest.mark.parametrize("task", [Gsm8k(), Arithmetic(), Cute(), G2p(), Translation()], ids=str)
def test_missing_data_say_what_is_missing(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(jsonl|tsv|devtest).*not (found )?in "):
        list(task.items(Place.of([tmp_path])))


def test_broken_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text('{"context": "?", "answer": "none"}\n')
    with pytest.raises(ValueError, match="item 0: answer 'none' holds no number"):
        list(Gsm8k().items(Place.of([tmp_path])))
    (tmp_path / "simple_arithmetic_nospaces.jsonl").write_text('{"context": "1+1="}\n')
    with pytest.raises(ValueError, match="'continuation' is missing"):
        list(Arithmetic().items(Place.of([tmp_path])))
    (tmp_path / "cute").mkdir()
    (tmp_path / "cute" / "spell.tsv").write_text("input1\tlabel\nword\n")
    with pytest.raises(ValueError, match=r"cute/spell\.tsv, item 0: fewer columns"):
        list(Cute(part=("spell",)).items(Place.of([tmp_path])))
