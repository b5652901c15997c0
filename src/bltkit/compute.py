"""Where a computation runs: the device, and how many threads of the CPU.

torch is imported where it is needed, so that the command line can ask for bounds without it.
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Work = Literal["sequence", "rows"]
"""One sequence, byte after byte; or rows of text, whose matrix products are large."""

DEVICES = "auto, cpu, cuda, cuda:N or mps"

SMALL = 20_000_000
"""Weights of a model whose single steps a CPU finishes in the time that a GPU takes to launch its kernels."""

WEIGHTS_PER_THREAD = 16_000_000
"""A thread more pays where it has at least this to read: 64 MB in fp32, some milliseconds, against the 50 microseconds
of waiting for one another."""

SPINS = "1000"
"""Rounds that a thread of OpenMP waits actively for the next task. The library's 300,000 hold a core for a millisecond
that other processes need, and these then hold up the thread that everybody waits for."""


def available_cores() -> int:
    """Cores that this process may use: those of its affinity, no more than its control group's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def most_threads() -> int:
    """The largest number of threads or worker processes that may be asked for on this machine."""
    return max(16, 4 * (os.cpu_count() or 1))


def check_threads(count: int, name: str, least: int = 1) -> int:
    """`count`, if this machine can run so many. name: of the option or field, for the message.

    Raises ValueError otherwise: torch itself overflows, or takes the process down.
    """
    if not least <= count <= most_threads():
        cores = os.cpu_count() or 1
        raise ValueError(
            f"{name} = {count}: use {least} to {most_threads()} on this machine of {cores} core{'s' * (cores > 1)}"
        )
    return count


def default_threads(num_weights: int, work: Work) -> int:
    """Threads for a model of so many weights. What the environment says about threads is the user's word."""
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        import torch

        return torch.get_num_threads()
    cores = available_cores()
    return cores if work == "rows" else max(1, min(cores, num_weights // WEIGHTS_PER_THREAD))


def share_cores() -> None:
    """Let waiting threads give up their core, where the user has not said how they wait. Before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def device_of(name: "str | torch.device", where: str = "device", *, small: bool = False) -> "torch.device":
    """A device by its name: `auto` is CUDA, else MPS, else the CPU; of a `small` model the CPU.

    where: option or field, for the message. Raises ValueError where it is no device, or not there.
    """
    import torch

    if not isinstance(name, str):
        name = str(name)
    if name == "auto":
        if small:
            return torch.device("cpu")
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{where} = {name!r} is no device; use {DEVICES}") from None
    why = None
    if device.type == "meta":
        why = "nothing is computed there"
    elif device.type == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        why = "this machine has no MPS"
    else:
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such number, or another backend
            why = (str(error).splitlines() or [type(error).__name__])[0].removeprefix("CUDA error: ")
    raise ValueError(f"{where} = {name!r}, but {why}; use cpu or auto")


def _quota() -> float:
    """Cores by the quota of the control group (version 2, then 1); infinite where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text(encoding="ascii")
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text(encoding="ascii")
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf


def threads_used() -> str:
    """For a line that tells about a run: `1 thread`, `8 threads`."""
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"


def free_memory(device: "torch.device") -> int | None:
    """Bytes of memory that are free on a device; None where the system does not say."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    return min(free, _left_of_group())


def _left_of_group(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the control group may still take; cached files do not count, as the system drops them first."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            left = int((root / limit).read_text(encoding="ascii")) - int((root / used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such group, or "max"
            continue
        try:
            rows = dict(line.split() for line in (root / stat).read_text(encoding="ascii").splitlines())
            return left + sum(int(rows.get(name, 0)) for name in ("inactive_file", "active_file"))
        except (OSError, ValueError):
            return left
    return 2**62
