"""How it is measured: in turn, on so many threads, and medians. What is said of it is in `record.py`."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bltkit.compute import check_threads

Progress = Callable[[str], None]
"""Is told what happens, line by line."""


MAX_SECONDS = 86_400
"""A day: more is a mistake, since a benchmark has no rows before it ends."""
MAX_REPEATS = 1_000_000
"""More is a mistake for the same reason."""
MAX_BATCH = 65_536
"""Rows side by side: more is a mistake, which would be found when memory is full."""


def check_batch(batch: int) -> None:
    """Raises ValueError for a number of rows that nobody measures."""
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch = {batch} must be from 1 to {MAX_BATCH:,} rows")


def silent(line: str) -> None:
    """Progress that nobody sees."""


@dataclass(frozen=True)
class RepeatLimits:
    """How long to measure each side: at least so many runs and so many seconds."""

    repeats: int = 5
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ValueError(f"repeats = {self.repeats} must be from 1 to {MAX_REPEATS:,}; by default it is 5")
        if not 0 <= self.seconds <= MAX_SECONDS:  # NaN is neither
            raise ValueError(f"seconds = {self.seconds} must be from 0 to {MAX_SECONDS:,}; by default it is 2")


@dataclass(frozen=True)
class Timing:
    """Runs of one side."""

    bytes_per_run: float
    """A whole number but for a token model, whose tokens stand for a mean number of bytes."""
    seconds: tuple[float, ...]

    @property
    def bytes_per_second(self) -> float:
        """Of the median run."""
        return self.bytes_per_run / statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bytes_per_second": self.bytes_per_second,
            "ms_per_byte": 1000 / self.bytes_per_second,
            "bytes_per_run": self.bytes_per_run,
            "seconds": list(self.seconds),
        }


@dataclass(frozen=True)
class Side:
    """Something to be timed, run after run."""

    name: str
    bytes_per_run: float
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    """Done in front of every run, and not timed."""


def in_turn(
    sides: Sequence[Side],
    limits: RepeatLimits,
    device: torch.device,
    progress: Progress = silent,
) -> list[Timing]:
    """Time every side in `limits.repeats` rounds that each give every side its turn.

    What else the machine does then falls on all sides alike. A fast side runs several times in its turn, until its
    share of `limits.seconds` is up.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(limits.repeats):
        for side, own in zip(sides, seconds, strict=True):
            left = limits.seconds / limits.repeats
            while left > 0 or len(own) <= turn:
                if side.prepare is not None:
                    side.prepare()
                took = timed(side.run, device)
                own.append(took)
                left -= took
            speed = side.bytes_per_run / statistics.median(own)
            progress(f"{side.name}: round {turn + 1}/{limits.repeats}, {speed:,.1f} bytes/s")
    return [Timing(side.bytes_per_run, tuple(own)) for side, own in zip(sides, seconds, strict=True)]


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the device's work included."""
    finish(device)
    began = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - began


def finish(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads_of(count: int | None) -> Iterator[int]:
    """Use `count` threads inside, as many as before when None; yields how many there are."""
    before = torch.get_num_threads()
    if count is not None:
        check_threads(count, "threads")
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
