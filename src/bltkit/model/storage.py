"""The memory in which the cached keys and values of several rows lie."""

import math
import mmap
from typing import Self

import torch
from torch import Tensor

MIN_CAPACITY = 64
"""Columns of the smallest storage."""

LAZY_BYTES = 2**20
"""From this size on, memory on the CPU is taken as the system hands it out: zero, and only where it is touched."""


class Storage:
    """[layers, lanes, 2G, columns, D]: the keys of all heads, then their values. Lane r holds row r of a cache.

    Masked columns are read and weighted by 0, so all that was never written is zero: it must not be a NaN.
    """

    def __init__(self, block: Tensor, used: list[int], writer: object = None, movable: bool = False) -> None:
        self.block = block
        self.layers = list(block.unbind())
        self.used = used
        """Columns of each lane that a cache has kept; after them stands what the latest pass wrote."""
        self.writer = writer
        """The token of the latest slot given out: nobody else's unkept columns are still there. Not the slot itself:
        the two would hold each other, and memory would be given back only when Python looks for cycles."""
        self.movable = movable
        """May rows move within it: what refers to it from before a move is stale."""
        self.generation = 0
        """Moves so far."""
        self.written = max(used, default=0)
        """No lane was ever written to from this column on."""
        self.touched = len(used)
        """Nor any lane from this one on."""

    @classmethod
    def zeros(cls, shape: tuple[int, int, int, int, int], like: Tensor, stop: int, rows: int, movable: bool) -> Self:
        """Room for [layers, lanes, 2G, columns, D] of the type and device of `like`; `rows` lanes end at `stop`."""
        used = [stop] * rows + [0] * (shape[1] - rows)
        storage = cls(_zeros(shape, like), used, None, movable)
        storage.touched = rows
        return storage

    @property
    def lanes(self) -> int:
        return self.block.shape[1]

    @property
    def columns(self) -> int:
        return self.block.shape[3]

    def moved(self) -> int:
        """Begin a new generation; nothing that a pass left unkept is there any longer."""
        self.generation += 1
        self.writer = object()
        return self.generation

    def move(self, to: int, row: int, first: int) -> None:
        """Put lane `row` in the place of lane `to`, of which nothing stays. first: column of the first key in use."""
        # Columns that nobody sees are cleared too: a row that failed may have left numbers that are not finite.
        self.block[:, to, :, :first].zero_()
        self.block[:, to, :, first : self.written] = self.block[:, row, :, first : self.written]
        self.used[to] = self.used[row]

    def clear(self, lane: int) -> None:
        """Make the lane zero."""
        if lane < self.touched:
            self.block[:, lane, :, : self.written].zero_()
        self.touched = max(self.touched, lane + 1)

    def fill(self, lane: int, stop: int, source: "Storage", row: int, start: int, length: int) -> None:
        """Copy `length` columns of a lane of `source`, from `start` on, in front of column `stop`."""
        if length:
            new = self.block[:, lane, :, stop - length : stop]
            new.copy_(source.block[:, row, :, start : start + length])

    def fill_all(self, stop: int, source: "Storage", rows: int, start: int, length: int) -> None:
        """`fill` for the first lanes, all from and to the same columns. The stretches must not overlap."""
        new = self.block[:, :rows, :, stop - length : stop]
        new.copy_(source.block[:, :rows, :, start : start + length])


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < LAZY_BYTES:
        return like.new_zeros(shape)
    # Not numpy's: it asks for huge pages, and a first touch of a row's few columns would then clear 2 MiB.
    return torch.frombuffer(mmap.mmap(-1, size), dtype=like.dtype).view(shape)
