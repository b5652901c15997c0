"""Noises of typing and of layout: the key beside the one that was meant, and white space gone astray."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from bltkit.eval.noise.noise import Damage, Draw, pick, split

ROWS = (
    (0.0, "`1234567890-=", "~!@#$%^&*()_+"),
    (1.5, "qwertyuiop[]\\", "QWERTYUIOP{}|"),
    (1.75, "asdfghjkl;'", 'ASDFGHJKL:"'),
    (2.25, "zxcvbnm,./", "ZXCVBNM<>?"),
)
"""The US keyboard: how far a row is moved to the right, in keys, its keys, and the same with shift."""

INSERTED = 0.25
"""Of the keyboard's slips, those that add the neighbour's character behind the one that was meant."""

SPACES = ("", "", "  ", "   ", "\n", "\t", "\u00a0", "\u2009", " \n")
"""What becomes of a white space character."""

BROKEN = 0.1
"""Words are broken after a character at this share of the rate at which spaces are damaged."""


NEAR = 1.3
"""How far away a neighbour is at most, in keys; the two keys above and the two below are 1.25 away or less."""


def _neighbours(layer: int) -> dict[str, str]:
    """layer: 1 without shift, 2 with it."""
    places = {key: (row[0] + column, at) for at, row in enumerate(ROWS) for column, key in enumerate(str(row[layer]))}
    return {
        key: "".join(
            other
            for other, (column, row) in places.items()
            if other != key and (column - at[0]) ** 2 + (row - at[1]) ** 2 < NEAR**2
        )
        for key, at in places.items()
    }


NEIGHBOURS: Mapping[str, str] = _neighbours(1) | _neighbours(2)
"""The characters of the keys around each, with shift where it has shift."""


class Keyboard(Damage):
    """A neighbouring key of a US keyboard is hit, instead of the one that was meant or, at times, beside it.

    intensity: share of the characters on the keyboard (the space excepted) that this happens to.
    """

    usual: ClassVar[float] = 0.1
    kind: Literal["keyboard"] = "keyboard"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, _slip)


class Whitespace(Damage):
    """White space is missing, multiplied or of another kind, and stands inside of words; all else stays.

    intensity: share of the white space characters that are damaged, and `BROKEN` times it the share of the other
    characters that get a space behind them, the text's last one excepted.
    """

    usual: ClassVar[float] = 0.2
    kind: Literal["whitespace"] = "whitespace"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text[:-1], draws, _space) + self.per_unit(
            text[-1:], draws, lambda one, number: _space(one, number) if one.isspace() else one
        )


def _slip(key: str, number: float) -> str:
    if key not in NEIGHBOURS:
        return key
    beside, number = split(number, INSERTED)
    other = pick(NEIGHBOURS[key], number)
    return key + other if beside else other


def _space(one: str, number: float) -> str:
    if one.isspace():
        return pick([other for other in SPACES if other != one], number)
    return f"{one} " if number < BROKEN else one
