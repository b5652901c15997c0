"""How much of a prompt fits between two rounds: what was measured says it, and a single slow reading says little."""

import pytest

from bltkit.serve.pace import ALONE, FEWEST, WAIT, Pace


def measured(fixed: float, each: float, sizes: list[int]) -> Pace:
    pace = Pace()
    for size in sizes:
        pace.add_reading(size, fixed + each * size)
    return pace


def test_time_is_fitted_by_a_line() -> None:
    pace = measured(3.0, 0.5, [10, 200, 50, 20, 400])
    assert pace.line == pytest.approx((3.0, 0.5))
    assert pace.expected(100) == pytest.approx(53) and pace.ids(53) == pytest.approx(100, abs=1)


def test_readings_of_one_length_say_what_an_id_takes() -> None:
    assert measured(3.0, 0.5, [100] * 5).line == pytest.approx((0.0, 0.53))


def test_before_the_first_reading_a_small_piece_is_tried() -> None:
    assert Pace().ids(1000) == 4 * FEWEST and Pace().expected(100) == 0 and Pace().median_round == 0


def test_time_follows_the_machine() -> None:
    pace = measured(1.0, 0.1, [10, 100] * 20)
    for size in [10, 100] * 20:
        pace.add_reading(size, 2 * (1.0 + 0.1 * size))
    assert pace.expected(50) == pytest.approx(12, rel=0.05)


def test_one_reading_that_was_held_up_says_little() -> None:
    pace = measured(0.0, 0.1, [50, 100] * 10)
    pace.add_reading(100, 1000.0)
    assert pace.expected(100) < 20
    for size in [50, 100] * 10:
        pace.add_reading(size, 0.1 * size)
    assert pace.expected(100) == pytest.approx(10, rel=0.1)


def test_running_sequences_say_how_long_they_wait() -> None:
    pace = Pace()
    assert pace.allowance(running=False) == ALONE and pace.allowance(running=True) == 0
    for seconds in (1.0, 2.0, 50.0):
        pace.add_round(seconds)
    assert pace.allowance(running=True) == WAIT * 2.0
