"""Warm-up, stable, decay: a trunk that any number of decays may branch off."""

import math
from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from bltkit.train.schedules.schedule import BaseSchedule

DECAY_FRACTION = 0.2
"""Share of a wsd schedule that decays, where nothing is said (Haegele et al. 2024, arXiv 2405.18392: 10 to 20 %)."""


class WsdSchedule(BaseSchedule):
    """Warm-up, the full rate for most of the run, then a decay at the end (Hu et al. 2024, arXiv 2404.06395).

    A run with `decay_steps = 0` is a trunk: it goes on at the full rate for as long as one likes, and models of any
    length come from decays of their own that start at its checkpoints.
    """

    kind: Literal["wsd"] = "wsd"
    decay_steps: NonNegativeInt | None = None
    """Updates of the decay, the last ones of the schedule; 0 never decays."""
    decay_fraction: float | None = Field(default=None, gt=0, le=1)
    """The same as a share of the whole schedule, warm-up included; 0.2 where neither is given."""
    shape: Literal["linear", "1-sqrt"] = "linear"
    """Of the decay. `1-sqrt` falls fast at first (Haegele et al. 2024)."""

    @model_validator(mode="after")
    def _check_length(self) -> "WsdSchedule":
        if self.decay_steps is not None and self.decay_fraction is not None:
            raise ValueError(
                f"decay_steps = {self.decay_steps} and decay_fraction = {self.decay_fraction} both say how long the "
                "decay is; give one of them"
            )
        return self

    def height(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """1 up to the decay, 0 from total_steps on; a decay longer than what the warm-up leaves is shortened."""
        length = self.decay_steps
        if length is None:
            length = round((self.decay_fraction or DECAY_FRACTION) * total_steps)
        elif length == 0:
            return 1.0
        begin = max(warmup_steps, total_steps - length)
        done = min(1.0, max(0, step - begin) / max(1, total_steps - begin))
        return 1 - (done if self.shape == "linear" else math.sqrt(done))
