"""What a learning-rate schedule is (seam 4): a frozen config and one method, the height at a step.

Every schedule warms up linearly and never goes below a least share; both stand in `[optim]`, since they mean the same
to all of them. A schedule is a function of the step alone, so a run that is resumed has nothing to restore.
"""

from abc import abstractmethod

from bltkit.config import Config


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
