"""The five noises of the paper (BLT, section 6.1: noisy HellaSwag); the `usual` intensity of each is the paper's."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from bltkit.eval.noise.noise import Damage, Draw


class AntSpeak(Damage):
    """Upper case and a space after each character, the text's last one excepted, so that a context ends without.

    intensity: share of the characters that this is done to; the paper does it to all.
    """

    usual: ClassVar[float] = 1.0
    kind: Literal["antspeak"] = "antspeak"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text[:-1], draws, lambda one, _: f"{one.upper()} ") + self.per_unit(
            text[-1:], draws, lambda one, _: one.upper()
        )


class Drop(Damage):
    """Characters are missing.

    intensity: share of the characters that are; the paper's is 0.1. One always stays: of a text that would vanish, the
    one that is dropped last as the intensity grows.
    """

    usual: ClassVar[float] = 0.1
    kind: Literal["drop"] = "drop"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        drawn = [draw for _, draw in zip(text, draws, strict=False)]
        kept = "".join(one for one, draw in zip(text, drawn, strict=True) if not self.hit(draw))
        return kept or text[max(range(len(text)), key=drawn.__getitem__)]


class RandomCase(Damage):
    """Each letter's case by coin.

    intensity: share of the letters that the coin is thrown for; the paper's is 1. Half of those keep the case they
    have. Letters without a counterpart that folds to the same (such as the dotless i) stay.
    """

    usual: ClassVar[float] = 1.0
    kind: Literal["randomcase"] = "randomcase"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, _by_coin)


class Repeat(Damage):
    """Characters stand there several times.

    intensity: share of the characters that do; the paper's is 0.2.
    """

    usual: ClassVar[float] = 0.2
    kind: Literal["repeat"] = "repeat"
    times: int = Field(default=4, ge=1, le=100, examples=[1, 4])
    """Copies that follow the character itself, at most; 1 .. times are equally likely. The paper's is 4."""

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, lambda one, number: one * (2 + int(number * self.times)))


class UpperCase(Damage):
    """Upper case. intensity: share of the letters; the paper's is 1."""

    usual: ClassVar[float] = 1.0
    kind: Literal["uppercase"] = "uppercase"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(text, draws, lambda one, _: one.upper())


def _by_coin(letter: str, number: float) -> str:
    found = letter.upper() if number < 0.5 else letter.lower()
    return found if found.casefold() == letter.casefold() else letter
