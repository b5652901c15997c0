"""How written answers are read: each a function of the text alone."""

import unicodedata
from decimal import Decimal
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.tasks.cute import hub_row, up_to_quote
from bltkit.eval.tasks.g2p import edits, phonemes_of
from bltkit.eval.tasks.gsm8k import last_number, question_row
from bltkit.eval.tasks.translation import one_line
from bltkit.eval.tasks.utf8 import faults
from bltkit.eval.tasks.writing import drawn


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 1,234.50 dollars.", "1234.5"),
        ("The answer is 18.", "18"),
        ("The answer is $18.00", "18"),
        ("65,960", "65960"),
        ("1,234,567 km", "1234567"),
        ("12,3456", "3456"),
        ("1,2", "2"),
        ("-3", "-3"),
        ("it is −3 degrees", "-3"),
        ("-$5", "-5"),
        ("$-5.", "-5"),
        ("7-5", "5"),
        ("3-5=-2", "-2"),
        ("(4)-2", "2"),
        ("page A-4", "4"),
        ("about .5 liters", "0.5"),
        ("1/2", "2"),
        ("25%", "25"),
        ("3...", "3"),
        ("€1,000", "1000"),
        ("007", "7"),
        ("٣", None),
        ("no number - none.", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@given(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9),
    st.booleans(),
    st.sampled_from(["", "$", "€"]),
    st.sampled_from(["", ".", " dollars.", "\n", ") "]),
)
def test_last_number_finds_a_number_however_it_is_written(
    before: str, number: Decimal, commas: bool, currency: str, behind: str
) -> None:
    sign, size = ("-" if number < 0 else ""), abs(number)
    shown = f"{sign}{currency}{size:,}" if commas else f"{sign}{currency}{size}"
    assert last_number(f"{before} = {shown}{behind}") == number


@given(st.text())
def test_last_number_reads_anything(text: str) -> None:
    found = last_number(text)
    assert (found is None) == (not any(letter in "0123456789" for letter in text))


def test_the_answer_of_the_hubs_gsm8k_stands_behind_four_hashes() -> None:
    row = question_row({"question": "Q?", "answer": "3+4=<<3+4=7>>7 # one\n#### 1,007"})
    assert row == {"context": "Q?", "answer": "1,007"}


def test_the_hubs_cute_may_have_our_columns_or_a_question_with_quotes() -> None:
    ours = {"input1": "a", "label": "b"}
    assert hub_row(ours, 1) == ours
    asked = {"question": '1. Do "x" with "y". Now do "a" with "b c" in "d".', "answer": "e"}
    assert hub_row(asked, 3) == {"input1": "a", "input2": "b c", "input3": "d", "label": "e"}
    with pytest.raises(ValueError, match="fewer than 3 inputs"):
        hub_row({"question": '"a" and "b"', "answer": "e"}, 3)
    with pytest.raises(ValueError, match="columns other, not input1"):
        hub_row({"other": 1}, 1)


def test_a_quoted_answer_ends_at_the_next_quote() -> None:
    assert up_to_quote('a b "c" d') == "a b "
    assert up_to_quote("never closed") == "never closed"


def test_phonemes_are_what_white_space_separates() -> None:
    assert phonemes_of("  a\u0303  t͡s \n x: y") == [unicodedata.normalize("NFC", "ã"), "t͡s"]
    assert phonemes_of("") == []


def _slow_edits(one: str, other: str) -> int:
    @cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = between(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(same, between(i - 1, j) + 1, between(i, j - 1) + 1)

    return between(len(one), len(other))


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edits_is_the_recursion(one: str, other: str) -> None:
    assert edits(one, other) == _slow_edits(one, other)


def test_a_sentence_is_one_line() -> None:
    assert one_line("  two\nlines\r\n") == "two lines"


# Well-formed sequences: Unicode standard, table 3-7.
_TABLE = [
    [(0x00, 0x7F)],
    [(0xC2, 0xDF), (0x80, 0xBF)],
    [(0xE0, 0xE0), (0xA0, 0xBF), (0x80, 0xBF)],
    [(0xE1, 0xEC), (0x80, 0xBF), (0x80, 0xBF)],
    [(0xED, 0xED), (0x80, 0x9F), (0x80, 0xBF)],
    [(0xEE, 0xEF), (0x80, 0xBF), (0x80, 0xBF)],
    [(0xF0, 0xF0), (0x90, 0xBF), (0x80, 0xBF), (0x80, 0xBF)],
    [(0xF1, 0xF3), (0x80, 0xBF), (0x80, 0xBF), (0x80, 0xBF)],
    [(0xF4, 0xF4), (0x80, 0x8F), (0x80, 0xBF), (0x80, 0xBF)],
]


def _fits(data: bytes, shape: list[tuple[int, int]]) -> bool:
    return all(low <= byte <= high for byte, (low, high) in zip(data, shape, strict=False))


def _slow_faults(data: bytes) -> tuple[int, int]:
    invalid = at = 0
    while at < len(data):
        size = next((len(s) for s in _TABLE if len(data) - at >= len(s) and _fits(data[at:], s)), 0)
        if size:
            at += size
        elif any(len(data) - at < len(shape) and _fits(data[at:], shape) for shape in _TABLE):
            return invalid, len(data) - at
        else:
            invalid, at = invalid + 1, at + 1
    return invalid, 0


@given(
    st.one_of(
        st.binary(max_size=12),
        st.builds(lambda text, cut: text.encode()[: cut or None], st.text(max_size=8), st.integers(-4, 0)),
        st.lists(st.sampled_from([0x41, 0x80, 0x9F, 0xBF, 0xC3, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xFF])).map(bytes),
    )
)
def test_faults_are_what_the_unicode_table_says(data: bytes) -> None:
    assert faults(data) == _slow_faults(data)


@given(st.lists(st.integers()), st.integers(0, 9), st.integers())
def test_draws_are_rows_and_begin_alike(rows: list[int], count: int, seed: int) -> None:
    places = list(range(len(rows)))
    found = drawn(places, count, seed)
    assert len(found) == min(count, len(rows)) == len(set(found))
    assert drawn(places, count + 1, seed)[: len(found)] == found


def test_draws_stay_what_they_are_and_depend_on_the_seed() -> None:
    assert drawn("abcdefgh", 4, 0) == ("d", "h", "f", "c")
    assert drawn("abcdefgh", 4, 1) != drawn("abcdefgh", 4, 0)
