"""Checkpoints of our own model types by `from_pretrained` and `save_pretrained`."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import MANIFEST, Bundle, atomic_directory, load_bundle, write_bundle
from bltkit.checkpoint.byte_tokenizer import SETTINGS, TOKENIZER
from bltkit.checkpoint.intact import read_manifest
from bltkit.checkpoint.manifest import Manifest
from bltkit.checkpoint.sealing import CONFIG, json_bytes
from bltkit.checkpoint.weights import INDEX, read_json, weight_files
from bltkit.compute import device_of
from bltkit.config import parse
from bltkit.hf.config import checkpoint_directory

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "revision": ("main",),
    "subfolder": ("",),
    "attn_implementation": ("sdpa", "eager"),
    "use_safetensors": (True,),
    "low_cpu_mem_usage": (True, False),
    "trust_remote_code": (True, False),
    "local_files_only": (True, False),
}
"""Arguments of `from_pretrained` that change nothing here, and the values that do not."""

_TOKENIZER = (TOKENIZER, SETTINGS)

_SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def load(name: Any, arguments: dict[str, Any]) -> Bundle:
    """The checkpoint called `name`, by the keyword arguments of transformers' `from_pretrained`.

    dtype (torch_dtype): a torch.dtype or its name; "auto" is that of the files; float32 when absent. device_map: one
    device. Raises ValueError for other arguments, and as `load_bundle` does.
    """
    directory = checkpoint_directory(name)
    dtype = arguments.pop("torch_dtype", None) or arguments.pop("dtype", None)
    arguments.pop("dtype", None)
    if dtype == "auto":
        dtype = read_json(directory / CONFIG).get("dtype")
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype = {dtype!r}: must be a floating-point torch.dtype, its name or 'auto'")
    device = _device(arguments.pop("device_map", None))
    for key in ("adapter_kwargs", "_from_auto"):  # of the Auto classes, which have used them
        arguments.pop(key, None)
    for key, value in arguments.items():
        if value is not None and value is not False and value not in _NEUTRAL.get(key, ()):
            raise ValueError(f"{key} = {value!r:.60} is not supported for a model of type bltkit; leave it out")
    return load_bundle(directory, dtype=dtype or torch.float32, device=device)


def save(directory: str | Path, bundle: Bundle, max_shard_size: int | str) -> None:
    """Write a checkpoint: whole or not at all into a new directory, file by file into one that exists.

    Raises ValueError for a bad size, OSError if writing fails.
    """
    target, size = Path(directory), _bytes(max_shard_size)
    if not target.exists():
        with atomic_directory(target) as written:
            _write(written, bundle, size)
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file; give a directory to save to")
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as folder:
        written = Path(folder)
        _write(written, bundle, size)
        stale = {file.name for file in weight_files(target)} if (target / CONFIG).exists() else set()
        stale |= {INDEX} & {file.name for file in target.iterdir()}
        kept = {name for name in _TOKENIZER if (target / name).exists()}
        new = [file for file in written.iterdir() if file.name not in kept]
        new.sort(key=lambda file: file.name in (CONFIG, MANIFEST))
        for file in new:
            file.replace(target / file.name)
        for name in stale - {file.name for file in new}:
            (target / name).unlink(missing_ok=True)


def _write(directory: Path, bundle: Bundle, max_shard_bytes: int) -> None:
    """The files of a checkpoint. bltkit.json does not answer for the tokenizer, which Trainer writes once more."""
    write_bundle(directory, bundle, max_shard_bytes=max_shard_bytes)
    manifest: Manifest = parse(Manifest, read_manifest(directory), MANIFEST)
    listed = {name: entry for name, entry in manifest.files.items() if name not in _TOKENIZER}
    (directory / MANIFEST).write_bytes(json_bytes(manifest.replace(files=listed)))


def _device(value: Any) -> torch.device:
    if isinstance(value, Mapping):
        if set(value) != {""}:
            raise ValueError(f"device_map = {dict(value)!r:.60}: a model of type bltkit lies on one device")
        value = value[""]
    if isinstance(value, int):
        value = f"cuda:{value}"
    return device_of("cpu" if value is None else value)


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+) ?([KMGT]B)", size.upper())
    if match is None:
        raise ValueError(f"max_shard_size = {size!r}: must be a number of bytes, or such as '5GB'")
    return int(match[1]) * _SIZES[match[2]]
