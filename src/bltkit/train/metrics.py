"""What a run tells: a line of JSON per report in metrics.jsonl, a progress bar on a terminal, and `loggers.py`."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from bltkit.checkpoint import write_atomic
from bltkit.files import parse_json
from bltkit.terminal import streams
from bltkit.terminal.progress import Progress
from bltkit.train.loggers import Sink, open_sinks

if TYPE_CHECKING:
    from bltkit.train.config import TrainConfig
    from bltkit.train.learner import StepFigures

METRICS = "metrics.jsonl"
BROKEN = "metrics.jsonl.broken"
"""Lines of metrics.jsonl that could not be read."""

LONGEST_SECONDS = 60.0
"""Between two lines of progress."""


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Nats summed over bytes of text, as bits per byte of text."""
    return nats / math.log(2) / max(1, num_bytes)


@dataclass(frozen=True)
class Tally:
    """Sums since the last report."""

    nats: float = 0.0
    text_nats: float = 0.0
    targets: int = 0
    text_bytes: int = 0
    seen_bytes: int = 0
    patches: int = 0
    skipped: int = 0
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By name: nats of what the objective's loss is made up of, and the bytes that they belong to."""
    timed_bytes: int = 0
    """Of `seen_bytes` those of this process's time."""
    began: float = field(default_factory=time.monotonic)

    def plus(self, figures: "StepFigures", parts: Sequence[str]) -> Self:
        """The sums with one step more, on the same clock. parts: names of the objective's parts."""
        sums = dict(self.parts)
        for name, (nats, count) in zip(parts, figures.parts, strict=True):
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + nats, before[1] + count
        return replace(
            self,
            nats=self.nats + figures.nats,
            text_nats=self.text_nats + figures.text_nats,
            targets=self.targets + figures.targets,
            text_bytes=self.text_bytes + figures.text_bytes,
            seen_bytes=self.seen_bytes + figures.seen_bytes,
            timed_bytes=self.timed_bytes + figures.seen_bytes,
            patches=self.patches + figures.patches,
            skipped=self.skipped + figures.skipped,
            parts=sums,
        )

    def to_json(self) -> dict[str, Any]:
        """The sums, for a checkpoint: `Tally(**sums)` goes on from them, on a clock of its own."""
        return {name: value for name, value in asdict(self).items() if name not in ("timed_bytes", "began")}

    def report(self) -> dict[str, float | None]:
        """Means over what was summed up."""
        seconds = time.monotonic() - self.began
        return {
            "loss": self.nats / max(1, self.targets),
            "bits_per_byte": bits_per_byte(self.text_nats, self.text_bytes),
            "bytes_per_second": self.timed_bytes / max(seconds, 1e-9),
            "patch_bytes": self.seen_bytes / self.patches if self.patches else None,
            "skipped": self.skipped or None,
        } | {f"{name}_bits_per_byte": nats / math.log(2) / max(1, count) for name, (nats, count) in self.parts.items()}


def read_metrics(out: str | Path, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The readable rows of a run's metrics.jsonl: each is an object with a `step`.

    A last line that was cut short is what a killed run leaves, and is passed over. say: told in one line what else
    cannot be read; on stderr by default. Raises OSError where there is no such file.
    """
    path = Path(out) / METRICS
    rows, broken = _sorted_lines(path)
    if broken:
        (say or streams.say)(_passed_over(path, broken))
    return [row for _, row in rows]


def forget_after(out: Path, step: int, say: Callable[[str], None] | None = None) -> None:
    """Remove the rows of steps that come after `step`, which a run that was killed takes again, and a torn last line,
    to which the next row would be added. Lines that cannot be read move to metrics.jsonl.broken.

    say: told in one line of such lines; on stderr by default.
    """
    path = out / METRICS
    if not path.exists():
        return
    rows, broken = _sorted_lines(path)
    if broken:
        with (out / BROKEN).open("ab") as file:
            file.writelines(line + b"\n" for _, line, _ in broken)
        (say or streams.say)(f"{_passed_over(path, broken)}; they are kept in {BROKEN}")
    kept = b"".join(line + b"\n" for line, row in rows if row["step"] <= step)
    if kept != path.read_bytes():
        write_atomic(path, kept)


def _sorted_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[tuple[int, bytes, str]]]:
    """Lines that can be read with their rows, and the others with number and reason; not a torn last one."""
    rows, broken = [], []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            row = parse_json(line, f"line {number}")
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError(f"line {number}: no object with a step")
            rows.append((line, row))
        except ValueError as error:
            if number <= len(lines):
                broken.append((number, line, str(error)))
    return rows, broken


def _passed_over(path: Path, broken: Sequence[tuple[int, bytes, str]]) -> str:
    count = len(broken)
    return f"{path}: passed over {count} line{'s' if count > 1 else ''} that cannot be read ({broken[0][2]})"


def validated(out: Path, step: int) -> bool:
    """Is there a validation of this step: none where a run was killed in the middle of its last one."""
    rows = read_metrics(out, lambda line: None)  # what cannot be read was told of when the run was taken up
    return any(row["step"] == step and "validation_bits_per_byte" in row for row in rows)


@contextmanager
def reading(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Shows on stderr how far the sources are read; told (source, documents, bytes)."""
    with Progress("reading", shown=shown) as progress:

        def tell(label: str, documents: int, num_bytes: int) -> None:
            progress.stage(f"{label}, {documents:,} documents, {num_bytes / 1e6:,.0f} MB")

        yield tell


class Reporter:
    """Writes metrics.jsonl and shows progress on stderr: a bar, or lines that come with reports."""

    def __init__(self, path: Path | None, config: "TrainConfig", done_steps: int) -> None:
        """path: of the run; None for a process that has nothing to tell. Rows up to `done_steps` are there already.

        Raises ValueError for a sink that cannot be opened.
        """
        self._file: TextIO | None = None
        self._sinks: tuple[Sink, ...] = ()
        self._open = ExitStack()
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
            plain = config.model_dump(mode="json", exclude_none=True)
            self._sinks = self._open.enter_context(open_sinks(config.trainer.report, path, done_steps, plain))
            self._file = self._open.enter_context((path / METRICS).open("a", encoding="utf-8"))
        self._progress = Progress("training", "steps", shown=path is not None, longest=LONGEST_SECONDS)
        self._step, self._steps = done_steps, config.trainer.max_steps

    def __enter__(self) -> Self:
        self._progress.__enter__()
        self._progress(self._step, self._steps)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._open.close()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._step = step
        self._progress(step, self._steps, patience=2)  # a report, which has new figures, should come first

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, and show its main figures."""
        if self._file is None:
            return
        known = {key: value for key, value in row.items() if value is not None}
        self._file.write(_line(known))
        self._file.flush()
        for sink in self._sinks:
            sink.write(known)
        shown = [f"{row[name]:.4g} {unit}" for name, unit in _SHOWN if row.get(name) is not None]
        if shown:
            self._progress.note(", ".join(shown))
            self._progress(self._step, self._steps)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


_SHOWN = (
    ("loss", "nats"),
    ("bits_per_byte", "bits/byte"),
    ("bytes_per_second", "bytes/s"),
    ("patch_bytes", "bytes/patch"),
)
