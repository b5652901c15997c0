"""Rows of tokens equal a construction id by id, whatever the bytes, the documents and what of them is learned."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.data import IGNORE, Batch, Document, Loader, TokenBatch
from bltkit.tokens import Vocabulary
from bltkit.tokens.vocabulary import SPECIAL
from bltkit.vocab import BOS, EOS, OFFSET, PAD
from tests import tiny_training
from tests.tiny_corpus import everything, row_sizes, seeds

VOCABULARY = Vocabulary.train(tiny_training.documents(), 300)
PARTS = [b"the of and ", b" to", b"\xc3\xa4\xe2\x82\xac", b"\xe2\x82", b"\xff\x00", b"\n\n", "".join(SPECIAL).encode()]
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=6)), min_size=1, max_size=12).map(b"".join)


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    """A few documents, of some of which not all bytes are learned."""
    found = []
    for number, text in enumerate(draw(st.lists(texts.filter(bool), min_size=1, max_size=6))):
        marks = draw(st.none() | st.binary(min_size=len(text), max_size=len(text)))
        learned = None if marks is None else np.frombuffer(marks, np.uint8) % 3 == 0
        found.append(Document(str(number), text, learned=learned))
    return found


def obvious(batch: Batch, row: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Tokens, their documents, and for each token its successor as a target with the bytes that this one holds."""
    tokens, documents, wanted, held = list[int](), list[int](), list[bool](), list[int]()
    text, asked = bytearray(), list[bool]()

    def add(token: int, is_wanted: bool, num_bytes: int) -> None:
        tokens.append(token)
        documents.append(tokens.count(VOCABULARY.bos))
        wanted.append(is_wanted)
        held.append(num_bytes if is_wanted else 0)

    def flush() -> None:
        at = 0
        for token in VOCABULARY.tokenizer.encode(bytes(text)):
            size = len(VOCABULARY.tokenizer.pieces[token])
            add(token, any(asked[at : at + size]), size)
            at += size
        assert at == len(text)
        text.clear()
        asked.clear()

    for column, value in enumerate(batch.ids[row].tolist()):
        is_wanted = column > 0 and int(batch.targets[row, column - 1]) != IGNORE
        if value >= OFFSET:
            text.append(value - OFFSET)
            asked.append(is_wanted)
            continue
        flush()
        if value == PAD:
            break
        add(VOCABULARY.bos if value == BOS else VOCABULARY.eos, is_wanted and value == EOS, 0)
    flush()
    targets = [token if is_wanted else IGNORE for token, is_wanted in zip(tokens, wanted, strict=True)]
    return tokens, documents, [*targets[1:], IGNORE], [*held[1:], 0]


@given(documents(), row_sizes, st.integers(1, 3), seeds)
@settings(max_examples=60, deadline=None)
def test_rows_equal_the_obvious_construction(found: list[Document], row_bytes: int, rows: int, seed: int) -> None:
    batch = next(Loader(everything(found), row_bytes, rows, seed))
    made = TokenBatch.of(batch, VOCABULARY)
    expected = [obvious(batch, row) for row in range(rows)]
    size = max(len(tokens) for tokens, *_ in expected)
    ours = made.tokens
    assert {tuple(tensor.shape) for tensor in (ours.ids, ours.documents, ours.targets, ours.target_bytes)} == {
        (rows, size)
    }
    for row, (tokens, documents, targets, held) in enumerate(expected):
        pads = size - len(tokens)
        assert ours.num_tokens[row] == len(tokens)
        assert ours.ids[row].tolist() == tokens + [VOCABULARY.pad] * pads
        assert ours.documents[row].tolist() == documents + documents[-1:] * pads
        assert ours.targets[row].tolist() == targets + [IGNORE] * pads
        assert ours.target_bytes[row].tolist() == held + [0] * pads
    assert made.text_bytes == sum(sum(held) for *_, held in expected)
    assert made.num_targets == sum(target != IGNORE for *_, targets, _ in expected for target in targets)
    special = (VOCABULARY.bos, VOCABULARY.eos)
    assert made.text_tokens == sum(token not in special for tokens, *_ in expected for token in tokens)
    # The rows' bytes are those of the byte models, in their order.
    pieces = VOCABULARY.tokenizer.pieces
    for row, (tokens, *_) in enumerate(expected):
        again = [BOS if t == VOCABULARY.bos else EOS if t == VOCABULARY.eos else pieces[t] for t in tokens]
        flat = [v for one in again for v in ([one] if isinstance(one, int) else [byte + OFFSET for byte in one])]
        assert flat == batch.ids[row, : int(batch.num_bytes[row])].tolist()
    assert torch.equal(made.ids, batch.ids) and torch.equal(made.num_patches, ours.num_tokens)


@given(st.lists(texts.filter(bool), min_size=1, max_size=6), row_sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_where_all_is_learned_the_same_bytes_count(found: list[bytes], row_bytes: int, seed: int) -> None:
    batch = next(Loader(everything(found), row_bytes, 2, seed))
    made = TokenBatch.of(batch, VOCABULARY)
    assert made.text_bytes == batch.text_bytes
    assert made.num_targets == made.text_tokens + int((batch.ids == EOS).sum())


def test_rows_without_targets_count_for_nothing() -> None:
    batch = next(Loader(everything(tiny_training.documents()), 40, 3, 0))
    whole, one = TokenBatch.of(batch, VOCABULARY), TokenBatch.of(batch, VOCABULARY).without_targets(1)
    alone = TokenBatch.of(batch.without_targets(1), VOCABULARY)
    assert one.text_bytes == alone.text_bytes == int(whole.tokens.target_bytes[0].sum()) < whole.text_bytes
    assert one.num_targets == alone.num_targets < whole.num_targets
    for name, tensor in vars(one.tokens).items():
        assert torch.equal(tensor, getattr(alone.tokens, name)), name


def test_a_batch_moves_whole() -> None:
    batch = TokenBatch.of(next(Loader(everything([b"the of and"]), 40, 1, 0)), VOCABULARY).to("meta")
    assert isinstance(batch, TokenBatch)
    assert batch.tokens.ids.is_meta and batch.tokens.target_bytes.is_meta and batch.ids.is_meta


@given(texts)
def test_a_vocabulary_is_lossless_and_reads_back(data: bytes) -> None:
    tokens = VOCABULARY.tokenizer.encode(data)
    assert VOCABULARY.tokenizer.decode(tokens) == data
    assert not {VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.eos} & set(tokens)
    again = pickle.loads(pickle.dumps(VOCABULARY))
    assert again == VOCABULARY and again.tokenizer.encode(data) == tokens


def test_a_vocabulary_is_stored_and_loaded(tmp_path: Path) -> None:
    for name, content in VOCABULARY.files().items():
        (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = Vocabulary.load(path)
        assert found == VOCABULARY and found.sha256 == VOCABULARY.sha256
    assert VOCABULARY.size == 300 and (VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.eos) == (0, 1, 2)
    assert Vocabulary.train(tiny_training.documents(), 300) == VOCABULARY
    assert Vocabulary.train(tiny_training.documents(), 299).sha256 != VOCABULARY.sha256


def test_special_tokens_of_a_tokenizer_that_has_others_or_none(tmp_path: Path) -> None:
    from bltkit.tokens import train_bpe

    file = tmp_path / "tokenizer.json"
    file.write_text(train_bpe(tiny_training.documents(), 280))
    added = Vocabulary.load(file)
    assert added.size == 283 and {added.bos, added.eos, added.pad} == {280, 281, 282}
    file.write_text(train_bpe(tiny_training.documents(), 280, ["<|endoftext|>"]))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|endoftext|>"}'
    )
    named = Vocabulary.load(tmp_path)
    assert (named.bos, named.eos, named.pad, named.size) == (0, 0, 0, 280)
    row = TokenBatch.of(next(Loader(everything([b"the <|endoftext|>"]), 40, 1, 0)), named).tokens
    assert row.ids[0, 0] == 0 and row.ids[0].tolist().count(0) == 2  # BOS and EOS; the name is text
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not JSON"):
        Vocabulary.load(tmp_path)
