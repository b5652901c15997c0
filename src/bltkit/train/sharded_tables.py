"""N-gram tables sharded by rows: each process owns a stretch of rows, looks them up for all, and updates them alone.

Gathering a table, as FSDP does with other weights, would move gigabytes for the few thousand rows that a batch reads.
Instead a process asks each owner for the distinct rows that its bytes need and gets vectors back; gradients take the
same way in the other direction and arrive as a sparse gradient of the owner's rows. What travels is a few times the
byte stream, whatever the size of the tables and the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from bltkit.model import Blt
from bltkit.model.embed import NgramEmbedding
from bltkit.model.layers import truncated_normal

DRAWN_AT_ONCE = 1 << 16
"""Rows initialised together: no process ever holds a whole table."""


@dataclass(frozen=True, eq=False)
class RowShards:
    """How rows are divided: in stretches of equal size, as DTensor's `Shard(0)` does, the last one shorter."""

    rank: int
    size: int
    mesh: DeviceMesh

    def each(self, rows: int) -> int:
        """Rows of a full stretch."""
        return -(-rows // self.size)

    def own(self, rows: int) -> range:
        """The rows of this process."""
        each = self.each(rows)
        return range(min(rows, self.rank * each), min(rows, (self.rank + 1) * each))

    def gather(self, local: Float[Tensor, "R D"], rows: int) -> Float[Tensor, "rows D"] | None:
        """All rows on the CPU of the main process, past the devices' memory; None on the others, which take part."""
        own = local.new_zeros(self.each(rows), local.shape[1], device="cpu")
        own[: len(local)] = local
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(own, parts)
        return None if parts is None else torch.cat(parts)[:rows]

    def global_view(self, local: Float[Tensor, "R D"], rows: int) -> DTensor:
        """All processes' rows as one tensor of `rows` rows, for checkpoints that any number of processes can read."""
        width = local.shape[1]
        return DTensor.from_local(
            local, self.mesh, [Shard(0)], run_check=False, shape=torch.Size((rows, width)), stride=(width, 1)
        )


def shard_tables(model: Blt, shards: RowShards) -> nn.Parameter:
    """Replace the model's embedding by one that holds this process's rows; returns them."""
    whole = model.embed
    assert isinstance(whole, NgramEmbedding), "there are tables"
    sharded = ShardedEmbedding(whole, shards)
    model.embed = sharded
    return sharded.ngrams


class ShardedEmbedding(NgramEmbedding):
    """`NgramEmbedding` whose table is spread over the processes."""

    def __init__(self, whole: NgramEmbedding, shards: RowShards) -> None:
        super().__init__(whole.config, whole.bytes.weight.shape[1], whole.scale != 1)
        self.shards = shards
        self.num_rows = whole.ngrams.shape[0]
        own = shards.own(self.num_rows)
        mine = whole.ngrams.detach()[own.start : own.stop].clone()
        self.ngrams = nn.Parameter(mine, requires_grad=whole.ngrams.requires_grad)
        self.bytes = whole.bytes

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The same numbers as in the whole table: all are drawn, a stretch at a time, and the own ones kept."""
        width = self.ngrams.shape[1]
        truncated_normal(self.bytes.weight, width**-0.5, generator)
        own = self.shards.own(self.num_rows)
        for first in range(0, self.num_rows, DRAWN_AT_ONCE):
            drawn = torch.empty(min(DRAWN_AT_ONCE, self.num_rows - first), width, device="cpu")
            truncated_normal(drawn, width**-0.5, generator)
            begin, end = max(own.start, first), min(own.stop, first + len(drawn))
            if begin < end:
                with torch.no_grad():
                    self.ngrams[begin - own.start : end - own.start].copy_(drawn[begin - first : end - first])

    def _sums(self, rows: Int64[Tensor, "N tables"]) -> Float[Tensor, "N D"]:
        wanted, place = rows.unique(return_inverse=True)
        vectors = _look_up(self.ngrams, wanted, self.shards.each(self.num_rows), self.shards)
        return F.embedding_bag(place, vectors, mode="sum")


def _look_up(table: Tensor, wanted: Int64[Tensor, " U"], each: int, shards: RowShards) -> Float[Tensor, "U D"]:
    """Rows `wanted` (rising) from their owners."""
    borders = torch.arange(1, shards.size, device=wanted.device) * each
    ends = torch.searchsorted(wanted, borders).tolist()  # how much goes where has to be known here
    counts = torch.tensor([end - begin for begin, end in zip([0, *ends], [*ends, len(wanted)], strict=True)])
    asked = torch.empty_like(counts)
    dist.all_to_all_single(asked, counts)
    sent, received = counts.tolist(), asked.tolist()
    requests = wanted.new_empty(sum(received))
    dist.all_to_all_single(requests, wanted, received, sent)
    vectors: Tensor = _Fetch.apply(table, requests - shards.rank * each, sent, received)  # type: ignore[no-untyped-call]
    return vectors


class _Fetch(torch.autograd.Function):
    """Own rows for those who asked, and theirs for this process; its gradient for the own rows is sparse."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, requests: Int64[Tensor, " Q"], sent: Sequence[int], received: Sequence[int]
    ) -> Float[Tensor, "U D"]:
        ctx.save_for_backward(requests)
        ctx.sent, ctx.received, ctx.shape = sent, received, table.shape
        vectors = table.new_empty(sum(sent), table.shape[1])
        dist.all_to_all_single(vectors, table.index_select(0, requests), list(sent), list(received))
        return vectors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (requests,) = ctx.saved_tensors
        values = grads[0].new_empty(len(requests), ctx.shape[1])
        dist.all_to_all_single(values, grads[0].contiguous(), list(ctx.received), list(ctx.sent))
        # Several processes may have asked for the same row: whoever uses this adds them up (`coalesce`).
        gradient = torch.sparse_coo_tensor(requests[None], values, ctx.shape, check_invariants=False)
        return gradient, None, None, None
