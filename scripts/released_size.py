"""A random checkpoint of the shape and size of a released model: what conversion, memory and speed are measured with.

Run:  python -m scripts.released_size {1b,7b} DST [--layout ours|hf|hub]
Names, shapes, dtype (bf16) and fields are the published ones, with the released entropy model's shape beside the BLT;
`hub` is the layout of Meta's repositories on the hub. Matrices are cut from one block of random numbers at positions
that no two of them share, and have the scale of our initialisation, the entropy model's attention that of the random
models of `blt bench`. So a file costs about as long as writing it takes, and a few slices of memory.
The rule has the released threshold, at which random entropies make every byte a patch: calibrate it before measuring.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import torch
from bltkit.bench.subject import DAMPING
from bltkit.convert.source import Counter, Source, Writer
from torch import Tensor

from bltkit.checkpoint import Bundle, atomic_directory, build_modules, stored_parts
from bltkit.convert.hf import hf_writer, ours_writer
from bltkit.convert.meta import write_entropy, write_texts
from bltkit.convert.meta_names import TABLES, meta_names, of_entropy_model
from bltkit.convert.stream import Stack, write_stream
from bltkit.files import needs_space
from bltkit.model import BltConfig, EntropyConfig, blt_preset, entropy_preset
from bltkit.model.presets import RELEASED_THRESHOLD
from bltkit.patching import ThresholdRule

PRESETS = {"1b": "1b", "7b": "8b"}
"""Released sizes, and our presets of these shapes."""

BLOCK = 2**24 - 3
"""Numbers in the block; odd, so that rows of a matrix that is larger than the block begin at different places of it."""

_DEPTH = re.compile(r"layers\.(\d+)\.")
_CONFIG = ("config.json", "args")


class Drawn(Sequence[Tensor]):
    """A random matrix as pieces of whole rows, each made when it is asked for: a `Stack` that takes no memory."""

    def __init__(self, shape: tuple[int, ...], sigma: float, at: int) -> None:
        """sigma: standard deviation. at: index of the matrix, which decides where it begins in the block."""
        self.shape, self.sigma, self.at = shape, sigma, at
        self.rows = BLOCK // 2 // shape[1]
        """Of a piece: half the block, so that all places in the first half can be its beginning."""

    def __len__(self) -> int:
        return -(-self.shape[0] // self.rows)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        count = min(self.rows, self.shape[0] - index * self.rows)
        # Steps of an odd number near the golden section: beginnings are distinct and spread over the half.
        begin = (self.at * 1009 + index + 1) * 5184389 % (BLOCK // 2)
        return _scaled(self.sigma)[begin : begin + count * self.shape[1]].view(count, self.shape[1])


@lru_cache(maxsize=1)
def _block() -> Tensor:
    """Normal numbers, cut off at three standard deviations."""
    generator = torch.Generator().manual_seed(0)
    return torch.nn.init.trunc_normal_(torch.empty(BLOCK), a=-3, b=3, generator=generator)


@lru_cache(maxsize=2)
def _scaled(sigma: float) -> Tensor:
    return (_block() * sigma).bfloat16()


def sigma_of(name: str, fan_in: int) -> float:
    """Standard deviation of a matrix at initialisation. name: in Hugging Face's format."""
    depth = _DEPTH.search(name)
    sigma = fan_in**-0.5 if depth is None else (2 * (int(depth[1]) + 1) * fan_in) ** -0.5
    return DAMPING * sigma if of_entropy_model(name) and name.endswith("self_attn.o_proj.weight") else sigma


def drawn_source(model: BltConfig, scorer: EntropyConfig, threshold: float = RELEASED_THRESHOLD) -> Source:
    """A checkpoint with random weights in bf16, ready to be written in any layout but Meta's."""
    path = Path("config.json")
    modules = build_modules(path, model, scorer, num_tensors=2**31, table_rows=2**62)
    rule = ThresholdRule(threshold=threshold)
    tensors: dict[str, Stack] = {}
    parts = [part for _, parts in stored_parts(*modules) for part in parts]
    for at, part in enumerate(parts):
        if len(part.shape) == 1:
            tensors[part.name] = [torch.ones(part.shape, dtype=torch.bfloat16)]
        else:
            tensors[part.name] = Drawn(part.shape, sigma_of(part.name, part.shape[1]), at)
    return Source("drawn", Bundle(*modules, rule), tensors)


def hub_writer(source: Source) -> Writer:
    """Meta's layout on the hub: config.json with `args`, safetensors and the entropy model's folder."""
    assert source.bundle.model is not None
    texts, num_tables = write_texts(source, *_CONFIG), source.bundle.model.config.ngrams.num_tables
    stacks: dict[str, Stack] = {}
    for at, (name, stack) in enumerate(source.tensors.items()):
        names = meta_names(name, num_tables)
        if name == TABLES and isinstance(stack, Drawn):
            shape = (stack.shape[0] // num_tables, stack.shape[1])
            first = len(source.tensors) + at
            stacks |= {table: Drawn(shape, stack.sigma, first + i) for i, table in enumerate(names)}
        elif not of_entropy_model(name):
            stacks[names[0]] = stack
    whole = {name: [torch.cat(list(stack))] for name, stack in source.tensors.items() if of_entropy_model(name)}

    def write(directory: Path, counter: Counter) -> None:
        (directory / _CONFIG[0]).write_bytes(texts[_CONFIG[0]].encode())
        write_stream(directory / "model.safetensors", stacks, counter.tell)
        write_entropy(directory, Source(source.layout, source.bundle, whole), texts, counter)

    return write


LAYOUTS: dict[str, Callable[[Source], Writer]] = {"ours": ours_writer, "hf": hf_writer, "hub": hub_writer}


def shape_of(stack: Stack) -> tuple[int, ...]:
    """Shape of a tensor of `drawn_source`."""
    return stack.shape if isinstance(stack, Drawn) else tuple(stack[0].shape)


def write(source: Source, out: Path, layout: str) -> int:
    """Write a checkpoint, whole or not at all; returns the bytes of its tensors. Raises ValueError or OSError."""
    num_bytes = sum(torch.bfloat16.itemsize * math.prod(shape_of(stack)) for stack in source.tensors.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    with needs_space(out, num_bytes), atomic_directory(out) as directory:
        LAYOUTS[layout](source)(directory, Counter())
    return num_bytes


def released(size: str) -> tuple[BltConfig, EntropyConfig]:
    """Shapes of a released model and of the entropy model; attention crosses documents, as the files say nothing."""
    model = blt_preset(PRESETS[size]).replace(document_masks=False)
    return model, entropy_preset("100m").replace(document_masks=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the checkpoint and print its size."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint of a released model's size.")
    parser.add_argument("size", choices=PRESETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default="hub")
    options = parser.parse_args(arguments)
    try:
        num_bytes = write(drawn_source(*released(options.size)), options.out, options.layout)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{options.out}: {options.size} in layout {options.layout}, {num_bytes:,} bytes of tensors")


if __name__ == "__main__":
    main()
