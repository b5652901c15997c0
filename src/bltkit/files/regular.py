"""Regular files: the check in front of every file that is opened by a fixed name.

Opening a named pipe waits for a writer, for ever if need be, and a directory or a device fails with an error that
names neither the file nor the remedy.
"""

import errno
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: Path) -> int:
    """The size in bytes of a regular file, or of the one that a link leads to.

    Raises FileNotFoundError where nothing has that name, ValueError with one line for a link that leads nowhere and
    for whatever is no regular file, OSError where the system refuses to tell.
    """
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise ValueError(f"{path} is a link to {path.readlink()}, which is no file; restore the file") from None
        raise
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for matches, name in _KINDS if matches(status.st_mode)), "no regular file")
        raise ValueError(f"{path} is {kind}; expected a file")
    return status.st_size
