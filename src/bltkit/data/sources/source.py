"""What a data source is: a frozen config that yields documents, the very first station on the byte's way.

A document is raw bytes with a name for error messages; nothing is decoded or normalised, so invalid UTF-8 is
data like any other unless the source's policies say otherwise. `read` is the one place that applies them to
whole documents; what cannot be read at all is judged by the source, which knows what it is. Notable: nothing
is left out silently, everything that a policy passes over is told to a `Faults` tally.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bltkit.config import Config
from bltkit.files import is_file_or_dangling

Fault = Literal["broken", "not_utf8", "empty"]
"""What can be wrong: cannot be read, bytes that are no UTF-8, no bytes at all."""


class Document(NamedTuple):
    """One document.

    name      where it came from: a path, `file:line`; unique within its source
    data      its bytes, unchanged
    metadata  what the source holds beside them (JSON values), where that was asked for
    learned   bool [len(data)], the bytes that are targets of the loss; None: all of them. EOS is one where the
              last byte is
    opens     bool [len(data)], does the byte (or EOS) after byte i open a patch: stored starts; None: not known
    """

    name: str
    data: bytes
    metadata: Mapping[str, Any] | None = None
    learned: npt.NDArray[np.bool_] | None = None
    opens: npt.NDArray[np.bool_] | None = None


class Input(NamedTuple):
    """A file that a source reads, as it was when asked: absolute path, bytes, time of the last change in ns."""

    path: str
    size: int
    mtime_ns: int


class Faults:
    """A tally of what was wrong in a source; the reader makes one and hands it to `read`. It only grows.

    A `not_utf8` document is counted also where the policy keeps it.
    """

    SHOWN: ClassVar[int] = 5

    def __init__(self) -> None:
        self._counts: dict[Fault, int] = dict.fromkeys(get_args(Fault), 0)
        self._examples: dict[Fault, list[str]] = {kind: [] for kind in self._counts}

    def add(self, kind: Fault, what: str) -> None:
        """Counts one; `what` is the document's name or a message that begins with it."""
        self._counts[kind] += 1
        if len(self._examples[kind]) < self.SHOWN:
            self._examples[kind].append(what)

    @property
    def counts(self) -> dict[Fault, int]:
        """How many of each kind; kinds without any are left out."""
        return {kind: count for kind, count in self._counts.items() if count}

    @property
    def examples(self) -> dict[Fault, tuple[str, ...]]:
        """The first few of each kind; kinds without any are left out."""
        return {kind: tuple(found) for kind, found in self._examples.items() if found}

    def __bool__(self) -> bool:
        return any(self._counts.values())

    def __str__(self) -> str:
        """One line, for example `2 broken (a.jsonl:3: not a line of JSON), 1 empty (b.txt)`."""
        parts = (f"{count} {kind} (first: {self._examples[kind][0]})" for kind, count in self.counts.items())
        return ", ".join(parts) or "none"


class SourceConfig(Config):
    """What every source has. A subclass adds `kind: Literal["..."]` and its fields, and implements
    `documents`, `inputs` and `label`.

    `weight` is how often the source's documents are visited in one epoch: 2.0 visits each of them twice,
    0.5 each of them in every other epoch (which ones go first depends on their content, not on chance; see
    `Corpus.visits`).

    The policies: `broken` is for lines, records and files that cannot be read, `not_utf8` for documents whose
    bytes are no UTF-8, `empty` for documents without any bytes (a null is one). "refuse" stops with an error that
    names the place, "skip" leaves it out and counts it, "keep" takes it as it is and counts it.
    """

    weight: float = Field(default=1.0, ge=0.001, le=1000.0, allow_inf_nan=False)
    """Visits of each document per epoch; fractions visit a share of them."""
    broken: Literal["refuse", "skip"] = "refuse"
    """Lines, records and files that cannot be read: stop, or leave out and count."""
    not_utf8: Literal["keep", "skip", "refuse"] = "keep"
    """Documents whose bytes are no UTF-8: keep, leave out, or stop."""
    empty: Literal["skip", "refuse"] = "skip"
    """Documents without any bytes: leave out, or stop."""

    is_text: ClassVar[bool] = True
    """False where documents are no text by design: `not_utf8` is not judged then."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of file names, in lower case, that the short form of a source takes for this kind."""

    @classmethod
    def example(cls, folder: Path) -> Self:
        """A small working source whose files are written into `folder`, for the contract tests."""
        raise NotImplementedError(f"{cls.__name__} has no example(folder), which its contract tests read")

    @abstractmethod
    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        """Yields the documents, in an order that the files decide; whoever wants the policies for whole documents
        applied calls `read`. `ValueError` for what cannot be read, or a count in `faults` (see `pass_over`).
        """
        raise NotImplementedError

    @abstractmethod
    def inputs(self) -> tuple[Input, ...] | None:
        """The files that `documents` reads, in its order; None where there are none that a change would show in
        (a stream from elsewhere). `ValueError` for a path that does not exist.
        """
        raise NotImplementedError

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name for statistics and error messages."""
        raise NotImplementedError

    def pass_over(self, error: ValueError, faults: Faults | None) -> None:
        """What a source calls for a part that it cannot read: raises `error`, or counts it, by policy.

        The error's message begins with the place (`file:line: `).
        """
        if self.broken == "refuse":
            raise ValueError(f'{error}; or set the source\'s broken = "skip"') from None
        if faults is not None:
            faults.add("broken", str(error))


def read(source: SourceConfig, faults: Faults | None = None) -> Iterator[Document]:
    """The documents of a source that its policies let through; each has at least one byte.

    Raises `ValueError`, one line, for what the policies refuse; the rest of what is wrong is counted in `faults`.
    """
    faults = Faults() if faults is None else faults
    for document in source.documents(faults):
        name, data, _, learned, opens = document
        assert learned is None or learned.shape == (len(data),), name
        assert opens is None or opens.shape == (len(data),), name
        if not data:
            if source.empty == "refuse":
                raise ValueError(f'{name}: an empty document; remove it or set the source\'s empty = "skip"')
            faults.add("empty", name)
            continue
        if source.is_text and (error := _utf8_error(data)):
            if source.not_utf8 == "refuse":
                raise ValueError(f'{name}: not UTF-8 ({error}); convert it or set the source\'s not_utf8 = "skip"')
            faults.add("not_utf8", f"{name}: {error}")
            if source.not_utf8 == "skip":
                continue
        yield document


def stat_inputs(paths: Iterable[Path]) -> tuple[Input, ...] | None:
    """`inputs` of a source that reads these files; None where one is not a regular file (a pipe).

    A link that leads nowhere is an input with the size and time of the link, so that it shows when it is mended.
    """
    found = []
    for path in paths:
        if not is_file_or_dangling(path):
            return None
        stat = path.stat() if path.exists() else path.lstat()
        found.append(Input(str(path.absolute()), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _utf8_error(data: bytes) -> str | None:
    if data.isascii():
        return None
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"{error.reason} at byte {error.start}"
    return None
