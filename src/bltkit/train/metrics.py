"""What a run tells: one JSON line per report in metrics.jsonl, and a progress bar on a terminal."""

import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bltkit.checkpoint import write_atomic

METRICS = "metrics.jsonl"


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Nats summed over bytes of text, as bits per byte of text."""
    return nats / math.log(2) / max(1, num_bytes)


@dataclass
class Tally:
    """Sums since the last report."""

    nats: float = 0.0
    text_nats: float = 0.0
    targets: int = 0
    text_bytes: int = 0
    patches: int = 0
    began: float = field(default_factory=time.monotonic)

    def report(self) -> dict[str, float | None]:
        """Means over what was summed up."""
        seconds = time.monotonic() - self.began
        return {
            "loss": self.nats / max(1, self.targets),
            "bits_per_byte": bits_per_byte(self.text_nats, self.text_bytes),
            "bytes_per_second": self.text_bytes / max(seconds, 1e-9),
            "patch_bytes": self.text_bytes / self.patches if self.patches else None,
        }


def read_metrics(out: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut short is left out."""
    rows = []
    for line in (Path(out) / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def forget_after(out: Path, step: int) -> None:
    """Remove the rows of steps that come after `step`: a run that was killed takes them again."""
    rows = read_metrics(out) if (out / METRICS).exists() else []
    kept = [row for row in rows if row["step"] <= step]
    if kept != rows:
        write_atomic(out / METRICS, "".join(map(_line, kept)).encode())


class Reporter:
    """Writes metrics.jsonl and shows progress; silent on stderr when that is no terminal."""

    def __init__(self, path: Path, total_steps: int, done_steps: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._file = (path / METRICS).open("a", encoding="utf-8")
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total_steps, completed=done_steps)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._bar.update(self._task, completed=step)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, and show its main figures."""
        self._file.write(_line({key: value for key, value in row.items() if value is not None}))
        self._file.flush()
        shown = [f"{row[name]:.4g} {unit}" for name, unit in _SHOWN if row.get(name) is not None]
        if shown:
            self._bar.update(self._task, description="  ".join(shown))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


_SHOWN = (
    ("loss", "nats"),
    ("bits_per_byte", "bits/byte"),
    ("bytes_per_second", "bytes/s"),
    ("patch_bytes", "bytes/patch"),
)
