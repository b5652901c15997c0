"""How much of a prompt is read between two rounds, so that those who wait for the next round hardly notice."""

import statistics
from collections import deque

WAIT = 2.0
"""Median rounds that running sequences wait for the prompts of others."""

ALONE = 0.25
"""Seconds of reading at once while nothing runs: what a cancellation or another prompt waits."""

FEWEST = 16
"""Ids read at once; fewer would cost as much as these."""

RECENT = 15
"""Rounds of which the median is taken: the length of a round follows the number of sequences."""


class Pace:
    """Measures rounds and readings, and says how many ids fit in the time for the next one."""

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=RECENT)
        self._per_id: float | None = None

    @property
    def median_round(self) -> float:
        """Seconds of a recent round; 0 before the first."""
        return statistics.median(self._rounds) if self._rounds else 0.0

    @property
    def seconds_per_id(self) -> float:
        """Of recent readings; 0 before the first."""
        return self._per_id or 0.0

    def add_round(self, seconds: float) -> None:
        """A round has taken so long."""
        self._rounds.append(seconds)

    def add_reading(self, num_ids: int, seconds: float) -> None:
        """Reading so many ids has taken so long."""
        each = seconds / num_ids
        self._per_id = each if self._per_id is None else (self._per_id + each) / 2

    def ids(self, running: bool) -> int:
        """Ids to be read at once. running: does any sequence wait for its round meanwhile."""
        if not self._per_id:
            return 4 * FEWEST
        seconds = WAIT * self.median_round if running and self._rounds else ALONE
        return max(FEWEST, int(seconds / self._per_id))
