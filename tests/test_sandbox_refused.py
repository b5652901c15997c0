"""Where the kernel does not permit a sandbox nothing is run; and the parts of the sandbox that need no kernel."""

import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from bltkit.eval.sandbox import Sandbox, SandboxLimits, run, sandbox
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
    monkeypatch.setattr(run, "START", "raise SystemExit('broken\\nfor ever')")
    with pytest.raises(ValueError, match=r"without a word .broken for ever\)"):
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
    asker, family = long_run()
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    assert not left_of(family)


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_the_launcher_may_be_killed_and_nothing_is_left() -> None:
    asker, family = long_run()
    launcher = min(descendants(asker.pid))
    assert b"inside.launcher" in Path(f"/proc/{launcher}/cmdline").read_bytes()
    os.kill(launcher, signal.SIGKILL)
    left = left_of(family)
    asker.kill()
    asker.wait()
    assert not left


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_many_at_once_come_back_in_order() -> None:
    programs = [(f"print({number})", f"assert {number} % 3") for number in range(9)]
    outcomes = Sandbox.open().run_all(programs, workers=3)
    assert [outcome.passed for outcome in outcomes] == [bool(number % 3) for number in range(9)]
    assert [outcome.stdout for outcome in outcomes] == [f"{number}\n" for number in range(9)]
    assert Sandbox().run_all([]) == []


@pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
def test_descriptors_do_not_get_inside_whatever_their_numbers() -> None:
    """Those of the launcher are high where the one who asks has many."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    try:
        outcome = Sandbox().run("import os\nprint(sorted(map(int, os.listdir('/proc/self/fd'))))")
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert outcome.stdout == "[0, 1, 2, 3, 4]\n"  # 3: the result; 4: of looking


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
    refused = set(syscalls.refused(machine))
    assert len(refused) == len(syscalls.REFUSED) + (2 if machine == "x86_64" else 0)
    clone, prlimit, pair = syscalls.CLONE[column], syscalls.PRLIMIT[column], syscalls.SOCKETPAIR[column]
    assert not refused & {clone, prlimit, pair}
    code = syscalls.bpf(machine)
    for number in range(600):
        for first, second in product((0, 1, 2, 10, 16, 0x11, 0x10000011), (1, 2, 3, 5, 0x80801, 0x80802)):
            wanted = allow
            if number in refused or (number == clone and first == 0x10000011) or (number == prlimit and first != 0):
                wanted = eperm
            elif number == 435:
                wanted = enosys
            elif number == pair and first != 1:
                wanted = family
            elif number == pair and second & 0xF != 1:
                wanted = eperm
            assert interpret(code, arch, number, first, second) == wanted, (number, first, second)
    assert interpret(code, 0x40000003, 1) == 0x80000000  # 32-bit x86
    assert interpret(code, arch, 0x40000000 + 41, 1) == enosys


def interpret(code: bytes, arch: int, number: int, first: int = 0, second: int = 0) -> int:
    """Classic BPF: load, three jumps, return."""
    data = {0: number, 4: arch, 16: first, 24: second}
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
        SandboxLimits(processes=0)


def long_run() -> tuple["subprocess.Popen[bytes]", set[int]]:
    """A process that asks for a run of five minutes; and launcher, warden and driver."""
    script = IMPORT + "Sandbox(SandboxLimits(wall_seconds=300)).run('import time; time.sleep(300)')"
    asker = subprocess.Popen([sys.executable, "-c", script, str(SOURCE)])
    family: set[int] = set()
    end = time.monotonic() + 30
    while len(family) < 3 and time.monotonic() < end:
        family |= descendants(asker.pid)
        time.sleep(0.02)
    assert len(family) >= 3
    return asker, family


def left_of(family: set[int]) -> list[int]:
    """Those that do not end within half a minute."""
    end = time.monotonic() + 30
    while (left := [pid for pid in family if running(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def running(pid: int) -> bool:
    """And not ended but not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


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
