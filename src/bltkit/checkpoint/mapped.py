"""Tensors in a file's memory map: pages given back once they were read, rows read without mapping them at all.

A page that was touched counts as the process's memory until it is given back, and one touched byte may map as much as
the page cache holds in one piece, 2 MiB where it has large folios: a few hundred rows of an n-gram table would count
as gigabytes.
"""

import ctypes
import os
import sys
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_DONTNEED = 4
"""MADV_DONTNEED on Linux, whose meaning other systems do not share."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc."""
_LARGE_BLOCK, _KEPT = 2**20, 2**26
"""Bytes that are mapped apart, and those that stay in the heap when they are freed. What a byte takes in decoding is
smaller, and mapping a block costs little beside a product of its size."""


def release(*tensors: Tensor) -> None:
    """Give back the pages of mapped tensors that nobody wrote to; they are read again from the file when needed.

    Only for tensors that still are what their file holds: what was written to them is lost. Nothing happens where the
    system has no such call.
    """
    advise = _of_libc("madvise")
    if advise is None:
        return
    page = os.sysconf("SC_PAGE_SIZE")
    for tensor in tensors:
        begin, end = -(-tensor.data_ptr() // page) * page, (tensor.data_ptr() + tensor.nbytes) // page * page
        if begin < end:
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)


@cache
def map_large_blocks() -> None:
    """Have the C library map each large block of memory apart for as long as the process lives, as it does at first.

    Its allocator stops doing so once some were freed. Then the slices of which forms are made, and weights that are
    widened for one product, leave holes in its heap: a quarter of a model in int8. Nothing happens without glibc.
    """
    set_option = _of_libc("mallopt")
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGE_BLOCK)
        set_option(_TRIM_THRESHOLD, _KEPT)


def trim() -> None:
    """Give back memory that was freed and that the C library keeps for later. Nothing happens without glibc."""
    trim_heap = _of_libc("malloc_trim")
    if trim_heap is not None:
        trim_heap(0)


class FileRows:
    """Rows of a table, read from its file one by one.

    Holds for the table as it was loaded: `serves` says whether it still is. table: [N, D], mapped. offset: of its first
    byte in the file.
    """

    def __init__(self, path: Path, offset: int, table: Float[Tensor, "N D"]) -> None:
        self.path, self.offset = path, offset
        self.dtype, self.width = table.dtype, table.shape[1]
        self._address, self._version = table.data_ptr(), table._version
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_RANDOM)

    @classmethod
    def of(cls, path: Path, offset: int, table: Float[Tensor, "N D"]) -> "FileRows | None":
        """None where the system cannot read so, or the table does not count what is written to it."""
        return cls(path, offset, table) if hasattr(os, "preadv") and not table.is_inference() else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "FileRows":
        return self  # a copied table lies elsewhere, and is not served

    def __getstate__(self) -> None:
        raise TypeError(f"rows of {self.path} are read from an open file; save the model with `save_bundle` instead")

    def serves(self, table: Tensor) -> bool:
        """Whether `table` is the one that was loaded, and nothing was written to it."""
        return table.data_ptr() == self._address and table._version == self._version

    def __call__(self, rows: Int64[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """The rows with these numbers, each from 0 to N - 1. Raises OSError where the file cannot be read."""
        result = torch.empty(*rows.shape, self.width, dtype=self.dtype)
        size = self.width * self.dtype.itemsize
        target = memoryview(result.view(torch.uint8).numpy().data).cast("B")
        for index, row in enumerate(rows.flatten().tolist()):
            at = self.offset + row * size
            if os.preadv(self._handle, [target[index * size : (index + 1) * size]], at) != size:
                raise OSError(f"{self.path} ends within its n-gram tables; it was changed after it was loaded")
        return result


@cache
def _of_libc(name: str) -> Any:
    """A function of the C library on Linux; None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
