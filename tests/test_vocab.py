"""Any bytes in, the same bytes out; and text on the screen as it would read in one piece."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit.vocab import BOS, EOS, MASK, OFFSET, PAD, VOCAB_SIZE, Utf8Stream, decode, encode, to_bytes

surrogates = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])
escapes = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
any_text = st.text(st.characters() | surrogates | escapes, max_size=20)


def test_ids_are_the_reference_vocabulary() -> None:
    assert (PAD, BOS, EOS, MASK, OFFSET, VOCAB_SIZE) == (0, 1, 2, 3, 4, 260)
    assert encode(b"\x00a\xff", eos=True).tolist() == [1, 4, 101, 259, 2]


@given(data=st.binary(max_size=300), bos=st.booleans(), eos=st.booleans())
def test_any_bytes_come_back(data: bytes, bos: bool, eos: bool) -> None:
    ids = encode(data, bos=bos, eos=eos)
    assert ids.dtype == torch.int64 and len(ids) == len(data) + bos + eos
    assert decode(ids) == decode(ids.tolist()) == data
    assert ids[len(ids) - len(data) - eos :][: len(data)].tolist() == [value + 4 for value in data]
    assert ([1] if bos else []) == ids[: int(bos)].tolist() and ([2] if eos else []) == ids[len(ids) - eos :].tolist()


@given(data=st.binary(max_size=50), at=st.integers(0, 50), special=st.sampled_from([PAD, BOS, EOS, MASK]))
def test_special_ids_have_no_bytes(data: bytes, at: int, special: int) -> None:
    ids = encode(data).tolist()
    assert decode([*ids[:at], special, *ids[at:]]) == data


@pytest.mark.parametrize("value", [-1, 260, 10**9])
def test_an_id_outside_the_vocabulary(value: int) -> None:
    with pytest.raises(ValueError, match=rf"id {value} is outside the byte vocabulary 0\.\.259"):
        decode([5, value])


@given(text=st.text())
def test_text_is_utf8(text: str) -> None:
    assert to_bytes(text) == text.encode() and decode(encode(text)).decode() == text


@given(data=st.binary(max_size=50))
def test_escaped_bytes_are_the_bytes(data: bytes) -> None:
    """What Python makes of arguments and file names that are no UTF-8."""
    assert to_bytes(data.decode("utf-8", "surrogateescape")) == data
    assert to_bytes(os.fsdecode(b"\xff\xfea")) == b"\xff\xfea"


@given(text=any_text, more=any_text)
def test_surrogates_of_every_kind(text: str, more: str) -> None:
    """Escapes are bytes wherever they stand, other surrogates have three bytes, and nothing is dropped."""
    expected = b"".join(
        bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else char.encode("utf-8", "surrogatepass")
        for char in text
    )
    assert to_bytes(text) == expected
    assert to_bytes(text + more) == to_bytes(text) + to_bytes(more)


@given(data=st.binary(max_size=40) | st.text(max_size=20).map(str.encode), cuts=st.lists(st.integers(0, 60)))
def test_a_stream_reads_like_the_whole(data: bytes, cuts: list[int]) -> None:
    stream, shown, at = Utf8Stream(), "", 0
    for cut in [*sorted(cuts), len(data)]:
        piece = data[at : max(at, cut)]
        shown, at = shown + stream.feed(piece), max(at, min(cut, len(data)))
    assert (shown + stream.end()) == data.decode("utf-8", "replace")


def test_a_character_appears_with_its_last_byte() -> None:
    stream = Utf8Stream()
    assert [stream.feed(bytes([byte])) for byte in "é€🐍".encode()] == ["", "é", "", "", "€", "", "", "", "🐍"]
    assert stream.feed(b"a\xe2\x82") == "a" and stream.end() == "�"
