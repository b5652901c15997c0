"""What the rows of the study `scaling` say together: noise, best sizes, crossovers with intervals, matched costs.

Intervals are a parametric bootstrap: every cell (family, size, budget) is drawn anew around its mean over seeds, with
the spread that seeds have, pooled over all cells of several seeds, by Student's t for as few as there are. Budgets of a
unit share most of their training, so their noise is correlated: they count as one when degrees of freedom are counted,
and the draws leave it out, so that what is compared across budgets of one unit is surer than its interval says. One
entropy model serves all seeds, and held-out text is a few documents: of both the intervals know nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bltkit.study.scaling.fits import Isoflop, Parametric, TooFew, fit_isoflop, fit_parametric
from bltkit.study.scaling.rows import ScalingPoint, mean_over_seeds

DRAWS = 400
LEVEL = 0.95
REACH = 10.0
"""A crossover farther than this factor from the budgets is no estimate any more."""

Along = Literal["flops", "num_bytes", "seconds"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of a row's bits per byte over seeds, relative, and the degrees of freedom behind it."""

    relative: float
    freedom: int


@dataclass(frozen=True)
class Crossover:
    """Where family `first` and family `second` are equally good: in training FLOPs, the best size of each.

    at: None where the difference has no such place within REACH of the budgets; inside: is it between them.
    differences: first less second, bits per byte, by budget. trend: its slope per factor of ten of FLOPs.
    crossing: share of the draws that have a crossover within REACH; interval: None where that is below LEVEL.
    edges: family and budget whose best size lies at an end of the sizes that both have. There a difference is of that
    size and not of the best, and no crossover is estimated.
    """

    first: str
    second: str
    budgets: tuple[float, ...]
    differences: tuple[float, ...]
    difference_intervals: tuple[Interval, ...]
    at: float | None
    inside: bool
    interval: Interval | None
    crossing: float
    trend: float
    trend_interval: Interval
    edges: tuple[tuple[str, float], ...]

    def verdict(self) -> str:
        """One sentence for people."""
        sure = [low > 0 or high < 0 for low, high in self.difference_intervals]
        ahead = self.second if self.differences[-1] > 0 else self.first
        far = f"at {self.budgets[-1]:.2g} FLOPs {ahead} is ahead by {abs(self.differences[-1]):.3f} bits per byte"
        far += "" if sure[-1] else ", which the noise of seeds could make as well"
        low, high = self.trend_interval
        far += f"; the difference changes by {self.trend:+.3f} per factor of ten ({low:+.3f} to {high:+.3f})"
        if self.edges:
            at = ", ".join(f"{family} at {budget:.2g}" for family, budget in self.edges)
            return f"{far}; no crossover is estimated, for the best size lies at an end of the sizes of {at}"
        share = f"{100 * self.crossing:.0f} % of draws have one"
        if self.at is None:
            return f"{far}; no crossover within a factor of {REACH:g} of the budgets ({share})"
        where = "between the budgets" if self.inside else "extrapolated"
        between = "no interval" if self.interval is None else f"{self.interval[0]:.2g} to {self.interval[1]:.2g}"
        return f"{far}; crossover at {self.at:.2g} FLOPs ({where}; {between}; {share})"


def noise_of(points: Sequence[ScalingPoint]) -> SeedNoise:
    """Pooled over all cells of several seeds. Raises TooFew where no cell has two, or all agree.

    The budgets of a family and size share a trunk, so they add no degrees of freedom to one another.
    """
    units: dict[tuple[str, str], dict[float, list[float]]] = {}
    for point in points:
        units.setdefault((point.family, point.size), {}).setdefault(point.budget, []).append(point.loss)
    squares, freedom = 0.0, 0
    for cells in units.values():
        several = [np.asarray(losses) for losses in cells.values() if len(losses) > 1]
        if several:
            own = max(len(losses) - 1 for losses in several)
            squares += own * float(np.mean([(losses / losses.mean()).var(ddof=1) for losses in several]))
            freedom += own
    if not freedom:
        raise TooFew("no family, size and budget has two seeds: there is no noise to tell a difference from")
    if not squares:
        raise TooFew("the seeds of every family, size and budget agree exactly: they show no noise")
    return SeedNoise(math.sqrt(squares / freedom), freedom)


def draws_of(
    points: Sequence[ScalingPoint], noise: SeedNoise, count: int = DRAWS, seed: int = 0
) -> Iterator[list[ScalingPoint]]:
    """Means over seeds, drawn anew `count` times."""
    cells = mean_over_seeds(points)
    counts = [sum(_cell(point) == _cell(cell) for point in points) for cell in cells]
    random = np.random.default_rng(seed)
    for _ in range(count):
        moved = noise.relative * random.standard_t(noise.freedom, len(cells)) / np.sqrt(counts)
        # Student's t of one or two degrees of freedom has draws beyond any loss.
        factors = np.clip(1 + moved, 0.5, 2.0)
        yield [replace(cell, loss=cell.loss * float(by)) for cell, by in zip(cells, factors, strict=True)]


def isoflops(points: Sequence[ScalingPoint], family: str) -> dict[float, Isoflop | str]:
    """By budget the parabola, or why there is none."""
    own = mean_over_seeds([point for point in points if point.family == family and point.main])
    found: dict[float, Isoflop | str] = {}
    for budget in sorted({point.budget for point in own}):
        some = [point for point in own if point.budget == budget]
        try:
            found[budget] = fit_isoflop(budget, [one.params for one in some], [one.loss for one in some])
        except TooFew as why:
            found[budget] = str(why)
    return found


def best_loss(points: Sequence[ScalingPoint], family: str, budget: float) -> tuple[float, bool]:
    """Of the best size: the parabola's lowest value where it lies between the sizes, else the best size that there is.
    Second: does it lie between them.

    Points of one seed each, or means.
    """
    some = [one for one in points if one.family == family and one.budget == budget]
    lowest = min(one.loss for one in some)
    try:
        found = fit_isoflop(budget, [one.params for one in some], [one.loss for one in some])
    except TooFew:
        return lowest, False
    return (found.lowest, True) if found.inside else (lowest, False)


def crossover(
    points: Sequence[ScalingPoint], first: str, second: str, noise: SeedNoise, *, draws: int = DRAWS
) -> Crossover:
    """Of two families, from a line through the difference of their best sizes over log FLOPs; of sizes that both have.

    Raises TooFew for fewer than three budgets that both have.
    """
    sizes = [{point.size for point in points if point.family == name} for name in (first, second)]
    own = [point for point in points if point.family in (first, second) and point.size in sizes[0] & sizes[1]]
    budgets = sorted(
        {one.budget for one in own if one.family == first} & {one.budget for one in own if one.family == second}
    )
    if len(budgets) < 3:
        raise TooFew(f"{first} and {second} have {len(budgets)} budgets in common; a crossover needs three")
    own = [point for point in own if point.budget in budgets]

    def differences(some: Sequence[ScalingPoint]) -> list[float]:
        return [best_loss(some, first, budget)[0] - best_loss(some, second, budget)[0] for budget in budgets]

    means = mean_over_seeds(own)
    found = differences(means)
    edges = tuple(
        (name, budget) for name in (first, second) for budget in budgets if not best_loss(means, name, budget)[1]
    )
    at, trend = _root(budgets, found)
    drawn = [differences(some) for some in draws_of(own, noise, draws)]
    lines = [_root(budgets, one) for one in drawn]
    roots = [root for root, _ in lines if root is not None]
    crossing = len(roots) / len(drawn)
    at = None if edges else at
    return Crossover(
        first,
        second,
        tuple(budgets),
        tuple(found),
        tuple(_interval([one[place] for one in drawn]) for place in range(len(budgets))),
        at,
        at is not None and budgets[0] <= at <= budgets[-1],
        _interval(roots) if crossing >= LEVEL and not edges else None,
        crossing,
        trend,
        _interval([slope for _, slope in lines]),
        edges,
    )


def parametric(
    points: Sequence[ScalingPoint], family: str, noise: SeedNoise | None, *, draws: int = 100
) -> tuple[Parametric, dict[str, Interval]]:
    """The fit of a family, and intervals of its numbers; none without noise. Raises TooFew.

    `size_exponent` among the intervals is that of `cost_exponent`.
    """
    own = [point for point in points if point.family == family and point.main]

    def fit(some: Sequence[ScalingPoint], near: Parametric | None = None) -> Parametric:
        return fit_parametric(
            [one.params for one in some], [one.num_bytes for one in some], [one.loss for one in some], near=near
        )

    found = fit(mean_over_seeds(own))
    if noise is None:
        return found, {}
    drawn = [fit(some, found) for some in draws_of(own, noise, draws)]
    ranges = {name: _interval([getattr(one, name) for one in drawn]) for name in ("e", "alpha", "beta")}
    by_size = cost_exponent(points, family)
    return found, ranges | {"size_exponent": _interval([one.size_exponent(by_size) for one in drawn])}


def cost_exponent(points: Sequence[ScalingPoint], family: str) -> float:
    """g of: training a byte costs as N^g. Below 1 where much of the cost does not grow with the size, such as that of
    an entropy model."""
    costs = {one.params: one.flops / one.num_bytes for one in points if one.family == family and one.main}
    return float(np.polyfit(np.log(list(costs)), np.log(list(costs.values())), 1)[0])


@dataclass(frozen=True)
class Best:
    """Intervals at a budget: the best N, and bytes of text per parameter there."""

    size: Interval
    ratio: Interval


def best_sizes(
    points: Sequence[ScalingPoint], family: str, noise: SeedNoise, *, draws: int = DRAWS
) -> dict[float, Best]:
    """By budget, of draws whose parabola has a lowest point; a budget is left out where those are under a half."""
    own = [point for point in points if point.family == family and point.main]
    found: dict[float, list[float]] = {}
    for some in draws_of(own, noise, draws):
        for budget, one in isoflops(some, family).items():
            found.setdefault(budget, [])
            if isinstance(one, Isoflop):
                found[budget].append(one.best)
    return {
        budget: Best(_interval(sizes), _interval([data_ratio(own, family, budget, size) for size in sizes]))
        for budget, sizes in found.items()
        if len(sizes) >= draws / 2
    }


def data_ratio(points: Sequence[ScalingPoint], family: str, budget: float, params: float) -> float:
    """Bytes of text per parameter that a budget pays for at a size; costs between sizes by straight lines in
    logarithms, beyond them as at the last."""
    own = {point.params: point.flops / point.num_bytes for point in points if point.family == family and point.main}
    sizes = sorted(own)
    cost = np.exp(np.interp(np.log(params), np.log(sizes), np.log([own[size] for size in sizes])))
    return float(budget / cost / params)


def matched(points: Sequence[ScalingPoint], size: str, along: Along) -> tuple[float, dict[str, float]] | None:
    """Losses of all families of one size at the same cost: the largest that all of them reach, between the budgets.

    None where no cost is common to two families.
    """
    cells = [one for one in mean_over_seeds(points) if one.size == size and not math.isnan(getattr(one, along))]
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in sorted(cells, key=lambda one: one.budget):
        curves.setdefault(one.family, []).append((getattr(one, along), one.loss))
    if len(curves) < 2:
        return None
    at = min(curve[-1][0] for curve in curves.values())
    found = {name: _between(curve, at) for name, curve in curves.items()}
    known = {name: loss for name, loss in found.items() if loss is not None}
    return (at, known) if len(known) > 1 else None


def _between(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """Along straight lines through the logarithms; None outside the curve, but for the width of a step."""
    x, y = [math.log(one) for one, _ in curve], [math.log(loss) for _, loss in curve]
    if not x[0] - 0.01 <= math.log(at) <= x[-1] + 0.01 or x != sorted(x):
        return None
    return float(math.exp(np.interp(math.log(at), x, y)))


def _root(budgets: Sequence[float], differences: Sequence[float]) -> tuple[float | None, float]:
    """Where a line over log10 FLOPs is 0, None beyond REACH, and its slope."""
    x = np.log10(budgets)
    slope, level = np.polyfit(x - x[-1], differences, 1)
    at = -level / slope if slope else math.inf
    reach = math.log10(REACH)
    if not x[0] - x[-1] - reach <= at <= reach:
        return None, float(slope)
    return float(10 ** (at + x[-1])), float(slope)


def _interval(values: Sequence[float]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _cell(point: ScalingPoint) -> tuple[str, str, float]:
    return point.family, point.size, point.budget
