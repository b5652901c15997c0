"""The full rate for the whole run."""

from typing import Literal

from bltkit.train.schedules.schedule import BaseSchedule


class ConstantSchedule(BaseSchedule):
    """The full rate from the end of the warm-up on; `min_lr_ratio` has no meaning here."""

    kind: Literal["constant"] = "constant"

    def height(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """1."""
        return 1.0
