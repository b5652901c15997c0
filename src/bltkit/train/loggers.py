"""Where a run's figures go besides metrics.jsonl: TensorBoard, Weights & Biases (`trainer.report`).

metrics.jsonl is the record; these are views of it. Both survive a resume: what a killed run had shown of the steps
that are taken again is hidden (TensorBoard) or not sent a second time (W&B, which cannot take anything back; a step's
figures are the same both times, since a run resumes bit for bit). Only the main process opens them.
"""

import importlib
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from bltkit.checkpoint import write_atomic
from bltkit.config import dump_toml
from bltkit.files import read_json

Report = Literal["tensorboard", "wandb"]
"""A place for figures, as `trainer.report` names it."""

TENSORBOARD = "tensorboard"
"""The directory of TensorBoard's files, in the run's."""
WANDB = "wandb.json"
"""The W&B run that belongs to a run directory, and the last steps that it was told of."""

_MODULES: dict[Report, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "plot"),
    "wandb": ("wandb", "wandb"),
}


@runtime_checkable
class Sink(Protocol):
    """Takes rows of metrics."""

    @property
    def where(self) -> str:
        """How to look at it: one line for the user."""

    def write(self, row: Mapping[str, Any]) -> None:
        """A row as metrics.jsonl gets it: `step` and figures of it; what is None or not finite is left out."""

    def close(self) -> None:
        """No more rows come."""


def check_reports(reports: Sequence[Report]) -> None:
    """Raises ValueError, naming what to install, where a library is missing; nothing is written."""
    for report in reports:
        module, extra = _MODULES[report]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f'trainer.report = ["{report}"] needs {module}, which cannot be imported ({error}): '
                f"pip install 'bltkit[{extra}]'"
            ) from None


@contextmanager
def open_sinks(
    reports: Sequence[Report], out: Path, step: int, config: Mapping[str, Any]
) -> Iterator[tuple[Sink, ...]]:
    """The sinks of a run whose directory is `out`, closed at the end of the block.

    step: steps that are done already, 0 for a new run. config: plain values, shown beside the figures.
    Raises ValueError for a library that is missing, or a W&B that cannot be reached or has no key.
    """
    check_reports(reports)
    kinds: dict[Report, Callable[[Path, int, Mapping[str, Any]], Sink]] = {
        "tensorboard": TensorBoardSink,
        "wandb": WandbSink,
    }
    with ExitStack() as stack:
        sinks = []
        for report in dict.fromkeys(reports):
            sink = kinds[report](out, step, config)
            stack.callback(sink.close)
            sinks.append(sink)
        yield tuple(sinks)


def named_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row by group: `validation_x` is `validation/x`, everything else `train/x`."""
    found = {}
    for key, value in row.items():
        if key == "step" or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        group, name = (
            ("validation", key.removeprefix("validation_")) if key.startswith("validation_") else ("train", key)
        )
        found[f"{group}/{name}"] = float(value)
    return found


class TensorBoardSink:
    """Event files in `tensorboard/` of the run directory."""

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = out / TENSORBOARD
        # Hides what earlier files say of the steps that come now.
        self._writer = SummaryWriter(str(self._path), purge_step=step + 1)
        if step == 0:
            self._writer.add_text("config", f"```toml\n{dump_toml(config)}```", global_step=1)

    @property
    def where(self) -> str:
        """The command that shows it."""
        return f"tensorboard --logdir {self._path}"

    def write(self, row: Mapping[str, Any]) -> None:
        """At once on disk, so that a kill loses nothing."""
        for name, value in named_figures(row).items():
            self._writer.add_scalar(name, value, global_step=row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, the same one for as long as the run directory exists.

    W&B's own variables hold: WANDB_MODE (`offline` needs no network and no account), WANDB_PROJECT, WANDB_API_KEY.
    """

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._file = out / WANDB
        kept = _read(self._file)
        self._sent: dict[str, int] = dict(kept["sent"])
        self._before = dict(self._sent)
        self._id = kept["id"]
        self._save()
        try:
            self._run = wandb.init(
                dir=str(out),
                id=self._id,
                name=out.resolve().name,
                config=dict(config),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ValueError(
                f'trainer.report = ["wandb"]: Weights & Biases does not start ({" ".join(str(error).split())}); run '
                "`wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`"
            ) from None

    @property
    def where(self) -> str:
        """Its page, or what to do to have one."""
        return str(self._run.url or f"wandb sync {Path(self._run.dir).parent}")

    def write(self, row: Mapping[str, Any]) -> None:
        """Sends what W&B has not been told before."""
        step = int(row["step"])
        figures = {
            name: value for name, value in named_figures(row).items() if step > self._before.get(_group(name), 0)
        }
        if not figures:
            return
        self._run.log(figures, step=step)
        self._sent |= {_group(name): step for name in figures}
        self._save()

    def close(self) -> None:
        """Ends the run; W&B's own process may still be writing the last of it, which the end of this one waits for."""
        self._run.finish()

    def _save(self) -> None:
        write_atomic(self._file, json.dumps({"id": self._id, "sent": self._sent}).encode())


def _group(name: str) -> str:
    return name.partition("/")[0]


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {"id": secrets.token_hex(8), "sent": {}}
    try:
        kept: dict[str, Any] = read_json(file)
        return {"id": str(kept["id"]), "sent": {str(group): int(step) for group, step in kept["sent"].items()}}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it to report to a new W&B run") from None
