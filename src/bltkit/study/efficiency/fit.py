"""How much of the measured time the operations explain: straight lines through log seconds per byte.

Two answers stand side by side. A power law of the operations, with slope and factor of its own, may fit well where time
does not follow them at all in proportion; so the share that mere proportion explains (slope 1) is there as well. The
same for the predicted time. An interval says what another choice of rounds would have given, nothing about other
shapes or machines.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bltkit.eval.statistics import percentile_interval
from bltkit.study.efficiency.predicted_cost import PHASES

Row = Mapping[str, Any]
Predictor = Literal["operations", "predicted"]

SAMPLES = 400
"""Of the bootstrap over rounds."""
LEAST = 3
"""Points that a line with two parameters needs to say something."""


@dataclass(frozen=True)
class Fit:
    """log(seconds per byte) = slope * log(predictor) + constant."""

    phase: str
    """Or `all`."""
    predictor: Predictor
    """`operations`: per byte. `predicted`: seconds per byte by operations, reads and update."""
    points: int
    slope: float
    r2: float
    """Share of the variance of log time that the line explains."""
    r2_proportional: float
    """The same of the line of slope 1; below 0 where it is worse than the mean."""
    interval: tuple[float, float] | None
    """95 % interval of r2 over resampled rounds; None with a single round, or where all draws agree."""
    residuals: tuple[float, ...]
    """Measured over fitted time, one for each of the rows of the phase."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: value for name, value in vars(self).items() if name != "residuals"}


def latest(rows: Sequence[Row]) -> list[Row]:
    """Rows of the study in the order in which they came; of several with one key the last.

    Raises ValueError where there are none.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.get("what") == "efficiency":
            key = row["preset"], row["phase"], row["context"], row["system"]
            found.pop(key, None)  # what was measured again stands beside what it was measured with
            found[key] = row
    if not found:
        raise ValueError("there are no rows of `blt study efficiency` to report")
    return list(found.values())


def fits_of(rows: Sequence[Row], predictor: Predictor = "operations") -> list[Fit]:
    """For each phase, then over all of them; without those that have too few points or no spread."""
    rows = latest(rows)
    phases: list[str] = [phase for phase in PHASES if any(row["phase"] == phase for row in rows)]
    groups = [(phase, [row for row in rows if row["phase"] == phase]) for phase in phases]
    if len(phases) > 1:
        groups.append(("all", rows))
    found = (_fit(name, own, predictor) for name, own in groups)
    return [one for one in found if one is not None]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, float] | None:
    """Least squares: slope, constant, R2, and R2 of the best line of slope 1; None without spread."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread_x = sum((one - mean_x) ** 2 for one in x)
    spread_y = sum((one - mean_y) ** 2 for one in y)
    if len(x) < LEAST or spread_x < 1e-12 or spread_y < 1e-12:
        return None
    slope = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True)) / spread_x
    constant = mean_y - slope * mean_x

    def explained(slope: float, constant: float) -> float:
        left = sum((other - slope * one - constant) ** 2 for one, other in zip(x, y, strict=True))
        return 1 - left / spread_y

    return slope, constant, explained(slope, constant), explained(1.0, mean_y - mean_x)


def _fit(phase: str, rows: Sequence[Row], predictor: Predictor) -> Fit | None:
    x = [math.log(_predictor(row, predictor)) for row in rows]
    y = [math.log(row["seconds_per_byte"]) for row in rows]
    found = line(x, y)
    if found is None:
        return None
    slope, constant, r2, proportional = found
    residuals = tuple(math.exp(other - slope * one - constant) for one, other in zip(x, y, strict=True))
    return Fit(phase, predictor, len(rows), slope, r2, proportional, _interval(rows, x), residuals)


def _predictor(row: Row, predictor: Predictor) -> float:
    value: float = row["flops_per_byte"] if predictor == "operations" else row["predicted"]["seconds_per_byte"]
    return value


def _interval(rows: Sequence[Row], x: Sequence[float]) -> tuple[float, float] | None:
    """Rounds are drawn for a whole group at once: its systems were measured in them side by side."""
    generator = random.Random(0)
    groups = list(dict.fromkeys(_group(row) for row in rows))
    if min(len(row["seconds"]) for row in rows) < 2:
        return None
    found = []
    for _ in range(SAMPLES):
        rounds = {}
        for group in groups:
            count = min(len(row["seconds"]) for row in rows if _group(row) == group)
            rounds[group] = [generator.randrange(count) for _ in range(count)]
        y = [
            math.log(statistics.median(row["seconds"][at] for at in rounds[_group(row)]) / row["bytes_per_run"])
            for row in rows
        ]
        fitted = line(x, y)
        if fitted is not None:
            found.append(fitted[2])
    return percentile_interval(np.array(found, dtype=np.float64))


def _group(row: Row) -> tuple[Any, ...]:
    return row["preset"], row["phase"], row["context"]
