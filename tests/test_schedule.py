"""Schedules: their shapes, where they begin and end, and how a config names them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.config import parse
from bltkit.train.schedules import (
    SCHEDULES,
    BaseSchedule,
    ConstantSchedule,
    CosineSchedule,
    Schedule,
    WsdSchedule,
)

WSD = [
    WsdSchedule(decay_steps=0),
    WsdSchedule(decay_steps=4),
    WsdSchedule(decay_fraction=0.5, shape="1-sqrt"),
]
FALLING = [CosineSchedule(), ConstantSchedule(), WsdSchedule(), *WSD]


def examples(kind: str) -> list[BaseSchedule]:
    """The schedule as it is, and with each field at its examples."""
    schedule = SCHEDULES[kind]
    fields = schedule.model_fields.items()
    needed = {name: (field.examples or [])[0] for name, field in fields if field.is_required()}
    changed = [schedule(**needed | {name: value}) for name, field in fields for value in field.examples or ()]
    return [schedule(**needed), *changed]


EVERY = [*(each for kind in SCHEDULES for each in examples(kind)), *WSD]
"""Of every registered kind."""
totals, warmups, leasts = st.integers(1, 60), st.integers(0, 70), st.floats(0, 1)


def test_the_cosine_by_hand() -> None:
    rates = [CosineSchedule().rate(step, 14, 4, 0.1) for step in range(20)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2)))
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[14:] == pytest.approx([0.1] * 6)


def test_the_trapezoid_by_hand() -> None:
    linear = [WsdSchedule(decay_steps=4).rate(step, 10, 2, 0.2) for step in range(12)]
    assert linear == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    root = [WsdSchedule(decay_steps=4, shape="1-sqrt").rate(step, 10, 2) for step in range(6, 12)]
    assert root == pytest.approx([1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0, 0])


def test_a_fraction_is_of_all_steps() -> None:
    by_steps, by_fraction = WsdSchedule(decay_steps=30), WsdSchedule(decay_fraction=0.3)
    assert [by_steps.rate(step, 100, 10) for step in range(120)] == [
        by_fraction.rate(step, 100, 10) for step in range(120)
    ]
    assert [WsdSchedule().rate(step, 100) for step in range(100)].index(1 - 1 / 20) == 81


def test_a_decay_is_shortened_to_what_the_warm_up_leaves() -> None:
    rates = [WsdSchedule(decay_steps=50).rate(step, 10, 6) for step in range(11)]
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 0.75, 0.5, 0.25, 0])


def test_a_trunk_never_decays_and_a_branch_leaves_it_where_its_decay_begins() -> None:
    trunk, branch = WsdSchedule(decay_steps=0), WsdSchedule(decay_steps=5)
    rates = [branch.rate(step, 25, 3, 0.1) for step in range(25)]
    assert [trunk.rate(step, 10, 3, 0.1) for step in range(21)] == rates[:21]
    assert rates[20:] == pytest.approx([1, 0.82, 0.64, 0.46, 0.28])
    assert trunk.rate(10**6, 10, 3) == 1


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
@given(total=totals, warmup=warmups, least=leasts)
def test_the_contract_of_every_schedule(schedule: BaseSchedule, total: int, warmup: int, least: float) -> None:
    """A function of the step: rising over the warm-up to the full rate, never above it nor below the least share."""
    rates = [schedule.rate(step, total, warmup, least) for step in range(total + 80)]
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert all(least - 1e-12 <= rate <= 1 + 1e-12 for rate in rates[warmup:])
    if warmup < total:  # a schedule that the warm-up outlasts may have nothing left
        assert rates[warmup] == pytest.approx(1)
    # A run that resumes asks for later steps alone, in a process that saw no earlier ones.
    fresh = parse(Schedule, schedule.model_dump(), "resumed")
    assert [fresh.rate(step, total, warmup, least) for step in reversed(range(total))] == rates[:total][::-1]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_every_schedule_is_read_back(schedule: BaseSchedule) -> None:
    assert parse(Schedule, schedule.model_dump(mode="json"), "config") == schedule
    if not any(field.is_required() for field in type(schedule).model_fields.values()):
        assert parse(Schedule, schedule.kind, "config").kind == schedule.kind


@pytest.mark.parametrize("schedule", FALLING, ids=repr)
@given(total=totals, warmup=warmups, least=leasts)
def test_those_that_fall_end_at_the_least_share(schedule: BaseSchedule, total: int, warmup: int, least: float) -> None:
    rates = [schedule.rate(step, total, warmup, least) for step in range(total + 80)]
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    ends = not isinstance(schedule, ConstantSchedule) and schedule != WsdSchedule(decay_steps=0)
    never = isinstance(schedule, WsdSchedule) and schedule.decay_steps is None and total == 1  # 0.2 of one step
    if ends and not never and warmup < total:
        assert rates[total:] == pytest.approx([least] * 80)


def test_how_a_config_names_them() -> None:
    assert parse(Schedule, "cosine", "c") == CosineSchedule()
    assert parse(Schedule, "wsd", "c") == parse(Schedule, {"kind": "wsd"}, "c") == WsdSchedule()
    assert parse(Schedule, {"kind": "wsd", "decay_steps": 0}, "c") == WsdSchedule(decay_steps=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cosin", "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("step", "unknown schedule 'step'; known: "),
        ({"kind": "wsd", "decay": 3}, "unknown key 'decay'"),
        ({"kind": "wsd", "decay_steps": 3, "decay_fraction": 0.1}, "give one of them"),
        ({"kind": "wsd", "decay_steps": -1}, "decay_steps = -1"),
        ({"kind": "wsd", "decay_fraction": 1.5}, "decay_fraction = 1.5"),
        ({"kind": "wsd", "shape": "sqrt"}, "shape = 'sqrt'"),
        ({"kind": "cosine", "decay_steps": 3}, "unknown key 'decay_steps'"),
    ],
)
def test_mistakes(data: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(Schedule, data, "config")
    assert message in str(caught.value) and "\n" not in str(caught.value)
