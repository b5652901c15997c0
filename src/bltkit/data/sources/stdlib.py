"""The running Python's standard library: source text and documentation that every user already has.

The default corpus: no download. `pydoc_data/topics.py` (0.7 MB of English prose) is part of it as it stands.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bltkit.data.sources.source import Document, Faults, Input, SourceConfig, stat_inputs

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
# Written by the installation and not by Python's authors: build flags and paths of one machine.
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize.py", "usercustomize.py")


class StdlibSource(SourceConfig):
    """Every `*.py` of the standard library but its tests and what an installation adds, sorted by name."""

    kind: Literal["stdlib"] = "stdlib"

    @property
    def label(self) -> str:
        return "stdlib"

    def inputs(self) -> tuple[Input, ...] | None:
        root, names = _library()
        return stat_inputs(root / name for name in names)

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        root, names = _library()
        for name in names:
            yield Document(name, (root / name).read_bytes())


def _library() -> tuple[Path, list[str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(_names(root))
    if not names:
        raise ValueError(
            f"data source stdlib: no *.py below {root} (a Python without its library's source text); "
            "name files of your own instead"
        )
    return root, names


def _names(root: Path) -> Iterator[str]:
    """Names relative to `root`, with forward slashes on every system."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for file in files:
            if file.endswith(".py") and not file.startswith(_SKIPPED_FILES):
                yield (Path(folder) / file).relative_to(root).as_posix()
