"""Half a cosine: the default schedule."""

import math
from typing import Literal

from bltkit.train.schedules.schedule import BaseSchedule


class CosineSchedule(BaseSchedule):
    """Half a cosine from the full rate down to the least share (BLT 4.7, docs/model.md 9)."""

    kind: Literal["cosine"] = "cosine"

    def height(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """1 at the end of the warm-up, 0 from total_steps on."""
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * done))
