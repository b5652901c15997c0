"""Fits of the study `scaling`: known numbers come back, and what too few points cannot say is refused."""

from dataclasses import replace

import numpy as np
import pytest
from bltkit.study.scaling.analysis import (
    SeedNoise,
    best_loss,
    best_sizes,
    cost_exponent,
    crossover,
    data_ratio,
    draws_of,
    isoflops,
    matched,
    noise_of,
    parametric,
)
from bltkit.study.scaling.fits import Isoflop, Parametric, TooFew, fit_isoflop, fit_parametric, fit_power
from bltkit.study.scaling.rows import ScalingPoint, mean_over_seeds
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = {"s": 3e5, "m": 1e6, "l": 3e6, "x": 1e7}
BUDGETS = (1e13, 3e13, 9e13)


def law(params: float, num_bytes: float, e: float = 1.2, a: float = 200.0, b: float = 300.0) -> float:
    return e + a / params**0.4 + b / num_bytes**0.35


def points(
    family: str, scale: float = 1.0, seeds: int = 1, noise: float = 0.0, tilt: float = 0.0
) -> list[ScalingPoint]:
    """FLOPs = 6 N D / 4; a family's loss is scaled, and tilted by so much per decade of FLOPs."""
    random, found = np.random.default_rng(len(family)), []
    for name, params in SIZES.items():
        for budget in BUDGETS:
            num_bytes = budget / (1.5 * params)
            loss = law(params, num_bytes) * scale + tilt * np.log10(budget / BUDGETS[1])
            for seed in range(seeds):
                shaken = float(loss * (1 + noise * random.standard_normal()))
                found.append(
                    ScalingPoint(family, name, seed, budget, params, num_bytes, budget, num_bytes / 1e4, shaken)
                )
    return found


@settings(max_examples=25, deadline=None)
@given(
    e=st.floats(0.5, 2.0),
    share=st.floats(0.2, 0.8),
    alpha=st.floats(0.2, 0.7),
    beta=st.floats(0.2, 0.7),
)
def test_the_parametric_fit_finds_the_numbers_that_made_the_points(
    e: float, share: float, alpha: float, beta: float
) -> None:
    """The two terms are given the same weight as E in the middle of the grid, so that each is there to be found."""
    n, d = (grid.ravel() for grid in np.meshgrid([3e5, 1e6, 3e6, 1e7], [1e6, 4e6, 1.6e7, 6.4e7]))
    a, b = share * 1e6**alpha, (1 - share) * 8e6**beta
    found = fit_parametric(n, d, e + a / n**alpha + b / d**beta)
    assert found.determined and found.error < 1e-6
    assert [found.e, found.alpha, found.beta] == pytest.approx([e, alpha, beta], rel=1e-3)
    assert [found.a, found.b] == pytest.approx([a, b], rel=1e-2)
    assert found.predict(2e6, 3e7) == pytest.approx(e + a / 2e6**alpha + b / 3e7**beta, rel=1e-6)
    assert found.size_exponent() == pytest.approx(beta / (alpha + beta), rel=1e-3)


def test_the_best_size_grows_by_the_exponent_of_its_cost() -> None:
    """Where a byte costs as N^g, what grid search finds over budgets grows as the exponent says."""
    fit, g = Parametric(1.0, 300.0, 0.4, 500.0, 0.35, 0.0, 12, True), 0.7
    grid = np.geomspace(1e4, 1e9, 200_001)
    best = [grid[np.argmin(fit.predict(grid, budget / grid**g))] for budget in (1e11, 1e13)]
    assert np.log(best[1] / best[0]) / np.log(100) == pytest.approx(fit.size_exponent(g), rel=1e-3)


def test_an_outlier_hardly_moves_it() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid([3e5, 1e6, 3e6, 1e7], [1e6, 4e6, 1.6e7, 6.4e7]))
    losses = np.array([law(*one) for one in zip(n, d, strict=True)])
    clean = fit_parametric(n, d, losses)
    losses[5] *= 1.2
    shaken = fit_parametric(n, d, losses)
    squares = fit_parametric(n, d, losses, huber=1e3)
    far = abs(shaken.predict(1e6, 4e6) - clean.predict(1e6, 4e6))
    assert far < 0.3 * abs(squares.predict(1e6, 4e6) - clean.predict(1e6, 4e6))


def test_beginning_beside_a_fit_leads_to_the_same_place() -> None:
    own = points("one", noise=0.003)
    data = ([one.params for one in own], [one.num_bytes for one in own], [one.loss for one in own])
    whole = fit_parametric(*data)
    again = fit_parametric(*data, near=whole)
    assert again.error == pytest.approx(whole.error, rel=1e-4)


def test_what_is_not_determined_says_so() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid([3e5, 1e6, 3e6], [1e6, 4e6, 1.6e7]))
    flat = fit_parametric(n, d, 1.0 + 300 / d**0.35 + 0 * n)  # size makes no difference
    assert not flat.determined or flat.a / 1e6**flat.alpha < 1e-3


def test_too_few_points_are_refused() -> None:
    some = [1e6, 2e6, 3e6]
    with pytest.raises(TooFew, match="there are 3 points of 3 sizes and 3 amounts"):
        fit_parametric(some, some, [2.0, 1.9, 1.8])
    with pytest.raises(TooFew, match="of 1 sizes"):
        fit_parametric([1e6] * 8, np.geomspace(1e6, 1e8, 8), np.linspace(3, 2, 8))
    with pytest.raises(TooFew, match="needs three sizes; 1e\\+13 FLOPs have 2"):
        fit_isoflop(1e13, [1e6, 1e6, 2e6], [2.0, 2.1, 1.9])
    with pytest.raises(TooFew, match="no best size"):
        fit_isoflop(1e13, [1e6, 2e6, 4e6], [1.9, 2.1, 1.9])
    with pytest.raises(TooFew, match="two different budgets"):
        fit_power([1e13, 1e13], [2.0, 2.1])
    with pytest.raises(ValueError, match="above 0"):
        fit_parametric([1e6, 2e6, 3e6] * 2, [1e6, 2e6, 3e6] * 2, [0.0] * 6)


@given(best=st.floats(2e5, 2e7), lowest=st.floats(1, 3), curvature=st.floats(0.01, 0.5))
def test_the_parabola_finds_its_lowest_point(best: float, lowest: float, curvature: float) -> None:
    params = list(SIZES.values())
    found = fit_isoflop(1e13, params, [lowest + curvature * np.log(one / best) ** 2 for one in params])
    assert found.best == pytest.approx(best, rel=1e-4) and found.lowest == pytest.approx(lowest, rel=1e-4)
    if not (best == pytest.approx(3e5, rel=1e-3) or best == pytest.approx(1e7, rel=1e-3)):
        assert found.inside == (3e5 <= best <= 1e7)
    assert found.predict(best * np.e) == pytest.approx(lowest + curvature, rel=1e-3)


def test_noise_is_pooled_over_cells_of_several_seeds() -> None:
    own = points("one", seeds=40, noise=0.01) + points("alone")
    found = noise_of(own)
    assert found.freedom == 39 * len(SIZES)  # the budgets of a size share a trunk
    assert found.relative == pytest.approx(0.01, rel=0.1)
    with pytest.raises(TooFew, match="two seeds"):
        noise_of(points("alone"))


def test_draws_spread_as_means_over_seeds_do() -> None:
    own = points("one", seeds=4) + points("other")
    drawn = list(draws_of(own, SeedNoise(0.01, 1000), 2000))
    cells = mean_over_seeds(own)
    assert len(cells) == 2 * len(SIZES) * len(BUDGETS) and len(drawn) == 2000
    spread = np.std([[one.loss for one in some] for some in drawn], axis=0) / [one.loss for one in cells]
    assert spread[: len(spread) // 2] == pytest.approx(0.005, rel=0.15)
    assert spread[len(spread) // 2 :] == pytest.approx(0.01, rel=0.15)


def test_a_crossover_is_found_where_it_is() -> None:
    """Their difference is tilted so that it vanishes at the middle budget."""
    own = points("flat", seeds=3, noise=0.0005) + points("steep", seeds=3, noise=0.0005, tilt=-0.08)
    found = crossover(own, "flat", "steep", noise_of(own))
    assert found.inside and found.at == pytest.approx(BUDGETS[1], rel=0.15)
    assert found.interval is not None and found.interval[0] < BUDGETS[1] < found.interval[1]
    assert found.crossing == 1 and found.trend == pytest.approx(0.08, rel=0.1)
    assert "between the budgets" in found.verdict() and "steep is ahead" in found.verdict()
    assert not found.edges and found.trend_interval[0] < found.trend < found.trend_interval[1]


def test_no_crossover_is_estimated_from_ends_of_the_sizes() -> None:
    """With the two largest sizes alone no best size is to be seen; sizes that one family lacks play no part."""
    own = points("flat", seeds=3, noise=0.0005) + points("steep", seeds=3, noise=0.0005, tilt=-0.08)
    large = [one for one in own if one.size in "lx"]
    found = crossover(large, "flat", "steep", noise_of(own))
    assert found.at is None and found.interval is None and len(found.edges) == 2 * len(BUDGETS)
    assert "no crossover is estimated" in found.verdict()
    lopsided = [one for one in own if one.family == "steep" or one.size in "lx"]
    assert crossover(lopsided, "flat", "steep", noise_of(own)).differences == found.differences


def test_a_family_that_is_always_better_crosses_nowhere() -> None:
    own = points("good", seeds=3, noise=0.0005) + points("bad", scale=1.05, seeds=3, noise=0.0005)
    found = crossover(own, "good", "bad", noise_of(own))
    assert found.at is None and not found.inside and found.crossing < 0.5 and found.interval is None
    assert max(high for _, high in found.difference_intervals) < 0
    assert "no crossover" in found.verdict() and "noise" not in found.verdict()


def test_a_difference_within_the_noise_says_so() -> None:
    own = points("one", seeds=2, noise=0.03) + points("other", scale=1.001, seeds=2, noise=0.03)
    found = crossover(own, "one", "other", noise_of(own))
    assert "the noise of seeds could make as well" in found.verdict()


def test_two_budgets_make_no_crossover() -> None:
    own = [one for one in points("one", seeds=2) + points("other") if one.budget > BUDGETS[0]]
    with pytest.raises(TooFew, match="2 budgets in common"):
        crossover(own, "one", "other", SeedNoise(0.01, 3))


def test_the_best_size_of_a_budget() -> None:
    own = points("one", seeds=2, noise=0.0002)
    found = isoflops(own, "one")
    assert list(found) == list(BUDGETS)
    for budget, one in found.items():
        assert isinstance(one, Isoflop)
        grid = np.geomspace(1e5, 1e7, 2000)
        truth = grid[np.argmin([law(params, budget / (1.5 * params)) for params in grid])]
        assert one.best == pytest.approx(truth, rel=0.25)  # the law is no parabola
        assert best_loss(mean_over_seeds(own), "one", budget) == (pytest.approx(one.lowest), True)
        assert data_ratio(own, "one", budget, one.best) == pytest.approx(budget / 1.5 / one.best**2, rel=1e-6)
    assert cost_exponent(own, "one") == pytest.approx(1.0)  # FLOPs a byte are as N
    ranges = best_sizes(own, "one", noise_of(own), draws=100)
    for budget, best in ranges.items():
        one, (low, high) = found[budget], best.size
        assert isinstance(one, Isoflop) and low < one.best < high < 2 * low
        assert best.ratio[0] < data_ratio(own, "one", budget, one.best) < best.ratio[1]
    two = [one for one in own if one.size in "sm"]
    assert all("needs three sizes" in str(why) for why in isoflops(two, "one").values())
    lowest = min(one.loss for one in mean_over_seeds(two) if one.budget == BUDGETS[0])
    assert best_loss(mean_over_seeds(two), "one", BUDGETS[0]) == (lowest, False)


def test_the_parametric_fit_of_a_family_has_intervals() -> None:
    own = points("one", seeds=3, noise=0.001)
    found, ranges = parametric(own, "one", noise_of(own), draws=30)
    assert ranges["alpha"][0] < found.alpha < ranges["alpha"][1] and ranges.keys() >= {"e", "beta", "size_exponent"}
    assert parametric(own, "one", None)[1] == {}


def test_costs_are_matched_by_straight_lines_in_logarithms() -> None:
    """Half the bytes for the same FLOPs: the family is behind at matched FLOPs and level at matched bytes."""
    one = [point for point in points("one") if point.size == "m"]
    other = [replace(point, family="other", num_bytes=2 * point.num_bytes) for point in one]
    other = [replace(point, loss=law(point.params, point.num_bytes / 2)) for point in other]
    at, losses = matched([*one, *other], "m", "flops") or (0.0, {})
    assert at == BUDGETS[-1] and losses["one"] == pytest.approx(losses["other"])
    at, losses = matched([*one, *other], "m", "num_bytes") or (0.0, {})
    assert at == one[-1].num_bytes
    x = np.log([point.num_bytes for point in other])
    expected = np.exp(np.interp(np.log(at), x, np.log([point.loss for point in other])))
    assert losses == {"one": pytest.approx(one[-1].loss), "other": pytest.approx(expected)}
    assert losses["other"] > losses["one"]
    unknown = [replace(point, seconds=float("nan")) for point in other]
    assert matched([*one, *unknown], "m", "seconds") is None
    assert matched(one, "m", "flops") is None
