"""Documents -> the columns of a corpus: text, borders, hashes, the split into training and validation.

Between the sources and the corpus. Notable: one pass, a document at a time, so that the text is never in memory where
the columns are files; only a few numbers for each document are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bltkit.data.order import Indices
from bltkit.data.sources import Document, Faults
from bltkit.data.store import Column, Shelf

Bits = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], None]
"""Told now and then while documents are read: a source's label, its documents and its bytes so far."""

_PROGRESS_BYTES = 1 << 22
_FILL_BYTES = 1 << 20
_MIN_TAIL_BYTES = 16
"""Of a single document fewer bytes are not worth to be held out."""


@dataclass(frozen=True)
class SourceStream:
    """The documents of one source as its policies let them through, and the tally of what they did not."""

    label: str
    weight: float
    documents: Iterable[Document]
    faults: Faults


def build(
    streams: Sequence[SourceStream], validation_fraction: float, shelf: Shelf, progress: Progress | None
) -> dict[str, Any]:
    """Fills the shelf; returns stats and fingerprint, as the manifest holds them."""
    writer = _Writer(shelf)
    counts = [writer.take(stream, progress) for stream in streams]
    if (tail := writer.finish(validation_fraction)) is not None:
        counts = [2]
    bounds = np.concatenate([[0], np.cumsum(counts)])
    offsets = writer.offsets.array()
    digests = writer.digests.array()
    shelf.add("source", "<i8", np.repeat(np.arange(len(streams)), counts))
    weights = shelf.add("weights", "<f8", np.repeat([float(stream.weight) for stream in streams], counts))
    # 32 bits, so that epoch + phase is exact and a weight of 1 gives exactly one visit in every epoch.
    shelf.add("phase", "<f8", (digests[1::2] >> np.uint64(32)).astype(np.float64) / 2.0**32)
    is_validation = _split(digests[::2], offsets, validation_fraction) if tail is None else np.array([False, True])
    shelf.add("train", "<i8", np.flatnonzero(~is_validation))
    held = shelf.add("validation", "<i8", np.flatnonzero(is_validation))
    digest = hashlib.sha256(digests.data)
    digest.update(weights.data)
    digest.update(is_validation.data)
    for name, marks in writer.marks.items():
        digest.update(name.encode() + marks.digest.digest())
    stats = []
    for stream, start, stop in zip(streams, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        mine = held[np.searchsorted(held, start) : np.searchsorted(held, stop)]
        stats.append(
            {
                "label": stream.label,
                "weight": float(stream.weight),
                "num_documents": stop - start,
                "num_bytes": int(offsets[stop] - offsets[start]),
                "validation_documents": len(mine),
                "validation_bytes": int((offsets[mine + 1] - offsets[mine]).sum()),
                "faults": dict(stream.faults.counts),
                "examples": {kind: list(found) for kind, found in stream.faults.examples.items()},
            }
        )
    return {"stats": stats, "fingerprint": digest.hexdigest()}


class _Marks:
    """A column of one bit for each byte of text, and the hash of what it holds."""

    def __init__(self, shelf: Shelf, name: str) -> None:
        self.column, self.digest = shelf.column(name, "|b1"), hashlib.blake2b(digest_size=16)

    def append(self, values: Bits) -> None:
        self.column.append(values)
        self.digest.update(np.ascontiguousarray(values).data)


class _Writer:
    """Takes documents one by one and appends what each adds to the columns."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.data, self.offsets = shelf.column("data", "|u1"), shelf.column("offsets", "<i8")
        self.digests = shelf.column("digests", "<u8")
        self.marks: dict[str, _Marks] = {}
        self.num_opens: Column | None = None
        self.total = self.documents = 0
        self.offsets.append(np.zeros(1, dtype=np.int64))
        self._last: Document | None = None  # its place is written when it is known whether another one follows

    def take(self, stream: SourceStream, progress: Progress | None) -> int:
        """All documents of a source; how many they were."""
        before, first, told = self.total, self.documents, self.total
        for document in stream.documents:
            self.add(document, stream.label)
            if progress is not None and self.total - told >= _PROGRESS_BYTES:
                told = self.total
                progress(stream.label, self.documents - first, self.total - before)
        if self.total == before:
            why = f" (passed over: {stream.faults})" if stream.faults else ""
            raise ValueError(f"data source {stream.label}: no documents with any bytes{why}; name files that hold text")
        if progress is not None:
            progress(stream.label, self.documents - first, self.total - before)
        return self.documents - first

    def add(self, document: Document, label: str) -> None:
        size = len(document.data)
        if document.learned is not None and "learned" not in self.marks:
            self.marks["learned"] = marks = _Marks(self.shelf, "learned")
            for start in range(0, self.total, _FILL_BYTES):  # the bytes before it are all learned
                marks.append(np.ones(min(_FILL_BYTES, self.total - start), dtype=np.bool_))
        if "learned" in self.marks:
            self.marks["learned"].append(np.ones(size, np.bool_) if document.learned is None else document.learned)
        if document.opens is not None and not self.documents:
            self.marks["opens"], self.num_opens = _Marks(self.shelf, "opens"), self.shelf.column("num_opens", "<i8")
        if (document.opens is None) != ("opens" not in self.marks):
            raise ValueError(
                f"data source {label}: {document.name} comes {'without' if document.opens is None else 'with'} stored "
                "patch starts, unlike the documents before it; annotate all sources or none"
            )
        if document.opens is not None:
            self.marks["opens"].append(document.opens)
        self.data.append(document.data)
        if self._last is not None:
            self._close(self.total, self._last.data, self._last.opens)
        self._last = document
        self.total, self.documents = self.total + size, self.documents + 1

    def finish(self, validation_fraction: float) -> int | None:
        """Close the last document. Where it is the only one, it becomes two: the second is its tail, to be held out.

        Returns where the tail begins; None where nothing is cut.
        """
        document = self._last
        assert document is not None
        data, opens, first = document.data, document.opens, self.total - len(document.data)
        cut = _tail(data, validation_fraction) if self.documents == 1 else 0
        if cut:
            self._close(cut, data[:cut], None if opens is None else opens[:cut])
            data, opens = data[cut:], None if opens is None else opens[cut:]
        self._close(first + len(document.data), data, opens)
        return cut or None

    def _close(self, end: int, data: bytes, opens: Bits | None) -> None:
        """Write down a document whose bytes, the last of which is at `end` - 1, are in the columns."""
        self.digests.append(hashlib.blake2b(data, digest_size=16).digest())
        self.offsets.append(np.array([end], dtype=np.int64))
        if opens is not None and self.num_opens is not None:
            self.num_opens.append(np.array([opens.sum()], dtype=np.int64))


def _tail(data: bytes, fraction: float) -> int:
    """Where the last `fraction` of a document's bytes begins, moved back to the first byte of a character.

    0 where nothing is to be held out, where that is too little to say anything, or where nothing is left to train on.
    """
    size = round(fraction * len(data))
    cut = len(data) - size
    if size < _MIN_TAIL_BYTES:
        return 0
    for start in range(cut, max(0, cut - 4), -1):
        if data[start] & 0xC0 != 0x80:  # no continuation byte of UTF-8
            return start
    return max(0, cut)


def _split(hashes: npt.NDArray[np.uint64], offsets: Indices, fraction: float) -> Bits:
    """Which documents are held back: those whose hash, as a number in [0, 1), is below `fraction`.

    Two or more documents never leave a side empty (unless fraction is 0). In a small corpus that comes to
    nothing, the document nearest in size to the wanted share is held back, or the longest kept for
    training. A single document is cut by `_Writer.finish`.
    """
    if fraction == 0.0 or len(hashes) < 2:
        return np.zeros(len(hashes), dtype=np.bool_)
    is_validation: Bits = hashes.astype(np.float64) / 2.0**64 < fraction
    lengths = np.diff(offsets)
    if not is_validation.any():
        distance = np.abs(lengths - fraction * lengths.sum())
        chosen = np.lexsort((hashes, distance))[0]
    elif is_validation.all():
        chosen = np.lexsort((hashes, -lengths))[0]
    else:
        return is_validation
    # With its copies, so that none stands on the other side; all documents being copies, it goes alone.
    copies: Bits = hashes == hashes[chosen]
    if copies.all():
        copies = np.arange(len(hashes)) == chosen
    return np.logical_xor(is_validation, copies)
