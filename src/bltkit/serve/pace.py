"""How much of a prompt is read between two rounds, so that those who wait for the next round hardly notice.

The time of a reading is taken to be a + b n for n ids: least squares over recent ones.
"""

import statistics
from collections import deque

WAIT = 2.5
"""Median rounds that running sequences wait for the prompts of others."""

ALONE = 0.25
"""Seconds of reading at once while nothing runs: what a cancellation or another prompt waits."""

FEWEST = 16
"""Ids of the smallest reading; fewer would take as long as these."""

RECENT = 15
"""Rounds of which the median is taken: the length of a round follows the number of sequences."""

DECAY = 0.9
"""Weight of a reading against the next one."""

OUTLIER = 3.0
"""A reading counts as no more than so many times what was expected: something else may have had the processor."""


class Pace:
    """Measures rounds and readings, and says how many ids fit in the time for the next one."""

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=RECENT)
        self._sums = [0.0] * 5
        """Of 1, n, n², t and n t."""

    @property
    def median_round(self) -> float:
        """Seconds of a recent round; 0 before the first."""
        return statistics.median(self._rounds) if self._rounds else 0.0

    @property
    def line(self) -> tuple[float, float]:
        """a and b; zeros before the first reading."""
        ones, n, nn, t, nt = self._sums
        if not n:
            return 0.0, 0.0
        spread = ones * nn - n * n
        if spread > 1e-3 * ones * nn:  # else all had one length
            each = (ones * nt - n * t) / spread
            fixed = (t - each * n) / ones
            if each > 0 and fixed > 0:
                return fixed, each
        return 0.0, t / n

    def expected(self, num_ids: int) -> float:
        """Expected seconds to read `num_ids` ids."""
        fixed, each = self.line
        return fixed + each * num_ids

    def add_round(self, seconds: float) -> None:
        """Record the duration of a round."""
        self._rounds.append(seconds)

    def add_reading(self, num_ids: int, seconds: float) -> None:
        """Record how long reading `num_ids` ids took."""
        if self._sums[0]:
            seconds = min(seconds, OUTLIER * self.expected(num_ids))
        new = (1.0, num_ids, num_ids**2, seconds, num_ids * seconds)
        self._sums = [DECAY * old + value for old, value in zip(self._sums, new, strict=True)]

    def allowance(self, running: bool) -> float:
        """Seconds of reading until the next round. running: does any sequence wait for it."""
        return WAIT * self.median_round if running else ALONE

    def ids(self, seconds: float) -> int:
        """Number of ids that can be read in `seconds`; fewer than `FEWEST` are not worth it."""
        fixed, each = self.line
        return 4 * FEWEST if not each else int((seconds - fixed) / each)
