"""The corpus: every document of every source as one array of bytes, cut into training and validation
documents.

Between the sources and packing. Notable: a document's side is decided by a hash of its content, so it
depends neither on the order of the sources nor on what else is there, and copies of a document never stand
on both sides. The corpus lies in memory: one byte of memory for a byte of text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, SupportsIndex

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from bltkit.config import Config
from bltkit.data.sources import Document, Source, SourceConfig, StdlibSource

Indices = npt.NDArray[np.int64]


def _as_list(value: Any) -> Any:
    """One source in place of a list of one, as `data.sources=books.txt` on the command line gives it."""
    if value in ([], ()):
        raise ValueError('an empty list; say for example sources = ["stdlib"]')
    return [value] if isinstance(value, str | dict | SourceConfig) else value


class DataConfig(Config):
    """The `[data]` section: what is read and how it becomes rows."""

    sources: Annotated[tuple[Source, ...], BeforeValidator(_as_list)] = (StdlibSource(),)
    row_bytes: int = Field(default=2048, ge=8)
    batch_rows: int = Field(default=8, ge=1)
    validation_fraction: float = Field(default=0.02, ge=0.0, lt=1.0)


@dataclass(frozen=True)
class SourceStats:
    """What one source gave: documents and bytes in all, and how many of them are held back for validation."""

    label: str
    weight: float
    num_documents: int
    num_bytes: int
    validation_documents: int
    validation_bytes: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """All documents. Document i is `data[offsets[i]:offsets[i + 1]]`, from source `source[i]`.

    data         uint8 [total bytes], read-only
    offsets      int64 [documents + 1]
    source       int64 [documents], the index into `stats`
    weights      float64 [documents], visits per epoch
    phase        float64 [documents] in [0, 1), from the content's hash: staggers fractional weights
    train        int64 [*], indices of training documents, ascending
    validation   int64 [*], likewise; no document is in both
    stats        one entry for each source
    fingerprint  sha256 (hex) over contents, order, weights and split: equal fingerprints, equal batches
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

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: SupportsIndex) -> bytes:
        """The bytes of document `index`."""
        start, stop = self.offsets[int(index) : int(index) + 2]
        return self.data[start:stop].tobytes()

    def visits(self, epoch: int) -> Indices:
        """The training documents of an epoch, ascending; a document with weight w comes w times on average.

        With fractional w a document's running total after e epochs is floor(e w + phase): never more than one
        visit away from e w, and different documents take their turn in different epochs.
        """
        weight, phase = self.weights[self.train], self.phase[self.train]
        times = np.floor((epoch + 1) * weight + phase) - np.floor(epoch * weight + phase)
        return np.repeat(self.train, times.astype(np.int64))

    @staticmethod
    def from_sources(sources: Sequence[SourceConfig], validation_fraction: float = 0.02) -> Corpus:
        """Reads all documents. Documents of no bytes are left out: they have nothing to learn from.

        Raises `ValueError` for a source that cannot be read or that gives no bytes.
        """
        if not sources:
            raise ValueError('data.sources: empty; say for example sources = ["stdlib"]')
        labelled = [(source.label, source.weight, source.documents()) for source in sources]
        return _build(labelled, validation_fraction)

    @staticmethod
    def from_documents(documents: Iterable[bytes], validation_fraction: float = 0.02, weight: float = 1.0) -> Corpus:
        """A corpus of documents in memory, as one source."""
        named = (Document(str(index), data) for index, data in enumerate(documents))
        return _build([("memory", weight, named)], validation_fraction)


def _build(sources: Sequence[tuple[str, float, Iterable[Document]]], validation_fraction: float) -> Corpus:
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"data.validation_fraction: {validation_fraction} is not in [0, 1)")
    text = bytearray()
    ends, source, digests = [0], [], []
    for index, (label, _, documents) in enumerate(sources):
        before = len(text)
        for document in documents:
            if document.data:
                text += document.data
                ends.append(len(text))
                source.append(index)
                digests.append(hashlib.blake2b(document.data, digest_size=16).digest())
        if len(text) == before:
            raise ValueError(f"data source {label}: no documents with any bytes; name files that hold text")
    data = np.frombuffer(text, dtype=np.uint8)
    data.flags.writeable = False
    offsets = np.array(ends, dtype=np.int64)
    of_source = np.array(source, dtype=np.int64)
    weights = np.array([weight for _, weight, _ in sources], dtype=np.float64)[of_source]
    hashes = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    is_validation = _split(hashes[:, 0], np.diff(offsets), validation_fraction)
    digest = hashlib.sha256(b"".join(digests))
    digest.update(weights.astype("<f8").tobytes())
    digest.update(is_validation.tobytes())
    return Corpus(
        data=data,
        offsets=offsets,
        source=of_source,
        weights=weights,
        # 32 bits, so that epoch + phase is exact and a weight of 1 gives exactly one visit in every epoch.
        phase=(hashes[:, 1] >> np.uint64(32)).astype(np.float64) / 2.0**32,
        train=np.flatnonzero(~is_validation).astype(np.int64),
        validation=np.flatnonzero(is_validation).astype(np.int64),
        stats=tuple(
            _stats(label, weight, of_source == index, np.diff(offsets), is_validation)
            for index, (label, weight, _) in enumerate(sources)
        ),
        fingerprint=digest.hexdigest(),
    )


def _split(hashes: npt.NDArray[np.uint64], lengths: Indices, fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held back: those whose hash, as a number in [0, 1), is below `fraction`.

    Two or more documents never leave a side empty (unless fraction is 0). In a small corpus that comes to
    nothing, the document nearest in size to the wanted share is held back, or the longest kept for
    training.
    """
    is_validation = hashes.astype(np.float64) / 2.0**64 < fraction
    if fraction == 0.0 or len(hashes) < 2:
        return np.zeros(len(hashes), dtype=np.bool_)
    if not is_validation.any():
        distance = np.abs(lengths - fraction * lengths.sum())
        chosen = np.lexsort((hashes, distance))[0]
    elif is_validation.all():
        chosen = np.lexsort((hashes, -lengths))[0]
    else:
        return is_validation
    # With its copies, so that none stands on the other side; all documents being copies, it goes alone.
    copies: npt.NDArray[np.bool_] = hashes == hashes[chosen]
    if copies.all():
        copies = np.arange(len(hashes)) == chosen
    return np.logical_xor(is_validation, copies)


def _stats(
    label: str,
    weight: float,
    mine: npt.NDArray[np.bool_],
    lengths: Indices,
    is_validation: npt.NDArray[np.bool_],
) -> SourceStats:
    held = mine & is_validation
    return SourceStats(
        label=label,
        weight=weight,
        num_documents=int(mine.sum()),
        num_bytes=int(lengths[mine].sum()),
        validation_documents=int(held.sum()),
        validation_bytes=int(lengths[held].sum()),
    )
