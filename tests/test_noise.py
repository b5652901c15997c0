"""What every noise keeps: it is nothing at 0, grows with its intensity, depends on its arguments alone, and does what
its name says and nothing else."""

import itertools
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bltkit.eval.noise import NOISES, PAPER, Composed, parse_noise
from bltkit.eval.noise.asr_noise import FILLERS, homophones, spoken
from bltkit.eval.noise.noise_tables import table
from bltkit.eval.noise.paper_noise import Drop, Repeat
from bltkit.eval.noise.social import EMOJI, LONGEST, abbreviations
from bltkit.eval.noise.typo_noise import NEIGHBOURS
from bltkit.eval.noise.visual_noise import LETTERS, homoglyphs, ocr, stripped

KINDS = sorted(NOISES)
PROSE = (
    "By the way, the modern café over there — you know which one — burned in 1998; I don't know why! Their knight's "
    "barn was little, naïve and cheerful. \"Right now,\" she wrote, 'we see four great ships from the big blue sea.'\n"
) * 12


def prose(kind: str) -> str:
    """A text that the noise has something to do to."""
    return NOISES[kind].example or PROSE


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "abcdeimnorstuvw ABHIMNORTZ0158.,'!?-—\n éßøİıǆ かが한  ", max_size=80
)
shares = st.floats(0, 1)
keys = st.text(max_size=8)


def at(kind: str, intensity: float, seed: int = 0, **fields: Any) -> Any:
    """A noise of this kind."""
    return NOISES[kind](kind=kind, intensity=intensity, seed=seed, **fields)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, key=keys, intensity=shares)
@settings(max_examples=60, deadline=None)
def test_a_noise_is_nothing_at_0_repeatable_and_gives_characters(
    kind: str, text: str, key: str, intensity: float
) -> None:
    assert at(kind, 0).apply(text, key) == text
    noise = at(kind, intensity)
    found = noise.apply(text, key)
    noise.apply("another text", "another key")
    assert noise.apply(text, key) == found == at(kind, intensity).apply(text, key)
    found.encode()  # no half of a surrogate pair
    assert bool(found) == bool(text)
    assert noise.covers(text)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_seed_and_key_decide_what_is_drawn(kind: str) -> None:
    half = at(kind, 0.5)
    text = prose(kind)
    same, key, seed = half.apply(text, "a"), half.apply(text, "b"), at(kind, 0.5, seed=1).apply(text, "a")
    assert len({same, key, seed, text}) == 4
    # What follows does not matter, but for a unit that the cut divides.
    first = half.apply(text[:300], "a")
    assert same.startswith(first[:250])


def test_draws_are_the_same_in_another_process_and_under_another_hash_seed() -> None:
    program = (
        "from bltkit.eval.noise import NOISES, parse_noise\n"
        f"print([parse_noise(kind).apply({PROSE[:200]!r}, 'k') for kind in sorted(NOISES)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.strip() == repr([parse_noise(kind).apply(PROSE[:200], "k") for kind in KINDS])


def test_the_draws_are_pinned() -> None:
    """Results that were published have to be measured again with the same damage."""
    text = "The keeper counted 12 ships, and wrote them down."
    assert parse_noise("drop").apply(text, "piqa/0/query") == "The keeper counted 1 ships, and wrote hem down."
    assert parse_noise("randomcase").apply(text, "piqa/0/query") == "tHe KEEpER COUnTEd 12 ShIps, ANd WrOTe ThEm DOWN."
    assert (
        parse_noise("repeat").apply(text, "piqa/0/query")
        == "Theeee    kkkeeperrrr counted 12 shhhiipppss,   aaannnd wwwwrote   theem down."
    )
    assert parse_noise("uppercase").apply("Straße", "") == "STRASSE"
    assert parse_noise("antspeak").apply("An ant!", "") == "A N   A N T !"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("drop", "transcript", "social")])
@given(text=texts, low=shares, high=shares)
@settings(max_examples=60, deadline=None)
def test_damage_grows_with_the_intensity(kind: str, text: str, low: float, high: float) -> None:
    """Each unit is either as it was or as full strength leaves it, and what is damaged once stays so."""
    low, high = sorted((low, high))
    assume(low > 0)
    weak, strong = Recorder.of(kind, low, text), Recorder.of(kind, high, text)
    assert [unit for unit, _ in weak] == [unit for unit, _ in strong]
    for (unit, first), (_, second) in zip(weak, strong, strict=True):
        assert first in (unit, second)


class Recorder:
    """What became of each unit."""

    @staticmethod
    def of(kind: str, intensity: float, text: str) -> list[tuple[str, str]]:
        """(unit, its text afterwards), whatever the class makes of units."""
        noise, found = at(kind, intensity), []

        def record(self: Any, units: Any, draws: Iterator[Any], change: Any) -> str:
            for unit, draw in zip(units, draws, strict=False):
                found.append((unit, change(unit, draw[1]) if self.hit(draw) else unit))
            return "".join(after for _, after in found)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(noise), "per_unit", record)
            noise.apply(text, "k")
        return found or [(text, text)]


@given(text=texts, low=shares, high=shares)
@settings(deadline=None)
def test_what_is_dropped_stays_dropped(text: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    letters = "".join(chr(0xF0000 + at) for at in range(len(text)))  # each its own
    assert set(at("drop", high).apply(letters, "k")) <= set(at("drop", low).apply(letters, "k"))


@pytest.mark.parametrize("kind", ["transcript", "social"])
def test_words_damaged_at_a_low_intensity_are_damaged_at_a_high_one(kind: str) -> None:
    words = PROSE.replace("—", "so").split()
    undamaged = [
        set(words) & set(at(kind, intensity).apply(" ".join(words), "k").split()) for intensity in (0.0, 0.2, 0.5, 1.0)
    ]
    assert [len(one) for one in undamaged] == sorted((len(one) for one in undamaged), reverse=True)
    assert len(undamaged[0]) > len(undamaged[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_more_intensity_is_more_damage_in_expectation(kind: str) -> None:
    """Stretches of three characters that are gone, over several keys; and full strength does something."""

    def damage(intensity: float) -> int:
        text = prose(kind)[:250]
        return sum((threes(text) - threes(at(kind, intensity).apply(text, str(key)))).total() for key in range(6))

    grown = [damage(intensity) for intensity in (0.0, 0.05, 0.4, 1.0)]
    assert grown[0] == 0 < grown[-1]
    assert all(low <= high for low, high in itertools.pairwise(grown)), grown


def threes(text: str) -> Counter[str]:
    return Counter(text[at : at + 3] for at in range(len(text) - 2))


PLACES = dict.fromkeys(("antspeak", "drop", "keyboard", "ocr", "randomcase", "repeat", "uppercase"), "e") | {
    "diacritics": "é",
    "homoglyphs": "a",
    "whitespace": "\u2003",
    "transcript": "Word ",
    "social": "Word ",
}
"""Of these noises, a text each of whose copies is one place that may be damaged."""


@pytest.mark.parametrize("intensity", [0.1, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("kind", sorted(PLACES))
def test_the_share_of_damaged_places_is_the_intensity(kind: str, intensity: float) -> None:
    one = PLACES[kind]
    count = 4000
    after = at(kind, intensity).apply(one * count, "k")
    match kind:
        case "antspeak" | "uppercase":
            damaged = after.count("E")
        case "randomcase":
            damaged = 2 * after.count("E")
        case "drop":
            damaged = count - len(after)
        case "repeat":
            damaged = (len(after) - count) / 2.5  # 1 to 4 copies
        case "transcript" | "social":
            damaged = count - len(re.findall(r"(?<!\S)Word(?!\S)", after))
        case _:
            damaged = count - after.count(one)
    if kind == "keyboard":  # an inserted neighbour leaves the letter standing
        damaged = sum(letter != "e" for letter in after)
    if kind == "social":  # an emoji does, too
        damaged += sum(map(after.count, EMOJI))
    rate = damaged / count
    assert abs(rate - intensity) < 0.06


@given(text=texts, intensity=shares)
@settings(deadline=None)
def test_the_papers_noises_do_what_they_say(text: str, intensity: float) -> None:
    def applied(kind: str, value: float = intensity) -> str:
        found: str = at(kind, value).apply(text, "k")
        return found

    assert is_subsequence(applied("drop"), text) and is_subsequence(text, applied("repeat"))
    assert [one for one, _ in groupby(applied("repeat"))] == [one for one, _ in groupby(text)]
    assert len(applied("repeat", 1)) <= 5 * len(text) and len(applied("repeat", 1)) >= 2 * len(text)
    assert applied("randomcase").casefold() == text.casefold()
    assert applied("uppercase", 1) == "".join(map(str.upper, text))
    assert applied("antspeak", 1) == " ".join(map(str.upper, text))
    assert applied("uppercase").upper() == "".join(map(str.upper, text)).upper()


def is_subsequence(part: str, whole: str) -> bool:
    """Are the characters of `part` in `whole`, in order."""
    rest = iter(whole)
    return all(one in rest for one in part)


@given(text=texts, intensity=shares)
@settings(deadline=None)
def test_our_noises_change_what_they_are_for_and_nothing_else(text: str, intensity: float) -> None:
    def applied(kind: str) -> str:
        found: str = at(kind, intensity).apply(text, "k")
        return found

    def visible(some: str) -> str:
        return "".join(some.split())

    assert visible(applied("whitespace")) == visible(text)
    alike = {letter: min(row) for row in table("lookalikes") for letter in row if letter != " "}
    assert [alike.get(one, one) for one in applied("homoglyphs")] == [alike.get(one, one) for one in text]
    assert len(applied("keyboard")) >= len(text)
    foreign = "".join(one for one in text if one not in NEIGHBOURS)
    assert "".join(one for one in applied("keyboard") if one not in NEIGHBOURS) == foreign
    if text.isascii():
        assert applied("diacritics") == text
    if not any(one in unit for unit in ocr() for one in text):
        assert applied("ocr") == text
    assert [one for one in applied("ocr") if one.isspace()] == [one for one in text if one.isspace()]
    said = at("transcript", 1).apply(text, "k")
    if any(map(spoken, text.split())):
        kept = re.sub(r"(?<=\w)['’](?=\w)|(?<=\d)[.,:](?=\d)", "", said)
        assert not any(unicodedata.category(one).startswith("P") for one in kept)
        assert said == said.lower()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("naïve café, Ærøskøbing, Łódź, Straße", "naive cafe, AEroskobing, Lodz, Strasse"),
        ("cafe\u0301 Việt Nam ǿ", "cafe Viet Nam o"),
        ("Ἀθῆναι ёлка", "Αθηναι елка"),
        ("がぎ हिन्दी 한국어 ①", "がぎ हिन्दी 한국어 ①"),  # there the marks are not what falls off
    ],
)
def test_diacritics(text: str, plain: str) -> None:
    assert at("diacritics", 1).apply(text, "k") == plain == "".join(map(stripped, text))


def test_a_text_keeps_one_character() -> None:
    kept = at("drop", 1).apply("abcdef", "k")
    assert len(kept) == 1 and kept in at("drop", 0.7).apply("abcdef", "k")
    assert at("transcript", 1).apply("?!", "k") == "?!"


def test_a_transcript() -> None:
    noise = at("transcript", 1)
    found = noise.apply("Well-known: Dr. Who's 3.5 apples — 1,000 of THEM!", "k")
    for filler in sorted(FILLERS, key=len, reverse=True):
        found = re.sub(rf"\b{filler} (?=\w)", "", found)
    words = found.split()
    assert "3.5" in words and "1,000" in words and not found.endswith(" ")
    assert len(words) in (8, 9)
    written = {noise.apply("their", str(key)).split()[-1] for key in range(200)}
    assert written == {"their", "there", "they're"}


def test_social() -> None:
    noise = at("social", 1)
    found = {noise.apply("By the way,", str(key)) for key in range(400)}
    assert (
        "btw," in found
        and any(one.startswith("#") for one in found)
        and any(set(one) & set("".join(EMOJI)) for one in found)
    )
    assert {noise.apply("you", str(key)) for key in range(60)} & {"u", "ya"}
    assert at("social", 1).apply("a  b\n\nc", "k").count("\n") == 2


def test_the_tables_are_of_what_they_say() -> None:
    for row in table("lookalikes"):
        for letter, script in zip(row, ("LATIN", "CYRILLIC", "GREEK"), strict=True):
            assert letter == " " or unicodedata.name(letter).startswith(script), (row, letter)
    letters = [letter for row in table("lookalikes") for letter in row if letter != " "]
    assert len(letters) == len(set(letters))
    assert all(one and letter not in one for letter, one in homoglyphs().items())
    assert all(others and unit not in others and 1 <= len(unit) <= 3 for unit, others in ocr().items())
    assert not any(one.isspace() for unit, others in ocr().items() for one in unit + "".join(others))
    assert all(key not in near and 2 <= len(near) <= 6 for key, near in NEIGHBOURS.items() if key not in "`~\\|")
    assert all(key in NEIGHBOURS[other] for key, near in NEIGHBOURS.items() for other in near)
    assert NEIGHBOURS["g"] == "tyfhvb" and NEIGHBOURS["G"] == "TYFHVB"
    assert all(short and short != full for full, some in abbreviations().items() for short in some)
    assert all(full == full.lower() for full in abbreviations())
    assert max(len(full.split()) for full in abbreviations()) <= LONGEST
    assert all(word not in others and others for word, others in homophones().items())
    sets = table("homophones")
    assert all(len(one) == len(set(one)) >= 2 for one in sets) and len(sets) > 250
    words = [word for one in sets for word in one]
    assert {word for word in words if words.count(word) > 1} == {"read"}  # which sounds in two ways
    assert all(len(letter) == 1 and plain.isascii() for letter, plain in LETTERS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_noise_is_written_as_it_is_read(kind: str) -> None:
    usual = parse_noise(kind)
    assert usual.at(0.25) == parse_noise(f"{kind}:0.25") and str(usual.at(1)) == f"{kind}:1"
    for noise in (usual, at(kind, 0.3, seed=4), at(kind, 1e-5), at(kind, 1)):
        assert parse_noise(str(noise)) == noise


def test_without_an_intensity_it_is_the_papers() -> None:
    assert [str(parse_noise(kind)) for kind in PAPER] == [
        "antspeak:1",
        "drop:0.1",
        "randomcase:1",
        "repeat:0.2",
        "uppercase:1",
    ]
    assert parse_noise("repeat") == Repeat(intensity=0.2, times=4)
    assert parse_noise("repeat:0.3, times=2, seed=5") == Repeat(intensity=0.3, times=2, seed=5)
    assert parse_noise("drop:intensity=0.3") == Drop(intensity=0.3)


@given(text=texts, key=keys)
@settings(deadline=None)
def test_composed_noises_follow_one_another(text: str, key: str) -> None:
    noise = parse_noise("drop:0.3 + uppercase:1")
    assert isinstance(noise, Composed) and str(noise) == "drop:0.3+uppercase:1" and parse_noise(str(noise)) == noise
    assert noise.apply(text, key) == "".join(map(str.upper, at("drop", 0.3).apply(text, key)))
    assert noise.at(0).apply(text, key) == text and noise.at(1) == noise and noise.covers(text)
    twice = parse_noise("drop:0.5+drop:0.5").apply("abcdefghijklmnopqrstuvwxyz" * 20, key)
    assert 80 < len(twice) < 180  # a quarter is left: the second does not draw the first's numbers again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drp:0.1", "--noise: unknown noise 'drp'; did you mean 'drop'?"),
        ("", "unknown noise ''; known: "),
        ("drop:0.1+", "unknown noise ''"),
        ("drop:1.5", "--noise: drop:1.5: intensity = 1.5: Input should be less than or equal to 1"),
        ("drop:-0.1", "greater than or equal to 0"),
        ("drop:nan", "intensity = nan"),
        ("drop:much", "intensity = 'much'"),
        ("drop:0.1,sed=3", "noise 'drop' has no field 'sed'; did you mean 'seed'?"),
        ("drop:0.1,times=3", "noise 'drop' has no field 'times'"),
        ("drop:0.1,3", "'3' in 'drop:0.1,3' is not field=value"),
        ("drop:0.1,intensity=3", "'intensity' is given twice"),
        ("repeat:0.1,times=0", "times = 0"),
        ("paired", "names no file"),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_noise(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)
