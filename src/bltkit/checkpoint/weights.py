"""Tensors in safetensors files: written in shards, read one by one through a memory map.

Only JSON and safetensors are opened here, and pickles are refused by name. Weight files are opened by fixed names or by
names that the index gives, all in one directory; links among them are followed, as the hub's cache consists of links.
"""

import errno
import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bltkit.files import needs_space, parse_json, require_regular

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")


def write_weights(
    directory: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[Path]:
    """Write all tensors, converted to `dtype` if given; several files and an index above `max_shard_bytes`.

    A file is converted and written at a time, so that no second copy of a large model is ever held. Returns the files
    written. Raises OSError that says how much is needed where the disk has less room, in front of the first file.
    """
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in tensors.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    with needs_space(directory, sum(sizes.values())):
        for name, shard in shards.items():
            _write_file(directory / name, {key: _plain(tensors[key], dtype) for key in shard})
        index = write_index(directory, shards, sum(sizes.values()))
    return [*(directory / name for name in shards), *index]


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """Weight files and the tensors in each, in the order given. sizes: bytes of each tensor; a larger one is alone."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def write_index(directory: Path, shards: Mapping[str, list[str]], total_bytes: int) -> list[Path]:
    """Write the index where there are several files; returns what was written. Raises OSError."""
    if len(shards) == 1:
        return []
    weight_map = {key: name for name, shard in shards.items() for key in shard}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [directory / INDEX]


class Weights:
    """The tensors of a directory, by name. A context manager; tensors read stay valid after it closes."""

    def __init__(self, directory: Path, listed: Collection[str] = ()) -> None:
        """listed: files that the directory's manifest lists; if any, the weights are to be among them.

        Raises ValueError with one line for files that are missing, no regular files or no safetensors, and where the
        files, the index and the manifest do not belong together.
        """
        self._open = ExitStack()
        self._files: dict[str, tuple[Path, Any]] = {}
        self.origin, files, weight_map = _weight_files(directory)
        for path in files:
            if listed and path.name not in listed:
                raise ValueError(f"{path} is not listed in bltkit.json, which has other weights; remove it")
        try:
            for path in files:
                handle = self._open.enter_context(_opened(path))
                for name in handle.keys():  # noqa: SIM118 - no mapping
                    if name in self._files:
                        raise ValueError(f"{path}: tensor {name} is also in {self._files[name][0].name}")
                    if weight_map is not None and weight_map.get(name) != path.name:
                        raise ValueError(f"{path} holds tensor {name}, which {INDEX} does not place there")
                    self._files[name] = (path, handle)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, whatever their type, in the files' memory maps."""
        return {name: handle.get_tensor(name) for name, (_, handle) in self._files.items()}

    def paths(self) -> set[Path]:
        """The files that hold tensors."""
        return {path for path, _ in self._files.values()}

    def metadata(self) -> dict[str, str] | None:
        """What the header of the first file says besides tensors; None where it says nothing."""
        for _, handle in self._files.values():
            content: dict[str, str] | None = handle.metadata()
            return content
        return None

    @property
    def itemsize(self) -> int:
        """Bytes of a number, of the widest type among the tensors."""
        sizes = {"F64": 8, "F32": 4}
        return max((sizes.get(handle.get_slice(name).get_dtype(), 2) for name, (_, handle) in self._files.items()))

    def rows(self, name: str) -> int:
        """The first dimension of a tensor; 0 where there is no such tensor, or it has no dimensions."""
        if name not in self._files:
            return 0
        return int((*self._files[name][1].get_slice(name).get_shape(), 0)[0])

    def dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor, without reading it; None where there is no such tensor, or it is no float's."""
        if name not in self._files:
            return None
        return _FLOATS.get(self._files[name][1].get_slice(name).get_dtype())

    def place(self, name: str) -> tuple[Path, int]:
        """The file that holds a tensor, and where in it the tensor begins."""
        path, _ = self._files[name]
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(size), str(path))
        return path, 8 + size + int(header[name]["data_offsets"][0])

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, in the file's dtype and backed by the file: pages come in as they are used.

        Raises ValueError if it is missing, of another shape, not of `dtype`, or of no floating-point type where that is
        not given.
        """
        if name not in self._files:
            raise ValueError(
                f"{self.origin}: tensor {name} is missing; the file and config.json do not belong together"
            )
        path, handle = self._files[name]
        piece = handle.get_slice(name)
        if (found := tuple(piece.get_shape())) != shape:
            raise ValueError(f"{path}: tensor {name} has shape {list(found)}, but config.json asks for {list(shape)}")
        tensor: Tensor = handle.get_tensor(name)
        if dtype is not None and tensor.dtype != dtype:
            expected = str(dtype).removeprefix("torch.")
            raise ValueError(f"{path}: tensor {name} has dtype {piece.get_dtype()}; expected {expected}")
        if dtype is None and not tensor.is_floating_point():
            raise ValueError(f"{path}: tensor {name} has dtype {piece.get_dtype()}; expected floating point")
        return tensor


def weight_files(directory: Path) -> list[Path]:
    """All files that hold the weights, and the index where there is one. Raises ValueError as `Weights` does."""
    origin, files, weight_map = _weight_files(directory)
    return files if weight_map is None else [*files, origin]


def _weight_files(directory: Path) -> tuple[Path, list[Path], Mapping[str, str] | None]:
    """The file that errors about missing tensors name, all weight files, and which tensors the index has in each."""
    single, index = directory / WEIGHTS, directory / INDEX
    if os.path.lexists(single):
        require_regular(single)
        return single, [single], None
    if os.path.lexists(index):
        return index, *_indexed(index)
    present = sorted(entry.name for entry in directory.iterdir())
    pickles = [name for name in present if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(
            f"{directory} holds {pickles[0]} but no {WEIGHTS}: such files are pickles, which can run any code when "
            "they are loaded, so they are not read; convert the weights to safetensors"
        )
    others = [name for name in present if name.endswith(".safetensors")]
    found = f" (found {', '.join(others)})" if others else ""
    raise ValueError(f"{directory} holds no {WEIGHTS}{found}: it is no checkpoint, or an incomplete one")


def _indexed(index: Path) -> tuple[list[Path], Mapping[str, str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: key 'weight_map' is missing or empty; expected tensor names and their files")
    files = []
    for name in sorted(set(map(str, weight_map.values()))):
        if set(name) & {"/", "\\", "\0"} or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r:.80}; expected safetensors files of the same directory")
        path = index.parent / name
        try:
            require_regular(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing, but {index.name} names it; the checkpoint is incomplete") from None
        files.append(path)
    return files, weight_map


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a checkpoint's file. Raises ValueError with one line for anything else."""
    try:
        require_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {path.parent} is no checkpoint, or an incomplete one") from None
    data = parse_json(path.read_bytes(), str(path), escaped_bytes=True)
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        first = " ".join(str(error).split())
        raise ValueError(
            f"{path} is no complete safetensors file ({first}; {path.stat().st_size} bytes); fetch or copy it again"
        ) from None


def _write_file(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library wraps what the system said; callers want to know a full disk by its number.
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
