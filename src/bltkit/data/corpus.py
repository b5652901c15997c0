"""The corpus: every document of every source as one array of bytes, cut into training and validation
documents.

Between the sources and packing. Notable: a document's side is decided by a hash of its content, so it
depends neither on the order of the sources nor on what else is there, and copies of a document never stand
on both sides. Of a corpus of one document the last bytes are held out, as a document of their own. The
corpus lies in memory (a byte for a byte of text, and about a hundred for a document), or in a folder that is mapped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, SupportsIndex

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from bltkit.config import Config
from bltkit.data import store
from bltkit.data.build import Bits, Progress, SourceStream
from bltkit.data.build import build as build_columns
from bltkit.data.checksummed_blocks import ChecksummedBlocks
from bltkit.data.order import Indices, Visits
from bltkit.data.packing import MIN_ROW_BYTES, MIN_ROW_PATCHES
from bltkit.data.sources import Document, Faults, Source, SourceConfig, StdlibSource, read


def _as_list(value: Any) -> Any:
    """One source in place of a list of one, as `data.sources=books.txt` on the command line gives it."""
    if value in ([], ()):
        raise ValueError('an empty list; say for example sources = ["stdlib"]')
    return [value] if isinstance(value, str | dict | SourceConfig) else value


class RowShape(NamedTuple):
    """Size of the rows of a batch."""

    row_bytes: int
    row_patches: int | None
    batch_rows: int


class RowStage(Config):
    """The beginning of a training on shorter rows: they teach the nearby at less cost, before long ones teach the rest.

    Rows are `shorter` times shorter and as many times more, so that a step sees as much text as any other.
    """

    until: float = Field(gt=0, lt=1)
    """Share of the schedule's steps after which the next stage begins."""
    shorter: int = Field(ge=2)
    """Rows have `row_bytes` divided by this."""


class DataConfig(Config):
    """The `[data]` section: what is read and how it becomes rows."""

    sources: Annotated[tuple[Source, ...], BeforeValidator(_as_list)] = (StdlibSource(),)
    """What is read: tables by kind, or paths, globs and `stdlib` as text."""
    row_bytes: int = Field(default=2048, ge=MIN_ROW_BYTES)
    """Bytes of a training row, BOS and EOS included."""
    row_patches: int | None = Field(default=None, ge=MIN_ROW_PATCHES)
    """Patches that a row holds at most; needs sources with stored patch starts (`blt annotate`)."""
    batch_rows: int = Field(default=8, ge=1)
    """Rows of a batch over all ranks together."""
    workers: int = Field(default=0, ge=0)
    """Processes of each rank that make batches ready; 0 makes them between the steps."""
    cache: str | None = None
    """Folder where the corpus is laid down once and mapped by every process; without one each holds it in memory."""
    validation_fraction: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Share of the documents held out, by a hash of their content; of a single document, the share of its end."""
    stages: tuple[RowStage, ...] = ()
    """Shorter rows before those of `row_bytes`, by rising `until`."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        shares = [stage.until for stage in self.stages]
        if shares != sorted(set(shares)):
            raise ValueError(f"stages: until = {shares}: each stage has to end after the one before it")
        sizes = [shape.row_bytes for shape in self.shapes]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"stages: rows of {sizes} bytes: a saved position tells stages apart by their size")
        for stage in self.stages:
            shape = self._shorter(stage)
            if shape.row_bytes < MIN_ROW_BYTES or (shape.row_patches or MIN_ROW_PATCHES) < MIN_ROW_PATCHES:
                most = min(self.row_bytes // MIN_ROW_BYTES, (self.row_patches or self.row_bytes) // MIN_ROW_PATCHES)
                raise ValueError(
                    f"stages: shorter = {stage.shorter} leaves rows of {shape.row_bytes} bytes"
                    f"{'' if shape.row_patches is None else f' and {shape.row_patches} patches'}; "
                    + (f"use at most {most}" if most > 1 else "such rows cannot be shorter")
                )
        return self

    @property
    def last_shape(self) -> RowShape:
        """The rows that a training ends with."""
        return RowShape(self.row_bytes, self.row_patches, self.batch_rows)

    @property
    def shapes(self) -> tuple[RowShape, ...]:
        """The rows of all stages, in their order."""
        return (*map(self._shorter, self.stages), self.last_shape)

    def shape_at(self, step: int, schedule_steps: int) -> RowShape:
        """The rows of update number `step` (from 0)."""
        running = (self._shorter(stage) for stage in self.stages if step < stage.until * schedule_steps)
        return next(running, self.last_shape)

    def _shorter(self, stage: RowStage) -> RowShape:
        patches = None if self.row_patches is None else self.row_patches // stage.shorter
        return RowShape(self.row_bytes // stage.shorter, patches, self.batch_rows * stage.shorter)


@dataclass(frozen=True)
class SourceStats:
    """What one source gave: documents and bytes in all, and how many of them are held back for validation.

    A single document whose tail is held back counts as two.

    faults    what was passed over or kept although something was wrong: how many of each kind
    examples  the first few of each kind
    """

    label: str
    weight: float
    num_documents: int
    num_bytes: int
    validation_documents: int
    validation_bytes: int
    faults: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def remarks(self, source: SourceConfig) -> Iterator[str]:
        """Lines for whoever trains on it: what was left out of the source, and whether nothing of it is trained on."""
        for kind, count in self.faults.items():
            if getattr(source, kind) == "skip":
                yield f"{self.label}: left out {count} that are {kind}, such as {self.examples[kind][0]}"
        if self.num_documents == self.validation_documents:
            yield (
                f"{self.label}: all of its {self.num_bytes:,} bytes are held out, since documents are held out whole: "
                "nothing of it is trained on; make several documents of it, or set data.validation_fraction = 0"
            )


@dataclass(frozen=True, eq=False)
class Corpus:
    """All documents. Document i is `data[offsets[i]:offsets[i + 1]]`, from source `source[i]`. Arrays are read-only.

    data         uint8 [total bytes]
    offsets      int64 [documents + 1]
    source       int64 [documents], the index into `stats`; ascending
    weights      float64 [documents], visits per epoch
    phase        float64 [documents] in [0, 1), from the content's hash: staggers fractional weights
    train        int64 [*], indices of training documents, ascending
    validation   int64 [*], likewise; no document is in both
    stats        one entry for each source
    fingerprint  sha256 (hex) over contents, order, weights and split: equal fingerprints, equal batches
    learned      bool [total bytes], bytes that are targets of the loss; None: all
    opens        bool [total bytes], does the byte (or EOS) after this one open a patch; None: not stored
    num_opens    int64 [documents], how many of each document's `opens` are True; None without them
    folder       where the arrays are mapped from; None: memory
    blocks       checksums of the mapped files; None: memory, or a folder that has none. Read text through `document`,
                 or `verify` what is read of `data`, `learned` and `opens`
    """

    data: npt.NDArray[np.uint8]
    offsets: Indices
    source: Indices
    weights: npt.NDArray[np.float64]
    phase: npt.NDArray[np.float64]
    train: Indices
    validation: Indices
    stats: tuple[SourceStats, ...]
    fingerprint: str
    learned: Bits | None = None
    opens: Bits | None = None
    num_opens: Indices | None = None
    folder: Path | None = None
    blocks: ChecksummedBlocks | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is sent a corpus of a folder maps it anew instead of receiving its bytes."""
        if self.folder is not None:
            return _reopen, (self.folder, self.fingerprint)
        return Corpus, tuple(getattr(self, one.name) for one in fields(self))

    def document(self, index: SupportsIndex) -> bytes:
        """The bytes of document `index`. Raises ValueError where the mapped file is damaged."""
        start, stop = self.offsets[int(index) : int(index) + 2]
        self.verify(np.array([start]), np.array([stop - start]))
        return self.data[start:stop].tobytes()

    def verify(self, starts: Indices, lengths: Indices) -> None:
        """Compares stretches of text, and what is stored for each of their bytes, with the checksums on disk.

        Every block of the mapped files is compared once in a process. Raises ValueError that names file and block.
        """
        if self.blocks is not None:
            for name in _BYTE_FILES:
                if name in self.blocks:
                    self.blocks.check(name, starts, lengths)

    def held_out_of(self, number: int) -> Corpus:
        """The same corpus with the held-out documents of one source alone.

        Not the same as a corpus of that source: one that holds nothing back here would hold something back there.
        """
        return replace(self, validation=self.validation[self.source[self.validation] == number])

    def visits(self, epoch: int) -> Visits:
        """The training documents of an epoch; a document with weight w comes w times on average.

        With fractional w a document's running total after e epochs is floor(e w + phase): never more than one
        visit away from e w, and different documents take their turn in different epochs. Nothing is computed for
        the documents of a source with a whole weight.
        """
        ends = np.cumsum([one.num_documents - one.validation_documents for one in self.stats])
        blocks = []
        for stop, one in zip(ends.tolist(), self.stats, strict=True):
            mine = self.train[stop - (one.num_documents - one.validation_documents) : stop]
            times = int(one.weight)
            if times != one.weight:
                phase = self.phase[mine]
                each = np.floor((epoch + 1) * one.weight + phase) - np.floor(epoch * one.weight + phase)
                mine, times = np.repeat(mine, each.astype(np.int64)), 1
            blocks.append((mine, times))
        return Visits.of(tuple(blocks))

    @staticmethod
    def from_sources(
        sources: Sequence[SourceConfig],
        validation_fraction: float = 0.02,
        *,
        directory: Path | None = None,
        progress: Progress | None = None,
    ) -> Corpus:
        """Reads all documents; what the sources' policies pass over stands in `stats`.

        With `directory` the corpus lies in a folder of it that is named after sources and fraction and mapped, not
        loaded. It is made where it is missing or an input file has changed; other processes that ask for it wait.
        A source that streams from elsewhere is read once; remove the folder to read it again.

        Raises `ValueError` for a source that cannot be read or that gives no bytes, where some documents come with
        stored patch starts and others without, and for a folder whose files are damaged as far as they are read here;
        text that was damaged on disk is found when it is read (`verify`).
        """
        if not sources:
            raise ValueError('data.sources: empty; say for example sources = ["stdlib"]')
        if not 0.0 <= validation_fraction < 1.0:
            raise ValueError(f"data.validation_fraction: {validation_fraction} is not in [0, 1)")

        def build(shelf: store.Shelf) -> dict[str, Any]:
            tallies = [Faults() for _ in sources]
            streams = [
                SourceStream(source.label, source.weight, read(source, faults), faults)
                for source, faults in zip(sources, tallies, strict=True)
            ]
            return build_columns(streams, validation_fraction, shelf, progress)

        if directory is None:
            shelf = store.Shelf()
            manifest = build(shelf)
            return _in_memory(shelf, manifest)
        folder = store.folder_of(directory.absolute(), sources, validation_fraction)
        store.laid_down(folder, sources, validation_fraction, build)
        corpus = _mapped(folder)
        if corpus.blocks is None:
            logging.getLogger(__name__).warning(
                "data.cache: %s has no checksums, as version 0.1.0 laid it down; remove it, and it is made with them",
                folder,
            )
        return corpus

    @staticmethod
    def from_documents(
        documents: Iterable[bytes | Document], validation_fraction: float = 0.02, weight: float = 1.0
    ) -> Corpus:
        """A corpus of documents in memory, as one source. Documents of no bytes are left out."""
        if not 0.0 <= validation_fraction < 1.0:
            raise ValueError(f"data.validation_fraction: {validation_fraction} is not in [0, 1)")
        named = (one if isinstance(one, Document) else Document(str(i), one) for i, one in enumerate(documents))
        stream = SourceStream("memory", weight, (one for one in named if one.data), Faults())
        shelf = store.Shelf()
        manifest = build_columns([stream], validation_fraction, shelf, None)
        return _in_memory(shelf, manifest)


_BYTE_FILES = ("data.u1", "learned.b1", "opens.b1")


def _in_memory(shelf: store.Shelf, manifest: Mapping[str, Any]) -> Corpus:
    return Corpus(**_fields({name: column.array() for name, column in shelf.columns.items()}, manifest))


def _mapped(folder: Path) -> Corpus:
    columns, manifest, blocks = store.load(folder)
    return Corpus(**_fields(columns, manifest), folder=folder, blocks=blocks)


def _fields(columns: Mapping[str, store.Array], manifest: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: array for name, array in columns.items() if name != "digests"}
    stats = tuple(SourceStats(**one) for one in manifest["stats"])
    return {**known, "stats": stats, "fingerprint": manifest["fingerprint"]}


def _reopen(folder: Path, fingerprint: str) -> Corpus:
    corpus = _mapped(folder)
    if corpus.fingerprint != fingerprint:
        raise ValueError(f"data.cache: {folder} was recreated meanwhile; start again")
    return corpus
