"""The guard: what it stops, what it leaves out, and that a run which is resumed decides alike."""

import json
import math
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.config import parse
from bltkit.train.loss_guard import GuardSection, GuardState, judge

SKIP = GuardSection(spike_factor=2.0, window=3, after=2, on_spike="skip", max_skips=2)


def go(config: GuardSection, losses: Sequence[float], resumed: bool = False) -> tuple[list[int], GuardState]:
    """The steps (from 1) whose update is left out. resumed: through a checkpoint after every step."""
    state, left_out = GuardState.from_json({}), []
    for step, loss in enumerate(losses, start=1):
        state = judge(config, state, step, loss, 1.0, 1e-3)
        if state.skips:
            left_out.append(step)
        if resumed:
            state = GuardState.from_json(json.loads(json.dumps(state.to_json())))
    return left_out, state


def slow(config: GuardSection, losses: Sequence[float]) -> list[int] | None:
    """The specification: the steps that are left out; None where the run ends."""
    left_out: list[int] = []
    for step in range(1, len(losses) + 1):
        earlier = [losses[other - 1] for other in range(1, step) if other not in left_out]
        window = earlier[max(0, len(earlier) - config.window) :]
        if config.spike_factor == 0 or step <= config.after or not window:
            continue
        if losses[step - 1] > config.spike_factor * statistics.median(window):
            before = 0
            while step - 1 - before in left_out:
                before += 1
            if config.on_spike == "stop" or before >= config.max_skips:
                return None
            left_out.append(step)
    return left_out


@given(
    losses=st.lists(st.sampled_from([0.1, 0.9, 1.0, 1.1, 2.5, 7.0]), max_size=30),
    config=st.builds(
        GuardSection,
        spike_factor=st.sampled_from([0.0, 1.5, 2.0]),
        window=st.integers(1, 6),
        after=st.integers(0, 8),
        on_spike=st.sampled_from(["stop", "skip"]),
        max_skips=st.integers(1, 3),
    ),
    resumed=st.booleans(),
)
def test_it_is_the_specification_also_when_resumed(losses: list[float], config: GuardSection, resumed: bool) -> None:
    expected = slow(config, losses)
    if expected is None:
        with pytest.raises(FloatingPointError, match="the loss jumped at step"):
            go(config, losses, resumed)
    else:
        left_out, state = go(config, losses, resumed)
        assert left_out == expected and state.skipped == len(expected)
        assert len(state.losses) <= (config.window if config.spike_factor else 0)


def test_a_spike_is_left_out_and_forgotten() -> None:
    left_out, state = go(SKIP, [9.0, 3.0, 3.0, 50.0, 3.1, 50.0, 50.0, 2.9])
    assert left_out == [4, 6, 7] and state == GuardState((3.0, 3.1, 2.9), skips=0, skipped=3)


def test_too_many_in_a_row_end_the_run() -> None:
    with pytest.raises(FloatingPointError) as caught:
        go(SKIP, [3.0, 3.0, 3.0, 50.0, 51.0, 52.0])
    for part in ("at step 6", "after 2 updates in a row", "52 nats", "3 steps had 3 (median)", "optim.lr (now 0.001)"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [GuardSection(), SKIP], ids=["off", "skip"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_always_ends_the_run(config: GuardSection, bad: float) -> None:
    for loss, norm, what in ((bad, 1.0, "loss"), (1.0, bad, "gradient")):
        with pytest.raises(FloatingPointError) as caught:
            judge(config, GuardState(), 7, loss, norm, 4e-4)
        text = str(caught.value)
        assert f"the {what} of step 7 is not finite" in text and "lower optim.lr (now 0.0004)" in text
        assert "the weights were not touched: lower optim.lr" in text and "\n" not in text


def test_without_a_factor_nothing_is_remembered() -> None:
    assert go(GuardSection(), [1.0, 100.0, 1e9]) == ([], GuardState())


def test_its_state_is_json_bit_for_bit() -> None:
    state = GuardState((0.1 + 0.2, 1 / 3, 5e-324), skips=1, skipped=4)
    assert GuardState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_factor_that_half_of_all_losses_pass_is_refused() -> None:
    with pytest.raises(ValueError, match=r"guard: spike_factor: spike_factor = 0\.5: half of all losses"):
        parse(GuardSection, {"spike_factor": 0.5}, "guard")
