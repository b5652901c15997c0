"""`.pth` files, read without running what is in them: tensors that stay in the file's memory map.

Only `torch.load(weights_only=True, mmap=True)` opens them, after the checksums of the zip archive that they are were
compared. Nothing but tensors, numbers, texts and their containers comes out of one.
"""

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bltkit.files import require_regular

_WRAPPERS = ("model", "state_dict")
"""Keys that the tensors may lie under."""
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class PickledTensors:
    """Tensors of a file by name, and the names of what else it holds."""

    path: Path
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...]


def read_pickle(path: Path, tell: Callable[[int], None] = lambda num_bytes: None) -> PickledTensors:
    """The tensors of a `.pth` file, mapped. tell: told the bytes that were compared since it was last told.

    Raises ValueError with one line for a file that is damaged, of torch's old format, or holds objects other than
    tensors; FileNotFoundError where there is none.
    """
    require_regular(path)
    _check(path, tell)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a crafted file provokes
        raise ValueError(f"{path} {_reason(error)}") from None
    wrappers = [key for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
    wrapper = next(iter(wrappers), None)
    others = []
    if wrapper is not None:
        others = [str(key) for key in content if key != wrapper]
        content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        kind = "no tensors" if isinstance(content, dict) else f"a {type(content).__name__}"
        where = f" under {wrapper!r}" if wrapper is not None else ""
        raise ValueError(
            f"{path} holds {kind}{where}; expected tensors by name, alone or under {' or '.join(map(repr, _WRAPPERS))}"
        )
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    others += [str(key) for key in content if key not in tensors]
    return PickledTensors(path, tensors, tuple(others))


def _check(path: Path, tell: Callable[[int], None]) -> None:
    """Compare the CRC-32 of every record, which `torch.load` does not do for mapped files."""
    with path.open("rb") as file:
        magic = file.read(4)
    size = path.stat().st_size
    if magic != b"PK\x03\x04":
        if magic[:1] == b"\x80" or magic[:2] == b"\x1f\x8b":
            raise ValueError(
                f"{path} is a pickle, not an archive of tensors: it cannot be read without running what is in it; "
                "save it again with a current version of torch, where you trust it"
            )
        raise ValueError(f"{path} is no .pth file, or an incomplete one ({size} bytes); fetch it again")
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{path}: record {record.filename:.80} is compressed; save it again with torch")
                # torch writes 0 where it was told to save without checksums.
                if record.CRC:
                    with archive.open(record) as stream:
                        while piece := stream.read(_PIECE_BYTES):
                            tell(len(piece))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}; {size} bytes); fetch it again") from None
    except (EOFError, NotImplementedError, RuntimeError) as error:  # cut short; features that torch never writes
        reason = str(error) or "it ends early"
        raise ValueError(f"{path} is damaged or incomplete ({reason}; {size} bytes); fetch it again") from None


def _reason(error: Exception) -> str:
    """Why torch refused a file, in one sentence."""
    text = " ".join(str(error).split())
    object_name = re.search(r"GLOBAL ([\w.]+)", text)
    if object_name:
        return (
            f"holds more than tensors ({object_name[1]}): such objects can run any code when they are loaded, so the "
            "file is not read; fetch it from its publisher, or save its tensors alone where you trust it"
        )
    return f"is damaged or holds more than tensors ({text[:120] or type(error).__name__}); fetch it again"


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors under the key `model`. Views are written alone, not with the storage that they are a part of.

    Mapped tensors go from file to file: no copy in memory. Raises OSError.
    """
    content: dict[str, Any] = {name: _standalone(tensor) for name, tensor in tensors.items()}
    try:
        torch.save({"model": content}, path)
    except RuntimeError as error:
        # torch hides what the system said; a disk without room for the file is the usual reason.
        size = sum(tensor.nbytes for tensor in tensors.values())
        number = errno.ENOSPC if shutil.disk_usage(path.parent).free < size else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _standalone(tensor: Tensor) -> Tensor:
    """The same tensor on a storage that ends where it ends, without a copy."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == tensor.nbytes:
        return tensor
    if not tensor.is_contiguous():
        return tensor.contiguous()
    start = tensor.storage_offset() * tensor.itemsize
    alone = storage[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(alone, 0, tensor.shape, tensor.stride())
