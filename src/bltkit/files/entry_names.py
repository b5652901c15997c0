"""Which entries of a directory count as files."""

from pathlib import Path


def is_file_or_dangling(path: Path) -> bool:
    """True for a regular file, and for a link that leads nowhere: a file that is there but cannot be read.

    A reader that passed over such a link in silence would lose data without a word.
    """
    return path.is_file() or (path.is_symlink() and not path.exists())
