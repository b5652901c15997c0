"""Where a run begins: with nothing, with a checkpoint of its own, or with one of another run that it branches off."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bltkit.checkpoint.checksums import POSITION, DamagedCheckpointError, read_checksums
from bltkit.files.lock import holder_of
from bltkit.train.changes import Changes, changes_of
from bltkit.train.config import TrainConfig
from bltkit.train.run_directory import RunDirectory, is_step, new_identity
from bltkit.train.state import read_position, verify


@dataclass(frozen=True)
class Start:
    """A run's beginning."""

    checkpoint: Path | None
    own: bool
    """Is the checkpoint of this run; else of the trunk that it branches off."""
    damaged: tuple[Path, ...] = ()
    """Checkpoints of this run that are newer, and from which nothing can go on."""
    changes: Changes = field(default_factory=dict)
    """Of the run's config."""
    run: str = field(default_factory=new_identity)
    """The run's number, that of its checkpoints."""


def refuse_existing(run: RunDirectory, resume: bool) -> None:
    """Raises ValueError where a new run would write into a directory that holds something, and for what is none."""
    if run.path.exists() and not run.path.is_dir():
        raise ValueError(f"{run.path} is no directory; --out names the directory of a run")
    if resume or not run.in_use():
        return
    if (holder := holder_of(run.path)) is not None:
        raise ValueError(f"{run.path} is in use by {holder}; wait for it, stop it, or choose another --out")
    raise _exists(run)


def _exists(run: RunDirectory) -> ValueError:
    return ValueError(f"{run.path} exists; add --resume to go on with it, or name another --out")


def starting_point(
    config: TrainConfig, run: RunDirectory, resume: bool, say: Callable[[str], None], *, verified: bool = True
) -> Start:
    """The checkpoint to go on from: of this run the newest that is sound, or the trunk's that the config names.

    verified: read all of the checkpoint's files and compare their checksums; else the newest is taken to be sound.
    Raises ValueError where there is none, something is in the way, or the config differs from the run's own in what
    cannot change.
    """
    if not resume and run.in_use():  # once more: now this process alone writes there
        raise _exists(run)
    steps = run.steps() if resume else []
    if steps:
        changes = changes_of(run.path, config, say)
        if not verified:
            return Start(steps[-1], own=True, changes=changes)
        checkpoint, damaged = _newest_sound(run, steps, say)
        identity = run.identity() or (read_checksums(checkpoint) or {}).get("run")
        return Start(checkpoint, own=True, damaged=damaged, changes=changes, run=identity or new_identity())
    if resume:
        if (file := run.in_the_way()) is not None:
            raise ValueError(
                f"{run.path} has no checkpoint to go on from, and {file.name} is not a run's: name another --out"
            )
        say(f"no complete checkpoint in {run.path}: starting over")
    if config.trainer.branch is None:
        return Start(None, own=False)
    trunk = find_trunk(config.trainer.branch)
    if (step := read_position(trunk).step) >= config.trainer.max_steps:
        raise ValueError(
            f"trainer.branch = {config.trainer.branch!r} is at step {step} already; raise trainer.max_steps "
            f"({config.trainer.max_steps}), which counts from the run's beginning"
        )
    if verified:
        _verify_trunk(trunk, config.trainer.branch, say)
    return Start(trunk, own=False)


def _newest_sound(run: RunDirectory, steps: list[Path], say: Callable[[str], None]) -> tuple[Path, tuple[Path, ...]]:
    """The newest checkpoint whose files are those that were written, and the damaged ones that are newer."""
    damaged: list[DamagedCheckpointError] = []
    identity = run.identity()
    for step in reversed(steps):
        try:
            with_checksums = verify(step, identity)
        except DamagedCheckpointError as error:
            damaged.append(error)
            continue
        if damaged:
            faults = "; ".join(f"{error.checkpoint.name} is damaged ({error.reason})" for error in damaged)
            say(f"{run.path}: {faults}: going on from {step.name}; what is damaged is kept as damaged-step-...")
        if not with_checksums:
            say(_unverified(step))
        return step, tuple(error.checkpoint for error in damaged)
    faults = "; ".join(f"{error.checkpoint.name} is damaged ({error.reason})" for error in damaged)
    raise ValueError(f"{run.path} has no sound checkpoint to go on from: {faults}; start another run with --out")


def _verify_trunk(trunk: Path, branch: str, say: Callable[[str], None]) -> None:
    try:
        if not verify(trunk):
            say(_unverified(trunk))
    except DamagedCheckpointError as error:
        raise ValueError(
            f"trainer.branch = {branch!r}: {trunk} is damaged ({error.reason}); name another step-XXXXXXXX of that run"
        ) from None


def _unverified(checkpoint: Path) -> str:
    return f"{checkpoint} carries no checksums (it was written by version 0.1.0): its content cannot be verified"


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
