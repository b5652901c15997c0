"""Meta's layout on the hub: `config.json` with the fields under `args`, safetensors, and the folder `entropy_model`."""

from pathlib import Path

from bltkit.checkpoint.bundle import MAX_SHARD_BYTES
from bltkit.convert.fields import read_fields
from bltkit.convert.meta import (
    ModelPart,
    find_entropy,
    meta_tensors,
    read_meta,
    read_tensors,
    weights_written,
    write_entropy,
    write_texts,
)
from bltkit.convert.source_checkpoint import Counter, Source, Writer
from bltkit.convert.stream import write_shards

NAME = "meta-hub"
_CONFIG, _SECTION = "config.json", "args"


def is_meta_hub(directory: Path) -> bool:
    """Is it a folder of this layout. Raises ValueError for a config.json that is none."""
    return (directory / _CONFIG).exists() and _SECTION in read_fields(directory / _CONFIG)[0].data


def open_meta_hub(directory: Path, entropy: Path | None, counter: Counter) -> Source:
    """The checkpoint in a folder of this layout. Raises ValueError with one line."""
    root, text = read_fields(directory / _CONFIG)
    args, scores = root.inside(_SECTION), find_entropy(directory, entropy)
    part = ModelPart(NAME, directory, _CONFIG, text, root, args, read_tensors(directory, counter))
    return read_meta(part, directory, scores, counter)


def meta_hub_writer(source: Source) -> Writer:
    """The writer of a checkpoint in this layout. Raises ValueError where the layout cannot hold it."""
    texts, tensors = write_texts(source, _CONFIG, _SECTION), meta_tensors(source, entropy=False)
    num_files, header = weights_written(source.bundle)
    most = sum(tensor.nbytes for tensor in tensors.values()) if num_files == 1 else MAX_SHARD_BYTES

    def write(directory: Path, counter: Counter) -> None:
        (directory / _CONFIG).write_bytes(texts[_CONFIG].encode())
        stacks = {name: [tensor] for name, tensor in tensors.items()}
        write_shards(directory, stacks, most, counter.tell, header)
        write_entropy(directory, source, texts, counter)

    return write
