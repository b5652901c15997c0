"""The sandbox's walls under attack: files, network, environment, processes outside, and the kernel's own calls."""

import resource
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandboxes import NOBODY, REFUSED, Run, as_each_user, is_root, refusal

REFUSAL = refusal()
pytestmark = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the user that the program has outside."""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root() else {}
    process = subprocess.Popen(["sleep", "100"], **user)
    yield process
    process.kill()
    process.wait()


@as_each_user
def test_nothing_outside_its_folder_can_be_written(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("as it was")
    target.chmod(0o666)
    code = (
        REFUSED
        + f"""
import os, sys
for path in ("/", "/usr", "/usr/lib", "/dev", "/proc", "/proc/self", "/etc", os.path.dirname(os.__file__)):
    refused(open, os.path.join(path, "new"), "w")
    refused(os.mkdir, os.path.join(path, "new"))
for path in (os.__file__, sys.executable, {str(target)!r}):
    refused(open, path, "a")
    refused(os.chmod, path, 0o777)
    refused(os.unlink, path)
refused(open, "/proc/self/oom_score_adj", "w")
refused(os.mknod, "device", 0o60600, 0)
refused(os.chown, ".", 0, 0)
open("mine", "w").write("here it may")
"""
    )
    outcome = run(code)
    assert outcome.passed, outcome.reason
    assert target.read_text() == "as it was"
    assert not Path("/tmp/mine").exists()


@as_each_user
def test_no_file_of_the_system_or_of_the_user_can_be_read(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert Path("/etc/passwd").exists()
    code = (
        REFUSED
        + f"""
import os
for path in ("/etc/passwd", "/etc/hostname", "/etc/resolv.conf", "/var", "/sys", "/home", "/old", "/bin/sh",
             {str(secret)!r}, {__file__!r}, "/proc/cpuinfo", "/proc/sys", "/proc/kcore", "/dev/mem", "/dev/sda"):
    for way in ("", "/proc/1/root", "/proc/self/root", "../../../.."):
        refused(os.stat, way + path)
for name in ("mem", "environ", "maps", "cwd", "fd", "root"):
    refused(lambda: os.listdir(f"/proc/1/{{name}}") or open(f"/proc/1/{{name}}").read())
assert os.listdir(".") == []
assert os.getuid() == 1000 and __import__("socket").gethostname() == "sandbox"
found = set(os.listdir("/"))
assert found <= {{"usr", "lib", "lib64", "etc", "dev", "proc", "tmp", "nix", {Path(sys.base_prefix).parts[1]!r}}}, found
"""
    )
    outcome = run(code)
    assert outcome.passed, outcome.reason


@as_each_user
def test_there_is_no_network(run: Run) -> None:
    abstract = "\0" + secrets.token_hex(8)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(abstract)
        local.listen()
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()  # from here it can be reached
        server.accept()[0].close()
        server.settimeout(0.2)
        code = (
            REFUSED
            + f"""
import socket
for address in (("127.0.0.1", {port}), ("192.0.2.1", 80), ("8.8.8.8", 53)):
    refused(socket.create_connection, address, 2)
    refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", address))
refused(socket.getaddrinfo, "example.org", 80)
refused(lambda: socket.socket(socket.AF_UNIX).connect({abstract!r}))
refused(socket.socketpair()[0].connect, {abstract!r})
for family in (socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK, socket.AF_ALG):
    refused(socket.socket, family, socket.SOCK_DGRAM)
    refused(socket.socketpair, family)
"""
        )
        outcome = run(code)
        assert outcome.passed, outcome.reason
        with pytest.raises(TimeoutError):
            server.accept()


@as_each_user
def test_the_environment_cannot_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("SECRET_OF_THE_PARENT", secret)
    code = """
import glob, os, sys
print(dict(os.environ), sys.argv, sys.path)
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try:
        print(path, open(path).read())
    except OSError as error:
        print(error)
assert {name for name in os.listdir("/proc") if name.isdigit()} == {"1", str(os.getpid())}
assert set(os.environ) == {"PYTHONHASHSEED", "LC_ALL"}
"""
    outcome = run(code)
    assert outcome.passed, outcome.reason
    assert secret not in outcome.stdout + outcome.stderr and "SECRET" not in outcome.stdout


@as_each_user
def test_no_process_outside_can_be_killed(run: Run, bystander: "subprocess.Popen[bytes]") -> None:
    code = f"""
import os, signal
for number in [-1, 0, os.getppid(), 1, {bystander.pid}, *range(2, 2000)]:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP):
        if number not in (0, os.getpid()):
            try:
                os.kill(number, name)
            except ProcessLookupError:
                pass
print("alive")
"""
    outcome = run(code)
    assert outcome.passed and outcome.stdout == "alive\n", outcome.reason  # nor was the warden
    assert bystander.poll() is None


@as_each_user
def test_signals_to_its_group_stay_inside(run: Run) -> None:
    """The launcher may have the program's user, and is no part of its group."""
    code = """
import os, signal
for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(name, signal.SIG_IGN)
    os.kill(0, name)
assert os.getsid(0) == os.getpgid(0) == os.getpid()
"""
    outcome = run(code)
    assert outcome.passed, outcome.reason


@as_each_user
def test_the_warden_cannot_be_hindered(run: Run) -> None:
    """It has the program's user, and so the kernel would permit some of this."""
    code = (
        REFUSED
        + """
import ctypes, os, resource
for name in ("NOFILE", "CPU", "AS", "FSIZE", "NPROC"):
    refused(resource.prlimit, 1, getattr(resource, f"RLIMIT_{name}"), (0, 0))
    resource.prlimit(0, getattr(resource, f"RLIMIT_{name}"))
refused(os.setpriority, os.PRIO_PROCESS, 1, 19)
refused(os.setpriority, os.PRIO_USER, 0, 19)
refused(os.sched_setaffinity, 1, {0})
refused(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
assert ctypes.CDLL(None).inotify_init1(0) == -1
"""
    )
    outcome = run(code)
    assert outcome.passed, outcome.reason


@as_each_user
def test_a_crash_starts_no_helper_outside(run: Run) -> None:
    """A limit of 1 is the kernel's word for that; 0 holds for files alone."""
    ceiling = resource.getrlimit(resource.RLIMIT_CORE)[1]
    wanted = 0 if ceiling == 0 else 1
    outcome = run(f"import resource\nassert resource.getrlimit(resource.RLIMIT_CORE) == ({wanted}, {wanted})")
    assert outcome.passed, outcome.reason


@as_each_user
def test_it_cannot_trace_make_namespaces_or_lift_its_limits(run: Run) -> None:
    code = (
        REFUSED
        + """
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
for name, call in {
    "unshare": lambda: libc.unshare(0x10000000),
    "clone": lambda: libc.syscall(56 if os.uname().machine == "x86_64" else 220, 0x10000011, 0, 0, 0, 0),
    "mount": lambda: libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None),
    "umount": lambda: libc.umount2(b"/proc", 2),
    "ptrace": lambda: libc.ptrace(16, 1, 0, 0),
    "setns": lambda: libc.setns(0, 0),
    "chroot": lambda: libc.chroot(b"."),
    "io_uring": lambda: libc.syscall(425, 1, 0),
}.items():
    assert call() == -1 and ctypes.get_errno() == errno.EPERM, name
refused(os.setuid, 0)
for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE"):
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    refused(resource.setrlimit, which, (hard + 1, hard + 1), kind=ValueError)
"""
    )
    outcome = run(code)
    assert outcome.passed, outcome.reason
