"""Training on several processes: who they are, what each of them holds, and what they tell one another.

Parallelism is put on a model from outside; no module knows of it. Dense weights are sharded by FSDP2 (each transformer
layer a unit of its own, the rest of the model another), over all processes or, as HSDP, over groups that each hold a
copy. The n-gram tables are sharded by rows over all processes and never gathered (`sharded_tables.py`). One process
needs none of this and gets none.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from bltkit import compute
from bltkit.model import Blt
from bltkit.model.embed import NgramEmbedding
from bltkit.model.layers import Transformer
from bltkit.train.sharded_tables import RowShards, ShardedEmbedding, shard_tables

T = TypeVar("T")

TABLES = "embed.ngrams"
"""The one parameter that is sharded by rows."""


@dataclass(frozen=True)
class World:
    """The processes of a run; `torchrun` starts them."""

    rank: int
    size: int
    device: torch.device
    shard: int
    """Processes that share one copy of the dense weights."""

    @property
    def is_main(self) -> bool:
        """Writes files and talks."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Of every process's values; exact for integers up to 2^53. Waits for all, but not for a GPU."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def barrier(self) -> None:
        """Wait for all, but not for a GPU."""
        self.sums([0.0])

    @contextlib.contextmanager
    def together(self, group: dist.ProcessGroup | None = None) -> Iterator[None]:
        """What one process fails at fails in all: they would wait for it in whatever comes next.

        For a block in which the processes tell one another nothing. Raises the process's own error, else OSError.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        if self.size > 1:
            told: list[str | None] = [None] * self.size
            dist.all_gather_object(told, None if own is None else str(own), group=group or self.messages)
            failed = [f"process {rank}: {text}" for rank, text in enumerate(told) if text is not None]
            if own is None and failed:
                raise OSError(failed[0])
        if own is not None:
            raise own

    def of_main(self, value: T) -> T:
        """The main process's value, in every process. Waits for all."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self.messages)
        return cast(T, values[0])

    @cached_property
    def messages(self) -> dist.ProcessGroup | None:
        """Through which processes say what no GPU has to know of; None for one process."""
        return dist.new_group(backend="gloo") if self.size > 1 else None

    @cached_property
    def writers(self) -> dist.ProcessGroup | None:
        """Of those that write a checkpoint beside the steps, whose messages must not mix with the steps' own."""
        return dist.new_group(backend="gloo") if self.size > 1 else None

    @cached_property
    def rows(self) -> "RowShards | None":
        """How tables are divided; None for one process."""
        if self.size == 1:
            return None
        return RowShards(self.rank, self.size, init_device_mesh(self.device.type, (self.size,)))

    @cached_property
    def mesh(self) -> DeviceMesh:
        """Of the dense weights: [shard], or [replicate, shard] where there are several copies."""
        if self.shard == self.size:
            return init_device_mesh(self.device.type, (self.size,), mesh_dim_names=("shard",))
        shape = (self.size // self.shard, self.shard)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))


_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "ncclRemoteError")
"""What torch says where another process is gone."""


def is_main() -> bool:
    """Is this the process that talks, of those that torchrun started; true where it started none."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def world_of(device: str, shard: int | None) -> Iterator[World]:
    """The world that torchrun's variables describe, with its process group open; else one process.

    device: `auto`, or a torch device; under torchrun every process takes the GPU of its local rank.
    shard: processes that share the dense weights; all by default. Raises ValueError where the numbers do not fit.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if shard is not None and (shard < 1 or size % shard):
        raise ValueError(
            f"trainer.shard = {shard} does not divide the {size} process{'es' if size > 1 else ''} of this run; "
            "leave it out to shard over all of them"
        )
    own = device_of(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if size == 1:
        yield World(0, 1, own, 1)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    already = dist.is_initialized()
    if not already:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    try:
        world = World(dist.get_rank(), size, own, shard or size)
        # All groups at once: making one waits for every process for half an hour, also for one that has failed since;
        # in one that is made, those who wait learn at once that another is gone.
        _ = world.messages, world.writers, world.rows, world.mesh
        yield world
    except RuntimeError as error:
        if any(sign in str(error) for sign in _LOST):
            raise ConnectionError(
                f"process {dist.get_rank()} lost another one of this run, whose own message says why"
            ) from None
        raise
    finally:
        if not already:
            dist.destroy_process_group()


def check_rows(batch_rows: int, processes: int) -> None:
    """Raises ValueError where a batch cannot be shared out evenly."""
    if batch_rows % processes:
        raise ValueError(
            f"data.batch_rows = {batch_rows} rows cannot be shared evenly by {processes} processes; "
            f"use a multiple of {processes}"
        )


def device_of(name: str, local_rank: int | None = None) -> torch.device:
    """A device by its name: `auto` is CUDA, else the CPU. Raises ValueError for what is none, or not there."""
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")  # trainings on MPS are for those who ask for them: no test has seen one
    device = compute.device_of(name, "trainer.device")
    if device.type == "cuda" and local_rank is not None:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started more processes on this machine than its {torch.cuda.device_count()} GPUs; "
                "lower --nproc-per-node"
            )
        return torch.device("cuda", local_rank)
    return device


def distribute(model: nn.Module, world: World, dtype: torch.dtype | None) -> None:
    """Shard a model that is still on the meta device, in place; one process keeps it whole.

    dtype: that weights are gathered in for the products (None: as they are held, in fp32). Gradients are summed in
    fp32 whatever it is.
    """
    if world.size == 1:
        return
    ignored: set[nn.Parameter] = set()
    if isinstance(model, Blt) and isinstance(model.embed, NgramEmbedding):
        rows = world.rows
        assert rows is not None
        ignored = {shard_tables(model, rows)}
    # Activations keep the dtype they have in one process; autocast decides there and here.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": world.mesh, "mp_policy": policy}
    for stack in [module for module in model.modules() if isinstance(module, Transformer)]:
        for layer in stack.layers:
            fully_shard(layer, **options)
    fully_shard(model, ignored_params=ignored, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A step's loss is divided by the targets of all processes, so gradients add up.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def materialize(model: nn.Module, device: torch.device, generator: torch.Generator) -> None:
    """Give a model on the meta device memory, and its initial weights: those that it would have in one process."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # never on the meta device
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    cast(Any, model).reset_parameters(generator)


_WRAPPED = "_checkpoint_wrapped_module."


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have in a model to which nothing was done."""
    return {name.replace(_WRAPPED, ""): weight for name, weight in model.named_parameters()}


def globally(name: str, tensor: Tensor, model: nn.Module, world: World) -> Tensor:
    """A weight, or what belongs to it element by element, as a checkpoint of any number of processes names it."""
    if world.rows is not None and name == TABLES and isinstance(model, Blt) and tensor.dim() == 2:
        assert isinstance(model.embed, ShardedEmbedding)
        return world.rows.global_view(tensor, model.embed.num_rows)
    return tensor


def whole_weights(model: nn.Module, world: World) -> dict[str, Tensor]:
    """All weights, put together on the CPU of the main process; the others, which have to ask too, get none."""
    found = {}
    for name, weight in named_weights(model).items():
        tensor: Tensor | None = weight.detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        elif world.rows is not None and name == TABLES and isinstance(model, Blt):
            assert isinstance(model.embed, ShardedEmbedding)
            tensor = world.rows.gather(weight.detach(), model.embed.num_rows)
        if world.is_main:
            assert tensor is not None
            found[name] = tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
    return found
