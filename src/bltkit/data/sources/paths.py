"""Paths and globs as a user writes them -> files in a fixed order. Shared by the sources that read files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field

from bltkit.data.sources.source import Input, SourceConfig, stat_inputs
from bltkit.files import is_file_or_dangling

_GLOB = frozenset("*?[")

Paths = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""A path or glob, or a list of them. `**` goes through folders, `~` is the home folder."""


class FileSource(SourceConfig):
    """What sources that read files share."""

    example_files: ClassVar[Mapping[str, bytes]] = {}
    """A small data set, for the contract tests: file name -> content."""

    paths: Paths
    """Files, folders or globs."""

    @classmethod
    def example(cls, folder: Path) -> Self:
        """A source of the `example_files`."""
        if not cls.example_files:
            return super().example(folder)
        for name, data in cls.example_files.items():
            (folder / name).write_bytes(data)
        return cls(paths=tuple(str(folder / name) for name in cls.example_files))

    @property
    def label(self) -> str:
        return ", ".join(self.paths)

    def inputs(self) -> tuple[Input, ...] | None:
        return stat_inputs(expand(self.paths))


def expand(paths: Sequence[str]) -> tuple[Path, ...]:
    """The files that `paths` name: in the order given, a glob's matches sorted, each file once.

    A link that leads nowhere is among them: the source that cannot read it counts it. Folders, pipes and sockets that a
    glob matches are not.

    Raises `ValueError` for a path that does not exist, a folder, or a glob without a match.
    """
    files: dict[Path, None] = {}
    for entry in paths:
        path = Path(entry).expanduser()
        if path.is_dir():
            raise ValueError(f"data source: {entry} is a folder; name its files, for example {entry.rstrip('/')}/*.txt")
        if path.exists() or path.is_symlink():
            # Before the glob: a file may have brackets in its name. Not is_file: a pipe may be read, and a link that
            # leads nowhere is a file that cannot.
            files[path] = None
            continue
        if not _GLOB & set(entry):
            raise ValueError(f"data source: {entry} does not exist; paths are relative to {Path.cwd()}")
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        matches = [match for match in matches if is_file_or_dangling(match)]
        if not matches:
            raise ValueError(f"data source: {entry} matches no file; paths are relative to {Path.cwd()}")
        files.update(dict.fromkeys(matches))
    return tuple(files)
