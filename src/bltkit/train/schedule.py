"""Learning-rate schedules (seam): what share of the full rate an update gets. One class and its membership in
`Schedule` make a new one.

Every schedule warms up linearly and never goes below a least share; both stand in `[optim]`, since they mean the same
to all of them. A schedule is a function of the step alone, so a run that is resumed has nothing to restore.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, NonNegativeInt, model_validator

from bltkit.config import Config, nearest

DECAY_FRACTION = 0.2
"""Share of a wsd schedule that decays, where nothing is said (Haegele et al. 2024, arXiv 2405.18392: 10 to 20 %)."""


class BaseSchedule(Config):
    """Base of every schedule: the warm-up, and the least share."""

    kind: str

    def rate(self, step: int, total_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0) -> float:
        """Share of the full learning rate for update number `step` (from 0), in [0, 1].

        total_steps: length of the schedule, warm-up and decay included; steps past its end have a share too.
        """
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return min_ratio + (1 - min_ratio) * self.height(step, total_steps, warmup_steps)

    @abstractmethod
    def height(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """How far above the least share, in [0, 1], for a step after the warm-up (which may outlast total_steps)."""


class CosineSchedule(BaseSchedule):
    """Half a cosine from the full rate down to the least share (BLT 4.7, spec 8)."""

    kind: Literal["cosine"] = "cosine"

    def height(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """1 at the end of the warm-up, 0 from total_steps on."""
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * done))


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


class ConstantSchedule(BaseSchedule):
    """The full rate from the end of the warm-up on; `min_lr_ratio` has no meaning here."""

    kind: Literal["constant"] = "constant"

    def height(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """1."""
        return 1.0


_Schedules = CosineSchedule | WsdSchedule | ConstantSchedule


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kinds = [member.model_fields["kind"].default for member in get_args(_Schedules)]
    if value not in kinds:
        raise ValueError(f"unknown schedule {value!r}{nearest(value, kinds)}")
    return {"kind": value}


Schedule = Annotated[_Schedules, Field(discriminator="kind"), BeforeValidator(_from_name)]
"""Any schedule; as the type of a config field it reads `"cosine"` or `{kind = "wsd", decay_steps = 500}`."""
