"""One writer per directory: a lock that the operating system releases when its holder ends, however it ends.

The lock is `flock` on `.writer.lock`; beside it `.writer.json` names the holder (process, host, time) for messages. A
record whose lock is free was left by a process that was killed; the next writer takes over. Processes of several hosts
are kept apart where their file system passes locks on (NFS 4, Lustre mounted with `flock`).

A holder that ends by itself removes both files, the lock's while it still holds it: whoever opened that file meanwhile
sees that it is no longer the one in the directory, and opens a new one. `filelock` is no help here: some of its
versions do not look, others remove the file a second time.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bltkit.files.structured import read_json

LOCK = ".writer.lock"
HOLDER = ".writer.json"
LOCK_FILES = frozenset({LOCK, HOLDER})
"""What a lock leaves in its directory where its holder is killed."""

_HANDOVER_SECONDS = 0.5
"""How long to wait for a lock at first: its holder may be about to leave, or its file about to be replaced."""
_POLL_SECONDS = 0.02
_ORPHANS_SECONDS = 15.0
"""How long children of a killed holder may keep its lock: workers look after their parent every few seconds."""


@contextmanager
def writer_lock(directory: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold `directory` for this block alone. It is created where it is missing, and removed where that left it empty.

    A second holder in the same process is refused like one in another process.
    say: told in one line when a lock is taken over from a process that was killed.
    Raises ValueError that names the process and host that hold it, OSError where no lock can be written.
    """
    created = _missing(directory)
    try:
        lock = _acquired(directory)
    except BaseException:
        _remove_empty(created)
        raise
    holder = directory / HOLDER
    try:
        left = _read(holder)
        if left is not None:
            say(f"{directory}: taking over the lock of {_name(left)}, which did not end by itself")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        holder.write_text(json.dumps(record) + "\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        (directory / LOCK).unlink(missing_ok=True)
        os.close(lock)
        _remove_empty(created)


def holder_of(directory: Path) -> str | None:
    """The process that writes into `directory`, in words; None where none does, as far as its record tells."""
    record = _read(directory / HOLDER)
    return None if record is None or not _alive(record) else _name(record)


def _acquired(directory: Path) -> int:
    """The descriptor that holds the lock of `directory` until it is closed."""
    try:
        lock = _waited_for(directory, _HANDOVER_SECONDS)
        if lock is None:
            left = _read(directory / HOLDER)
            if left is None or _alive(left):
                raise ValueError(
                    f"{directory} is in use by {_name(left)}; wait for it, stop it, or choose another directory"
                )
            lock = _waited_for(directory, _ORPHANS_SECONDS)
        if lock is None:
            raise ValueError(
                f"{directory} is in use by children of {_name(left)}, which has ended; stop them and try again"
            )
    except OSError as error:
        raise OSError(
            f"{directory} cannot be locked for writing ({error.strerror or error}); choose a directory that this user "
            "may write, on a file system with locks"
        ) from None
    return lock


def _waited_for(directory: Path, seconds: float) -> int | None:
    """The lock of `directory`, which is made where it is missing; None where others hold it for so long."""
    deadline = time.monotonic() + seconds
    while True:
        leaving = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _locked(directory / LOCK)
            if lock is not None:
                return lock
        except (FileNotFoundError, FileExistsError) as error:  # a holder that leaves has removed it in between
            leaving = error
        if time.monotonic() > deadline:
            if leaving is not None:
                raise leaving
            return None
        time.sleep(_POLL_SECONDS)


def _locked(path: Path) -> int | None:
    """A descriptor of `path` with its lock; None where another one has it, or has removed the file."""
    try:
        import fcntl
    except ImportError:
        raise OSError("this system has no flock") from None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):  # then nobody can hold it
            path.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    return None


def _missing(directory: Path) -> list[Path]:
    """The directories that `mkdir` has to make for it, innermost first."""
    missing = []
    while not directory.exists() and directory != directory.parent:
        missing.append(directory)
        directory = directory.parent
    return missing


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # something lies in it, which makes it worth keeping
            return


def _read(holder: Path) -> dict[str, object] | None:
    try:
        record = read_json(holder)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _name(record: dict[str, object] | None) -> str:
    if record is None:
        return "another process"
    return f"process {record.get('pid')} on {record.get('host')} (since {record.get('since')})"


def _alive(record: dict[str, object]) -> bool:
    """True also where nobody can tell: the process is on another host, or its number is unreadable."""
    pid = record.get("pid")
    if record.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
