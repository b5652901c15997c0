"""Builds the sandbox around itself, starts the driver in it, watches over it: a process of its own for each run.

    launcher (outside)        makes the namespaces, waits
      `- warden, pid 1        builds the file system, gives up all rights, watches time and memory
           `- driver          limits, then a fresh interpreter with the program; its children

When the warden leaves, for whatever reason, the kernel kills everything in its pid namespace. It leaves when the driver
has ended, when a limit is reached, and when the pipe `life` is closed, which also happens when its asker is killed.
"""

import contextlib
import fcntl
import os
import resource
import select
import signal
import sys
import time
from typing import NoReturn

from . import kernel, syscalls
from .kernel import KernelRefused, doing

NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)
FOLDER = "/tmp"
"""The work folder inside; also where the new root is mounted before it becomes the root."""
INSIDE_ID, NOBODY = 1000, 65534
"""User and group inside; what that is outside where the asker is root (a limit on processes does not bind root)."""
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
"""All of it. Hashes are fixed so that a program that depends on the order of a set ends the same way every time."""
DEVICES = ("null", "zero", "random", "urandom")
INTERVAL = 20
"""Milliseconds between two looks at the memory in use."""
REAPED = 64
"""Ended processes that are waited for between two looks, at most: no stream of them keeps the warden from looking."""

Plan = dict[str, int]


def main(arguments: list[str]) -> NoReturn:
    """`arguments`: NAME=INTEGER each: descriptors (life, status, result) and limits, as `Sandbox` writes them.

    Lines on `status` say how it goes: `ready`, `ended WHY STATUS` (WHY: itself, time, memory, life), or
    `refused STEP ERRNO` where the sandbox cannot be built; separated by tabs.
    """
    plan: Plan = {name: int(value) for name, _, value in (one.partition("=") for one in arguments)}
    os.umask(0o022)
    try:
        # Out of the way of the driver's descriptors, and closed on exec; what they were before may have any number.
        for name in ("life", "status", "result"):
            given = plan[name]
            with doing("using 67 file descriptors"):
                plan[name] = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 64)
            os.close(given)
        os.closerange(3, 64)
        with doing("reading the driver"):
            driver = _read(os.path.join(os.path.dirname(__file__), "driver.py"))
        ids = _new_namespaces()
        with doing("starting the first process of a pid namespace"):
            warden = os.fork()
        if warden == 0:
            _warden(plan, driver, ids)
        # The driver's ends must be the only ones, or nobody sees them close.
        os.closerange(0, plan["status"])
        os.closerange(plan["status"] + 1, plan["status"] + 64)
        os.waitpid(warden, 0)
        os._exit(0)
    except KernelRefused as refused:
        _leave(plan, f"refused\t{refused.step}\t{refused.number}")


def _leave(plan: Plan, message: str) -> NoReturn:
    try:
        os.write(plan["status"], message.encode() + b"\n")
    finally:
        os._exit(1)


def _new_namespaces() -> bool:
    """Unshare, and map the users. Returns whether the asker is root, who then has to become somebody else."""
    user, group, me = os.geteuid(), os.getegid(), os.getpid()
    root = user == 0
    if root:
        # A map of two users has to be written from outside, so by a child that stays there.
        ready, go = os.pipe()
        with doing("starting a process"):
            writer = os.fork()
        if writer == 0:
            os.close(go)
            if os.read(ready, 1) == b"":
                os._exit(1)  # refused, and gone
            try:
                for name in ("uid_map", "gid_map"):
                    _write(f"/proc/{me}/{name}", f"0 0 1\n{INSIDE_ID} {NOBODY} 1\n")
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 1)
        kernel.unshare(NAMESPACES)
        os.write(go, b"x")
        status = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
        if status != 0:
            raise KernelRefused(f"mapping users 0 and {NOBODY} into a user namespace", abs(status))
        os.close(ready)
        os.close(go)
        return True
    kernel.unshare(NAMESPACES)
    with doing("mapping the user into a user namespace"):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{INSIDE_ID} {user} 1\n")
        _write("/proc/self/gid_map", f"{INSIDE_ID} {group} 1\n")
    return False


def _warden(plan: Plan, driver: str, root: bool) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # without handlers, no signal from inside reaches pid 1
        with contextlib.suppress(OSError):
            _write("/proc/self/oom_score_adj", "1000")  # short of memory, the machine shall kill this first
        _new_root(plan)
        kernel.set_host_name("sandbox")
        kernel.forbid_capabilities()
        if root:
            with doing(f"becoming user {NOBODY}"):
                os.setgroups([])
                os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
                os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        kernel.drop_capabilities()
        kernel.hide_from_peers()
        kernel.end_with_parent()
        kernel.filter_calls(syscalls.bpf(os.uname().machine))
        os.write(plan["status"], b"ready\n")
        with doing("starting a process inside"):
            child = os.fork()
        if child == 0:
            _driver(plan, driver)
        os.close(plan["result"])
        os.closerange(0, 3)
        _watch(plan, child)
    except KernelRefused as refused:
        _leave(plan, f"refused\t{refused.step}\t{refused.number}")
    except BaseException as error:
        _leave(plan, f"refused\tsetting up ({type(error).__name__}: {error})\t0")


def _needed() -> list[str]:
    """Directories and files of the system that the interpreter may read, outermost first."""
    libraries = [f"{prefix}/{name}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for name in _library_names()]
    system = [f"{prefix}/{name}" for prefix in ("", "/usr") for name in ("lib", "lib64")]
    store = ["/nix/store"] if sys.base_prefix.startswith("/nix/store/") else []
    files = ["/etc/ld.so.cache", "/usr/share/zoneinfo", sys.executable]
    wanted = dict.fromkeys(os.path.normpath(path) for path in (*system, *libraries, *store, *files))
    chosen: list[str] = []
    for path in sorted(wanted, key=lambda one: one.count("/")):
        if os.path.lexists(path) and not any(path.startswith(f"{parent}/") for parent in chosen):
            chosen.append(path)
    return chosen


def _library_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(("lib", sys.platlibdir)))


def _new_root(plan: Plan) -> None:
    """An empty file system in memory, with the few things that are needed bound into it, all read-only."""
    nosuid = kernel.MS_NOSUID | kernel.MS_NODEV
    needed = _needed()
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", FOLDER, "tmpfs", nosuid, "size=1m,nr_inodes=400,mode=0755")
    with doing("making the root"):
        os.mkdir(f"{FOLDER}/old", 0o755)
    kernel.pivot_root(FOLDER, f"{FOLDER}/old")
    with doing("making the root"):
        os.chdir("/")
    for path in needed:
        _bind(path, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
    for name in DEVICES:
        _bind(f"/dev/{name}", kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NOEXEC)
    with doing("making the root"):
        os.mkdir("/proc", 0o755)
        os.mkdir(FOLDER, 0o755)
    kernel.mount("proc", "/proc", "proc", nosuid | kernel.MS_NOEXEC | kernel.MS_RDONLY, "subset=pid")
    size = f"size={plan['folder_bytes']},nr_inodes={plan['files']},mode=0700,uid={INSIDE_ID},gid={INSIDE_ID}"
    kernel.mount("tmpfs", FOLDER, "tmpfs", nosuid, size)
    kernel.unmount("/old")
    with doing("making the root"):
        os.rmdir("/old")
        os.chdir(FOLDER)
    kernel.restrict("/", kernel.ATTR_RDONLY, recursive=False)


def _bind(path: str, attributes: int) -> None:
    """Show what the old root has at `path` at the same place; links stay links."""
    old = f"/old{path}"
    with doing(f"making {path}"):
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        if os.path.islink(old):
            os.symlink(os.readlink(old), path)
            return
        if os.path.isdir(old):
            os.makedirs(path, 0o755, exist_ok=True)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(old, path, "", kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict(path, attributes)


def _driver(plan: Plan, driver: str) -> NoReturn:
    """Becomes the interpreter. Limits that count per process are inherited by every process it makes."""
    try:
        with doing("limiting the program"):
            memory, cpu = plan["memory_bytes"], plan["cpu_seconds"]
            limits = {
                resource.RLIMIT_CPU: (cpu, cpu + 1),  # SIGXCPU, and a second later SIGKILL
                resource.RLIMIT_AS: (memory, memory),
                resource.RLIMIT_NPROC: (plan["processes"] + 1,) * 2,  # and the warden
                resource.RLIMIT_FSIZE: (plan["file_bytes"],) * 2,
                resource.RLIMIT_NOFILE: (plan["open_files"],) * 2,
                resource.RLIMIT_CORE: (1, 1),  # with 0, a system that pipes dumps to a helper still starts it
                resource.RLIMIT_MEMLOCK: (0, 0),
                resource.RLIMIT_MSGQUEUE: (0, 0),
            }
            for which, (low, high) in limits.items():
                soft, hard = low, high
                ceiling = resource.getrlimit(which)[1]
                if ceiling != resource.RLIM_INFINITY:
                    soft, hard = min(soft, ceiling), min(hard, ceiling)
                try:
                    resource.setrlimit(which, (soft, hard))
                except ValueError as error:
                    raise OSError(1, str(error)) from error
        with doing("starting the interpreter inside"):
            os.setsid()  # else signals to its group reach the launcher, which may have the same user
            os.dup2(plan["result"], 3, inheritable=True)
            options = ["-s", "-S", "-P", "-B", "-X", "utf8", "-c", driver]
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(sys.executable, [sys.executable, *options], ENVIRONMENT)
    except KernelRefused as refused:
        _leave(plan, f"refused\t{refused.step}\t{refused.number}")
    finally:
        os._exit(1)


def _watch(plan: Plan, child: int) -> NoReturn:
    """Wait for the driver's end or a limit; leaving ends everything inside."""
    deadline = time.monotonic() + plan["wall_milliseconds"] / 1000
    ready = select.poll()
    with doing("watching a process"):
        ready.register(os.pidfd_open(child), select.POLLIN)
    ready.register(plan["life"], 0)  # POLLHUP needs no asking
    while True:
        events = dict(ready.poll(INTERVAL))
        for _ in range(REAPED):
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == child:
                how = os.waitstatus_to_exitcode(status)
                # SIGKILL, a second later, for one that is deaf to SIGXCPU.
                late = how == -signal.SIGXCPU or (how < 0 and used.ru_utime + used.ru_stime > plan["cpu_seconds"])
                _leave(plan, f"ended\t{'time' if late else 'itself'}\t{how}")
            if pid == 0:
                break
        if plan["life"] in events:
            _leave(plan, "ended\tlife\t0")
        if time.monotonic() > deadline:
            _leave(plan, "ended\ttime\t0")
        if _memory() > plan["memory_bytes"]:
            _leave(plan, "ended\tmemory\t0")


def _memory() -> int:
    """Bytes resident in all processes inside but the warden; pages that they share count in each."""
    pages = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        if process != "1":
            with contextlib.suppress(OSError):  # it has just ended
                # Of any thread: the first shows none once it has ended, though the others go on.
                threads = os.listdir(f"/proc/{process}/task")  # empty where it ends just now
                pages += max((_resident(f"/proc/{process}/task/{thread}") for thread in threads), default=0)
    return pages * resource.getpagesize()


def _resident(thread: str) -> int:
    try:
        return int(_read(f"{thread}/statm").split()[1])
    except OSError:
        return 0


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
