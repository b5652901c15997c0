"""Reads the tensors that `torch.distributed.checkpoint` wrote, and nothing that could run.

That format keeps what it holds in `.metadata`, a pickle, which torch reads as Python reads pickles: by calling whatever
it names. Here it may name the few classes that describe tensors, and none that describes anything else: objects other
than tensors would be unpickled by torch in turn. Tensors themselves torch reads with its weights-only loader.
"""

import pickle
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.serialization import _get_layout

METADATA = ".metadata"

_CLASSES: dict[tuple[str, str], Any] = {
    (described.__name__, name): getattr(described, name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    # Where it was written: never opened.
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The classes that describe tensors, and torch's dtypes. Raises UnpicklingError for anything else."""
        allowed = _CLASSES.get((module, name))
        if allowed is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            allowed = getattr(torch, name)
        if allowed is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's description")
        return allowed


def read_metadata(file: IO[bytes]) -> Metadata:
    """The description of a checkpoint's tensors. Raises ValueError for anything else, and runs nothing of it."""
    try:
        metadata = _MetadataUnpickler(file).load()
    except Exception as error:  # a pickle that is cut short raises anything
        lines = str(error).strip().splitlines()
        raise ValueError(f"{METADATA}: {type(error).__name__}: {lines[0] if lines else 'empty'}") from None
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{METADATA} describes no tensors")
    entries: Any = metadata.state_dict_metadata
    stored: Any = metadata.storage_data
    if not isinstance(entries, dict) or not isinstance(stored, dict):
        raise ValueError(f"{METADATA} describes no tensors")
    for name, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{METADATA}: {name} is no tensor")
    for place in stored.values():
        path = getattr(place, "relative_path", None)
        if not isinstance(path, str) or Path(path).name != path or getattr(place, "transform_descriptors", None):
            raise ValueError(f"{METADATA}: {path!r} is no file of this checkpoint")
    return metadata


class TensorReader(FileSystemReader):
    """torch's reader of a directory, whose `.metadata` is read by `read_metadata`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises ValueError for what is damaged, OSError for what is not there."""
        path = Path(self.path) / METADATA
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(f"{METADATA} is missing")
        with path.open("rb") as file:
            metadata = read_metadata(file)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by name. Raises as `read_metadata`."""
        entries = self.read_metadata().state_dict_metadata.items()
        return {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}

    def verify_sizes(self) -> None:
        """Raises ValueError where a file is missing or shorter than what it should hold."""
        for place in self.read_metadata().storage_data.values():
            file = Path(self.path) / place.relative_path
            if not file.is_file() or file.stat().st_size < place.offset + place.length:
                raise ValueError(f"{file.name} is missing or cut short")
