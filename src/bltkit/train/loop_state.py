"""The state of the training loop between two steps, and what the processes tell one another before each."""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from bltkit.train.metrics import Tally
from bltkit.train.state import RunPosition


@dataclass(frozen=True)
class LoopState:
    """The state between two steps.

    position: what a checkpoint holds of it. tally: sums since the last report, with their clock.
    on_disk: True where a checkpoint of this position is written, or being written.
    """

    position: RunPosition
    tally: Tally
    on_disk: bool
    _last_save: float
    _origin: float
    """Monotonic time at which the run would have begun, had it never been interrupted."""

    @classmethod
    def at(cls, position: RunPosition, *, on_disk: bool) -> Self:
        """The state where the loop begins or resumes."""
        now = time.monotonic()
        return cls(position, Tally(**position.tally), on_disk, now, now - position.seconds)

    def saved(self) -> Self:
        """The same state once a checkpoint of it has been handed to the writer."""
        return replace(self, on_disk=True, _last_save=time.monotonic())

    def seconds(self) -> float:
        """Seconds that the run has trained, interruptions left out."""
        return time.monotonic() - self._origin

    def since_save(self) -> float:
        """Seconds since the last checkpoint, or since the loop began."""
        return time.monotonic() - self._last_save


class Votes(NamedTuple):
    """What any process may ask of all before a step.

    stop: end the loop, after a signal. save: write a checkpoint after this step, by the clock of the main process.
    failed: a checkpoint could not be written in the background.
    """

    stop: bool
    save: bool
    failed: bool
