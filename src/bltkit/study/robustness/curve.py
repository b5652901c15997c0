"""From rows of the study `robustness` to curves: a model's score on a task over the intensity of one noise.

What is retained: (score - chance) / (clean score - chance), where the clean score stands above chance with its whole
interval; otherwise there is nothing that noise could take. The clean score is taken as exact in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CurvePoint:
    """A score at an intensity, its 95 % interval where there is one. own: the one that the noise was named with.

    retained: share, low, high; the ends are None without an interval.
    """

    intensity: float
    value: float
    interval: tuple[float, float] | None
    n: int
    left_out: int = 0
    own: bool = False
    retained: tuple[float, float | None, float | None] | None = None
    noise: str | None = None


@dataclass(frozen=True)
class NoiseCurve:
    """A model's scores under a noise; `points` by ascending intensity, the clean one apart."""

    task: str
    noise: str
    model: str
    metric: str
    better: str
    highest: float | None
    chance: float | None
    clean: CurvePoint
    points: tuple[CurvePoint, ...]

    @property
    def own(self) -> tuple[CurvePoint, ...]:
        """At the intensities that the noise was named with."""
        return tuple(point for point in self.points if point.own)


def curves_of(rows: Sequence[Row]) -> tuple[NoiseCurve, ...]:
    """By task, noise and model, each in the order of the rows. Noises without their clean score yet are left out.

    Raises ValueError where there are no rows of the study.
    """
    own = {_key(row): row for row in rows if row.get("what") == "robustness" and row["value"] is not None}
    if not own:
        raise ValueError("there are no rows of `blt study robustness` to report")
    kept = list(own.values())
    found = []
    for task in dict.fromkeys(row["task"] for row in kept):
        for noise in dict.fromkeys(row["curve"] for row in kept if row["curve"]):
            for model in dict.fromkeys(row["model"] for row in kept):
                group = [row for row in kept if (row["task"], row["model"]) == (task, model)]
                curve = _curve(group, noise)
                if curve is not None:
                    found.append(curve)
    return tuple(found)


def retained(value: float, clean: CurvePoint, chance: float | None, better: str) -> float | None:
    """The share of the clean score above chance; None where there is none, or no such thing."""
    if chance is None or better != "higher" or clean.interval is None or clean.interval[0] <= chance:
        return None
    return (value - chance) / (clean.value - chance)


def _key(row: Row) -> tuple[Any, ...]:
    return row["model"], row["task"], row["curve"], row["intensity"]


def _curve(rows: Sequence[Row], noise: str) -> NoiseCurve | None:
    cleans = {row["curve"]: row for row in rows if row["noise"] is None}  # by no noise, and for pairs on their items
    noisy = sorted((row for row in rows if row["noise"] and row["curve"] == noise), key=lambda row: row["intensity"])
    first = cleans.get(noise) if noise.startswith("paired:") else cleans.get(None)
    if first is None or not noisy:
        return None
    clean = _measured(first, None)
    return NoiseCurve(
        first["task"],
        noise,
        first["model"],
        first["metric"],
        first["better"],
        first["highest"],
        first["chance"],
        clean,
        tuple(_measured(row, clean) for row in noisy),
    )


def _measured(row: Row, clean: CurvePoint | None) -> CurvePoint:
    interval = None if row["interval"] is None else (row["interval"][0], row["interval"][1])
    if interval is not None and interval[0] == interval[1]:
        interval = None  # version 0.1.0 wrote one without width where the items show no spread
    shares = None
    if clean is not None:
        share = retained(row["value"], clean, row["chance"], row["better"])
        ends = (None, None) if interval is None else interval
        low, high = (None if end is None else retained(end, clean, row["chance"], row["better"]) for end in ends)
        shares = None if share is None else (share, low, high)
    return CurvePoint(
        row["intensity"], row["value"], interval, row["n"], row["left_out"], row["own"], shares, row["noise"]
    )
