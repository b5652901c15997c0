"""Our checkpoints and Hugging Face's: the same files, with or without bltkit.json.

Weights that need no change are copied as they are, so that a way there and back leaves the same bytes.
"""

import hashlib
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import hf_config, listed_files, load_bundle, skeleton, stored_parts
from bltkit.checkpoint.bundle import MAX_SHARD_BYTES
from bltkit.checkpoint.manifest import FileEntry
from bltkit.checkpoint.names import ROUNDED
from bltkit.checkpoint.sealing import CONFIG, described, manifest_of, seal, unreadable
from bltkit.checkpoint.weights import Weights, read_json, weight_files
from bltkit.convert.companions import companions
from bltkit.convert.source_checkpoint import Counter, Source, Writer, stack_of
from bltkit.convert.stream import Stack, dtype_of, write_shards
from bltkit.files import parse_json

NAME = "hf"
_CROSS = "model.local_encoder.cross_attn_layers."
_EMBEDDING, _HEAD = "model.local_encoder.embed_tokens.weight", "lm_head.weight"
_PIECE_BYTES = 1 << 22


def is_hf(directory: Path) -> bool:
    """Is there a config.json, ours or Hugging Face's."""
    return (directory / CONFIG).exists()


def open_hf(directory: Path, counter: Counter) -> Source:
    """The checkpoint in a folder of ours or of Hugging Face's, checked: with bltkit.json every byte is compared.

    Raises ValueError with one line.
    """
    listed = listed_files(directory)
    with skeleton(directory) as bones:
        stored = bones.stored
    bundle = load_bundle(directory, device="meta", verify=bool(listed))
    content = (directory / CONFIG).read_bytes()
    config = read_json(directory / CONFIG)
    sources: dict[str, tuple[str, Stack]] = {}
    plain = config.get("model_type") == hf_config.MODEL_TYPE
    foreign = not listed and plain
    theirs = hf_config.read_config(config, directory / CONFIG) if foreign else None
    with Weights(directory, listed) as weights:
        tensors, origin = weights.tensors(), weights.origin
    if stored in ROUNDED:  # loading has compared names and shapes
        sources = {name: (name, [tensor]) for name, tensor in tensors.items()}
    parts = (part for _, parts in stored_parts(bundle.model, bundle.scorer) for part in parts)
    for part in () if stored in ROUNDED else parts:
        name = part.name
        if theirs is not None:
            name = name.replace(f"{_CROSS}0.", f"{_CROSS}{theirs.encoder_cross}.")
            name = _EMBEDDING if name == _HEAD and theirs.tied and _HEAD not in tensors else name
        sources[part.name] = (name, stack_of(tensors, [name], part.shape, origin, directory / CONFIG))
    unused = tuple(sorted(set(tensors) - {name for name, _ in sources.values()}))
    same = all(name == ours for ours, (name, _) in sources.items()) and not unused
    manifest = manifest_of(bundle)
    same &= not foreign or hf_config.difference(
        directory / CONFIG, config, manifest.model, manifest.scorer, manifest.rule  # type: ignore[arg-type]
    ) is None  # fmt: skip
    return Source(
        "ours" if listed else NAME,
        bundle,
        {ours: stack for ours, (_, stack) in sources.items()},
        companions(directory),
        config=content if plain and same else None,
        weight_files=tuple(weight_files(directory)) if same else (),
        unused_tensors={str(origin): unused} if unused else {},
        weights=stored,
    )


def ours_writer(source: Source) -> Writer:
    """The writer of a checkpoint of ours: Hugging Face's files and bltkit.json."""

    def write(directory: Path, counter: Counter) -> None:
        entries = _write_weights(directory, source, counter)
        listed = {
            name: FileEntry(sha256=_sha256(path), bytes=path.stat().st_size)
            for name, path in source.companions.items()
            if not name.lower().startswith("readme")  # people edit it
        }
        seal(directory, source.bundle, entries | listed, _dtype(source), config=source.config, weights=source.weights)

    return write


def hf_writer(source: Source) -> Writer:
    """The writer of a checkpoint of Hugging Face's, without bltkit.json. Raises ValueError where it cannot hold it."""
    contents = {} if source.config is None else {CONFIG: source.config}
    if source.config is None:
        contents = described(source.bundle, _dtype(source))  # a form of 16 bits is a dtype there
        if parse_json(contents[CONFIG], CONFIG)["model_type"] != hf_config.MODEL_TYPE:
            raise ValueError(
                f"{unreadable(source.bundle)} has no place in Hugging Face's format; "
                "convert this checkpoint to 'ours' only"
            )

    def write(directory: Path, counter: Counter) -> None:
        _write_weights(directory, source, counter)
        for name in contents.keys() - source.companions.keys():
            (directory / name).write_bytes(contents[name])

    return write


def _write_weights(directory: Path, source: Source, counter: Counter) -> dict[str, FileEntry]:
    if not source.weight_files:
        return write_shards(directory, source.tensors, MAX_SHARD_BYTES, counter.tell)
    return {path.name: _copy(path, directory / path.name, counter.tell) for path in source.weight_files}


def _copy(source: Path, target: Path, tell: Callable[[int], None]) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(_PIECE_BYTES):
            copy.write(piece)
            digest.update(piece)
            size += len(piece)
            tell(len(piece))
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dtype(source: Source) -> str:
    dtypes = set(map(dtype_of, source.tensors.values()))
    dtype: Any = reduce(torch.promote_types, (each for each in dtypes if each.is_floating_point))
    return str(dtype).removeprefix("torch.")
