"""The tokenizer beside a saved model: `transformers.AutoTokenizer` gives our ids, and our texts back."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bltkit
from bltkit.checkpoint import listed_files, store_rule
from bltkit.checkpoint.byte_tokenizer import SPECIAL
from bltkit.patching import ThresholdRule
from bltkit.vocab import BOS, EOS, MASK, OFFSET, PAD, decode, encode

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny"
    bltkit.load("bltkit:tiny").save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(saved: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(saved)


def test_special_ids(tokenizer: Any) -> None:
    ids = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id
    assert ids == (PAD, BOS, EOS, MASK) and len(tokenizer) == 260


# Pieces that a tokenizer for words treats in its own way, beside any characters at all.
PIECES = st.sampled_from([*SPECIAL.values(), "</s>", "  ", "\r\n", "\0", "\ufeff", "e\u0301", "\u200d", "日本", "🎉"])
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(exclude_categories=["Cs"])))).map("".join)


@settings(max_examples=200)
@given(text=TEXTS)
def test_texts_become_our_ids_and_come_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == encode(text).tolist()
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=200)
@given(data=st.one_of(st.binary(), st.lists(st.sampled_from(list(b"a\xe2\x82\xac\xf0\x9f\x80\xff"))).map(bytes)))
def test_ids_of_any_bytes_decode(tokenizer: Any, data: bytes) -> None:
    assert tokenizer.decode([byte + OFFSET for byte in data]) == data.decode(errors="replace")


@settings(max_examples=100)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_batches_and_pairs(tokenizer: Any, texts: list[str]) -> None:
    assert tokenizer(texts)["input_ids"] == [encode(text).tolist() for text in texts]
    first, last = texts[0], texts[-1] or "-"  # an empty second text is none to transformers
    assert tokenizer(first, last)["input_ids"] == [*encode(first).tolist(), *encode(last).tolist()]


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 259)))
def test_special_ids_are_named_or_left_out(tokenizer: Any, ids: list[int]) -> None:
    assert tokenizer.decode(ids, skip_special_tokens=True) == decode(ids).decode(errors="replace")
    runs = [list(run) for _, run in itertools.groupby(ids, lambda number: number if number < OFFSET else None)]
    texts = [SPECIAL[run[0]] * len(run) if run[0] < OFFSET else decode(run).decode(errors="replace") for run in runs]
    assert tokenizer.decode(ids) == "".join(texts)


def test_half_a_surrogate_pair_is_refused(tokenizer: Any) -> None:
    """`tokenizers` takes UTF-8 alone, where this package has bytes for it: no other ids come of it."""
    with pytest.raises(TypeError):
        tokenizer("a\ud800")


def test_a_checkpoint_that_transformers_cannot_load_has_one(saved: Path, tmp_path: Path) -> None:
    bltkit.load(saved).with_patching("stride:k=6").save(tmp_path / "stride")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "stride")("ab")["input_ids"] == [BOS, 101, 102]


def test_padding_is_on_the_right(tokenizer: Any) -> None:
    """On the left it would change what transformers computes."""
    assert tokenizer(["ab", "c"], padding=True)["input_ids"] == [[BOS, 101, 102], [BOS, 103, PAD]]


def test_the_files_are_listed_and_stay_listed(saved: Path) -> None:
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(listed_files(saved)) == names
    store_rule(saved, ThresholdRule(threshold=1.5))
    assert set(listed_files(saved)) == names
    bltkit.load(saved, verify=True)


def test_saved_by_transformers_it_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("<eos> x")["input_ids"] == encode("<eos> x").tolist()
