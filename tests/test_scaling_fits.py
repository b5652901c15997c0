"""Fits of the study `scaling`: known numbers come back, and what too few points cannot say is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.study.scaling.scaling_analysis import (
    Frame,
    SeedNoise,
    SizeGrid,
    best_sizes,
    cells_of,
    cost_exponent,
    crossover,
    data_ratio,
    isoflops,
    matched,
    noise_of,
    parametric,
    points_of,
    resampled,
)
from bltkit.study.scaling.scaling_fits import Isoflop, Parametric, TooFew, fit_isoflop, fit_parametric

pd = pytest.importorskip("pandas")
pytest.importorskip("scipy")

SIZES = {"s": 3e5, "m": 1e6, "l": 3e6, "x": 1e7}
BUDGETS = (1e13, 3e13, 9e13)


def law(params: float, num_bytes: float, e: float = 1.2, a: float = 200.0, b: float = 300.0) -> float:
    return e + a / params**0.4 + b / num_bytes**0.35


def points(family: str, scale: float = 1.0, seeds: int = 1, noise: float = 0.0, tilt: float = 0.0) -> Frame:
    """FLOPs = 6 N D / 4; a family's loss is scaled, and tilted by so much per decade of FLOPs."""
    random, rows = np.random.default_rng(len(family)), list[dict[str, Any]]()
    for name, params in SIZES.items():
        for budget in BUDGETS:
            num_bytes = budget / (1.5 * params)
            loss = law(params, num_bytes) * scale + tilt * np.log10(budget / BUDGETS[1])
            cost = {"params_multiplied": params, "bytes_seen": num_bytes, "flops": budget, "budget": budget}
            for seed in range(seeds):
                shaken = float(loss * (1 + noise * random.standard_normal()))
                names = {"family": family, "size": name, "seed": seed, "main": True}
                rows.append(names | cost | {"rated_seconds": num_bytes / 1e4, "bits_per_byte": shaken})
    return pd.DataFrame(rows)


def both(first: Frame, second: Frame) -> Frame:
    return pd.concat([first, second], ignore_index=True)


def best_loss(some: Frame, family: str, budget: float) -> tuple[float, bool]:
    cells = cells_of(some)
    return SizeGrid.of(cells, family).best_loss(cells["bits_per_byte"].to_numpy(), budget)


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
    data = (own["params_multiplied"], own["bytes_seen"], own["bits_per_byte"])
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
    own = both(points("one", seeds=40, noise=0.01), points("alone"))
    found = noise_of(own)
    assert found.freedom == 39 * len(SIZES)  # the budgets of a size share a trunk
    assert found.relative == pytest.approx(0.01, rel=0.1)
    with pytest.raises(TooFew, match="two seeds"):
        noise_of(points("alone"))


def test_draws_spread_as_means_over_seeds_do() -> None:
    own = both(points("one", seeds=4), points("other"))
    cells = cells_of(own)
    drawn = resampled(cells, SeedNoise(0.01, 1000), 2000)
    assert drawn.shape == (2000, 2 * len(SIZES) * len(BUDGETS))
    spread = drawn.std(axis=0) / cells["bits_per_byte"].to_numpy()
    assert spread[: len(spread) // 2] == pytest.approx(0.005, rel=0.15)
    assert spread[len(spread) // 2 :] == pytest.approx(0.01, rel=0.15)


def test_a_crossover_is_found_where_it_is() -> None:
    """Their difference is tilted so that it vanishes at the middle budget."""
    own = both(points("flat", seeds=3, noise=0.0005), points("steep", seeds=3, noise=0.0005, tilt=-0.08))
    found = crossover(own, "flat", "steep", noise_of(own))
    assert found.inside and found.at == pytest.approx(BUDGETS[1], rel=0.15)
    assert found.interval is not None and found.interval[0] < BUDGETS[1] < found.interval[1]
    assert found.crossing == 1 and found.trend == pytest.approx(0.08, rel=0.1)
    assert "between the budgets" in found.verdict() and "steep is ahead" in found.verdict()
    assert not found.edges and found.trend_interval[0] < found.trend < found.trend_interval[1]


def test_no_crossover_is_estimated_from_ends_of_the_sizes() -> None:
    """With the two largest sizes alone no best size is to be seen; sizes that one family lacks play no part."""
    own = both(points("flat", seeds=3, noise=0.0005), points("steep", seeds=3, noise=0.0005, tilt=-0.08))
    large = own[own["size"].isin(["l", "x"])]
    found = crossover(large, "flat", "steep", noise_of(own))
    assert found.at is None and found.interval is None and len(found.edges) == 2 * len(BUDGETS)
    assert "no crossover is estimated" in found.verdict()
    lopsided = own[(own["family"] == "steep") | own["size"].isin(["l", "x"])]
    assert crossover(lopsided, "flat", "steep", noise_of(own)).differences == found.differences


def test_a_family_that_is_always_better_crosses_nowhere() -> None:
    own = both(points("good", seeds=3, noise=0.0005), points("bad", scale=1.05, seeds=3, noise=0.0005))
    found = crossover(own, "good", "bad", noise_of(own))
    assert found.at is None and not found.inside and found.crossing < 0.5 and found.interval is None
    assert max(high for _, high in found.difference_intervals) < 0
    assert "no crossover" in found.verdict() and "noise" not in found.verdict()


def test_a_difference_within_the_noise_says_so() -> None:
    own = both(points("one", seeds=2, noise=0.03), points("other", scale=1.001, seeds=2, noise=0.03))
    found = crossover(own, "one", "other", noise_of(own))
    assert "the noise of seeds could make as well" in found.verdict()


def test_two_budgets_make_no_crossover() -> None:
    own = both(points("one", seeds=2), points("other"))
    own = own[own["budget"] > BUDGETS[0]]
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
        assert best_loss(own, "one", budget) == (pytest.approx(one.lowest), True)
        assert data_ratio(own, "one", budget, one.best) == pytest.approx(budget / 1.5 / one.best**2, rel=1e-6)
    assert cost_exponent(own, "one") == pytest.approx(1.0)  # FLOPs a byte are as N
    ranges = best_sizes(own, "one", noise_of(own), draws=100)
    for budget, best in ranges.items():
        one, ((low, high), ratio) = found[budget], best
        assert isinstance(one, Isoflop) and low < one.best < high < 2 * low
        assert ratio[0] < data_ratio(own, "one", budget, one.best) < ratio[1]
    two = own[own["size"].isin(["s", "m"])]
    assert all("needs three sizes" in str(why) for why in isoflops(two, "one").values())
    cells = cells_of(two)
    lowest = cells.loc[cells["budget"] == BUDGETS[0], "bits_per_byte"].min()
    assert best_loss(two, "one", BUDGETS[0]) == (lowest, False)


def test_the_parametric_fit_of_a_family_has_intervals() -> None:
    own = points("one", seeds=3, noise=0.001)
    found, ranges = parametric(own, "one", noise_of(own), draws=30)
    assert ranges["alpha"][0] < found.alpha < ranges["alpha"][1] and ranges.keys() >= {"e", "beta", "size_exponent"}
    assert parametric(own, "one", None)[1] == {}


def test_costs_are_matched_by_straight_lines_in_logarithms() -> None:
    """Half the bytes for the same FLOPs: the family is behind at matched FLOPs and level at matched bytes."""
    one = cells_of(points("one"))
    one = one[one["size"] == "m"]
    losses = [law(*pair) for pair in zip(one["params_multiplied"], one["bytes_seen"], strict=True)]
    other = one.assign(family="other", bytes_seen=2 * one["bytes_seen"], bits_per_byte=losses)
    at, matched_losses = matched(both(one, other), "m", "flops") or (0.0, {})
    assert at == BUDGETS[-1] and matched_losses["one"] == pytest.approx(matched_losses["other"])
    at, matched_losses = matched(both(one, other), "m", "bytes_seen") or (0.0, {})
    last = one.iloc[-1]
    assert at == last["bytes_seen"]
    expected = np.exp(np.interp(np.log(at), np.log(other["bytes_seen"]), np.log(other["bits_per_byte"])))
    assert matched_losses == {"one": pytest.approx(last["bits_per_byte"]), "other": pytest.approx(expected)}
    assert matched_losses["other"] > matched_losses["one"]
    unknown = other.assign(rated_seconds=float("nan"))
    assert matched(both(one, unknown), "m", "rated_seconds") is None
    assert matched(one, "m", "flops") is None


@pytest.fixture(scope="module")
def measured() -> Frame:
    """The committed rows."""
    lines = Path("docs/scaling.jsonl").read_text(encoding="utf-8").splitlines()
    return points_of(pd.DataFrame([json.loads(line) for line in lines]))


def test_a_draw_with_two_minima_gets_the_lower_one(measured: Frame) -> None:
    """Draw 75 of the bootstrap has a minimum at 0.668, which starts near the fit of the means lead to, above this."""
    cells = cells_of(measured[measured["family"] == "blt-entropy-4.5"])
    losses = resampled(cells, noise_of(measured), 100)[75]
    axes = cells["params_multiplied"], cells["bytes_seen"]
    means = fit_parametric(*axes, cells["bits_per_byte"])
    assert means.alpha == pytest.approx(0.6472842512054168, rel=1e-4)
    assert fit_parametric(*axes, losses, near=means).alpha == pytest.approx(1.4394, rel=1e-3)


def test_the_committed_rows_give_the_published_crossover(measured: Frame) -> None:
    """Values of the implementation before pandas and scipy."""
    noise = noise_of(measured)
    assert noise == SeedNoise(pytest.approx(0.0025269036512634148, rel=1e-12), 4)
    found = crossover(measured, "blt-entropy-4.5", "bpe-4096", noise)
    assert found.differences == pytest.approx([0.16586609406184727, 0.12497772110581673, 0.1059254226599573], rel=1e-11)
    assert found.difference_intervals[0] == pytest.approx((0.15104990144842462, 0.1831014755508269), rel=1e-9)
    assert found.trend == pytest.approx(-0.0995593001781748, rel=1e-11)
    assert found.trend_interval == pytest.approx((-0.1322185475521261, -0.07027074768526903), rel=1e-9)
    assert (found.at, found.interval, found.crossing, found.edges) == (None, None, 0.4275, ())
    assert found.verdict() == (
        "at 3.2e+13 FLOPs bpe-4096 is ahead by 0.106 bits per byte; the difference changes by -0.100 per factor of ten "
        "(-0.132 to -0.070); no crossover within a factor of 10 of the budgets (43 % of draws have one)"
    )


@pytest.mark.parametrize(
    ("family", "sizes", "numbers"),
    [
        (
            "blt-entropy-4.5",
            [188701.07371564183, 242965.33376121594, 304834.28003354126],
            [1.3404673297593608, 509.39878450276996, 0.6472842512054168, 246.4022755000178, 0.38494282302748356],
        ),
        (
            "bpe-4096",
            [379240.5700019763, 503789.57184606337, 658086.9583180589],
            [1.4593282934736012, 103933572.1246948, 1.6128690066298417, 526.9908874452051, 0.459572202065381],
        ),
    ],
)
def test_the_committed_rows_give_the_published_fits(
    measured: Frame, family: str, sizes: list[float], numbers: list[float]
) -> None:
    fits = isoflops(measured, family).values()
    assert [fit.best for fit in fits if isinstance(fit, Isoflop)] == pytest.approx(sizes, rel=1e-10)
    fit, _ = parametric(measured, family, None)
    assert [fit.e, fit.a, fit.alpha, fit.b, fit.beta] == pytest.approx(numbers, rel=1e-4)
