"""A checkpoint to be converted, in whatever layout it lies: what it is, and its tensors in their files' memory maps."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from bltkit.checkpoint import Bundle
from bltkit.convert.stream import DTYPES, Stack, Written
from bltkit.model.quantize import WeightForm

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


_EMPTY: Mapping[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Source:
    """A checkpoint that was checked and can be written in another layout."""

    layout: str
    bundle: Bundle
    """Model, scorer, rule and record; the modules have no weights (meta device)."""
    tensors: Mapping[str, Written]
    """The weights under the names of our files, each as a stack of mapped tensors, or computed of such."""
    companions: Mapping[str, Path] = field(default_factory=dict)
    """Files that come along unchanged, by the names that they get; licences first of all."""
    config: bytes | None = None
    """config.json where the source has one that describes it in Hugging Face's format."""
    weight_files: tuple[Path, ...] = ()
    """The weights' files where they are in our format already and can be copied as they are."""
    unused_tensors: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    """Tensors that the model does not have, by file."""
    unused_fields: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    """Fields that are not read, by file."""
    weights: WeightForm | None = None
    """The form in which the large matrices are stored."""


@dataclass
class Counter:
    """Bytes that were read or written, of all that are to be."""

    progress: Progress | None = None
    done: int = 0
    total: int = 0

    def expect(self, num_bytes: int) -> None:
        """Add `num_bytes` to the total."""
        self.total += num_bytes

    def tell(self, num_bytes: int) -> None:
        """Add `num_bytes` to what is done, and report progress."""
        self.done += num_bytes
        if self.progress is not None:
            self.progress(self.done, max(self.done, self.total))


Writer = Callable[[Path, Counter], None]
"""Writes a checkpoint that was checked into an empty directory. Raises OSError."""


def stack_of(
    tensors: Mapping[str, Tensor], names: Iterable[str], shape: tuple[int, ...], weights: Path, config: Path
) -> Stack:
    """The tensors called `names`, which together have `shape`: each the same share of dim 0.

    weights: the file that holds them, config: the one that describes them, both for messages. Raises ValueError for a
    tensor that is missing, or of another shape or type.
    """
    names = tuple(names)
    share = (shape[0] // len(names), *shape[1:])
    stack: list[Tensor] = []
    for name in names:
        if name not in tensors:
            raise ValueError(f"{weights}: tensor {name} is missing; {config} describes a model with it")
        tensor = tensors[name]
        if tuple(tensor.shape) != share:
            raise ValueError(
                f"{weights}: tensor {name} has shape {list(tensor.shape)}, but {config} asks for {list(share)}"
            )
        if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or tensor.is_sparse or tensor.is_quantized:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{weights}: tensor {name} has dtype {dtype}; expected one of {kinds}, stored in full")
        if stack and tensor.dtype != stack[0].dtype:
            raise ValueError(f"{weights}: tensors {names[0]} and {name} have two dtypes; expected one for all tables")
        stack.append(tensor)
    return stack
