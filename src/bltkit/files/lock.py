"""One writer per directory: a lock that the operating system releases when its holder ends, however it ends.

The lock is `flock` on `.writer.lock`; beside it `.writer.json` names the holder (process, host, time) for messages. A
record whose lock is free was left by a process that was killed; the next writer takes over. Processes of several hosts
are kept apart where their file system passes locks on (NFS 4, Lustre mounted with `flock`).
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".writer.lock"
HOLDER = ".writer.json"
LOCK_FILES = frozenset({LOCK, HOLDER})
"""What a lock leaves in its directory."""

_ORPHANS_SECONDS = 15.0
"""How long children of a killed holder may keep its lock: workers look after their parent every few seconds."""


@contextmanager
def writer_lock(directory: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold `directory`, which is created where it is missing, for this process alone.

    say: told in one line when a lock is taken over from a process that was killed.
    Raises ValueError that names the process and host that hold it, OSError where no lock can be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(directory / LOCK), directory / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        left = _read(holder)
        if left is None or _alive(left):
            raise ValueError(
                f"{directory} is in use by {_name(left)}; wait for it, stop it, or choose another directory"
            ) from None
        try:
            lock.acquire(timeout=_ORPHANS_SECONDS)
        except Timeout:
            raise ValueError(
                f"{directory} is in use by children of {_name(left)}, which has ended; stop them and try again"
            ) from None
    try:
        left = _read(holder)
        if left is not None:
            say(f"{directory}: taking over the lock of {_name(left)}, which did not end by itself")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        holder.write_text(json.dumps(record) + "\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> dict[str, object] | None:
    try:
        record = json.loads(holder.read_text(encoding="utf-8"))
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
    if record.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
