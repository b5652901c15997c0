"""How far a command is: a bar on a terminal, else a line on stderr now and then, so that a log tells and stays small.

A command of a few seconds writes nothing. The first line comes after ten seconds and each pause is half as long again
as the one before, up to a limit.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from bltkit.terminal.control_characters import visible
from bltkit.terminal.streams import console, is_terminal, say

FIRST_SECONDS = 10.0
GROWTH = 1.5
LONGEST_SECONDS = 300.0


class Progress:
    """Told (done, total) with `progress(done, total)`, or what happens now with `stage`."""

    def __init__(
        self,
        what: str,
        unit: str = "",
        *,
        shown: bool = True,
        longest: float = LONGEST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """what: is done, such as "evaluating". unit: what is counted, such as "items".

        shown: False makes it silent. longest: seconds between two lines of a long run. clock: seconds.
        """
        self._what, self._unit, self._shown, self._longest, self._clock = what, unit, shown, longest, clock
        self._note = ""
        self._pause = FIRST_SECONDS
        self._due = self._clock() + self._pause
        self._began: tuple[float, int, int | None] | None = None
        """Clock, count and total at the first report of this stretch; speeds are measured from there."""
        self._last = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._shown and is_terminal(sys.stderr):
            self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int | None = None, *, patience: float = 1.0) -> None:
        """Report `done` of `total`, None while that is unknown. patience: pauses that a line may still wait."""
        now = self._clock()
        if self._began is None or done < self._last or total != self._began[2]:
            self._began = now, done, total
        self._last = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=visible(self._title()))
        else:
            self._line(now, lambda: self._account(now, done, total), patience)

    def note(self, text: str) -> None:
        """Figures that are shown beside the count from now on."""
        self._note = text

    def stage(self, text: str) -> None:
        """Report what happens now, where nothing can be counted."""
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, description=visible(self._title()))
        else:
            self._line(self._clock(), self._title, 1.0)

    def _title(self) -> str:
        return f"{self._what}: {self._note}" if self._note else self._what

    def _line(self, now: float, text: Callable[[], str], patience: float) -> None:
        if not self._shown or now < self._due + (patience - 1) * self._pause:
            return
        say(text())
        self._pause = min(self._pause * GROWTH, self._longest)
        self._due = now + self._pause

    def _account(self, now: float, done: int, total: int | None) -> str:
        """Such as `evaluating: 300 of 1,200 items, 25 %, 10.0/s, 2 min left`."""
        assert self._began is not None
        since, before, _ = self._began
        rate = (done - before) / (now - since) if now > since else 0.0
        of = "" if total is None else f" of {total:,}"
        parts = [f"{done:,}{of} {self._unit}".rstrip()]
        if total:
            parts.append(f"{100 * done / total:.0f} %")
        if self._note:
            parts.append(self._note)
        if rate > 0:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            if total is not None and done <= total:
                parts.append(f"{_duration((total - done) / rate)} left")
        return f"{self._what}: " + ", ".join(parts)

    def _start_bar(self) -> None:
        from rich import progress as bars

        screen = console(stderr=True)
        if screen.is_dumb_terminal:  # which cannot go back to the line's beginning
            return
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.TextColumn("{task.completed:,}", markup=False),
            bars.TaskProgressColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=screen,
            transient=True,
            redirect_stdout=is_terminal(sys.stdout),  # results for a file would follow the bar to stderr
        )
        self._task = self._bar.add_task(visible(self._what), total=None)
        self._bar.start()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
