"""Safetensors files written as a stream: the header first, which shapes alone decide, then the data in slices.

A tensor of the file is a stack of mapped tensors, so that memory holds one slice at a time whatever the model's size.
The bytes are those that the library `safetensors` writes for the same tensors.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bltkit.checkpoint.manifest import FileEntry
from bltkit.checkpoint.weights import plan_shards, write_index
from bltkit.files import needs_space

Tell = Callable[[int], None]
"""Told the bytes that were written since it was last told."""
Stack = Sequence[Tensor]
"""Tensors of one dtype that are one tensor when stacked along dim 0."""


@dataclass(frozen=True)
class Computed:
    """A tensor that is computed as it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    slices: Callable[[], Iterator[Tensor]]
    """Computes successive slices along dim 0."""


Written = Stack | Computed
"""A tensor of the file."""

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Numbers as weights hold them."""

NAMES = {**DTYPES, torch.int8: "I8", torch.uint8: "U8"}
"""Names in the header, in the order in which the file holds them: wide ones first, so that all are aligned."""

METADATA: Mapping[str, str] = {"format": "pt"}
"""What libraries expect in the header of PyTorch's tensors."""

SLICE_BYTES = 1 << 25


def dtype_of(stack: Written) -> torch.dtype:
    """Dtype of a tensor of the file."""
    return stack.dtype if isinstance(stack, Computed) else stack[0].dtype


def shape_of(stack: Written) -> tuple[int, ...]:
    """Shape of a tensor of the file."""
    if isinstance(stack, Computed):
        return stack.shape
    first = stack[0]
    return tuple(first.shape) if len(stack) == 1 else (sum(len(tensor) for tensor in stack), *first.shape[1:])


def size_of(stack: Written) -> int:
    """Bytes of a tensor of the file."""
    if isinstance(stack, Computed):
        return math.prod(stack.shape) * stack.dtype.itemsize
    return sum(tensor.nbytes for tensor in stack)


def write_stream(
    path: Path,
    tensors: Mapping[str, Written],
    tell: Tell = lambda num_bytes: None,
    metadata: Mapping[str, str] | None = METADATA,
) -> FileEntry:
    """Write one safetensors file; returns its size and digest, which cost no second reading. Raises OSError."""
    order = list(NAMES)
    names = sorted(tensors, key=lambda name: (order.index(dtype_of(tensors[name])), name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + size_of(tensors[name])
        dtype, shape = NAMES[dtype_of(tensors[name])], list(shape_of(tensors[name]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest, written = hashlib.sha256(), 0
    with path.open("wb") as file:
        head = len(text).to_bytes(8, "little") + text
        file.write(head)
        digest.update(head)
        written += len(head)
        for piece in (piece for name in names for tensor in _parts(tensors[name]) for piece in _slices(tensor)):
            file.write(piece)
            digest.update(piece)
            written += len(piece)
            tell(len(piece))
    return FileEntry(sha256=digest.hexdigest(), bytes=written)


def write_shards(
    directory: Path,
    tensors: Mapping[str, Written],
    max_shard_bytes: int,
    tell: Tell = lambda num_bytes: None,
    metadata: Mapping[str, str] | None = METADATA,
) -> dict[str, FileEntry]:
    """Write all tensors as the weights of a checkpoint, in several files and an index above `max_shard_bytes`.

    Returns the entries of the files. Raises OSError that says how much is needed where the disk has less room.
    """
    sizes = {name: size_of(stack) for name, stack in tensors.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    entries = {}
    with needs_space(directory, sum(sizes.values())):
        for file, names in shards.items():
            entries[file] = write_stream(directory / file, {name: tensors[name] for name in names}, tell, metadata)
        for path in write_index(directory, shards, sum(sizes.values())):
            content = path.read_bytes()
            entries[path.name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return entries


def _parts(stack: Written) -> Iterator[Tensor]:
    return stack.slices() if isinstance(stack, Computed) else iter(stack)


def _slices(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in pieces of about `SLICE_BYTES`; of a mapped one they come from the file."""
    if not tensor.numel():
        return
    rows = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()
    step = max(1, SLICE_BYTES * len(rows) // tensor.nbytes)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step].contiguous()
        yield memoryview(piece.view(torch.uint8).numpy().data).cast("B")
