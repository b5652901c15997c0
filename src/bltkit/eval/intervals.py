"""95 % intervals in closed form for shares of items: they keep a width where a bootstrap collapses, at 0 and at 1.

Sources: Wilson (1927) for one share; Bonett and Price (2012) for the difference of two shares of the same items. For
their means over groups the groups' variances are those of Agresti and Coull (1998), and of Bonett and Price: never 0.
Simulated with 2 to 57 groups, these hold the truth at least 92 % of the time from 20 items in a group on, and at least
85 % of the time with 1 to 5 items in a group.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

Interval: TypeAlias = tuple[float, float]
"""low, high."""

Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


def wilson(hits: float, count: float) -> Interval:
    """Wilson score interval of `hits` of `count` items, within 0 .. 1."""
    assert count > 0 and 0 <= hits <= count, (hits, count)
    share, square = hits / count, Z * Z / count
    centre = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    # At the ends rounding must not move the bound that is exact.
    return (0.0 if hits == 0 else max(0.0, low)), (1.0 if hits == count else min(1.0, high))


def wilson_over_groups(hits: Sequence[float], counts: Sequence[int]) -> Interval:
    """Interval of the plain mean of shares over groups: Wilson's, of as many items as give the mean its variance."""
    groups = len(counts)
    if groups == 1:
        return wilson(hits[0], counts[0])
    mean = sum(hit / count for hit, count in zip(hits, counts, strict=True)) / groups
    shrunk = [(hit + 2) / (count + 4) for hit, count in zip(hits, counts, strict=True)]
    variance = sum(share * (1 - share) / count for share, count in zip(shrunk, counts, strict=True)) / groups**2
    centre = sum(shrunk) / groups
    effective = centre * (1 - centre) / variance
    return wilson(min(mean, 1.0) * effective, effective)


def paired_shares(gained: int, lost: int, count: int) -> Interval:
    """Bonett-Price interval of (gained - lost) / count, within -1 .. 1.

    gained: items that only the second of two runs has right. lost: those that only the first one has.
    """
    assert count > 0 and gained + lost <= count, (gained, lost, count)
    difference, centre = (gained - lost) / count, (gained - lost) / (count + 2)
    half = Z * math.sqrt(_paired_variance(gained, lost, count) / (count + 2))
    return max(-1.0, min(centre - half, difference)), min(1.0, max(centre + half, difference))


def paired_shares_over_groups(pairs: Sequence[tuple[int, int, int]]) -> Interval:
    """Interval of the plain mean over groups of such differences. pairs: (gained, lost, count) of each group."""
    if len(pairs) == 1:
        return paired_shares(*pairs[0])
    # The differences as they are: moved towards 0 in every group, as for one alone, their mean would miss the truth.
    mean = sum((gained - lost) / count for gained, lost, count in pairs) / len(pairs)
    # So their variance is that of `count` items, not of two more.
    half = Z * math.sqrt(sum(_paired_variance(*pair) / pair[2] for pair in pairs)) / len(pairs)
    return max(-1.0, mean - half), min(1.0, mean + half)


def _paired_variance(gained: int, lost: int, count: int) -> float:
    """Of one item's difference."""
    total = count + 2
    return (gained + lost + 2) / total - ((gained - lost) / total) ** 2
