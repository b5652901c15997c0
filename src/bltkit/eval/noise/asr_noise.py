"""Noise of speech: a text as a recogniser writes down what was said, without case and punctuation, with "um".

The homophones are our own list, of General American speech (where "marry" and "merry" are the same, "cot" and
"caught" are not).
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

from bltkit.eval.noise.noise import Damage, Draw, pick, split
from bltkit.eval.noise.noise_tables import table

FILLERS = ("um", "uh", "er", "you know", "i mean", "like", "well", "so", "hmm", "ah", "okay", "sort of", "kind of")
FILLED = 0.15
"""Of the words that are hit, those with a filler in front."""
MISHEARD = 0.5
"""Of the words that are hit and have homophones, those that are written as one of them."""


@cache
def homophones() -> Mapping[str, tuple[str, ...]]:
    """Each word's homophones, by the sets of `data/homophones.json`."""
    others: dict[str, tuple[str, ...]] = {}
    for words in table("homophones"):
        for word in words:
            alike = (*others.get(word, ()), *(other for other in words if other != word))
            others[word] = tuple(dict.fromkeys(alike))
    return others


class Transcript(Damage):
    """Said and written down again: lower case, no punctuation, fillers ("um", "you know"), homophones.

    Apostrophes inside of words stay, and points and commas between digits; hyphens and dashes become spaces.

    intensity: share of the words this is done to; of those `FILLED` get a filler in front, and of those with homophones
    `MISHEARD` are one of them.
    """

    kind: Literal["transcript"] = "transcript"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        pieces: list[str] = []
        for piece in re.findall(r"\S+|\s+", text):
            if piece.isspace():
                pieces.append(piece)
                continue
            draw = next(draws)
            said = _said(piece, draw[1]) if self.hit(draw) else piece
            if not said and pieces:  # nothing but punctuation, which takes the space before it along
                pieces.pop()
            pieces.append(said)
        return "".join(pieces)


def spoken(word: str) -> str:
    """In lower case and without punctuation."""
    word, kept = word.lower(), []
    for at, one in enumerate(word):
        before, after = word[at - 1 : at], word[at + 1 : at + 2]
        if (
            not unicodedata.category(one).startswith("P")
            or (one in "'’" and before.isalpha() and after.isalpha())
            or (one in ".,:" and before.isdigit() and after.isdigit())
        ):
            kept.append(one)
        elif unicodedata.category(one) == "Pd":
            kept.append(" ")
    return " ".join("".join(kept).split())


def _said(word: str, number: float) -> str:
    filled, number = split(number, FILLED)
    misheard, number = split(number, MISHEARD)
    bare = spoken(word)
    if not bare:
        return bare
    other, number = _drawn(homophones().get(bare.replace("’", "'"), (bare,)), number)
    return (pick(FILLERS, number) + " " if filled else "") + (other if misheard else bare)


def _drawn(options: tuple[str, ...], number: float) -> tuple[str, float]:
    """One of the options, and what is left of the number."""
    scaled = number * len(options)
    return options[int(scaled)], scaled - int(scaled)
