"""Noises of how a text looks: what a scanner misreads, letters of other scripts, marks that fell off.

The tables in `data/` hold shapes that resemble one another in common book faces.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import ClassVar, Literal

from bltkit.eval.noise.noise import Damage, Draw, pick
from bltkit.eval.noise.noise_tables import table


@cache
def ocr() -> Mapping[str, Sequence[str]]:
    """Characters -> what a scanner takes them for (`data/ocr.json`). Keys are matched longest first."""
    misread: Mapping[str, Sequence[str]] = table("ocr")
    return misread


@cache
def homoglyphs() -> Mapping[str, tuple[str, ...]]:
    """Each letter's look-alikes in the other two of Latin, Cyrillic and Greek.

    A row of `data/lookalikes.json` has a letter of each script, a blank where the script has none that looks so.
    """
    return {
        letter: tuple(other for other in row if other not in (" ", letter))
        for row in table("lookalikes")
        for letter in row
        if letter != " "
    }


LETTERS: Mapping[str, str] = {
    **dict(zip("øØłŁđĐħĦŧŦıȷɨƀǥɇðÐ", "oOlLdDhHtTijibgedD", strict=True)),
    "æ": "ae",
    "Æ": "AE",
    "œ": "oe",
    "Œ": "OE",
    "ß": "ss",
    "ẞ": "SS",
    "þ": "th",
    "Þ": "Th",
}
"""Letters that Unicode does not take apart, and how they are written where they are wanting."""

MARKED_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC")
"""Where marks can fall off and a letter is left; in Indic scripts and kana they are vowels or make other syllables."""


class Ocr(Damage):
    """Misread by a scanner: rn for m, 1 for l, O for 0 and the like (`data/ocr.json`).

    intensity: share of the characters (and pairs) of the table that are misread.
    """

    usual: ClassVar[float] = 0.1
    kind: Literal["ocr"] = "ocr"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        # The division into units does not depend on the draws, so what is damaged only grows with the intensity.
        return self.per_unit(list(_units(text)), draws, lambda one, number: pick(ocr().get(one, (one,)), number))


class Homoglyphs(Damage):
    """Latin, Cyrillic and Greek letters become look-alikes of the other two scripts.

    intensity: share of the letters that have one.
    """

    usual: ClassVar[float] = 0.2
    kind: Literal["homoglyphs"] = "homoglyphs"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, lambda one, number: pick(homoglyphs().get(one, (one,)), number))


class Diacritics(Damage):
    """Diacritics are stripped, of composed letters and as characters of their own; ø, ß, æ and the like are spelt.

    intensity: share of the characters that have them. A text that has none, as most English ones, stays as it is.
    """

    kind: Literal["diacritics"] = "diacritics"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, lambda one, _: stripped(one))


def stripped(character: str) -> str:
    """Without its marks; nothing where it is one."""
    if character.isascii():
        return character
    if character in LETTERS:
        return LETTERS[character]
    name = unicodedata.name(character, "")
    if unicodedata.category(character) == "Mn":
        return "" if name.startswith(("COMBINING", "HEBREW", "ARABIC")) and "KATAKANA" not in name else character
    parts = unicodedata.normalize("NFD", character)
    kept = "".join(part for part in parts if unicodedata.category(part) != "Mn")
    return LETTERS.get(kept, kept) if kept != parts and name.startswith(MARKED_SCRIPTS) else character


def _units(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        unit = next((text[at : at + size] for size in (3, 2) if text[at : at + size] in ocr()), text[at])
        yield unit
        at += len(unit)
