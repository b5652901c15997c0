"""The system calls that a program in the sandbox is refused: a seccomp filter as classic BPF.

Namespaces hide files, processes and networks, and limits bound what is counted by process. This closes what is left:
memory that no process's limit counts (System V and POSIX queues and segments, memfd, io_uring, keys, data on its way
to a socket that nobody reads), namespaces and mounts of one's own, tracing of others, setting limits and priorities of
others (the warden has the same user), watching files that processes outside use, and a number of calls that no program
needs but through which kernels were attacked. All other calls stay as they are.
"""

import errno
import struct

# name: (x86_64, aarch64)
REFUSED = {
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "vmsplice": (278, 75),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "socket": (41, 198),
    "setsockopt": (54, 208),
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}
REFUSED_X86_64 = {"inotify_init": 253, "modify_ldt": 154}
"""Those that the other machine never had."""
CLONE = (56, 220)
CLONE3 = (435, 435)
PRLIMIT = (302, 261)
"""Of this process alone."""
SOCKETPAIR = (53, 199)
"""Streams of AF_UNIX alone (event loops wake themselves by one): bound by their number and by the buffer of each."""
NAMESPACES = 0x7E020080
"""Every CLONE_NEW flag."""
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of the machines whose numbers stand above."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets into struct seccomp_data (little-endian: low half first).
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24


def bpf(machine: str) -> bytes:
    """The filter for a machine (`os.uname().machine`), 8 bytes an instruction."""
    column = list(MACHINES).index(machine)
    code = [
        _op(_LOAD, _ARCHITECTURE),
        *_unless(_EQUAL, MACHINES[machine], _KILL),  # 32-bit calls have other numbers
        _op(_LOAD, _NUMBER),
        *_when(_AT_LEAST, 0x40000000, _ERROR | errno.ENOSYS),  # the x32 calls beside x86_64's
        *_when(_EQUAL, CLONE3[column], _ERROR | errno.ENOSYS),  # flags in memory: the C library falls back to clone
    ]
    for number in refused(machine):
        code += _when(_EQUAL, number, _ERROR | errno.EPERM)
    code += _of(CLONE[column], [_op(_LOAD, _FIRST_ARGUMENT), *_when(_ANY_BIT, NAMESPACES, _ERROR | errno.EPERM)])
    code += _of(PRLIMIT[column], [_op(_LOAD, _FIRST_ARGUMENT), *_unless(_EQUAL, 0, _ERROR | errno.EPERM)])
    code += _of(
        SOCKETPAIR[column],
        [
            _op(_LOAD, _FIRST_ARGUMENT),
            *_unless(_EQUAL, 1, _ERROR | errno.EAFNOSUPPORT),
            _op(_LOAD, _SECOND_ARGUMENT),
            *_when(_ANY_BIT, 0xE, _ERROR | errno.EPERM),  # SOCK_STREAM is 1; flags are higher bits
        ],
    )
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def refused(machine: str) -> list[int]:
    """Numbers of the calls that are refused whatever their arguments."""
    column = list(MACHINES).index(machine)
    numbers = [pair[column] for pair in REFUSED.values()]
    return numbers + list(REFUSED_X86_64.values()) if machine == "x86_64" else numbers


def _of(number: int, checks: list[bytes]) -> list[bytes]:
    """`checks` for that call alone; then the call is permitted."""
    return [_op(_EQUAL, number, 0, len(checks) + 1), *checks, _op(_RETURN, _ALLOW)]


def _op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _when(test: int, value: int, result: int) -> list[bytes]:
    return [_op(test, value, 0, 1), _op(_RETURN, result)]


def _unless(test: int, value: int, result: int) -> list[bytes]:
    return [_op(test, value, 1, 0), _op(_RETURN, result)]
