"""Full disks: errors that name what was written, how much of it there is and how much room is left."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


@contextmanager
def needs_space(path: Path, num_bytes: int, *, ask_first: bool = True) -> Iterator[None]:
    """Writing of `num_bytes` bytes to `path`, a file or a directory. ask_first: False where some are written already.

    Raises OSError (ENOSPC) in front of the block where the file system has less room than that, and gives a full disk,
    quota or limit on file sizes inside of it a message with path and size; `errno` stays.
    """
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    if ask_first and num_bytes > free:
        raise OSError(errno.ENOSPC, _message(path, num_bytes, free, errno.ENOSPC))
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(error.errno, _message(path, num_bytes, free, error.errno)) from error


def _message(path: Path, num_bytes: int, free: int, number: int) -> str:
    return f"{os.strerror(number)}: {path} needs {num_bytes:,} bytes, {free:,} are free; make room or write elsewhere"
