"""Runs programs in the sandbox as the user of the tests, and as a user without rights where that user is root."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bltkit.eval.sandbox import ProgramOutcome, Sandbox, SandboxLimits

NOBODY = 65534
SOURCE = Path(__file__).resolve().parents[1] / "src" / "bltkit"
# The package without what stands beside it, which needs more than the standard library.
IMPORT = """
import json, sys, types
for name, path in (("bltkit", ""), ("bltkit.eval", "/eval")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + path]
from bltkit.eval.sandbox import Sandbox, SandboxLimits
"""
RUN = """
from dataclasses import asdict
limits, code, tests = json.loads(sys.stdin.read())
print(json.dumps(asdict(Sandbox(SandboxLimits(**limits)).run(code, tests))))
"""

# In front of a program: `refused(act, values...)` wants `act` to raise.
REFUSED = """
def refused(act, *values, kind=OSError):
    try:
        act(*values)
    except kind:
        return
    raise AssertionError(f"{act} {values}: was permitted")
"""

Run = Callable[..., ProgramOutcome]


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def own_run(code: str, tests: str = "", **limits: int) -> ProgramOutcome:
    return Sandbox(SandboxLimits(**limits)).run(code, tests)


def nobodys_run(code: str, tests: str = "", **limits: int) -> ProgramOutcome:
    message = json.dumps([limits, code, tests])
    done = as_nobody(RUN, message)
    assert done.returncode == 0, done.stderr
    return ProgramOutcome(**json.loads(done.stdout))


def as_nobody(script: str, message: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs `script` behind `IMPORT`."""
    command = [str(readable_interpreter()), "-B", "-c", IMPORT + script, str(SOURCE)]
    return subprocess.run(
        command, input=message, capture_output=True, text=True, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/"
    )


def readable_interpreter() -> Path | None:
    """One that every user may start: this one, or the system's; None where there is none of a version we support."""
    for path in (Path(sys.executable).resolve(), Path("/usr/bin/python3")):
        command = [str(path), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, cwd="/")
        except OSError:
            continue
        if done.returncode == 0:
            return path
    return None


def refusal() -> str:
    """Why this machine has no sandbox; empty where it has one."""
    try:
        Sandbox.open()
    except ValueError as error:
        return str(error)
    return ""


def running_with(mark: str) -> list[int]:
    """Processes of this system whose command line holds `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


_barred = "" if is_root() else "only root can become another user"
if is_root() and readable_interpreter() is None:
    _barred = "no interpreter that another user may start"
as_each_user = pytest.mark.parametrize(
    "run",
    [own_run, pytest.param(nobodys_run, marks=pytest.mark.skipif(bool(_barred), reason=_barred))],
    ids=["own user", "nobody"],
)
"""For tests of a `run: Run`."""
