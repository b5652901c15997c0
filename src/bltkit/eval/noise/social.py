"""Noise of social media: sooo long words, u for you, emoji, #hashtags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import ClassVar, Literal

from bltkit.eval.noise.noise import Damage, Draw, pick, split
from bltkit.eval.noise.noise_tables import table

EMOJI = ("😂", "😭", "❤️", "🔥", "🙏", "😍", "💀", "👀", "✨", "🙌", "😊", "🤔", "🥺", "💯", "👍", "🎉")

ABBREVIATED = 0.6
"""Of the words that are hit and have an abbreviation, those that become it."""
ELONGATED = 0.4
"""Of the other words that are hit, those with a letter drawn out."""
TAGGED = 0.4
"""Of the words left by then, those that become hashtags."""
DECORATED = 0.5
"""Of the words left by then, those with an emoji behind them; the rest loses its capitals and apostrophes."""
LONGEST = 5
"""Words of the longest phrase in the table."""


@cache
def abbreviations() -> Mapping[str, Sequence[str]]:
    """Words and phrases in full -> how they are abbreviated (`data/abbreviations.json`)."""
    short: Mapping[str, Sequence[str]] = table("abbreviations")
    return short


class Social(Damage):
    """As on social media: abbreviations (`data/abbreviations.json`), letters drawn out, #hashtags, emoji, no capitals.

    intensity: share of the words, and of the phrases in the table, that one of these is done to. White space stays.
    """

    usual: ClassVar[float] = 0.3
    kind: Literal["social"] = "social"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(list(_units(text)), draws, _posted)


def _units(text: str) -> Iterator[str]:
    """Words, phrases of the table, and white space; whatever the draws."""
    pieces = re.findall(r"\S+|\s+", text)
    at = 0
    while at < len(pieces):
        sizes = range(2 * LONGEST - 1, 1, -2) if not pieces[at].isspace() else ()
        size = next((size for size in sizes if _plain("".join(pieces[at : at + size])) in abbreviations()), 1)
        yield "".join(pieces[at : at + size])
        at += size


def _parts(unit: str) -> tuple[str, str, str]:
    """Punctuation in front, the word or words, punctuation behind."""
    found = re.fullmatch(r"([\W_]*)(.*?)([\W_]*)", unit, re.DOTALL)
    assert found is not None
    return found[1], found[2], found[3]


def _plain(unit: str) -> str:
    """As the table has it."""
    return _parts(unit)[1].lower().replace("’", "'")


def _posted(unit: str, number: float) -> str:
    before, core, behind = _parts(unit)
    if unit.isspace():
        return unit
    if not core:
        return unit + unit[-1] * (1 + int(number * 4))
    if (plain := _plain(unit)) in abbreviations():
        abbreviated, number = split(number, ABBREVIATED)
        if abbreviated:
            return before + pick(abbreviations()[plain], number) + behind
    longer, number = split(number, ELONGATED)
    if longer and (drawn_out := _elongated(core, 2 + int(number * 4))) != core:
        return before + drawn_out + behind
    tagged, number = split(number, TAGGED)
    if tagged and "#" not in before:
        return f"{before}#{''.join(one for one in core if one.isalnum())}{behind}"
    decorated, number = split(number, DECORATED)
    if decorated:
        return f"{unit} {pick(EMOJI, number)}"
    return before + core.lower().replace("'", "").replace("’", "") + behind


def _elongated(word: str, copies: int) -> str:
    """With more of its last vowel, or of its last letter where it has none; digits stay."""
    vowels = [at for at, one in enumerate(word) if one in "aeiouyAEIOUY"]
    at = vowels[-1] if vowels else len(word) - 1
    return word[: at + 1] + word[at] * copies + word[at + 1 :] if word[at].isalpha() else word
