"""95 % intervals of quotients by a bootstrap over the units that were drawn (prompts).

A unit's runs stay together, and numbers of the same unit are resampled together: what two ways of decoding make of one
prompt is compared prompt by prompt (paired). One unit has no interval, and neither have units without any spread; a
share whose units are all at 0 or 1 has Wilson's, each unit counted once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bltkit.eval.intervals import wilson
from bltkit.eval.statistics import percentile_interval

RESAMPLES = 2000

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
        found: Values = np.where(below != 0, above / below, np.nan)
    return found
