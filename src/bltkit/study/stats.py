"""Statistics of studies: bootstraps, intervals, rank correlation, least squares.

    Resampling         95 % intervals of quotients, their ratios and savings; the same draws for all of them (paired)
    spearman_interval  rank correlation over blocks of neighbours
    seed_noise, t_half  residual variance over seeds, and half of a 95 % interval by Student's t
    fit_line, fit_power  least squares, in logarithms for a power law

Quotients are resampled over the units that were drawn (prompts). A unit's runs stay together, and numbers of the same
unit are resampled together, so that two settings are compared prompt by prompt. One unit has no interval, and neither
have units without any spread; a share whose units are all at 0 or 1 has Wilson's, each unit counted once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bltkit.eval.intervals import wilson
from bltkit.eval.statistics import percentile_interval

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
MIN_POINTS = 3
"""Points that a line with two parameters needs to say something."""

Values = npt.NDArray[np.float64]
"""One number for each unit."""


@dataclass(frozen=True)
class QuotientEstimate:
    """A quotient of sums and its 95 % interval; None where there is nothing to divide by, or no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> list[float] | None:
        """low, high."""
        return None if self.low is None or self.high is None else [self.low, self.high]


NOTHING = QuotientEstimate(None)


class Resampling:
    """The same draws of `count` units for every quotient, so that quotients of them stay paired."""

    def __init__(self, count: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        assert count > 0, count
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        # The first line is the data as they are.
        self._weights: Values = np.concatenate((np.ones((1, count)), draws)).astype(np.float64)

    def quotient(self, above: Values, below: Values) -> QuotientEstimate:
        """Sum of `above` over sum of `below`: a mean weighted by what is counted below."""
        return self._estimate(self._quotients(above, below), below)

    def share(self, above: Values, below: Values) -> QuotientEstimate:
        """`quotient` of a share from 0 to 1, such as accepted bytes of drafted ones.

        The bytes of a unit are not independent; so where each unit is at 0 or at 1, units are what is counted.
        """
        units = below != 0
        shares = above[units] / below[units]
        if len(shares) < 2 or not np.isin(shares, (0.0, 1.0)).all() or 0 < shares.mean() < 1:
            return self.quotient(above, below)
        low, high = wilson(float(shares.sum()), len(shares))
        return QuotientEstimate(float(shares[0]), low, high)

    def ratio(self, above: Values, below: Values, other_above: Values, other_below: Values) -> QuotientEstimate:
        """One quotient over another."""
        return self._estimate(
            _divided(self._quotients(above, below), self._quotients(other_above, other_below)), below * other_below
        )

    def saving(self, above: Values, below: Values, other_above: Values, other_below: Values) -> QuotientEstimate:
        """1 - `ratio`: the share of the other's cost that is saved."""
        ratio = self.ratio(above, below, other_above, other_below)
        if ratio.value is None or ratio.low is None or ratio.high is None:
            return NOTHING if ratio.value is None else QuotientEstimate(1 - ratio.value)
        return QuotientEstimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)

    def _quotients(self, above: Values, below: Values) -> Values:
        return _divided(self._weights @ above, self._weights @ below)

    def _estimate(self, quotients: Values, below: Values) -> QuotientEstimate:
        if not np.isfinite(quotients[0]):
            return NOTHING
        interval = percentile_interval(quotients[1:]) if np.count_nonzero(below) > 1 else None
        return QuotientEstimate(float(quotients[0]), *(interval or (None, None)))


def _divided(above: Values, below: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, np.nan)


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """Spearman's rank correlation; None where one side does not vary. Raises ValueError for unequal lengths."""
    from scipy.stats import spearmanr

    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{x.shape} and {y.shape} numbers cannot be ranked in pairs; give two lists of equal length")
    return float(spearmanr(x, y).statistic) if len(x) and np.ptp(x) > 0 and np.ptp(y) > 0 else None


def spearman_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, *, block: int, resamples: int, seed: int = 0
) -> QuotientEstimate:
    """`spearman` with the 95 % percentile interval of a bootstrap over blocks of `block` neighbouring values.

    Neighbouring bytes are alike, so blocks are what is drawn. A block that is drawn twice counts twice, and values are
    ranked again in every resample. No interval from fewer than two blocks, or without spread.
    """
    value = spearman(first, second)
    if value is None:
        return NOTHING
    levels = [np.unique(np.asarray(side, np.float64), return_inverse=True)[1] for side in (first, second)]
    block_of = np.arange(len(levels[0])) // block
    count = int(block_of[-1]) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = np.array([_rank_correlation(levels, times[block_of]) for times in draws if count > 1])
    return QuotientEstimate(value, *(percentile_interval(drawn) or (None, None)))


def _rank_correlation(levels: Sequence[npt.NDArray[np.int64]], times: npt.NDArray[np.int64]) -> float:
    """Spearman's correlation of values that occur `times` times each, by their mean ranks; NaN without spread."""
    counts = [np.bincount(side, weights=times) for side in levels]
    ranks = [(np.cumsum(count) - count / 2)[side] for count, side in zip(counts, levels, strict=True)]
    covariance = np.cov(ranks, fweights=times)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def seed_noise(frame: "pd.DataFrame", group: str, variant: str, seed: str, value: str) -> tuple[float, int]:
    """Variance of `value` beside the effects of variant and seed, and its degrees of freedom.

    group, variant, seed, value: columns. Pooled over groups, of the variants that have all seeds of theirs.
    """
    squares, freedom = 0.0, 0
    for _, rows in frame.groupby(group, sort=False):
        table = rows.pivot(index=seed, columns=variant, values=value).dropna(axis=1)
        if min(table.shape) > 1:
            residuals = table.sub(table.mean(), axis=1).sub(table.mean(axis=1), axis=0) + table.to_numpy().mean()
            squares += float((residuals**2).to_numpy().sum())
            freedom += (table.shape[0] - 1) * (table.shape[1] - 1)
    return squares / max(1, freedom), freedom


def t_half(variance: float, freedom: int, count: int = 1) -> float | None:
    """Half of the 95 % interval of a mean of `count` values of this variance; None without freedom or variance.

    No spread is no certainty.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) * math.sqrt(variance / count) if freedom and variance else None


@dataclass(frozen=True)
class LineFit:
    """y = slope x + constant by least squares. r2_proportional: R^2 of the best line of slope 1."""

    slope: float
    constant: float
    r2: float
    r2_proportional: float


def fit_line(x: npt.ArrayLike, y: npt.ArrayLike) -> LineFit | None:
    """Least squares; None for fewer than three points, and where x or y has no spread."""
    across, up = np.asarray(x, np.float64), np.asarray(y, np.float64)
    total = float(((up - up.mean()) ** 2).sum())
    if len(across) < MIN_POINTS or ((across - across.mean()) ** 2).sum() < 1e-12 or total < 1e-12:
        return None
    slope, constant = (float(value) for value in np.polyfit(across, up, 1))

    def explained(slope: float, constant: float) -> float:
        return 1 - float(((up - slope * across - constant) ** 2).sum()) / total

    return LineFit(slope, constant, explained(slope, constant), explained(1.0, float(up.mean() - across.mean())))


@dataclass(frozen=True)
class PowerFit:
    """y = scale x^exponent."""

    scale: float
    exponent: float


def fit_power(x: npt.ArrayLike, y: npt.ArrayLike) -> PowerFit:
    """A power law by least squares of the logarithms; it needs two different x."""
    exponent, scale = np.polyfit(np.log(x), np.log(y), 1)
    return PowerFit(float(np.exp(scale)), float(exponent))
