"""Tasks from data sets in the hub's layout and published columns: what is asked and what is right, as from own files.

A folder OWNER/NAME in `--data` stands for the data set of that name; all rows are made up here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bltkit.eval.dataset_source import HubSet, Place
from bltkit.eval.requests import Continuation, Likelihood
from bltkit.eval.runner import evaluate
from bltkit.eval.tasks import Item, Task, parse_task
from tests.eval_fakes import Oracle, items_of
from tests.source_examples import offline

pytest.importorskip("datasets")

Splits = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""(configuration, split) -> rows."""


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path / "cache", monkeypatch)


def hub_folder(data: Path, name: str, splits: Splits) -> Place:
    """`data` with a data set as it lies on the hub: a card that names the files of each configuration and split."""
    folder = data / name
    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for config in dict.fromkeys(config for config, _ in splits):
        lines += [f"- config_name: {config}", "  data_files:"]
        for (own, split), rows in splits.items():
            if own == config:
                lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
                file = folder / config / f"{split}.jsonl"
                file.parent.mkdir(exist_ok=True)
                file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A data set", ""]), encoding="utf-8")
    return Place.of([data])


def first(name: str, place: Place) -> tuple[Task, Item]:
    """A task and its first item, which an oracle answers right; so the whole way to a grade is gone."""
    task = parse_task(name)
    items = items_of(task, place)
    result = evaluate(Oracle.of(task, items), [task], place, execute=True).results[name]
    assert result["value"] == pytest.approx(result["highest"]) and result["n"] == len(items)
    return task, items[0]


def asked(task: Task, item: Item) -> list[str]:
    """Context and continuation of each request."""
    found = []
    for request in task.requests(item):
        assert isinstance(request, Likelihood | Continuation)
        end = request.continuation if isinstance(request, Likelihood) else b""
        found.append((request.context + end).decode())
    return found


CHOICES = {"text": ["a stone", "a lamp", "the wind"], "label": ["A", "B", "C"]}
GUIDE = {"id": "Q_1", "question": "What gives light?", "choices": CHOICES, "answerKey": "B"}
NUMBERED = {**GUIDE, "choices": {**CHOICES, "label": ["1", "2", "3"]}, "answerKey": "2"}


@pytest.mark.parametrize(("name", "config"), [("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")])
@pytest.mark.parametrize("row", [GUIDE, NUMBERED])
def test_arc(name: str, config: str, row: Mapping[str, Any], tmp_path: Path) -> None:
    other = [{**GUIDE, "answerKey": "A"}]
    place = hub_folder(
        tmp_path, "allenai/ai2_arc", {("other", "test"): other, (config, "train"): other, (config, "test"): [row]}
    )
    task, item = first(name, place)
    assert asked(task, item)[1] == "Question: What gives light?\nAnswer: a lamp"
    assert item["gold"] == 1


def test_piqa(tmp_path: Path) -> None:
    row = {"goal": "How to open a jar?", "sol1": "Twist the lid.", "sol2": "Twist the glass.", "label": 0}
    splits = {("plain_text", "validation"): [row], ("plain_text", "test"): [{**row, "label": -1}]}
    task, item = first("piqa", hub_folder(tmp_path, "ybisk/piqa", splits))
    assert asked(task, item) == [f"Question: How to open a jar?\nAnswer: {row[name]}" for name in ("sol1", "sol2")]


def test_openbookqa(tmp_path: Path) -> None:
    labels = ["A", "B", "C", "D"]
    choices = {"text": ["rain", "light", "sound", "heat"], "label": labels}
    row = {"id": "7-1", "question_stem": "A mirror turns back ", "choices": choices, "answerKey": "B"}
    splits = {("main", "test"): [row], ("additional", "test"): [{**row, "fact1": "x"}]}
    task, item = first("openbookqa", hub_folder(tmp_path, "allenai/openbookqa", splits))
    assert asked(task, item)[1] == "A mirror turns back light"


def test_hellaswag(tmp_path: Path) -> None:
    row = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "endings": ["sings [step] loudly.", "pulls up shingles [title] Done  well.", "flies.", "swims."],
        "source_id": "activitynet~v_1",
        "split": "val",
        "split_type": "indomain",
        "label": "1",
    }
    task, item = first("hellaswag", hub_folder(tmp_path, "Rowan/hellaswag", {("default", "validation"): [row]}))
    front = "Roof shingle removal: A man is sitting on a roof. He"
    assert asked(task, item)[:2] == [f"{front} sings loudly.", f"{front} pulls up shingles. Done well."]


def test_winogrande(tmp_path: Path) -> None:
    row = {
        "sentence": "The cup fit the box since _ was big.",
        "option1": "the cup",
        "option2": "the box",
        "answer": "2",
    }
    splits = {("winogrande_xl", "validation"): [row], ("winogrande_xl", "test"): [{**row, "answer": ""}]}
    task, item = first("winogrande", hub_folder(tmp_path, "allenai/winogrande", splits))
    front = "The cup fit the box since"
    assert asked(task, item) == [f"{front} the cup was big.", f"{front} the box was big."]
    assert [request.continuation for request in task.requests(item) if isinstance(request, Likelihood)] == [
        b" was big."
    ] * 2


def test_boolq(tmp_path: Path) -> None:
    row = {"question": "do bees make honey", "answer": True, "passage": "Bees make honey."}
    rows = [row, {**row, "answer": False}]
    task, item = first("boolq", hub_folder(tmp_path, "google/boolq", {("default", "validation"): rows}))
    front = "Passage: Bees make honey.\nQuestion: do bees make honey?\nAnswer:"
    assert asked(task, item) == [f"{front} no", f"{front} yes"]
    assert item["gold"] == 1


def test_mmlu(tmp_path: Path) -> None:
    def row(number: int, subject: str, answer: int) -> dict[str, Any]:
        return {"question": f"Q{number}?", "subject": subject, "choices": ["p", "q", "r", "s"], "answer": answer}

    dev = [row(at, subject, at % 4) for subject in ("anatomy", "world_religions") for at in range(5)]
    test = [row(9, "world_religions", 3), row(8, "anatomy", 1)]
    splits = {
        ("all", "test"): test,
        ("all", "validation"): test[:1],
        ("all", "dev"): dev,
        ("all", "auxiliary_train"): dev,
    }
    place = hub_folder(tmp_path, "cais/mmlu", splits)
    task, item = first("mmlu", place)
    solved = "".join(f"Q{at}?\nA. p\nB. q\nC. r\nD. s\nAnswer: {'ABCD'[at % 4]}\n\n" for at in range(5))
    assert asked(task, item)[3] == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        f"{solved}Q9?\nA. p\nB. q\nC. r\nD. s\nAnswer: D"
    )
    only, item = first("mmlu:anatomy,shots=0", place)
    assert [one.groups["subject"] for one in items_of(only, place)] == ["anatomy"]


def test_lambada(tmp_path: Path) -> None:
    row = {"text": "She looked for the key.\nAt last she found the key"}
    task, item = first("lambada", hub_folder(tmp_path, "EleutherAI/lambada_openai", {("default", "test"): [row]}))
    (request,) = task.requests(item)
    assert request == Likelihood(b"She looked for the key.\nAt last she found the", b" key")


def test_blimp(tmp_path: Path) -> None:
    row = {
        "sentence_good": "Who left?",
        "sentence_bad": "Who leave?",
        "field": "morphology",
        "linguistics_term": "agreement",
        "UID": "x",
        "simple_LM_method": True,
        "pair_id": 0,
    }
    splits = {(config, "train"): [{**row, "UID": config}] * 2 for config in ("adjunct_island", "wh_island")}
    place = hub_folder(tmp_path, "nyu-mll/blimp", splits)
    task, item = first("blimp", place)
    assert asked(task, item) == ["Who left?", "Who leave?"]
    assert [one.groups for one in items_of(task, place)][1:3] == [
        {"paradigm": "adjunct_island", "field": "morphology"},
        {"paradigm": "wh_island", "field": "morphology"},
    ]
    with pytest.raises(ValueError, match="did you mean 'wh_island'"):
        items_of(parse_task("blimp:wh_islands"), place)


def test_gsm8k(tmp_path: Path) -> None:
    row = {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4 and 1,000 more.\n#### 1,004"}
    splits = {("main", "test"): [row], ("socratic", "test"): [row], ("main", "train"): [row]}
    task, item = first("gsm8k", hub_folder(tmp_path, "openai/gsm8k", splits))
    assert asked(task, item)[0].endswith("\n\nQuestion: Two and two?\nAnswer:")
    assert item["answer"] == "1,004"


def test_humaneval(tmp_path: Path) -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def one() -> int:\n    """Return 1."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    place = hub_folder(tmp_path, "openai/openai_humaneval", {("openai_humaneval", "test"): [row]})
    (item,) = items_of(parse_task("humaneval"), place)
    assert asked(parse_task("humaneval"), item) == [row["prompt"]]
    assert item.id == "HumanEval/0"


def test_mbpp(tmp_path: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        return {
            "task_id": number,
            "text": f"Write a function to return {number}.",
            "code": f"def f():\r\n  return {number}",
            "test_list": [f"assert f() == {number}"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }

    splits = {
        ("full", "train"): [row(601)],
        ("full", "test"): [row(11), row(12)],
        ("full", "validation"): [row(511)],
        ("full", "prompt"): [row(number) for number in range(1, 11)],
        ("sanitized", "test"): [row(11)],
    }
    place = hub_folder(tmp_path, "google-research-datasets/mbpp", splits)
    task = parse_task("mbpp")
    items = items_of(task, place)
    assert [item.id for item in items] == ["11", "12"]
    (prompt,) = asked(task, items[0])
    assert [prompt.count(f"return {number}.") for number in (1, 2, 3, 4, 11)] == [0, 1, 1, 1, 1]
    assert prompt.endswith(
        "Write a function to return 11. Your code should pass these tests:\n\nassert f() == 11\n[BEGIN]\n"
    )


@pytest.mark.parametrize("worded", [False, True])
def test_cute(worded: bool, tmp_path: Path) -> None:
    if worded:
        examples = 'Add an "x" after every "o".\n\n1. Add "e" after every "b" in "bob". Answer: "bebeb"\n\n'
        row = {"prompt": f'{examples}Question: Add "z" after every "l" in "ball".', "answer": "balzlz"}
    else:
        row = {"input1": "z", "input2": "l", "input3": "ball", "label": "balzlz"}
    place = hub_folder(tmp_path, "leukas/cute", {("default", "ins_char"): [row], ("default", "spell"): [row]})
    task, item = first("cute:ins_char", place)
    assert asked(task, item)[0].endswith('\n5. Insert "z" after every "l" in "ball". Answer: "')


def test_translation(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    sentences = {"eng_Latn": "House {}.", "fra_Latn": "Maison {}.", "deu_Latn": "Haus {}."}
    splits = {
        (language, split): [
            {
                "id": at,
                "iso_639_3": language[:3],
                "iso_15924": "Latn",
                "glottocode": "x",
                "text": text.format(at + base),
            }
            for at in range(count)
        ]
        for language, text in sentences.items()
        for split, count, base in (("dev", 6, 0), ("devtest", 2, 100))
    }
    task, item = first("translation", hub_folder(tmp_path, "openlanguagedata/flores_plus", splits))
    (prompt,) = asked(task, item)
    assert prompt.endswith("\n\nFrench: Maison 100.\nEnglish:") and prompt.count("Maison") == 5
    assert item["gold"] == "House 100."


def test_a_revision_is_of_the_hub_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIQA's main branch is a script, which `datasets` refuses to run; its converted copy is asked for by name."""
    import datasets

    told: list[dict[str, Any]] = []

    def load(name: str, config: str | None, **options: Any) -> list[Any]:
        told.append({"name": name, "config": config, **options})
        return [{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    items_of(parse_task("piqa"), Place())
    assert told == [{"name": "ybisk/piqa", "config": None, "split": "validation", "revision": "refs/convert/parquet"}]
    (tmp_path / "ybisk" / "piqa").mkdir(parents=True)
    items_of(parse_task("piqa"), Place.of([tmp_path]))
    assert told[1]["revision"] is None and told[1]["name"] == str(tmp_path / "ybisk" / "piqa")


def test_what_the_hub_does_not_have_is_one_line(tmp_path: Path) -> None:
    place = hub_folder(tmp_path, "allenai/ai2_arc", {("other", "test"): [GUIDE]})
    for hub in (HubSet("allenai/ai2_arc", "test", "ARC-Easy"), HubSet("allenai/ai2_arc", "train", "other")):
        with pytest.raises(ValueError, match="data set allenai/ai2_arc") as error:
            list(place.rows("arc_easy.jsonl", hub))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="row 1: field 'question' is missing; the row has q"):
        items_of(
            parse_task("arc_easy"), hub_folder(tmp_path / "b", "allenai/ai2_arc", {("ARC-Easy", "test"): [{"q": 1}]})
        )
