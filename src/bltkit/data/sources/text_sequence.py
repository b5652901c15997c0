"""Many texts in one piece of memory: for verbs that sample what a user names, however short its documents are.

A document as a Python object takes about 300 bytes besides its text; 50 kB of a compressed file may hold 40 million.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload


class Texts(Sequence[bytes]):
    """The texts that hold any bytes, in order; each is made when it is asked for. Memory: its bytes and 8 more each."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._data, self._ends = bytearray(), array("q")
        for text in texts:
            if text:
                self._data += text
                self._ends.append(len(self._data))

    @property
    def ends(self) -> Sequence[int]:
        """Where each text ends, counted in bytes from the beginning of the first."""
        return self._ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        end = self._ends[index]
        begin = self._ends[index - 1] if index % len(self) else 0
        return bytes(self._data[begin:end])
