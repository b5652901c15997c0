"""Where the items of a task come from: files of one's own, else data sets of the Hugging Face hub.

`--data DIR` holds files under the protocol's names. A row is a JSON object of a line, or a line of a table with a
header. A folder OWNER/NAME in DIR, in the hub's layout, stands for the data set of that name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bltkit.files import lines, parse_json, parse_text
from bltkit.files.compressed import SUFFIXES
from bltkit.files.hub import hub_or_cache, quiet_datasets, refuse_cut_files

Row = dict[str, Any]

ENDINGS = ("", *SUFFIXES)
"""What may follow a file's name: nothing, or the suffix of a compression."""


@dataclass(frozen=True)
class HubSet:
    """A split of a data set on the hub.

    row: its columns -> the names that our files use; None leaves a row out. revision: on the hub; a folder has none.
    """

    name: str
    split: str
    config: str | None = None
    row: Callable[[Row], Row | None] = dict
    revision: str | None = None


@dataclass(frozen=True)
class Place:
    """Directories that are searched in turn; without any, the hub. named: files that were named one by one."""

    directories: tuple[Path, ...] = ()
    named: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, directories: Sequence[str | Path]) -> "Place":
        """Raises ValueError for one that is not there."""
        found = tuple(Path(one).expanduser() for one in directories)
        for one in found:
            if not one.is_dir():
                raise ValueError(f"--data {one}: no such directory")
        return cls(found)

    def find(self, name: str) -> Path | None:
        """The file or folder of this name (`cute/spell.tsv`, `mmlu_dev.jsonl`), compressed or not; None without."""
        if name in self.named:
            return self.named[name]
        for directory in self.directories:
            for ending in ENDINGS:
                path = directory / f"{name}{ending}"
                # A link that leads nowhere is an error for who reads it, and no reason to look elsewhere.
                if path.exists() or path.is_symlink():
                    return path
        return None

    def glob(self, pattern: str) -> list[Path]:
        """Files that match, by name, from the first directory that has any."""
        for directory in self.directories:
            found = sorted({path for ending in ENDINGS for path in directory.glob(pattern + ending)})
            if found:
                return found
        return []

    def rows(self, file: str, hub: HubSet | None = None) -> Iterator[Row]:
        """The rows of a local file, or of a data set where there is no `--data`.

        Raises ValueError where neither is there, with what to do.
        """
        if (path := self.find(file)) is not None:
            return read_rows(path)
        if hub is None:
            raise ValueError(f"{file}: not found in {self}; it has no data set on the hub, so give --data DIR")
        directory = None
        if self.directories:
            directory = self.find(hub.name)
            if directory is None:
                raise ValueError(
                    f"{file}: not in {self}, nor is a folder {hub.name}; put one of them there, or leave --data out to "
                    f"take {hub.name} from the hub"
                )
        return _hub_rows(hub, directory)

    def __str__(self) -> str:
        return " or ".join(map(str, self.directories)) or "the hub"


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a `.jsonl` or `.tsv` file, compressed as well. Raises ValueError that names file and line."""
    if not unpacked_name(path).endswith(".tsv"):
        yield from (_object(line, f"{path}, line {n}") for n, line in enumerate(lines(path), 1) if line.strip())
        return
    rows = ((number, line) for number, line in read_text_lines(path) if line.strip())
    _, head = next(rows, (0, ""))
    names = head.rstrip("\r").split("\t")
    for number, line in rows:
        values = line.rstrip("\r").split("\t")
        if len(values) > len(names):
            raise ValueError(f"{path}, line {number}: {len(values)} columns, but the header names {len(names)}")
        yield dict.fromkeys(names) | dict(zip(names, values, strict=False))


def read_text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 file, compressed as well; only \\n ends a line.

    Raises ValueError that names file and line for what cannot be read.
    """
    for number, line in enumerate(lines(path), 1):
        try:
            text = parse_text(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; the file is broken, fetch it again") from None
        yield number, text


def unpacked_name(path: Path) -> str:
    """A file's name without the suffix of a compression."""
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def _object(line: bytes, where: str) -> Row:
    try:
        row = parse_json(line, where, finite=True)
    except ValueError as error:
        raise ValueError(f"{error}; correct or remove the line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object; correct or remove the line")
    return row


def needed(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises ValueError where a row lacks a field."""
    for name in names:
        if name not in row:
            raise ValueError(f"{where}: field {name!r} is missing; the row has {', '.join(row)}")


def hub_configs(name: str, place: Place) -> list[str]:
    """The configurations of a data set, from the hub or a folder of its layout. Raises ValueError."""
    directory = place.find(name)
    with _one_line(name, directory):
        from datasets import get_dataset_config_names

        return list(get_dataset_config_names(str(directory or name)))


def _hub_rows(hub: HubSet, directory: Path | None) -> Iterator[Row]:
    with _one_line(hub.name, directory):
        import datasets

        revision = None if directory else hub.revision
        loaded = datasets.load_dataset(str(directory or hub.name), hub.config, split=hub.split, revision=revision)
    for number, row in enumerate(loaded, 1):
        try:
            ours = hub.row(dict(row))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            said = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"data set {hub.name}, row {number}: {said}; the row has {', '.join(row)}") from None
        if ours is not None:
            yield ours


@contextmanager
def _one_line(name: str, directory: Path | None) -> Iterator[None]:
    """What the library raises, of whatever kind, as one line; its progress bars only where somebody watches.

    directory: where the data set lies; None is the hub, or its cache where the hub does not answer.
    """
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise ValueError(f"data set {name} needs datasets: pip install 'bltkit[hub]'; or give --data DIR") from None
    with ExitStack() as stack:
        stack.enter_context(quiet_datasets())
        out_of_reach = None if directory is not None else stack.enter_context(hub_or_cache())
        try:
            if directory is not None:
                refuse_cut_files(directory)
            yield
        except Exception as error:  # DatasetsError, HfHubHTTPError, YAMLError ...: no common base
            reason = out_of_reach or " ".join(str(error).split())[:300]
            remedy = "; check the network, or give --data DIR" if directory is None else ""
            raise ValueError(f"data set {name}: {reason}{remedy}") from None
