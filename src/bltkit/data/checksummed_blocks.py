"""Checksums of a mapped corpus' files, block by block: made as a file is written, compared when a block is first read.

Below the store. Beside each file lies `FILE.crc32` with four bytes for each block; the manifest holds its SHA-256. A
block is compared once in each process. It is half of what Linux reads ahead at random access, so comparing it reads
nothing from disk that would not have been read. CRC-32 finds every flipped bit and every burst of up to 32 bits;
against somebody who changes a file on purpose it is no help.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bltkit.data.order import Indices, ranges
from bltkit.files import require_regular

BLOCK_BYTES = 1 << 16


class Checksums:
    """Of a file that is being written."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._whole: list[int] = []
        self._open = 0
        """Of the last block, while it is not full."""

    def update(self, data: memoryview) -> None:
        """Takes the bytes that come next in the file."""
        while len(data):
            piece = data[: BLOCK_BYTES - self.num_bytes % BLOCK_BYTES]
            self._open = zlib.crc32(piece, self._open)
            self.num_bytes += len(piece)
            if self.num_bytes % BLOCK_BYTES == 0:
                self._whole.append(self._open)
                self._open = 0
            data = data[len(piece) :]

    def tobytes(self) -> bytes:
        """The content of the file of checksums."""
        last = [self._open] if self.num_bytes % BLOCK_BYTES else []
        return np.array(self._whole + last, dtype="<u4").tobytes()

    @property
    def entry(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        return {"bytes": self.num_bytes, "block": BLOCK_BYTES, "sha256": hashlib.sha256(self.tobytes()).hexdigest()}


@dataclass(eq=False)
class _File:
    path: Path
    data: memoryview
    block: int
    expected: npt.NDArray[np.uint32]
    seen: npt.NDArray[np.bool_] = field(init=False)
    """Of blocks that were compared and fit."""

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.expected), dtype=np.bool_)

    def check(self, blocks: Indices) -> None:
        for number in blocks[~self.seen[blocks]].tolist():
            if zlib.crc32(self.data[number * self.block : (number + 1) * self.block]) != self.expected[number]:
                first, last = number * self.block, min((number + 1) * self.block, len(self.data)) - 1
                raise ValueError(
                    f"{self.path} is damaged: block {number} (bytes {first} to {last}) does not have its checksum"
                )
            self.seen[number] = True


class ChecksummedBlocks:
    """The files of a folder with their checksums. Threads may share it; each process opens its own."""

    def __init__(self, files: Mapping[str, _File]) -> None:
        self._files = files

    @classmethod
    def open(
        cls, folder: Path, entries: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> ChecksummedBlocks:
        """entries: those of the manifest. arrays: the mapped files, by the same names.

        Raises ValueError for a file of another size than it was, and for damaged checksums.
        """
        files = {}
        for name, array in arrays.items():
            entry, path = entries[name], folder / checksum_file(name)
            if array.nbytes != entry["bytes"] or require_regular(folder / name) != entry["bytes"]:
                size = (folder / name).stat().st_size
                raise ValueError(f"{folder / name} is damaged: it has {size} bytes in place of {entry['bytes']}")
            require_regular(path)
            content = path.read_bytes()
            block = int(entry["block"])
            if hashlib.sha256(content).hexdigest() != entry["sha256"] or len(content) != 4 * -(-array.nbytes // block):
                raise ValueError(f"{path} is damaged: it does not have the sha256 that the manifest says")
            data = array.view(np.uint8).data if array.nbytes else memoryview(b"")
            files[name] = _File(folder / name, data, block, np.frombuffer(content, dtype="<u4"))
        return cls(files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def check_all(self, name: str) -> None:
        """Compares a whole file. Raises ValueError that names file and block."""
        file = self._files[name]
        file.check(np.arange(len(file.expected)))

    def check(self, name: str, starts: Indices, lengths: Indices) -> None:
        """Compares the blocks that hold these stretches of bytes. Raises ValueError that names file and block."""
        file = self._files[name]
        first = starts // file.block
        last = (starts + np.maximum(lengths, 1) - 1) // file.block
        if int((last - first).max(initial=0)) <= 1:
            if not (file.seen[first].all() and file.seen[last].all()):
                file.check(np.unique(np.concatenate([first, last])))
            return
        file.check(np.unique(ranges(first, last - first + 1)))


def checksum_file(name: str) -> str:
    """The file that holds the checksums of file `name`."""
    return f"{name}.crc32"
