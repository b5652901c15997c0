"""How sure a mean is: bootstrap over the units that were drawn (prompts), for shares and rates that are quotients.

A unit's runs stay together, and numbers of the same unit are resampled together: what two ways of decoding make of one
prompt is compared prompt by prompt (paired).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95

Values = npt.NDArray[np.float64]
"""One number for each unit."""


@dataclass(frozen=True)
class Estimate:
    """A quotient of sums and its percentile interval. None where there is nothing to divide by."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> list[float] | None:
        """low, high."""
        return None if self.low is None or self.high is None else [self.low, self.high]


NOTHING = Estimate(None)


class Resampling:
    """The same draws of `count` units for every quotient, so that quotients of them stay paired."""

    def __init__(self, count: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        assert count > 0, count
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        # The first line is the data as they are.
        self._weights: Values = np.concatenate((np.ones((1, count)), draws)).astype(np.float64)

    def quotient(self, above: Values, below: Values) -> Estimate:
        """Sum of `above` over sum of `below`: a mean weighted by what is counted below."""
        return self._estimate(self._quotients(above, below))

    def ratio(self, above: Values, below: Values, other_above: Values, other_below: Values) -> Estimate:
        """One quotient over another."""
        return self._estimate(
            _divided(self._quotients(above, below), self._quotients(other_above, other_below)),
        )

    def saving(self, above: Values, below: Values, other_above: Values, other_below: Values) -> Estimate:
        """1 - `ratio`: the share of the other's cost that is saved."""
        found = self.ratio(above, below, other_above, other_below)
        if found.value is None or found.low is None or found.high is None:
            return NOTHING
        return Estimate(1 - found.value, 1 - found.high, 1 - found.low)

    def _quotients(self, above: Values, below: Values) -> Values:
        return _divided(self._weights @ above, self._weights @ below)

    def _estimate(self, quotients: Values) -> Estimate:
        if not np.isfinite(quotients[0]):
            return NOTHING
        drawn = quotients[1:][np.isfinite(quotients[1:])]  # a draw may hold no unit with anything to divide by
        if not len(drawn):
            return NOTHING
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(quotients[0]), float(low), float(high))


def _divided(above: Values, below: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = np.where(below != 0, above / below, np.nan)
    return found
