"""Tasks of many languages and scripts: pronunciation, translation, valid UTF-8; and all tasks on the real files."""

import importlib.util
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Continuation, Written
from bltkit.eval.tasks import overlap
from bltkit.eval.tasks.arithmetic import Arithmetic
from bltkit.eval.tasks.cute import PARTS, Cute
from bltkit.eval.tasks.cute_prompts import PROMPTS as CUTE_PROMPTS
from bltkit.eval.tasks.g2p import G2p
from bltkit.eval.tasks.gsm8k import Gsm8k
from bltkit.eval.tasks.languages import NAMES, name_of
from bltkit.eval.tasks.task import Item, Task
from bltkit.eval.tasks.translation import RESERVED, Translation
from bltkit.eval.tasks.utf8 import PROMPTS, Utf8Task
from tests.eval_rows_writing import contexts, items_of, place_of
from tests.shared import SHARED

real = pytest.mark.skipif(SHARED is None, reason="needs ../shared")


def test_g2p_asks_behind_words_of_the_same_language(tmp_path: Path) -> None:
    found = contexts(G2p(shots=2), tmp_path)
    assert found == [
        "dalo: d aː l o\ngamo: g aː m o\nzalo:",
        "dalo: d aː l o\ngamo: g aː m o\nzano:",
        "дел: д ʲ e л\nгем: г ʲ e м\nзел:",
    ]
    assert contexts(G2p(shots=2, seed=1), tmp_path) != found
    assert contexts(G2p(shots=0, part=("bbb",)), tmp_path) == ["зел:"]
    assert contexts(G2p(), tmp_path)[0].count("\n") == 8


def test_g2p_counts_edits_by_the_phonemes_of_the_reference(tmp_path: Path) -> None:
    task = G2p(part=("aaa",))
    item = items_of(task, tmp_path)[0]
    for text, edits, right in (
        (" z aː l o", 0, 1),
        (" z l o", 1, 0),
        ("", 4, 0),
        (" z aː l o o o", 2, 0),
        ("zaːlo", 4, 0),
    ):
        metrics = task.grade(item, [Written(text.encode(), "stop")]).metrics
        assert metrics == {"exact_match": right, "per": (edits, 4)}


def test_g2p_bounds_answers_by_the_longest_of_the_language(tmp_path: Path) -> None:
    (tmp_path / "g2p").mkdir()
    (tmp_path / "g2p" / "xx_train.tsv").write_text("a\tx y z\n")
    (tmp_path / "g2p" / "xx_dev.tsv").write_text("b\tx\nc\tx\n")
    requests = [G2p(shots=1).requests(item)[0] for item in G2p(shots=1).items(Place.of([tmp_path]))]
    assert [one.max_bytes for one in requests if isinstance(one, Continuation)] == [len(" x y z\n")] * 2


def test_g2p_names_what_is_wrong_with_its_files(tmp_path: Path) -> None:
    place = place_of("g2p", tmp_path)
    with pytest.raises(ValueError, match="g2p:aab: no such part; did you mean 'aaa'"):
        list(G2p(part=("aab",)).items(place))
    with pytest.raises(ValueError, match="9 words, fewer than shots = 10"):
        list(G2p(shots=10).items(place))
    (tmp_path / "g2p" / "bbb_train.tsv").write_text("one\n")
    with pytest.raises(ValueError, match=r"bbb_train\.tsv, line 1: expected a word, a tab"):
        list(G2p(part=("bbb",)).items(place))
    (tmp_path / "g2p" / "bbb_train.tsv").unlink()
    with pytest.raises(ValueError, match="the 8 shots come from it, or ask for shots=0"):
        list(G2p(part=("bbb",)).items(place))


SENTENCES = st.text("abc .é漢", max_size=12)


@given(st.lists(st.tuples(SENTENCES, SENTENCES.filter(str.strip)), min_size=1, max_size=5))
def test_summed_counts_give_sacrebleus_scores_of_the_corpus(sentences: list[tuple[str, str]]) -> None:
    pytest.importorskip("sacrebleu")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found, gold = map(list, zip(*sentences, strict=True))
    for name in ("char", "13a"):
        rows = [overlap.bleu_sums(one, other, name) for one, other in sentences]
        score = overlap.bleu([sum(column) for column in zip(*rows, strict=True)])
        assert score == pytest.approx(BLEU(tokenize=name).corpus_score(found, [gold]).score, abs=1e-9)
    rows = [overlap.chrf_sums(one, other) for one, other in sentences]
    score = overlap.chrf([sum(column) for column in zip(*rows, strict=True)])
    assert score == pytest.approx(CHRF().corpus_score(found, [gold]).score, abs=1e-9)


def test_a_sentence_right_scores_100_and_one_without_a_common_letter_0() -> None:
    pytest.importorskip("sacrebleu")
    assert overlap.bleu(overlap.bleu_sums("the old mill", "the old mill", "char")) == pytest.approx(100.0)
    assert overlap.bleu(overlap.bleu_sums("xxxx", "the old mill", "char")) == 0.0
    assert overlap.chrf(overlap.chrf_sums("the old mill", "the old mill")) == pytest.approx(100.0)
    assert overlap.chrf(overlap.chrf_sums("", "the old mill")) == 0.0


def test_sentence_pieces_are_taken_where_their_model_lies_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json" if name == "sentencepiece" else name))
    assert overlap.sentence_pieces() is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sacrebleu_tokenizer_spm.model").touch()
    assert overlap.sentence_pieces() == "spm"
    (tmp_path / "models" / "flores200sacrebleuspm").touch()
    assert overlap.sentence_pieces() == "flores200"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need sacrebleu: pip install 'bltkit\[eval\]'"):
        Translation().prepare()


def test_translation_asks_behind_pairs_that_are_never_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    task = Translation(part=("eng_Latn-fra_Latn",), shots=1)
    assert contexts(task, tmp_path)[0] == (
        "English: There are 17 cats living in the house.\nFrench: Il y a 17 chats dans la maison.\n\n"
        "English: There are 18 cats living in the house.\nFrench:"
    )
    items = items_of(Translation(), tmp_path)
    assert Counter(item.groups["pair"] for item in items) == {
        "deu_Latn-eng_Latn": 3,
        "fra_Latn-eng_Latn": 3,
        "eng_Latn-deu_Latn": 3,
        "eng_Latn-fra_Latn": 3,
        "eng_Latn-vec_Latn": 3,
        "vec_Latn-eng_Latn": 3,
    }
    assert Counter(item.groups["direction"] for item in items) == {"into_english": 9, "from_english": 9}
    for item in items:
        assert len(item["shots"]) == 4 and (item["source"], item["gold"]) not in item["shots"]
    (request,) = task.requests(items_of(task, tmp_path)[0])
    assert isinstance(request, Continuation) and request.stop == (b"\n",)


def test_translation_reads_flores_folders(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    for pattern in ("{split}/{language}.{split}", "mt/{split}/{split}.{language}"):
        root = tmp_path / pattern[:2]
        for split, count in (("dev", 5), ("devtest", 2)):
            for language in ("fra_Latn", "deu_Latn", "eng_Latn"):
                path = root / pattern.format(split=split, language=language)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"{language} {split} {number}\n" for number in range(count)))
        items = list(Translation(shots=2).items(Place.of([root])))
        assert [item.id for item in items] == [
            *("fra_Latn-eng_Latn/0", "fra_Latn-eng_Latn/1", "deu_Latn-eng_Latn/0", "deu_Latn-eng_Latn/1")
        ]
        assert items[1]["source"] == "fra_Latn devtest 1" and items[1]["gold"] == "eng_Latn devtest 1"
        assert all(source.startswith("fra_Latn dev ") for source, _ in items[0]["shots"])
        with pytest.raises(ValueError, match="5 pairs for examples, fewer than shots = 6"):
            list(Translation(shots=6).items(Place.of([root])))


def test_translation_names_what_its_file_lacks(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    place = place_of("translation", tmp_path)
    with pytest.raises(ValueError, match="has no fra_Latin; did you mean 'fra_Latn'"):
        list(Translation(part=("eng_Latn-fra_Latin",)).items(place))
    path = tmp_path / "oldi_seed.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:RESERVED]))
    with pytest.raises(ValueError, match="16 rows; the first 16 are kept for examples"):
        list(Translation().items(place))


def test_names_of_languages_are_one_each() -> None:
    assert name_of("vec_Latn") == "Venetian" and name_of("xxx_Latn") == "xxx_Latn"
    flores = [name for code, name in NAMES.items() if "_" in code]
    assert len(set(flores)) == len(flores)


def test_utf8_prompts_are_of_their_scripts_and_end_within_a_character() -> None:
    assert len(PROMPTS) >= 12
    for script, prompt in PROMPTS.items():
        named = {"han": ("CJK",), "kana": ("HIRAGANA", "KATAKANA"), "emoji": ("GRINNING", "SMILING")}
        starts = named.get(script, (script.upper(),))
        letters = [letter for letter in prompt if unicodedata.category(letter)[0] in "LMS"]
        assert letters and all(unicodedata.name(letter).startswith(starts) for letter in letters), script
        assert len(prompt[-1].encode()) > 1


def test_utf8_asks_whole_and_cut_greedily_and_drawn() -> None:
    task = Utf8Task(part=("greek",), samples=2, max_bytes=9, temperature=0.5)
    items = list(task.items(Place()))
    assert [item.id.removeprefix("greek/") for item in items] == [
        *("whole/greedy", "cut/greedy", "whole/sample-1", "cut/sample-1", "whole/sample-2", "cut/sample-2")
    ]
    requests = [one for item in items for one in task.requests(item) if isinstance(one, Continuation)]
    whole = PROMPTS["greek"].encode()
    assert [one.context for one in requests] == [whole, whole[:-1]] * 3
    assert [one.temperature for one in requests] == [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert len({one.seed for one in requests[2:]}) == 4
    assert all(one.max_bytes == 9 and not one.stop for one in requests)
    other = [one for item in items for one in task.replace(seed=1).requests(item) if isinstance(one, Continuation)]
    assert [one == two for one, two in zip(requests, other, strict=True)] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("form", "data", "finish", "valid", "sums"),
    [
        ("whole", b"", "eos", 1.0, (0, 0)),
        ("whole", b"abc", "length", 1.0, (0, 3)),
        ("whole", b"ab\xce", "length", 1.0, (0, 2)),
        ("whole", b"ab\xce", "eos", 0.0, (1, 3)),
        ("whole", b"\xffa", "length", 0.0, (1, 2)),
        ("cut", b"\xac!", "length", 1.0, (0, 3)),
        ("cut", b"!", "length", 0.0, (1, 2)),
        ("cut", b"", "length", 1.0, (0, 0)),
        ("cut", b"", "eos", 0.0, (1, 1)),
    ],
)
def test_utf8_counts_what_is_no_valid_character(
    form: str, data: bytes, finish: str, valid: float, sums: tuple[float, float]
) -> None:
    item = Item("x", {"prompt": "καλά", "cut": int(form == "cut")}, {"decoding": "greedy"})
    grade = Utf8Task().grade(item, [Written(data, finish)])  # type: ignore[arg-type]
    assert grade.metrics == {"valid": valid, "invalid_bytes": sums}


@real
@pytest.mark.parametrize(
    ("task", "count"),
    [
        (Gsm8k(), 250),
        (Arithmetic(), 200),
        (Cute(part=PARTS), 2100),
        (G2p(), 15 * 450),
        (Translation(part=("eng_Latn-vec_Latn", "dzo_Tibt-eng_Latn")), 2 * (5193 - RESERVED)),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_tasks_read_the_real_files(task: Task, count: int) -> None:
    pytest.importorskip("sacrebleu")
    assert SHARED is not None
    items = list(task.items(Place.of([SHARED / "data" / "eval", SHARED / "data" / "mt"])))
    assert len(items) == count == len({item.id for item in items})
    for item in items:
        for request in task.requests(item):
            assert not isinstance(request, Continuation) or 0 < request.max_bytes < 5000


@real
def test_a_translations_bound_holds_nearly_all_references() -> None:
    pytest.importorskip("sacrebleu")
    assert SHARED is not None
    items = list(Translation().items(Place.of([SHARED / "data"])))
    assert len({item.groups["pair"] for item in items}) == 16
    short = sum(len(item["gold"].encode()) >= item["max_bytes"] for item in items)
    assert short / len(items) < 1e-3


@real
def test_no_worked_example_of_cute_is_of_its_data() -> None:
    assert SHARED is not None
    place = Place.of([SHARED / "data" / "eval"])
    asked = {(item.groups["task"], max(item["inputs"], key=len).lower()) for item in Cute(part=PARTS).items(place)}
    for name, prompt in CUTE_PROMPTS.items():
        for *inputs, _ in prompt.examples:
            assert (name, max(inputs, key=len).lower()) not in asked
