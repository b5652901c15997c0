"""How sure a result is: standard errors and bootstrap intervals over items."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bltkit.eval.tasks.task import Metric, Numbers, quotient

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 2_000_000
"""Random numbers that are held at once."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error and its percentile interval; None where they are not defined.

    stderr: binomial for a mean of zeros and ones, otherwise that of the bootstrap.
    """

    n: int
    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"n": self.n, "value": self.value, "stderr": self.stderr, "interval": self.interval}


@dataclass(frozen=True, eq=False)
class Drawn:
    """An estimate together with the values of its resamples, of which means over groups are made."""

    estimate: Estimate
    resampled: Values


def estimate(metric: Metric, items: Sequence[Numbers], seed: Sequence[int]) -> Drawn:
    """Of a metric over items' contributions, which all have as many numbers; drawn from `seed`."""
    rows: Values = np.array(items, dtype=np.float64)
    value = metric.of([float(total) for total in rows.sum(0)])
    rng = np.random.default_rng(list(seed))
    n = len(rows)
    if metric.of is quotient and rows.shape[1] == 2 and _zeros_and_ones(rows):
        # A resampled sum of zeros and ones is binomial: no need to draw the items.
        resampled: Values = rng.binomial(n, rows[:, 0].mean(), RESAMPLES) / n
        return Drawn(_estimate(n, value, resampled, math.sqrt(value * (1 - value) / n)), resampled)
    sums = np.concatenate(list(_resampled_sums(rows, rng)))
    resampled = np.array([metric.of([float(total) for total in row]) for row in sums])
    return Drawn(_estimate(n, value, resampled), resampled)


def mean_of(groups: Mapping[str, Drawn]) -> Estimate:
    """The mean over groups, each weighing the same; items are resampled within their group."""
    known = [one for one in groups.values() if one.estimate.value is not None]
    count = sum(one.estimate.n for one in groups.values())
    if not known:
        return Estimate(count, None, None, None)
    value = sum(one.estimate.value or 0.0 for one in known) / len(known)
    errors = [one.estimate.stderr for one in known]
    resampled: Values = np.mean([one.resampled for one in known], axis=0)
    own = [error for error in errors if error is not None]
    stderr = math.sqrt(sum(error**2 for error in own)) / len(known) if len(own) == len(known) else None
    return _estimate(count, value, resampled, stderr)


def _zeros_and_ones(rows: Values) -> bool:
    return bool((rows[:, 1] == 1).all() and np.isin(rows[:, 0], (0.0, 1.0)).all())


def _resampled_sums(rows: Values, rng: np.random.Generator) -> Iterator[Values]:
    n = len(rows)
    size = max(1, _CELLS // n)
    for first in range(0, RESAMPLES, size):
        draws = rng.multinomial(n, np.full(n, 1 / n), size=min(size, RESAMPLES - first))
        yield draws @ rows


def _estimate(n: int, value: float, resampled: Values, stderr: float | None = None) -> Estimate:
    if not math.isfinite(value):
        return Estimate(n, None, None, None)
    known = resampled[np.isfinite(resampled)]  # a resample may hold nothing to divide by
    if not len(known):
        return Estimate(n, value, stderr, None)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(n, value, float(known.std()) if stderr is None else stderr, (float(low), float(high)))
