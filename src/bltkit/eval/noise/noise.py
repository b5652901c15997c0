"""What noise is: a text and a key in, a damaged text out. The seam that every noise of this folder fits.

A noise works on characters, which are Unicode scalar values, and knows nothing of tasks or models. What it draws
depends on its kind, its seed and the key alone, not on its intensity: what is damaged at 0.1 is damaged at 0.3 too,
so that curves over the intensity are of the same damage, growing.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from bltkit.config import Config

T = TypeVar("T")

Draw = tuple[float, float]
"""Two uniform numbers of [0, 1): is this place damaged (the first is below the rate), and how."""


@runtime_checkable
class Noise(Protocol):
    """What the runner needs of a noise: a `Damage`, several in a row, or pairs from a real source."""

    def apply(self, text: str, key: str) -> str:
        """The damaged text. key: which text of the data it is, such as an item's id and field; it seeds the draw."""

    def covers(self, text: str) -> bool:
        """Can it be applied to this text; items with another text are left out."""

    def at(self, intensity: float) -> "Noise":
        """The same at another intensity."""


class Damage(Config):
    """Base of the noises that draw. 0 is the identity, 1 full strength; what lies between is the class's to say.

    Texts that are not empty do not become so.
    """

    usual: ClassVar[float] = 1.0
    """The intensity where none is given; for the five of the paper, the paper's."""
    example: ClassVar[str | None] = None
    """A text of some length that it damages, for the contract tests; None: English prose."""

    kind: str
    intensity: float = Field(ge=0, le=1)
    seed: int = 0

    @abstractmethod
    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        """The text, which is not empty, damaged at an intensity above 0."""

    def apply(self, text: str, key: str) -> str:
        """See `Noise`. A function of the fields and the arguments alone, the same on every machine."""
        if not (self.intensity and text):
            return text
        return self.damage(text, self._draws(key)) or text

    def covers(self, text: str) -> bool:
        """Every text."""
        return True

    def at(self, intensity: float) -> "Damage":
        """Raises ValueError outside of [0, 1]."""
        return self.replace(intensity=intensity)

    def hit(self, draw: Draw) -> bool:
        """Is the place with this draw damaged."""
        return draw[0] < self.intensity

    def per_unit(self, units: Sequence[str], draws: Iterator[Draw], change: Callable[[str, float], str]) -> str:
        """The units joined, those that are hit as `change(unit, second number)`. Each unit takes one draw."""
        return "".join(
            change(unit, draw[1]) if self.hit(draw) else unit for unit, draw in zip(units, draws, strict=False)
        )

    def _draws(self, key: str) -> Iterator[Draw]:
        # Python keeps the sequence of random() for an integer seed the same over its versions.
        name = json.dumps([self.kind, self.seed, key])
        random = Random(int.from_bytes(hashlib.sha256(name.encode()).digest()))
        while True:
            yield random.random(), random.random()

    def __str__(self) -> str:
        """As `parse_noise` reads it: `drop:0.1`, `repeat:0.2,times=2`; other defaults are left out."""
        values = self.model_dump(exclude_defaults=True, exclude={"kind", "intensity"})
        number = int(self.intensity) if self.intensity.is_integer() else self.intensity
        return ",".join([f"{self.kind}:{number}", *(f"{name}={json.dumps(value)}" for name, value in values.items())])


def pick(options: Sequence[T], number: float) -> T:
    """The option that a number of [0, 1) stands for, all equally likely."""
    return options[int(number * len(options))]


def split(number: float, share: float) -> tuple[bool, float]:
    """Make two draws of one: is the number below `share`, and the rest of it as a new number of [0, 1)."""
    return (True, number / share) if number < share else (False, (number - share) / (1 - share))
