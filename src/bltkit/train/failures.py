"""What ends a run early, in one line: a full disk, a loader's worker that is gone, a loss that is not a number.

Facts come from where they happen; what to do follows from what the run's directory holds, which is known here. Room is
looked at before the first step, so that a run does not compute for an hour what it cannot keep.
"""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor

from bltkit.train.run_directory import RunDirectory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORKER = "DataLoader worker"
_TENSOR_BYTES = 1200
"""What torch writes around a tensor, at least: each is a zip archive of its own."""


def is_lost_worker(error: BaseException) -> bool:
    """Is this what torch raises, anywhere in the main thread, when a loader's worker is killed."""
    return isinstance(error, RuntimeError) and str(error).startswith(_WORKER)


def explained(error: Exception, run: RunDirectory, checkpoint_bytes: int) -> Exception:
    """The error with what to do about it, to be raised in its place when nothing writes into `run` any more."""
    if is_lost_worker(error):
        reason = " ".join(str(error).split())
        return ChildProcessError(
            f"a loader's worker ended before its time ({reason.rstrip('. ')}): {way_on(run)}; if memory ran out, lower "
            "data.workers"
        )
    if isinstance(error, FloatingPointError):
        return FloatingPointError(f"{error}; {way_on(run)}")
    if isinstance(error, OSError) and _is_full(error):
        reason = error.strerror or str(error)
        free = shutil.disk_usage(run.path).free
        return OSError(
            f"{run.path}: the checkpoint could not be written ({reason}): it takes about {_size(checkpoint_bytes)}, "
            f"and {_size(free)} are free there{_limit()}; make room, or lower checkpoint.keep; {way_on(run)}"
        )
    return error


def way_on(run: RunDirectory) -> str:
    """How a run that ended early is taken up again, as things are."""
    latest = run.latest()
    if latest is None:
        return "no checkpoint was written yet: the same command with --resume begins again"
    return f"the newest checkpoint is {latest}: go on from it with --resume"


def state_bytes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Bytes that a run's state takes at least: of all processes together, and those that this one writes."""
    whole = sum(_TENSOR_BYTES + tensor.numel() * tensor.element_size() for tensor in state.values())
    parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in state.values()]
    return whole, sum(_TENSOR_BYTES + part.numel() * part.element_size() for part in parts if part.numel())


def check_room(path: Path, whole: int, largest_file: int) -> None:
    """Raises OSError where a checkpoint cannot be written to `path`.

    whole: bytes of all of its tensors. largest_file: of those in the largest file that this process writes.
    """
    free = shutil.disk_usage(path).free
    if whole > free:
        raise OSError(
            f"{path}: a checkpoint takes at least {_size(whole)}, and {_size(free)} are free there; make room, or "
            "choose another --out"
        )
    limit = _file_limit()
    if limit is not None and largest_file > limit:
        raise OSError(
            f"{path}: a checkpoint has a file of at least {_size(largest_file)}, and this process may write files of "
            f"{_size(limit)} at most; raise the limit (ulimit -f)"
        )


def _is_full(error: OSError) -> bool:
    """By its number, or by its words where it comes from another process or library."""
    return error.errno in _FULL or any(os.strerror(number) in str(error) for number in _FULL)


def _file_limit() -> int | None:
    """Bytes that a file of this process may have; None for any number."""
    try:
        import resource
    except ImportError:  # no Unix
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def _limit() -> str:
    limit = _file_limit()
    return "" if limit is None else f" (files of {_size(limit)} at most: ulimit -f)"


def _size(num_bytes: int) -> str:
    value, unit = float(num_bytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.4g} {unit}"
