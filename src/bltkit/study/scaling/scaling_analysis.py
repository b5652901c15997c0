"""Results of the study `scaling` from its rows: seed noise, best sizes, crossovers with intervals, matched costs.

Points are a DataFrame with a line per family, size, seed and budget; cells are their means over seeds. Intervals are a
parametric bootstrap: every cell is resampled around its mean with the spread of seeds, pooled over all cells of several
seeds, by Student's t with the pooled degrees of freedom. Budgets of a unit share most of their training, so their noise
is correlated: they count once in the degrees of freedom, and resampling ignores the correlation, so comparisons across
budgets of one unit are more certain than their intervals say. One entropy model serves all seeds, and held-out text is
a few documents: the intervals include neither.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bltkit.study.scaling.scaling_fits import Floats, Isoflop, Parametric, TooFew, fit_isoflop, fit_parametric

if TYPE_CHECKING:
    from pandas import DataFrame

    Frame: TypeAlias = DataFrame
else:
    Frame = Any

WHAT, RATE = "scaling", "scaling-rate"
CELL = ["family", "size", "budget"]
_COUNTS = ("seed", "params_multiplied", "params", "bytes_seen", "steps", "threads")
LOSS, PARAMS = "bits_per_byte", "params_multiplied"

DRAWS = 400
LEVEL = 0.95
REACH = 10.0
"""Factor beyond the budgets up to which a crossover is estimated."""

Along = Literal["flops", "bytes_seen", "rated_seconds"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class SeedNoise:
    """Relative standard deviation of bits per byte over seeds, and its degrees of freedom."""

    relative: float
    freedom: int


@dataclass(frozen=True)
class Crossover:
    """Training FLOPs at which families `first` and `second` are equally good, each at its best size.

    differences: first less second in bits per byte, by budget. trend: their slope per factor of ten of FLOPs. edges:
    families and budgets whose best size lies at an end of the sizes that both families have; a difference there is of
    that size and not of the best, and no crossover is estimated. at: None without an estimate or beyond REACH. inside:
    whether `at` lies between the budgets. crossing: share of draws with a crossover within REACH; interval: None where
    that is below LEVEL.
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
        """One sentence."""
        low, high = self.difference_intervals[-1]
        ahead = self.second if self.differences[-1] > 0 else self.first
        text = f"at {self.budgets[-1]:.2g} FLOPs {ahead} is ahead by {abs(self.differences[-1]):.3f} bits per byte"
        text += "" if low > 0 or high < 0 else ", which the noise of seeds could make as well"
        low, high = self.trend_interval
        text += f"; the difference changes by {self.trend:+.3f} per factor of ten ({low:+.3f} to {high:+.3f})"
        if self.edges:
            at = ", ".join(f"{family} at {budget:.2g}" for family, budget in self.edges)
            return f"{text}; no crossover is estimated, for the best size lies at an end of the sizes of {at}"
        share = f"{100 * self.crossing:.0f} % of draws have one"
        if self.at is None:
            return f"{text}; no crossover within a factor of {REACH:g} of the budgets ({share})"
        where = "between the budgets" if self.inside else "extrapolated"
        between = "no interval" if self.interval is None else f"{self.interval[0]:.2g} to {self.interval[1]:.2g}"
        return f"{text}; crossover at {self.at:.2g} FLOPs ({where}; {between}; {share})"


def points_of(frame: Frame) -> Frame:
    """Points of stored rows: of several rows of a point the last one counts.

    Adds `rated_seconds`, training time by the rates that `--rates` measured (NaN without one: a run's own clock ran on
    a shared machine), `base_size`, the size that a model grew from with its patch, and `main`, False for grown ones.
    Raises ValueError without rows.
    """
    points = frame[frame["what"] == WHAT] if len(frame) else frame
    if not len(points):
        raise ValueError("there are no rows of `blt study scaling` to report; run it without --report first")
    points = points.drop_duplicates([*CELL, "seed"], keep="last")
    # Rows of rates lack these columns, which makes them floats.
    points = points.astype({name: int for name in _COUNTS if name in points})
    rates = frame[frame["what"] == RATE].drop_duplicates(["family", "size"], keep="last")
    by_model = {(row["family"], row["size"]): row["seconds_per_byte"] for row in rates.to_dict("records")}
    models = zip(points["family"], points["size"], strict=True)
    seconds_per_byte = np.array([by_model.get(model, math.nan) for model in models])
    base = points["size"].str.split("@").str[0]
    return points.assign(
        rated_seconds=points["bytes_seen"] * seconds_per_byte, base_size=base, main=points["size"] == base
    )


def cells_of(points: Frame) -> Frame:
    """Means over seeds, a line per family, size and budget in their order of appearance; `seeds` counts them."""
    means = dict.fromkeys(("bytes_seen", "flops", "rated_seconds", LOSS), "mean")
    groups = points.groupby(CELL, sort=False)
    return groups.agg({PARAMS: "first", "main": "first", "seed": "size"} | means).reset_index().rename(
        columns={"seed": "seeds"}
    )  # fmt: skip


def noise_of(points: Frame) -> SeedNoise:
    """SeedNoise pooled over all cells of several seeds. Raises TooFew where no cell has two seeds, or all seeds agree.

    The budgets of a family and size share a trunk, so together they add the degrees of freedom of one.
    """
    relative = points[LOSS] / points.groupby(CELL)[LOSS].transform("mean")
    cells = points.assign(relative=relative).groupby(CELL)["relative"].agg(["var", "count"])
    units = cells[cells["count"] > 1].groupby(["family", "size"]).agg({"var": "mean", "count": "max"})
    weights = units["count"] - 1
    if not len(units):
        raise TooFew("no family, size and budget has two seeds: there is no noise to tell a difference from")
    variance = float((weights * units["var"]).sum() / weights.sum())
    if not variance:
        raise TooFew("the seeds of every family, size and budget agree exactly: they show no noise")
    return SeedNoise(math.sqrt(variance), int(weights.sum()))


def resampled(cells: Frame, noise: SeedNoise, count: int = DRAWS, seed: int = 0) -> Floats:
    """[count, cells] losses, each cell's resampled around its mean."""
    random = np.random.default_rng(seed)
    moved = noise.relative * random.standard_t(noise.freedom, (count, len(cells))) / np.sqrt(cells["seeds"].to_numpy())
    # Student's t of one or two degrees of freedom has draws beyond any loss.
    return np.asarray(cells[LOSS].to_numpy() * np.clip(1 + moved, 0.5, 2.0))


@dataclass(frozen=True)
class SizeGrid:
    """Cells of one family as arrays, so that resampled losses are fitted without pandas. places: indices by budget."""

    params: Floats
    places: dict[float, Any]

    @classmethod
    def of(cls, cells: Frame, family: str) -> "SizeGrid":
        """Grid of a family's cells; its indices are those of `cells`."""
        budgets = cells["budget"].to_numpy()
        in_family = (cells["family"] == family).to_numpy()
        family_budgets = sorted(set(budgets[in_family]))
        places = {float(budget): np.flatnonzero(in_family & (budgets == budget)) for budget in family_budgets}
        return cls(cells[PARAMS].to_numpy(float), places)

    def isoflop(self, losses: Floats, budget: float) -> Isoflop | str:
        """Parabola of a budget, or the reason why there is none."""
        at = self.places[budget]
        try:
            return fit_isoflop(budget, self.params[at], losses[at])
        except TooFew as why:
            return str(why)

    def best_loss(self, losses: Floats, budget: float) -> tuple[float, bool]:
        """Loss of the best size, and whether it lies between the sizes: the parabola's minimum, else the best cell."""
        fit = self.isoflop(losses, budget)
        if isinstance(fit, Isoflop) and fit.inside:
            return fit.lowest, True
        return float(losses[self.places[budget]].min()), False


def family_cells(points: Frame, family: str) -> Frame:
    """Cells of a family's main sizes."""
    return cells_of(points[(points["family"] == family) & points["main"]])


def isoflops(points: Frame, family: str) -> dict[float, Isoflop | str]:
    """Parabola of each budget, or the reason why there is none."""
    cells = family_cells(points, family)
    grid, losses = SizeGrid.of(cells, family), cells[LOSS].to_numpy()
    return {budget: grid.isoflop(losses, budget) for budget in grid.places}


def crossover(points: Frame, first: str, second: str, noise: SeedNoise, *, draws: int = DRAWS) -> Crossover:
    """Crossover of two families by a line through their differences over log FLOPs, of sizes and budgets of both.

    Raises TooFew for fewer than three budgets that both have.
    """
    both = points[points["family"].isin((first, second))]
    for name in ("size", "budget"):
        common = set.intersection(*(set(both.loc[both["family"] == family, name]) for family in (first, second)))
        both = both[both[name].isin(common)]
    budgets = tuple(float(budget) for budget in sorted(set(both["budget"])))
    if len(budgets) < 3:
        raise TooFew(f"{first} and {second} have {len(budgets)} budgets in common; a crossover needs three")
    cells = cells_of(both)
    grids = {family: SizeGrid.of(cells, family) for family in (first, second)}

    def differences(losses: Floats) -> list[float]:
        return [
            grids[first].best_loss(losses, budget)[0] - grids[second].best_loss(losses, budget)[0] for budget in budgets
        ]

    means = cells[LOSS].to_numpy()
    edges = tuple(
        (name, budget) for name, grid in grids.items() for budget in budgets if not grid.best_loss(means, budget)[1]
    )
    at, trend = _root(budgets, differences(means))
    drawn = np.array([differences(losses) for losses in resampled(cells, noise, draws)])
    lines = [_root(budgets, line) for line in drawn]
    roots = [root for root, _ in lines if root is not None]
    crossing = len(roots) / draws
    at = None if edges else at
    return Crossover(
        first,
        second,
        budgets,
        tuple(differences(means)),
        tuple(interval(column) for column in drawn.T),
        at,
        at is not None and budgets[0] <= at <= budgets[-1],
        interval(roots) if crossing >= LEVEL and not edges else None,
        crossing,
        trend,
        interval([slope for _, slope in lines]),
        edges,
    )


def parametric(
    points: Frame, family: str, noise: SeedNoise | None, *, draws: int = 100
) -> tuple[Parametric, dict[str, Interval]]:
    """Fit of a family, and intervals of its numbers; none without noise. Raises TooFew.

    `size_exponent` among the intervals is that of `cost_exponent`.
    """
    cells = family_cells(points, family)
    axes = cells[PARAMS], cells["bytes_seen"]
    fit = fit_parametric(*axes, cells[LOSS])
    if noise is None:
        return fit, {}
    drawn = [fit_parametric(*axes, losses, near=fit) for losses in resampled(cells, noise, draws)]
    ranges = {name: interval([getattr(one, name) for one in drawn]) for name in ("e", "alpha", "beta")}
    by_size = cost_exponent(points, family)
    return fit, ranges | {"size_exponent": interval([one.size_exponent(by_size) for one in drawn])}


def cost_exponent(points: Frame, family: str) -> float:
    """Exponent g of the cost of a byte of training, N^g. Below 1 where much of the cost does not grow with the size,
    such as that of an entropy model."""
    sizes, costs = _byte_costs(points, family)
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def data_ratio(points: Frame, family: str, budget: float, params: npt.ArrayLike) -> Floats:
    """Bytes of text per parameter that a budget pays for at sizes; costs between sizes by straight lines in logarithms,
    beyond them as at the last."""
    sizes, costs = _byte_costs(points, family)
    n = np.asarray(params, float)
    return np.asarray(budget / np.exp(np.interp(np.log(n), np.log(sizes), np.log(costs))) / n)


def _byte_costs(points: Frame, family: str) -> tuple[Floats, Floats]:
    """Sizes of a family, ascending, and the FLOPs of a byte of training at each."""
    main = points[(points["family"] == family) & points["main"]]
    costs = (main["flops"] / main["bytes_seen"]).groupby(main[PARAMS]).last()
    return costs.index.to_numpy(float), costs.to_numpy()


def best_sizes(
    points: Frame, family: str, noise: SeedNoise, *, draws: int = DRAWS
) -> dict[float, tuple[Interval, Interval]]:
    """Intervals of the best size of each budget, and of its bytes of text per parameter, over draws with a parabola.

    Budgets for which fewer than half of the draws have one are left out.
    """
    cells = family_cells(points, family)
    grid, drawn = SizeGrid.of(cells, family), resampled(cells, noise, draws)
    ranges = {}
    for budget in grid.places:
        fits = [grid.isoflop(losses, budget) for losses in drawn]
        sizes = [fit.best for fit in fits if isinstance(fit, Isoflop)]
        if len(sizes) >= draws / 2:
            ranges[budget] = interval(sizes), interval(data_ratio(points, family, budget, sizes))
    return ranges


def matched(cells: Frame, size: str, along: Along) -> tuple[float, dict[str, float]] | None:
    """Losses of all families of one size at the same cost: the largest that all of them reach, between the budgets.

    None where no cost is common to two families.
    """
    some = cells[(cells["size"] == size) & cells[along].notna()].sort_values("budget", kind="stable")
    curves = {family: (own[along].to_numpy(), own[LOSS].to_numpy()) for family, own in some.groupby("family")}
    if len(curves) < 2:
        return None
    at = min(float(x[-1]) for x, _ in curves.values())
    losses = {family: loss for family, curve in curves.items() if (loss := _between(*curve, at)) is not None}
    return (at, losses) if len(losses) > 1 else None


def _between(costs: Floats, losses: Floats, at: float) -> float | None:
    """Loss by straight lines through the logarithms; None outside the curve, with a step's width of tolerance."""
    x = np.log(costs)
    if not x[0] - 0.01 <= math.log(at) <= x[-1] + 0.01 or (np.diff(x) < 0).any():
        return None
    return float(math.exp(np.interp(math.log(at), x, np.log(losses))))


def _root(budgets: Sequence[float], differences: Sequence[float] | Floats) -> tuple[float | None, float]:
    """FLOPs at which a line over log10 FLOPs is 0, None beyond REACH; and the line's slope."""
    x = np.log10(budgets)
    slope, level = np.polyfit(x - x[-1], differences, 1)
    at = -level / slope if slope else math.inf
    reach = math.log10(REACH)
    if not x[0] - x[-1] - reach <= at <= reach:
        return None, float(slope)
    return float(10 ** (at + x[-1])), float(slope)


def interval(values: Sequence[float] | Floats) -> Interval:
    """Quantiles that bound LEVEL of the values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
