"""Noises (seam 7) and their short form in text. A new noise is its own file and a line in `NOISES`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from bltkit.config import nearest, parse, parse_value
from bltkit.eval.noise.noise import Damage, Noise
from bltkit.eval.noise.noise_pairs import Paired, read_pairs
from bltkit.registry import Registry

__all__ = [
    "NOISES",
    "PAPER",
    "AnyDamage",
    "Composed",
    "Damage",
    "Noise",
    "Paired",
    "parse_noise",
    "read_pairs",
]


def _usual(kind: type[Damage]) -> str:
    return f"{kind.model_fields['kind'].default}:{kind.usual:g},seed=3"


NOISES = Registry(
    "noise",
    Damage,
    "bltkit.eval.noise.paper_noise:AntSpeak",
    "bltkit.eval.noise.paper_noise:Drop",
    "bltkit.eval.noise.paper_noise:RandomCase",
    "bltkit.eval.noise.paper_noise:Repeat",
    "bltkit.eval.noise.paper_noise:UpperCase",
    "bltkit.eval.noise.visual_noise:Ocr",
    "bltkit.eval.noise.typo_noise:Keyboard",
    "bltkit.eval.noise.visual_noise:Diacritics",
    "bltkit.eval.noise.visual_noise:Homoglyphs",
    "bltkit.eval.noise.typo_noise:Whitespace",
    "bltkit.eval.noise.asr_noise:Transcript",
    "bltkit.eval.noise.social:Social",
    example=_usual,
)
"""Every noise that draws, by its kind."""

AnyDamage: TypeAlias = Annotated[Damage, NOISES]
"""Any noise that draws; as the type of a config field it reads `{kind = "drop", intensity = 0.1}`."""

PAPER = ("antspeak", "drop", "randomcase", "repeat", "uppercase")
"""Those of the paper; without an intensity they are what it measured."""


@dataclass(frozen=True)
class Composed:
    """Several noises, one after the other; each sees what the one before made."""

    parts: tuple[Damage, ...]
    kind: str = "composed"

    def apply(self, text: str, key: str) -> str:
        """See `Noise`. Parts of the same kind draw anew."""
        for place, part in enumerate(self.parts):
            text = part.apply(text, f"{key}+{place}" if place else key)
        return text

    def covers(self, text: str) -> bool:
        """Every text."""
        return True

    def at(self, intensity: float) -> "Composed":
        """1 is as it is; every part has this share of its own intensity. Raises ValueError outside of [0, 1]."""
        return Composed(tuple(part.at(part.intensity * intensity) for part in self.parts))

    def __str__(self) -> str:
        """As `parse_noise` reads it."""
        return "+".join(map(str, self.parts))


def parse_noise(text: str, where: str = "--noise") -> Noise:
    """Read `drop:0.1`, `repeat:0.2,seed=3`, `drop:0.1+uppercase:1`, `paired:FILE.jsonl`; `str(noise)` is the inverse.

    Without an intensity it is the usual one: of the paper's five noises the paper's. Raises ValueError with one line
    for an unknown noise or field or a bad value; `where` names the origin.
    """
    kind, _, rest = text.partition(":")
    if kind.strip() == "paired":
        if not rest.strip():
            raise ValueError(f"{where}: {text!r} names no file, as in 'paired:pairs.jsonl'")
        return Paired.load(rest.strip())
    parts = tuple(_parse_one(part.strip(), where) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Composed(parts)


def _parse_one(text: str, where: str) -> Damage:
    kind, _, rest = text.partition(":")
    kind = kind.strip()
    if kind not in NOISES:
        raise ValueError(f"{where}: unknown noise {kind!r}{nearest(kind, [*NOISES, 'paired'])}")
    fields = {"kind": kind, "intensity": NOISES[kind].usual} | _fields(rest, text, where)
    return parse(NOISES[kind], _known(kind, fields, where), f"{where}: {text}")


def _fields(rest: str, text: str, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, item in enumerate(rest.split(",") if rest.strip() else []):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals and number == 0:
            name, value = "intensity", name
        elif not equals or not name or not value:
            raise ValueError(f"{where}: {item!r} in {text!r} is not field=value, as in 'drop:0.1,seed=3'")
        if name in found:
            raise ValueError(f"{where}: {name!r} is given twice in {text!r}")
        found[name] = parse_value(value)
    return found


def _known(kind: str, fields: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    known = [name for name in NOISES[kind].model_fields if name != "kind"]
    for name in fields:
        if name not in known and name != "kind":
            raise ValueError(f"{where}: noise {kind!r} has no field {name!r}{nearest(name, known)}")
    return fields
