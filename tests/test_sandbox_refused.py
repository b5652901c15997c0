"""Where the kernel does not permit a sandbox nothing is run; and the parts of the sandbox that need no kernel."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bltkit.eval.sandbox import Limits, Sandbox, run, sandbox
from bltkit.eval.sandbox.inside import syscalls
from tests.sandboxes import IMPORT, SOURCE, is_root, refusal

REFUSAL = refusal()
BECOMING = "os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)"
OPEN = (
    IMPORT
    + """
for act in (Sandbox.open, lambda: Sandbox().run("import os; os.write(2, b'it ran')")):
    try:
        act()
    except ValueError as error:
        print(error)
    else:
        sys.exit("permitted")
"""
)
# A user namespace whose root forbids further ones: what `sysctl user.max_user_namespaces=0` does to a system.
FORBID = """
import ctypes, os
outside = os.geteuid(), os.getegid()
if ctypes.CDLL(None).unshare(0x10000000) != 0:
    sys.exit("no namespace")
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {outside[0]} 1"), ("gid_map", f"0 {outside[1]} 1")):
    open(f"/proc/self/{name}", "w").write(text)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
"""


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_a_kernel_that_forbids_namespaces_is_named_and_nothing_runs() -> None:
    command = [sys.executable, "-c", f"import sys\n{FORBID}\n{OPEN}", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2  # one line each
    for line in lines:
        assert "the kernel refuses making namespaces (No space left on device)" in line
        assert "sysctl -w user.max_user_namespaces=" in line
    assert "it ran" not in done.stdout + done.stderr


@pytest.mark.parametrize(("name", "named"), [("darwin", "macOS|Darwin|Linux"), ("win32", "Windows|Linux")])
def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, named: str) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", name)
    monkeypatch.setattr(run, "_start", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match=f"this system is.*({named})"):
        Sandbox.open()
    with pytest.raises(ValueError, match="needs Linux"):
        Sandbox().run("pass")


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
@pytest.mark.parametrize(
    ("release", "machine", "message"),
    [("5.4.0-generic", "x86_64", "5.4.0-generic is too old"), ("6.1.0", "riscv64", "this machine .riscv64")],
)
def test_old_kernels_and_other_machines_are_refused(
    monkeypatch: pytest.MonkeyPatch, release: str, machine: str, message: str
) -> None:
    fields = ("Linux", "host", release, "#1", machine)
    monkeypatch.setattr(sandbox.os, "uname", lambda: os.uname_result(fields))
    with pytest.raises(ValueError, match=message):
        Sandbox.open()


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_a_launcher_that_dies_is_a_refusal_not_a_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "START", "raise SystemExit('broken')")
    with pytest.raises(ValueError, match=r"without a word .broken"):
        Sandbox().run("pass")


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("kernel.filter_calls(syscalls.bpf(os.uname().machine))", "pass", "system calls are not filtered"),
        # Root's program is held by becoming somebody else, also from writing what is root's.
        (BECOMING, "pass", "the user")
        if is_root()
        else ('kernel.restrict("/", kernel.ATTR_RDONLY, recursive=False)', "pass", "writable"),
        ("kernel.forbid_capabilities()", "pass", "capabilities|filtering system calls"),
        ("    | kernel.CLONE_NEWNET\n", "", "network"),
        ('resource.RLIMIT_NPROC: (plan["processes"] + 1,) * 2,', "", "number of processes"),
        ('kernel.unmount("/old")', "return", "visible"),
    ],
)
def test_the_trial_run_notices_each_missing_protection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str, missing: str
) -> None:
    """A launcher with one protection taken out is not good enough for `open`."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for path in (SOURCE / "eval/sandbox/inside").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "launcher.py":
            assert text.count(old) == 1
            text = text.replace(old, new)
        (inside / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(run, "START", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{run.START}")
    with pytest.raises(ValueError, match=missing):
        Sandbox.open()


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_who_asks_may_be_killed_and_nothing_is_left() -> None:
    script = IMPORT + "print('on', flush=True)\nSandbox(Limits(wall_seconds=300)).run('import time; time.sleep(300)')"
    asker = subprocess.Popen([sys.executable, "-c", script, str(SOURCE)], stdout=subprocess.PIPE)
    assert asker.stdout is not None
    asker.stdout.readline()
    family: set[int] = set()
    end = time.monotonic() + 30
    while len(family) < 3 and time.monotonic() < end:  # launcher, warden, driver
        family |= descendants(asker.pid)
        time.sleep(0.02)
    assert len(family) >= 3
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < end:
        time.sleep(0.02)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_many_at_once_come_back_in_order() -> None:
    programs = [(f"print({number})", f"assert {number} % 3") for number in range(9)]
    outcomes = Sandbox.open().run_all(programs, workers=3)
    assert [outcome.passed for outcome in outcomes] == [bool(number % 3) for number in range(9)]
    assert [outcome.stdout for outcome in outcomes] == [f"{number}\n" for number in range(9)]
    assert Sandbox().run_all([]) == []


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_runs_leave_no_descriptors_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for code in ("pass", "1 / 0", "import os\nwhile True: os.write(1, b'x' * 65536)", "x = 1\n" * 100_000):
        Sandbox().run(code)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_the_filter_refuses_what_it_names_and_nothing_else(machine: str) -> None:
    """Against an interpreter of the few instructions it uses, over all numbers."""
    column = list(syscalls.MACHINES).index(machine)
    arch = syscalls.MACHINES[machine]
    allow, eperm, enosys, family = 0x7FFF0000, 0x50001, 0x50026, 0x50061
    refused = {numbers[column] for numbers in syscalls.REFUSED.values()}
    sockets = {numbers[column] for numbers in syscalls.SOCKETS.values()}
    assert len(refused) == len(syscalls.REFUSED)
    code = syscalls.bpf(machine)
    for number in range(600):
        for argument in (0, 1, 2, 3, 10, 16, 0x11, 0x10000011):
            wanted = allow
            if number in refused or (number == syscalls.CLONE[column] and argument == 0x10000011):
                wanted = eperm
            elif number == 435:
                wanted = enosys
            elif number in sockets and argument not in (1, 2, 10):
                wanted = family
            assert interpret(code, arch, number, argument) == wanted, (number, argument)
    assert interpret(code, 0x40000003, 1, 0) == 0x80000000  # 32-bit x86
    assert interpret(code, arch, 0x40000000 + 41, 1) == enosys


def interpret(code: bytes, arch: int, number: int, argument: int) -> int:
    """Classic BPF: load, three jumps, return."""
    data = {0: number, 4: arch, 16: argument}
    at = value = 0
    while True:
        operation = int.from_bytes(code[8 * at : 8 * at + 2], "little")
        then, otherwise = code[8 * at + 2], code[8 * at + 3]
        constant = int.from_bytes(code[8 * at + 4 : 8 * at + 8], "little")
        at += 1
        if operation == 0x20:
            value = data[constant]
        elif operation == 0x06:
            return constant
        else:
            test = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            at += then if test else otherwise


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="processes = 0: must be at least 1"):
        Limits(processes=0)


def descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}
