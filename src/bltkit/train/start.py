"""Where a run begins: with nothing, with a checkpoint of its own, or with one of another run that it branches off."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bltkit.train.config import TrainConfig
from bltkit.train.run import RunDirectory, is_step
from bltkit.train.state import POSITION, read_position


@dataclass(frozen=True)
class Start:
    """A run's beginning."""

    checkpoint: Path | None
    own: bool
    """Is the checkpoint of this run; else of the trunk that it branches off."""


def starting_point(config: TrainConfig, run: RunDirectory, resume: bool, say: Callable[[str], None]) -> Start:
    """The checkpoint to go on from. Raises ValueError where there is none, or something is in the way."""
    if not resume and run.in_use():
        raise ValueError(f"{run.path} exists; add --resume to go on with it, or name another --out")
    latest = run.latest() if resume else None
    if latest is not None:
        return Start(latest, own=True)
    if resume:
        say(f"no complete checkpoint in {run.path}: starting over")
    if config.trainer.branch is None:
        return Start(None, own=False)
    trunk = find_trunk(config.trainer.branch)
    if (step := read_position(trunk).step) >= config.trainer.max_steps:
        raise ValueError(
            f"trainer.branch = {config.trainer.branch!r} is at step {step} already; raise trainer.max_steps "
            f"({config.trainer.max_steps}), which counts from the run's beginning"
        )
    return Start(trunk, own=False)


def find_trunk(branch: str) -> Path:
    """The checkpoint that `trainer.branch` names: RUN, whose newest it is, or one of them, RUN/step-XXXXXXXX.

    Raises ValueError where there is none that a run can go on from.
    """
    path = Path(branch).expanduser()
    found = RunDirectory(path).latest() or path
    if (found / POSITION).exists():
        return found
    kept = [step.name for step in RunDirectory(path.parent).steps()]
    if is_step(path.name) and kept and not path.exists():
        why = f"is not there; {path.parent} has {', '.join(kept)} (checkpoint.keep_every keeps more)"
    elif path.is_dir():
        why = "holds no training state; its weights alone can be had by trainer.init"
    else:
        why = "is no directory; name that of a run, or one of its step-XXXXXXXX"
    raise ValueError(f"trainer.branch = {branch!r} {why}")
