"""The guard: between a step's loss and its update, may this step change the weights?

A loss or gradient that is not a number always ends the run: an update by it would spoil every weight, and the last
checkpoint is from before it. A loss far above what the steps before it had (a spike: a bad stretch of data, or a rate
that is too high) ends the run as well, or leaves out the update of that step. The guard's memory is a value that goes
into the checkpoint, so that a run that is resumed decides as one that was never stopped.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, field_validator

from bltkit.config import Config


class GuardSection(Config):
    """What counts as a loss spike, and what then happens. A loss that is not finite ends a run whatever stands here."""

    spike_factor: float = 0.0
    """A loss of more than this times the median of the last losses is a spike; 0: none is."""
    window: PositiveInt = 100
    """Steps that the median is over; fewer in the beginning."""
    after: NonNegativeInt = 100
    """Steps of the run that are never spikes, because the loss still falls fast."""
    on_spike: Literal["stop", "skip"] = "stop"
    """`stop` ends the run; `skip` leaves out the update, and goes on with the next step's data."""
    max_skips: PositiveInt = 5
    """Updates left out in a row; the next spike ends the run."""

    @field_validator("spike_factor")
    @classmethod
    def _check_factor(cls, factor: float) -> float:
        if factor != 0 and factor <= 1:
            raise ValueError(f"spike_factor = {factor}: half of all losses lie above their median; say 2, or 0 for off")
        return factor


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers. All processes of a run have the same."""

    losses: tuple[float, ...] = ()
    """Of the last steps whose update was made, newest last; at most `window`, none while spikes are not looked for."""
    skips: int = 0
    """Updates left out in a row up to now."""
    skipped: int = 0
    """Updates left out in the whole run."""

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint; floats come back bit for bit."""
        return asdict(self) | {"losses": list(self.losses)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "GuardState":
        """The inverse of `to_json`; {} is the start of a run."""
        return cls(**{**data, "losses": tuple(data.get("losses", ()))})


def judge(config: GuardSection, state: GuardState, step: int, loss: float, norm: float, lr: float) -> GuardState:
    """The state after a step that is about to be made; its `skips` > 0 says that the update must be left out.

    step: its number as users count, from 1. loss: nats per target, of the whole step. norm: of its whole gradient,
    before clipping. lr: optim.lr, which the message names.
    Raises FloatingPointError, in one line with the remedy, where the run has to end; weights and checkpoints are then
    as they were before the step. Which checkpoint to go on from is the trainer's to say (`failures.py`).
    """
    for what, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} of step {step} is not finite ({value}); the weights were not touched: lower optim.lr "
                f"(now {lr:g}), or look at the step's data"
            )
    if not config.spike_factor:
        return GuardState(skipped=state.skipped)
    if state.losses and step > config.after:
        usual = statistics.median(state.losses)
        if loss > config.spike_factor * usual:
            return _spike(
                config, state, step, lr, f"{loss:.4g} nats where the last {len(state.losses)} steps had {usual:.4g}"
            )
    return GuardState((*state.losses, loss)[-config.window :], skipped=state.skipped)


def _spike(config: GuardSection, state: GuardState, step: int, lr: float, found: str) -> GuardState:
    if config.on_spike == "skip" and state.skips < config.max_skips:
        return replace(state, skips=state.skips + 1, skipped=state.skipped + 1)
    row = f", after {state.skips} updates in a row that were left out" if state.skips else ""
    raise FloatingPointError(
        f"the loss jumped at step {step}{row}: {found} (median); the weights were not touched: lower optim.lr (now "
        f"{lr:g}), or allow for more by guard.spike_factor (now {config.spike_factor:g})"
    )
