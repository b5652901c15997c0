"""Values of metrics with standard errors and 95 % intervals over items.

A share (each item counts 0 or 1) has a closed interval, which keeps its width at 0 and at 1; everything else has the
percentile interval of a bootstrap over items. One item has no interval, and neither have items without any spread.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bltkit.eval.intervals import (
    Interval,
    paired_shares,
    paired_shares_over_groups,
    wilson,
    wilson_over_groups,
)
from bltkit.eval.tasks.task import Metric, Numbers, quotient

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 2_000_000
"""Random numbers that are held at once."""
_EQUAL = 1e-12
"""Resampled values this close to each other, relative to the largest, differ by rounding alone."""

Values = npt.NDArray[np.float64]

Method: TypeAlias = Literal[
    "wilson",
    "bonett-price",
    "wilson by group",
    "bonett-price by group",
    "bootstrap",
    "no items",
    "one item",
    "one item in a group",
    "no spread",
    "undefined",
]
"""How an interval is computed; the last five say why there is none."""


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error and its 95 % interval; None where they are not defined.

    stderr: binomial for shares, otherwise the bootstrap's; None where the items show no spread.
    """

    n: int
    value: float | None
    stderr: float | None
    interval: Interval | None
    method: Method

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain JSON values."""
        return {
            "n": self.n,
            "value": self.value,
            "stderr": self.stderr,
            "interval": None if self.interval is None else list(self.interval),
            "interval_method": self.method,
        }


NO_ITEMS = Estimate(0, None, None, None, "no items")


@dataclass(frozen=True)
class Share:
    """Items that are 0 or 1: how many are 1."""

    hits: int
    count: int

    @property
    def interval(self) -> Interval:
        """Of this group alone."""
        return wilson(self.hits, self.count)


@dataclass(frozen=True)
class PairedShare:
    """Items that are 0 or 1 in two runs: how many are 1 in the second run alone, and in the first alone."""

    gained: int
    lost: int
    count: int

    @property
    def interval(self) -> Interval:
        """Of this group alone."""
        return paired_shares(self.gained, self.lost, self.count)


@dataclass(frozen=True, eq=False)
class Drawn:
    """An estimate with what means over groups are made of: the values of its resamples, and counts of a share."""

    estimate: Estimate
    resampled: Values
    counts: Share | PairedShare | None = None


def estimate(metric: Metric, items: Sequence[Numbers], seed: Sequence[int]) -> Drawn:
    """Estimate a metric from items' contributions, which all have as many numbers; resamples are drawn from `seed`."""
    if not items:
        return Drawn(NO_ITEMS, np.full(RESAMPLES, np.nan))
    rows: Values = np.array(items, dtype=np.float64)
    n = len(rows)
    if metric.of is quotient and is_share(rows):
        value = float(rows[:, 0].mean())
        # A resampled sum of zeros and ones is binomial: no need to draw the items.
        resampled: Values = np.random.default_rng(list(seed)).binomial(n, value, RESAMPLES) / n
        counts = Share(int(rows[:, 0].sum()), n)
        return Drawn(_of_counts(n, value, value * (1 - value) / n, counts), resampled, counts)
    return _bootstrap(metric, rows, seed)


def estimate_difference(metric: Metric, items: Sequence[Numbers], seed: Sequence[int]) -> Drawn:
    """Estimate one metric of two answers to the same items, the first answer's value less the second one's.

    items: the contribution of the first answer, followed by that of the second.
    """
    if not items:
        return Drawn(NO_ITEMS, np.full(RESAMPLES, np.nan))
    rows: Values = np.array(items, dtype=np.float64)
    n, width = len(rows), rows.shape[1] // 2

    def difference(sums: Sequence[float]) -> float:
        return metric.of(sums[:width]) - metric.of(sums[width:])

    drawn = _bootstrap(Metric(of=difference), rows, seed)
    if metric.of is not quotient or not (is_share(rows[:, :width]) and is_share(rows[:, width:])):
        return drawn
    counts = paired_share(rows[:, width], rows[:, 0])
    gain = counts.gained - counts.lost
    variance = (counts.gained + counts.lost - gain**2 / n) / n**2
    return Drawn(_of_counts(n, gain / n, variance, counts), drawn.resampled, counts)


def paired_share(before: Values, after: Values) -> PairedShare:
    """The counts of items that are 0 or 1 in two runs."""
    return PairedShare(int((after > before).sum()), int((after < before).sum()), len(before))


def interval_over_groups(counts: Sequence[Share] | Sequence[PairedShare]) -> tuple[Interval, Method]:
    """The interval of the mean over groups, each weighing the same."""
    shares = [one for one in counts if isinstance(one, Share)]
    if shares:
        return wilson_over_groups([one.hits for one in shares], [one.count for one in shares]), "wilson by group"
    pairs = [(one.gained, one.lost, one.count) for one in counts if isinstance(one, PairedShare)]
    return paired_shares_over_groups(pairs), "bonett-price by group"


def mean_of(groups: Mapping[str, Drawn]) -> Estimate:
    """The mean over groups, each weighing the same; the groups are fixed, their items are what was drawn."""
    defined = [group for group in groups.values() if group.estimate.value is not None]
    count = sum(group.estimate.n for group in groups.values())
    if not defined:
        return Estimate(count, None, None, None, "undefined" if count else "no items")
    values = [group.estimate.value or 0.0 for group in defined]
    value = sum(values) / len(values)
    if count == 1:
        return Estimate(count, value, None, None, "one item")
    alone = any(group.estimate.n == 1 for group in defined)
    counts = [group.counts for group in defined]
    shares = [one for one in counts if isinstance(one, Share)]
    pairs = [one for one in counts if isinstance(one, PairedShare)]
    if len(defined) in (len(shares), len(pairs)):
        interval, method = interval_over_groups(shares or pairs)
        errors = [group.estimate.stderr or 0.0 for group in defined]
        stderr = None if alone or not any(errors) else math.sqrt(sum(error**2 for error in errors)) / len(defined)
        return Estimate(count, value, stderr, interval, method)
    if alone:  # its resamples are all the same, as if its value were exact
        return Estimate(count, value, None, None, "one item in a group")
    return _from_resamples(count, value, np.mean([group.resampled for group in defined], axis=0))


def is_share(rows: Values) -> bool:
    """Whether every item contributes 0 or 1 of 1: (items, 2)."""
    return bool(rows.shape[1] == 2 and (rows[:, 1] == 1).all() and np.isin(rows[:, 0], (0.0, 1.0)).all())


def percentile_interval(resampled: Values) -> Interval | None:
    """The 95 % percentile interval of the finite ones of resampled values; None where they show no spread."""
    finite = resampled[np.isfinite(resampled)]  # a resample may hold nothing to divide by
    if not len(finite) or np.ptp(finite) <= _EQUAL * np.abs(finite).max():
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _bootstrap(metric: Metric, rows: Values, seed: Sequence[int]) -> Drawn:
    value = metric.of([float(total) for total in rows.sum(0)])
    sums = np.concatenate(list(_resampled_sums(rows, np.random.default_rng(list(seed)))))
    resampled = np.array([metric.of([float(total) for total in row]) for row in sums])
    return Drawn(_from_resamples(len(rows), value, resampled), resampled)


def _resampled_sums(rows: Values, rng: np.random.Generator) -> Iterator[Values]:
    n = len(rows)
    size = max(1, _CELLS // n)
    for first in range(0, RESAMPLES, size):
        draws = rng.multinomial(n, np.full(n, 1 / n), size=min(size, RESAMPLES - first))
        yield draws @ rows


def _of_counts(n: int, value: float, variance: float, counts: Share | PairedShare) -> Estimate:
    if n == 1:
        return Estimate(n, value, None, None, "one item")
    # Where all items are alike their variance is 0, which says nothing of those that were not drawn.
    method: Method = "wilson" if isinstance(counts, Share) else "bonett-price"
    return Estimate(n, value, math.sqrt(variance) if variance > 0 else None, counts.interval, method)


def _from_resamples(n: int, value: float, resampled: Values) -> Estimate:
    if not math.isfinite(value):
        return Estimate(n, None, None, None, "undefined")
    if n == 1:
        return Estimate(n, value, None, None, "one item")
    interval = percentile_interval(resampled)
    if interval is None:
        return Estimate(n, value, None, None, "no spread")
    return Estimate(n, value, float(resampled[np.isfinite(resampled)].std()), interval, "bootstrap")
