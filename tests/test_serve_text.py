"""Bytes to text as it grows, and names of ids."""

import math

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data.template import ChatTemplate
from bltkit.serve.byte_text import UNLIKELY, ChoiceText, Entry, Piece, chat_logprobs, completion_logprobs, entries_of
from bltkit.serve.tokens import BOS_NAME, EOS_NAME, bytes_of, ids_of, jinja_template, name_of, text_of_ids
from bltkit.vocab import BOS, EOS, OFFSET

PIECES = st.lists(st.binary(max_size=5) | st.sampled_from(["é".encode(), b"\xf0\x9f", b"\x98\x80", b"\xe5\xa4"]))


@given(PIECES)
def test_pieces_are_the_text_of_all_bytes_at_once(pieces: list[bytes]) -> None:
    text = ChoiceText()
    parts = [text.feed(piece) for piece in pieces] + [text.end()]
    data = b"".join(pieces)
    assert "".join(part.text for part in parts) == data.decode("utf-8", "replace")
    assert b"".join(part.data for part in parts) == data
    for part in parts:  # whole characters: none needs the next event
        assert part.data.decode("utf-8", "replace") == part.text


@given(PIECES)
def test_an_entry_stays_with_its_byte(pieces: list[bytes]) -> None:
    text = ChoiceText(entries=True)
    count = 0
    parts = []
    for piece in pieces:
        parts.append(text.feed(piece, entries_of(piece, [-float(count + i) for i in range(len(piece))], ())))
        count += len(piece)
    parts.append(text.end())
    for part in parts:
        assert bytes(byte for entry in part.entries for byte in bytes_of(entry.chosen)) == part.data
    entries = [entry for part in parts for entry in part.entries]
    assert [entry.logprob for entry in entries] == [-float(i) for i in range(count)]
    whole = "".join(part.text for part in parts)
    assert all(0 <= entry.offset < len(whole) for entry in entries)
    assert [entry.offset for entry in entries] == sorted(entry.offset for entry in entries)


@given(st.text())
def test_the_offset_is_that_of_the_character(text: str) -> None:
    data = text.encode("utf-8", "ignore")
    choice = ChoiceText(entries=True)
    entries = choice.feed(data, entries_of(data, [0.0] * len(data), ())).entries
    expected = [at for at, character in enumerate(data.decode()) for _ in character.encode()]
    assert [entry.offset for entry in entries] == expected


def test_a_character_cut_short_is_held_back_until_the_end() -> None:
    text = ChoiceText()
    assert text.feed(b"a\xf0\x9f") == Piece("a", b"a")
    assert text.feed(b"\x98") == Piece()
    assert text.end() == Piece("\ufffd", b"\xf0\x9f\x98")
    text = ChoiceText()
    assert text.feed(b"\xf0\x9f") == Piece()
    assert text.feed(b"A") == Piece("\ufffdA", b"\xf0\x9fA"), "what cannot be completed any more is shown at once"


def test_special_ids_have_an_entry_and_no_text() -> None:
    text = ChoiceText(entries=True)
    entries = [
        Entry(BOS, None, ()),
        Entry(OFFSET + 0xC3, -1.0, ()),
        Entry(EOS, -2.0, ()),
        Entry(OFFSET + 0xA9, -3.0, ()),
    ]
    piece = text.feed("é".encode(), entries)
    assert piece.text == "é" and [entry.chosen for entry in piece.entries] == [entry.chosen for entry in entries]
    assert text.end([Entry(EOS, None, ())]).entries[0].chosen == EOS


def test_names() -> None:
    assert name_of(OFFSET + ord("a")) == "a"
    assert name_of(OFFSET + 0xF0) == r"bytes:\xf0"
    names = [name_of(value) for value in range(OFFSET + 256)]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.encode().decode() == name


def test_log_probabilities_are_numbers_of_json() -> None:
    entries = [
        Entry(OFFSET + 97, None, ()),
        Entry(OFFSET + 0xFF, -math.inf, ((OFFSET + 98, -0.5), (OFFSET + 99, -math.inf))),
    ]
    shown = completion_logprobs(entries)
    assert shown["tokens"] == ["a", r"bytes:\xff"]
    assert shown["token_logprobs"] == [None, UNLIKELY]
    assert shown["top_logprobs"] == [None, {"b": -0.5, "c": UNLIKELY, r"bytes:\xff": UNLIKELY}]
    content = chat_logprobs(entries[1:])["content"]
    assert content[0]["bytes"] == [255] and [each["token"] for each in content[0]["top_logprobs"]] == ["b", "c"]


def test_a_name_counts_where_it_is_the_whole_text() -> None:
    assert ids_of(BOS_NAME) == [BOS] and ids_of(EOS_NAME) == [EOS]
    assert ids_of("a" + EOS_NAME) == [byte + OFFSET for byte in ("a" + EOS_NAME).encode()]
    assert text_of_ids([EOS]) == EOS_NAME
    assert text_of_ids([BOS, OFFSET + 97, EOS]) == "a"
    assert text_of_ids([]) == ""


@given(st.text())
def test_ids_hold_the_text(text: str) -> None:
    if text not in (BOS_NAME, EOS_NAME):
        assert text_of_ids(ids_of(text)) == text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


@pytest.mark.parametrize(
    "template", [ChatTemplate(), ChatTemplate(turn="<|im_start|>", text="'\n", end="<|im_end|>\n")]
)
def test_the_template_of_other_clients_is_ours(template: ChatTemplate) -> None:
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "{{ hi }}"}]
    environment = jinja2.Environment()
    rendered = environment.from_string(jinja_template(template)).render(messages=messages, add_generation_prompt=True)
    assert rendered.encode() == template.render(messages, add_generation_prompt=True).data
