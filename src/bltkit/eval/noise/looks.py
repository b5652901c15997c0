"""Noises of how a text looks: what a scanner misreads, letters of other scripts, marks that fell off.

The tables are our own: shapes that resemble one another in common book faces.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from bltkit.eval.noise.noise import Damage, Draw, pick

OCR: Mapping[str, tuple[str, ...]] = {
    # Two characters read as one, and one as two.
    "rn": ("m",),
    "nn": ("m", "rm"),
    "ri": ("n",),
    "cl": ("d",),
    "ci": ("a", "d"),
    "vv": ("w",),
    "VV": ("W",),
    "li": ("h", "b"),
    "ll": ("U", "11", "H"),
    "fi": ("ﬁ", "h", "n"),
    "fl": ("ﬂ", "H"),
    "tt": ("tf", "U"),
    "in": ("m",),
    "ii": ("u", "n"),
    "iii": ("m",),
    "IJ": ("U",),
    "''": ('"',),
    "``": ('"',),
    "--": ("—",),
    "m": ("rn", "nn", "in"),
    "w": ("vv", "iv"),
    "W": ("VV",),
    "d": ("cl", "ol"),
    "h": ("li", "b", "lı"),
    "u": ("ii", "n", "ti"),
    "n": ("ri", "u", "ii"),
    "k": ("lc", "lk"),
    "H": ("ll", "II", "11"),
    "M": ("lVl", "IVI"),
    "N": ("IV", "ll"),
    "U": ("ll", "LI"),
    "K": ("IC", "lC"),
    "D": ("O", "I)"),
    # One as another.
    "a": ("o", "e", "u"),
    "b": ("h", "6", "lo"),
    "c": ("e", "o", "("),
    "e": ("c", "o", "a"),
    "f": ("t", "ſ"),
    "g": ("q", "9", "y"),
    "i": ("l", "1", "j", "!", "ı"),
    "j": ("i", ";"),
    "l": ("1", "I", "i", "|", "!"),
    "o": ("0", "c", "e"),
    "p": ("n", "jo"),
    "q": ("g", "9"),
    "r": ("t", "i"),
    "s": ("5", "a", "8"),
    "t": ("f", "l", "r", "+"),
    "v": ("y", "u", "V"),
    "x": ("z", "X"),
    "y": ("v", "g"),
    "z": ("2", "s", "Z"),
    "A": ("4", "R"),
    "B": ("8", "R", "E", "13"),
    "C": ("G", "(", "c"),
    "E": ("F", "B", "£"),
    "F": ("P", "E"),
    "G": ("6", "C", "O"),
    "I": ("l", "1", "|", "!"),
    "J": ("I", "]", "j"),
    "L": ("I", "l", "1"),
    "O": ("0", "Q", "o", "D"),
    "P": ("F", "R", "p"),
    "Q": ("O", "0", "9"),
    "R": ("B", "K", "ll"),
    "S": ("5", "8", "s", "$"),
    "T": ("I", "7", "Y"),
    "V": ("Y", "v", "\\/"),
    "X": ("x", "N"),
    "Y": ("V", "T", "y"),
    "Z": ("2", "7", "z"),
    "0": ("O", "o", "Q"),
    "1": ("l", "I", "i", "7"),
    "2": ("Z", "z"),
    "3": ("8", "B"),
    "4": ("A", "9"),
    "5": ("S", "s", "6"),
    "6": ("b", "G", "5"),
    "7": ("1", "T", "?"),
    "8": ("B", "3", "S"),
    "9": ("g", "q", "4"),
    ".": (",", "'", "·"),
    ",": (".", "'", ";"),
    ";": (":", ",", "j"),
    ":": (";", ".", "i"),
    "'": ("`", "’", ","),
    '"': ("''", "“", "”"),
    "!": ("l", "1", "I"),
    "?": ("7", "P"),
    "(": ("C", "c", "{"),
    ")": ("J", "}", "]"),
    "-": ("~", "—", "_"),
    "&": ("8", "Sc"),
    "%": ("9/6", "X"),
    "$": ("S", "8"),
    "/": ("l", "I", "1"),
    "|": ("l", "I", "1"),
}
"""What a scanner reads -> what it takes it for. Keys are matched longest first."""

ALIKE: tuple[tuple[str, str, str], ...] = (
    # Latin, Cyrillic, Greek; a blank where the script has nothing that looks so.
    ("a", "а", "α"),
    ("c", "с", "ϲ"),
    ("d", "ԁ", " "),
    ("e", "е", " "),
    ("h", "һ", " "),
    ("i", "і", "ι"),
    ("j", "ј", "ϳ"),
    ("k", "к", "κ"),
    ("l", "ӏ", " "),
    ("n", "п", "η"),
    ("o", "о", "ο"),
    ("p", "р", "ρ"),
    ("q", "ԛ", " "),
    ("r", "г", " "),
    ("s", "ѕ", " "),
    ("u", " ", "υ"),
    ("v", "ѵ", "ν"),
    ("w", "ԝ", "ω"),
    ("x", "х", "χ"),
    ("y", "у", "γ"),
    ("A", "А", "Α"),
    ("B", "В", "Β"),
    ("C", "С", "Ϲ"),
    ("E", "Е", "Ε"),
    ("G", "Ԍ", " "),
    ("H", "Н", "Η"),
    ("I", "І", "Ι"),
    ("J", "Ј", "Ϳ"),
    ("K", "К", "Κ"),
    ("M", "М", "Μ"),
    ("N", " ", "Ν"),
    ("O", "О", "Ο"),
    ("P", "Р", "Ρ"),
    ("Q", "Ԛ", " "),
    ("S", "Ѕ", " "),
    ("T", "Т", "Τ"),
    ("V", "Ѵ", " "),
    ("W", "Ԝ", " "),
    ("X", "Х", "Χ"),
    ("Y", "Ү", "Υ"),
    ("Z", " ", "Ζ"),
    (" ", "Г", "Γ"),
    (" ", "П", "Π"),
    (" ", "Ф", "Φ"),
)
"""Letters that look alike, in three scripts."""

HOMOGLYPHS: Mapping[str, tuple[str, ...]] = {
    letter: tuple(other for other in row if other not in (" ", letter))
    for row in ALIKE
    for letter in row
    if letter != " "
}
"""Each letter's look-alikes in the other scripts."""

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
    """Misread by a scanner: rn for m, 1 for l, O for 0 and the like (`OCR`).

    intensity: share of the characters (and pairs) of the table that are misread.
    """

    usual: ClassVar[float] = 0.1
    kind: Literal["ocr"] = "ocr"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        # The division into units does not depend on the draws, so what is damaged only grows with the intensity.
        return self.per_unit(list(_units(text)), draws, lambda one, number: pick(OCR.get(one, (one,)), number))


class Homoglyphs(Damage):
    """Latin, Cyrillic and Greek letters become look-alikes of the other two scripts (`HOMOGLYPHS`).

    intensity: share of the letters that have one.
    """

    usual: ClassVar[float] = 0.2
    kind: Literal["homoglyphs"] = "homoglyphs"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, lambda one, number: pick(HOMOGLYPHS.get(one, (one,)), number))


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
        unit = next((text[at : at + size] for size in (3, 2) if text[at : at + size] in OCR), text[at])
        yield unit
        at += len(unit)
