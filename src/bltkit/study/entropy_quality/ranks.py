"""Does one number of each byte rise with another: Spearman's correlation of ranks, and how sure it is.

Neighbouring bytes are alike, so bytes are not what was drawn independently: the bootstrap draws whole blocks of text.
"""

import numpy as np
import numpy.typing as npt

from bltkit.eval.statistics import percentile_interval
from bltkit.study.resampling import NOTHING, QuotientEstimate

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """Correlation of the ranks, equal values sharing the mean of theirs. None where one side is all the same.

    Raises ValueError for sides of different length.
    """
    sides = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if sides[0].shape != sides[1].shape or sides[0].ndim != 1:
        raise ValueError(f"ranks of {sides[0].shape} and {sides[1].shape} numbers; each must have a partner")
    return _correlation(_levels(sides[0]), _levels(sides[1]), np.ones(len(sides[0])))


def spearman_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, *, block: int, resamples: int, seed: int = 0
) -> QuotientEstimate:
    """`spearman` with the percentile interval of a bootstrap over blocks of `block` neighbouring values.

    A block that is drawn twice counts twice; values are ranked anew in every draw. No interval with fewer than two
    blocks, or where all draws agree.
    """
    value = spearman(first, second)
    if value is None:
        return NOTHING
    levels = _levels(np.asarray(first, np.float64)), _levels(np.asarray(second, np.float64))
    own_block = np.arange(len(levels[0])) // block
    count = int(own_block[-1]) + 1
    if count < 2:
        return QuotientEstimate(value)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = [_correlation(*levels, times[own_block].astype(np.float64)) for times in draws]
    interval = percentile_interval(np.array([one for one in drawn if one is not None], dtype=np.float64))
    return QuotientEstimate(value, *(interval or (None, None)))


def _levels(values: Numbers) -> Integers:
    """Number of each value among the different ones, in ascending order."""
    return np.unique(values, return_inverse=True)[1]


def _correlation(first: Integers, second: Integers, times: Numbers) -> float | None:
    """Of the ranks, each value standing there `times` times."""
    total = times.sum()
    if not total:
        return None
    # Ranks have the mean (total + 1) / 2, ties or not.
    one, other = (_ranks(levels, times) - (total + 1) / 2 for levels in (first, second))
    spread = float((times * one * one).sum()) * float((times * other * other).sum())
    return float((times * one * other).sum() / np.sqrt(spread)) if spread > 0 else None


def _ranks(levels: Integers, times: Numbers) -> Numbers:
    here = np.bincount(levels, weights=times)
    ranks: Numbers = (np.cumsum(here) - here + (here + 1) / 2)[levels]
    return ranks
