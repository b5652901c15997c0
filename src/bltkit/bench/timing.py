"""How it is measured: in turn, medians, and a row that says under which circumstances."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bltkit.bench.subject import Subject

Progress = Callable[[str], None]
"""Is told what happens, line by line."""


def silent(line: str) -> None:
    """Progress that nobody sees."""


@dataclass(frozen=True)
class Limits:
    """How long to measure each side: at least so many runs and so many seconds."""

    repeats: int = 5
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.seconds < 0:
            raise ValueError(f"repeats = {self.repeats} must be at least 1, and seconds = {self.seconds} at least 0")


@dataclass(frozen=True)
class Timing:
    """Runs of one side."""

    bytes_per_run: int
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
class Row:
    """One measurement."""

    what: str
    preset: str
    """Preset or model."""
    context: int
    batch: int
    dtype: str
    threads: int
    ours: Timing
    peer: Timing | None
    peer_name: str | None
    max_difference: float | None
    """Largest difference of the two sides' logits, checked before timing; None without a peer."""
    mean_patch_bytes: float
    commit: str | None
    machine: Mapping[str, Any]
    command: str
    parts: Mapping[str, Mapping[str, float]] | None = None
    """By module, where that was measured."""

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer."""
        return None if self.peer is None else self.ours.bytes_per_second / self.peer.bytes_per_second

    def to_json(self) -> dict[str, Any]:
        """Plain values; `ours` and `peer` are bytes per second, `runs` has what they are medians of."""
        sides = {"ours": self.ours} | ({} if self.peer is None else {"peer": self.peer})
        own = {name: value for name, value in asdict(self).items() if name not in ("ours", "peer", "parts")}
        speeds = {name: sides[name].bytes_per_second if name in sides else None for name in ("ours", "peer")}
        runs = {name: side.to_json() for name, side in sides.items()}
        return own | speeds | {"ratio": self.ratio, "runs": runs, "parts": self.parts}

    def summary(self) -> str:
        """One line for people."""
        line = f"{self.what} {self.preset} at {self.context}: {self.ours.bytes_per_second:.1f} bytes/s"
        if self.peer is None:
            return line
        return f"{line}, {self.peer_name} {self.peer.bytes_per_second:.2f}, ratio {self.ratio:.2f}"


def row_of(
    subject: Subject,
    what: str,
    timings: Sequence[Timing],
    *,
    context: int,
    threads: int,
    mean_patch_bytes: float,
    command: str,
    batch: int = 1,
    peer_name: str | None = None,
    max_difference: float | None = None,
    parts: Mapping[str, Mapping[str, float]] | None = None,
) -> Row:
    """A row with what is known without measuring; timings are ours and, where there is one, the peer's."""
    return Row(
        what=what,
        preset=subject.name,
        context=context,
        batch=batch,
        dtype=str(subject.model.embed.ngrams.dtype).removeprefix("torch."),
        threads=threads,
        ours=timings[0],
        peer=timings[1] if peer_name is not None else None,
        peer_name=peer_name,
        max_difference=max_difference,
        mean_patch_bytes=mean_patch_bytes,
        commit=commit(),
        machine=machine(subject.device),
        command=command,
        parts=parts,
    )


def in_turn(
    sides: Sequence[tuple[str, int, Callable[[], object]]],
    limits: Limits,
    device: torch.device,
    progress: Progress = silent,
) -> list[Timing]:
    """Time every side (name, bytes of a run, run) in `limits.repeats` rounds that each give every side its turn.

    What else the machine does then falls on all sides alike. A fast side runs several times in its turn, until its
    share of `limits.seconds` is up.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(limits.repeats):
        for (name, num_bytes, run), own in zip(sides, seconds, strict=True):
            left = limits.seconds / limits.repeats
            while left > 0 or len(own) <= turn:
                took = timed(run, device)
                own.append(took)
                left -= took
            progress(f"{name}: round {turn + 1}/{limits.repeats}, {num_bytes / statistics.median(own):,.1f} bytes/s")
    return [Timing(num_bytes, tuple(own)) for (_, num_bytes, _), own in zip(sides, seconds, strict=True)]


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
    if count is not None and count < 1:
        raise ValueError(f"threads = {count} must be at least 1")
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def machine(device: torch.device) -> dict[str, Any]:
    """What a number depends on."""
    found = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def commit() -> str | None:
    """The source's git commit, `-dirty` behind it if files differ from it; None where the source is no checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a package installed below somebody's checkout is not in it
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
