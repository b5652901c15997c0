"""The sandbox as its user sees it: a program in, an outcome out; and the refusal where the kernel does not permit it.

Each run is a process of its own (`inside/launcher.py`) in new user, pid, mount, network, ipc and uts namespaces, with a
filter of system calls and limits on time, memory, processes and files. It is asked and watched through pipes. There is
no way around it: a run whose sandbox cannot be built raises, and the program is not started.

What it does not promise: the program and its tests share an interpreter, so that a program which goes for its own
tests (answers equal to everything, a search of its caller's frames) can pass without solving anything. It cannot do
so by leaving early, printing or closing things.
"""

import os
import platform
import re
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bltkit.compute import check_threads
from bltkit.eval.sandbox.inside import syscalls
from bltkit.eval.sandbox.run import Heard, attend
from bltkit.eval.sandbox.sandbox_limits import ProgramOutcome, SandboxLimits

KERNEL = (5, 14)
"""The first whose limit on processes counts within a user namespace, not over all of a user's processes."""
SETTINGS = {
    "user/max_user_namespaces": ("0", "user.max_user_namespaces=10000"),
    "user/max_pid_namespaces": ("0", "user.max_pid_namespaces=10000"),
    "user/max_net_namespaces": ("0", "user.max_net_namespaces=10000"),
    "user/max_mnt_namespaces": ("0", "user.max_mnt_namespaces=10000"),
    "kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "kernel.apparmor_restrict_unprivileged_userns=0"),
}
"""Settings under /proc/sys that forbid: their value then, and the one that permits."""


@dataclass(frozen=True)
class Sandbox:
    """Where programs run. Made by `open`, which tries it."""

    limits: SandboxLimits = field(default_factory=SandboxLimits)

    @classmethod
    def open(cls, limits: SandboxLimits | None = None) -> "Sandbox":
        """A sandbox that was tried: a harmless program has looked at its protection from inside.

        Raises ValueError, in one line, with the kernel's reason and the remedy.
        """
        sandbox = cls(limits or SandboxLimits())
        look = Path(__file__).with_name("inside") / "look.py"
        outcome = sandbox.run(look.read_text(encoding="utf-8"), f"look({sandbox.limits.processes})")
        if not outcome.passed:
            raise _refusal(f"a trial run failed ({outcome.reason})")
        return sandbox

    def run(self, code: str, tests: str = "") -> ProgramOutcome:
        """Executes `code` and then `tests`, in the same module, with nothing on standard input.

        Each is compiled for itself, so that code which ends in an open bracket or string cannot swallow its tests.
        Raises ValueError where the sandbox cannot be built.
        """
        if reason := _unsupported():
            raise _refusal(reason)
        token = secrets.token_hex(16).encode()
        parts = [part.encode("utf-8", "replace") for part in (code, tests)]
        head = b" ".join([token, *(str(len(part)).encode() for part in parts)])
        heard = attend(self.limits, head + b"\n" + b"".join(parts))
        return _outcome(heard, token, self.limits)

    def run_all(self, programs: Sequence[tuple[str, str]], workers: int | None = None) -> list[ProgramOutcome]:
        """Outcomes of (code, tests), in their order; `workers` at a time, by default one a processor."""
        if not programs:
            return []
        if workers is not None:
            check_threads(workers, "workers")
        with ThreadPoolExecutor(min(workers or os.cpu_count() or 1, len(programs))) as pool:
            return list(pool.map(lambda program: self.run(*program), programs))


def _outcome(heard: Heard, token: bytes, limits: SandboxLimits) -> ProgramOutcome:
    lines = [line.split("\t") for line in heard.status.splitlines()]
    for kind, *rest in lines:
        if kind == "refused":
            step, number = rest
            why = f" ({os.strerror(int(number))})" if int(number) else ""
            raise _refusal(f"the kernel refuses {step}{why}")
    if ["ready"] not in lines:
        raise _refusal(f"the launcher ended without a word ({' '.join(heard.stderr[-200:].split()) or 'no message'})")
    ended = next((rest for kind, *rest in lines if kind == "ended"), None)
    stdout, stderr = heard.stdout, heard.stderr

    def failed(reason: str, status: int | None = None, timed_out: bool = False) -> ProgramOutcome:
        line = "".join(one if one.isprintable() else "?" for one in " ".join(reason.split()))
        return ProgramOutcome(False, status, timed_out, line, stdout, stderr)

    if heard.flooded:
        return failed(f"wrote more than {limits.output_bytes} bytes")
    if ended is None:
        return failed("the sandbox was ended from outside, perhaps for want of memory")
    why, status = ended[0], int(ended[1])
    if why == "time":
        return failed(
            f"ran out of time ({limits.cpu_seconds} s of a processor, {limits.wall_seconds} s in all)", timed_out=True
        )
    if why == "memory":
        return failed(f"used more than {limits.memory_bytes} bytes of memory")
    if why == "itself" and status == 0 and heard.result == token:
        return ProgramOutcome(True, 0, False, "", stdout, stderr)
    if heard.result.startswith(b"raised "):
        return failed(heard.result.decode("utf-8", "replace"), status)
    return failed(f"ended before its end, with status {status}", status)


def _unsupported() -> str:
    """Why this machine cannot have a sandbox at all; empty where the kernel has to be asked."""
    if sys.platform != "linux":
        return f"this system is {platform.system() or sys.platform}, and a sandbox needs Linux"
    system = os.uname()
    if system.machine not in syscalls.MACHINES:
        return f"no filter of system calls for this machine ({system.machine}; known: {', '.join(syscalls.MACHINES)})"
    version = tuple(int(number) for number in re.findall(r"\d+", system.release)[:2])
    if version < KERNEL:
        return f"Linux {system.release} is too old; a sandbox needs 5.14 or newer"
    return ""


def _refusal(reason: str) -> ValueError:
    if _unsupported():
        remedy = "evaluate these tasks on Linux 5.14 or newer, x86_64 or aarch64"
    elif forbidden := _forbidding(Path("/proc/sys")):
        remedy = f"the settings of this system forbid it: as root, sysctl -w {' '.join(forbidden)}"
    else:
        remedy = (
            "use a Linux that lets this user make user namespaces (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns); in a container, one "
            "whose seccomp profile permits unshare and mount and whose /proc is not masked; as root, a system that has "
            "a user 65534, and a Python that this user may read and execute"
        )
    return ValueError(f"sandbox: {reason}; a model's programs are never run without one. Remedy: {remedy}")


def _forbidding(folder: Path) -> list[str]:
    """Of the settings that forbid, those in force, as they would have to be."""
    found = []
    for name, (value, wanted) in SETTINGS.items():
        try:
            if (folder / name).read_text(encoding="ascii").strip() == value:
                found.append(wanted)
        except OSError:
            continue  # this kernel has no such setting
    return found
