"""Linux calls that Python 3.11 has no names for, by ctypes: namespaces, mounts, capabilities, prctl.

Each raises `KernelRefused`, which says what was being done when the kernel said no. Constants are those of its uapi
headers.
"""

import ctypes
import errno
import functools
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWTIME, CLONE_NEWCGROUP = 0x80, 0x02000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class KernelRefused(Exception):
    """The kernel does not permit a step. number: its errno."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step, self.number = step, number


@contextmanager
def doing(step: str) -> Iterator[None]:
    """Turns an OSError of Python's own calls into `KernelRefused`."""
    try:
        yield
    except OSError as error:
        raise KernelRefused(step, error.errno or errno.EIO) from error


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones (a new pid namespace holds the children only)."""
    _check("making namespaces", _libc().unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2); `kind` is empty for binds and changes of propagation."""
    result = _libc().mount(
        os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(f"mounting {kind or source} on {target}", result)


def restrict(target: str, attributes: int, recursive: bool = True) -> None:
    """Set attributes of a mount, and of those below it (mount_setattr; Linux 5.12)."""
    data = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    result = _libc().syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(flags),
        data,
        ctypes.c_size_t(len(data)),
    )
    _check(f"restricting the mount {target}", result)


def pivot_root(new: str, old: str) -> None:
    """`new` becomes the root of the file system, what was the root is found at `old`."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check("changing the root", _libc().syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old)))


def unmount(target: str) -> None:
    """Detach a mount and all below it."""
    _check(f"unmounting {target}", _libc().umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)))


def set_host_name(name: str) -> None:
    """Of this uts namespace."""
    _check("naming the host", _libc().sethostname(name.encode(), ctypes.c_size_t(len(name))))


def forbid_capabilities() -> None:
    """Give up the means to get a capability by executing a file; needs one itself."""
    _check("dropping ambient capabilities", _prctl(_PR_CAP_AMBIENT, 4))  # PR_CAP_AMBIENT_CLEAR_ALL
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                break  # behind the last one this kernel knows
            _check("dropping the bounding set", -1)
    _check("forbidding new privileges", _prctl(_PR_SET_NO_NEW_PRIVS, 1))


def drop_capabilities() -> None:
    """Give up every capability."""
    header, data = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # _LINUX_CAPABILITY_VERSION_3
    _check("dropping capabilities", _libc().capset(header, data))


def hide_from_peers() -> None:
    """No process of the same user may trace this one or read its memory."""
    _check("becoming undumpable", _prctl(_PR_SET_DUMPABLE, 0))


def end_with_parent() -> None:
    """SIGKILL when the parent ends. A later change of user would undo it."""
    _check("ending with the parent", _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))


def filter_calls(code: bytes) -> None:
    """Install a seccomp filter: classic BPF instructions of 8 bytes each."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    _check("filtering system calls", _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(program)))  # SECCOMP_MODE_FILTER


def _prctl(option: int, *values: int) -> int:
    numbers = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return int(_libc().prctl(ctypes.c_int(option), *numbers))


def _check(step: str, result: int) -> None:
    if result < 0:
        raise KernelRefused(step, ctypes.get_errno())


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
