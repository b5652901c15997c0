"""Intervals of shares against published values and by counting how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.intervals import paired_shares, paired_shares_over_groups, wilson, wilson_over_groups
from bltkit.eval.statistics import NO_ITEMS, Estimate, estimate, estimate_difference, mean_of
from bltkit.eval.tasks.task import Metric
from bltkit.study.stats import QuotientEstimate as Quotient
from bltkit.study.stats import Resampling


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 280, 0.0, 0.0135),
        (280, 280, 0.9865, 1.0),
    ],
)
def test_wilson_as_published(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400), st.data())
def test_wilson_is_scipys(count: int, data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    hits = data.draw(st.integers(0, count))
    ends = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx((ends.low, ends.high), abs=1e-9)


@given(st.integers(1, 300), st.data())
def test_paired_shares_hold_their_difference_and_never_collapse(count: int, data: st.DataObject) -> None:
    gained = data.draw(st.integers(0, count))
    lost = data.draw(st.integers(0, count - gained))
    low, high = paired_shares(gained, lost, count)
    assert -1 <= low <= (gained - lost) / count <= high <= 1 and high - low > 1 / count**1.5
    assert paired_shares(lost, gained, count) == pytest.approx((-high, -low))


def test_paired_shares_of_a_worked_example() -> None:
    """20 gained, 8 lost of 100: p12 = 21/102, p21 = 9/102, 12/102 +- 1.96 sqrt((30/102 - (12/102)^2) / 102)."""
    half = 1.959964 * math.sqrt((30 / 102 - (12 / 102) ** 2) / 102)
    assert paired_shares(20, 8, 100) == pytest.approx((12 / 102 - half, 12 / 102 + half), abs=1e-6)
    assert paired_shares(0, 0, 280) == pytest.approx((-0.00983, 0.00983), abs=1e-5)


def shares(right: int, count: int) -> list[tuple[float, float]]:
    return [(float(at < right), 1.0) for at in range(count)]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], NO_ITEMS),
        (shares(1, 1), Estimate(1, 1.0, None, None, "one item")),
        (shares(0, 1), Estimate(1, 0.0, None, None, "one item")),
        ([(3.5, 2.0)], Estimate(1, 1.75, None, None, "one item")),
        ([(1.5, 2.0)] * 40, Estimate(40, 0.75, None, None, "no spread")),
        ([(0.0, 8.0)] * 40, Estimate(40, 0.0, None, None, "no spread")),
        ([(1.0, 0.0)] * 3, Estimate(3, None, None, None, "undefined")),
    ],
)
def test_what_says_nothing_of_its_spread_has_no_interval(items: list[tuple[float, float]], expected: Estimate) -> None:
    assert estimate(Metric(), items, (0,)).estimate == expected


def test_rounding_is_no_spread() -> None:
    found = estimate(Metric(), [(0.1, 1.0)] * 7, (0,)).estimate
    assert found.value == pytest.approx(0.1) and (found.interval, found.method) == (None, "no spread")


@pytest.mark.parametrize("right", [0, 280])
def test_a_share_at_its_end_has_wilsons_interval_and_no_error_of_zero(right: int) -> None:
    found = estimate(Metric(), shares(right, 280), (0,)).estimate
    assert found == Estimate(280, right / 280, None, wilson(right, 280), "wilson")
    assert found.to_json()["interval_method"] == "wilson"


def test_a_mean_of_shares_over_groups_has_the_interval_of_as_many_items_where_groups_are_alike() -> None:
    found = mean_of({str(at): estimate(Metric(), shares(0, 20), (at,)) for at in range(14)})
    assert found.interval == pytest.approx(wilson(0, 280))
    assert (found.n, found.value, found.stderr, found.method) == (280, 0.0, None, "wilson by group")
    # One item a group: no error, since no group knows its own, but an interval of all groups together.
    alone = mean_of({str(at): estimate(Metric(), shares(at % 2, 1), (at,)) for at in range(14)})
    assert alone.stderr is None and alone.interval is not None and alone.interval[0] < 0.3 < 0.7 < alone.interval[1]
    one = mean_of({"only": estimate(Metric(), shares(1, 1), (0,))})
    assert one == Estimate(1, 1.0, None, None, "one item")
    # Groups that are far apart blur their mean less than items of one group would.
    apart = mean_of({str(at): estimate(Metric(), shares(20 * (at % 2), 20), (at,)) for at in range(14)})
    whole = wilson(140, 280)
    assert apart.interval is not None and whole[0] < apart.interval[0] < 0.5 < apart.interval[1] < whole[1]


def test_a_mean_of_numbers_over_groups_needs_two_items_in_each() -> None:
    numbers = {"a": [(1.0, 2.0), (3.0, 1.0)], "b": [(2.0, 3.0)]}
    found = mean_of({name: estimate(Metric(), items, (0,)) for name, items in numbers.items()})
    assert (found.interval, found.method) == (None, "one item in a group")
    assert mean_of({}) == NO_ITEMS
    undefined = mean_of({"a": estimate(Metric(), [(1.0, 0.0)], (0,))})
    assert undefined == Estimate(1, None, None, None, "undefined")


@pytest.mark.parametrize(
    ("pairs", "method", "interval"),
    [
        ([(0.0, 0.0)] * 280, "bonett-price", paired_shares(0, 0, 280)),
        ([(1.0, 0.0)] * 30 + [(1.0, 1.0)] * 5, "bonett-price", paired_shares(30, 0, 35)),
        ([(1.0, 0.0)], "one item", None),
        ([(2.5, 2.0)] * 9, "no spread", None),
        ([], "no items", None),
    ],
)
def test_differences_of_pairs(
    pairs: list[tuple[float, float]], method: str, interval: tuple[float, float] | None
) -> None:
    items = [(noisy, 1.0, clean, 1.0) for noisy, clean in pairs]
    found = estimate_difference(Metric(), items, (0,)).estimate
    assert (found.method, found.interval) == (method, interval)
    if pairs:
        assert found.value == pytest.approx(np.mean([noisy - clean for noisy, clean in pairs]))
    if len({noisy - clean for noisy, clean in pairs}) < 2:
        assert found.stderr is None


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_intervals_of_means_over_groups_hold_the_truth(share: float) -> None:
    """Of 14 groups that are not alike, and of their differences: about 95 % of the time, at the ends a little more."""
    rng = np.random.default_rng(int(100 * share))
    truths = np.clip(share + rng.normal(0, 0.05, 14), 0, 1)
    gained, lost = truths / 4, truths / 8
    hits, hits_of_pairs = 0, 0
    for _ in range(400):
        low, high = wilson_over_groups(list(map(float, rng.binomial(20, truths))), [20] * 14)
        hits += low <= truths.mean() <= high
        counts = [rng.multinomial(20, (up, down, 1 - up - down)) for up, down in zip(gained, lost, strict=True)]
        low, high = paired_shares_over_groups([(int(up), int(down), 20) for up, down, _ in counts])
        hits_of_pairs += low <= (gained - lost).mean() <= high
    assert 366 <= hits <= 400 and 366 <= hits_of_pairs <= 400


@pytest.mark.parametrize(("groups", "count"), [(10, 2), (57, 2), (10, 5), (57, 1)])
def test_intervals_of_differences_hold_the_truth_in_small_groups_whose_answers_mostly_change(
    groups: int, count: int
) -> None:
    """No narrower than plain differences of so few items vary."""
    rng = np.random.default_rng(groups + count)
    hits = 0
    for _ in range(400):
        gained = rng.binomial(count, 0.5, groups)
        low, high = paired_shares_over_groups([(int(up), int(count - up), count) for up in gained])
        hits += low <= 0 <= high
    assert hits >= 360


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        ([3, 4, 5], [3, 4, 5], Quotient(1.0, *wilson(3, 3))),
        ([0, 0, 0, 0], [3, 4, 5, 6], Quotient(0.0, *wilson(0, 4))),
        ([0, 0, 0, 0], [3, 0, 0, 6], Quotient(0.0, *wilson(0, 2))),
        ([4], [4], Quotient(1.0)),
        ([4, 0], [4, 0], Quotient(1.0)),
        ([0, 0], [0, 0], Quotient(None)),
        ([1, 2, 3], [2, 4, 6], Quotient(0.5)),  # no spread
    ],
)
def test_shares_of_prompts(above: list[int], below: list[int], expected: Quotient) -> None:
    sides = np.array(above, dtype=np.float64), np.array(below, dtype=np.float64)
    assert Resampling(len(above)).share(*sides) == expected


def test_shares_of_prompts_between_the_ends_are_resampled() -> None:
    above, below = np.array([1.0, 4.0, 0.0]), np.array([2.0, 4.0, 3.0])
    resampling = Resampling(3)
    assert resampling.share(above, below) == resampling.quotient(above, below)
    assert resampling.quotient(above, below).interval is not None
    assert Resampling(1).saving(*(np.array([2.0]),) * 4) == Quotient(0.0)
