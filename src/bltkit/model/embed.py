"""Byte embedding plus hash n-gram embeddings: the first stage of the local encoder (BLT 3.2.1, docs/model.md 5).

The hash reads ids (byte + 4, BOS = 1), oldest first with exponent 0, in wrapping signed 64-bit arithmetic; the bucket
is the floor modulo. Positions before the row, and before the document's BOS, count as id 0.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import NGRAM_PRIMES, NgramConfig
from bltkit.model.layers import Embedding, truncated_normal
from bltkit.vocab import PAD, VOCAB_SIZE

WIDENED_AT_ONCE = 1024
"""Positions whose n-gram vectors are held one by one; for 6 tables of width 1,024 that is 25 MB in fp32."""


class TableRows(Protocol):
    """Where rows of n-gram tables are read that shall not be in memory."""

    def serves(self, table: Tensor) -> bool:
        """Whether the rows are still those of `table`."""
        ...

    def __call__(self, rows: Int64[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """The rows with these numbers."""
        ...


def ngram_weights(config: NgramConfig) -> Int64[Tensor, "tables n"]:
    """What each id of the longest window is multiplied with, per table (function outer, size inner).

    An n-gram's newest id stands in the last column with P^(n-1); columns older than the n-gram are 0.
    """
    longest = max(config.sizes)
    rows = []
    for function in range(config.functions):
        prime = NGRAM_PRIMES[function % len(NGRAM_PRIMES)]
        for size in config.sizes:
            powers = [pow(prime, i, 2**64) for i in range(size)]
            signed = [p - 2**64 if p >= 2**63 else p for p in powers]
            rows.append([0] * (longest - size) + signed)
    return torch.tensor(rows, dtype=torch.long, device="cpu")


class ByteEmbedding(nn.Module):
    """x_t = E[c_t]: bytes alone."""

    longest: int = 1
    """Ids that a position's vector depends on, its own included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bytes = Embedding(VOCAB_SIZE, width)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal, sigma = width^-1/2 (docs/model.md 9)."""
        truncated_normal(self.bytes.weight, self.bytes.weight.shape[1] ** -0.5, generator)

    def forward(
        self, ids: Int64[Tensor, "B T"], documents: Int64[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """documents: non-decreasing numbers; an n-gram, where there are any, does not reach into another one."""
        return self.bytes(ids)

    def extend(self, window: Int64[Tensor, "R T"]) -> Float[Tensor, "R S D"]:
        """`forward` for further ids, the last columns of `window`: in front of them stand the `longest` - 1 ids before,
        PAD where there are none in the row or its document."""
        return self.bytes(window)


def byte_embedding(config: NgramConfig, width: int, averaged: bool = False) -> ByteEmbedding:
    """The embedding with as many n-gram tables as the config has: none, where it names no size."""
    return NgramEmbedding(config, width, averaged) if config.sizes else ByteEmbedding(width)


class NgramEmbedding(ByteEmbedding):
    """x_t = E[c_t] + sum over tables of T[hash of the n-gram that ends at t].

    The tables may be of another dtype than the rest of the model, which their sums are given in.
    """

    hash_weights: Tensor
    table_offsets: Tensor
    sparse_gradients: bool = False
    """Whether the tables' gradient is a sparse tensor of the rows that were looked up (uncoalesced), not one of all
    rows: what a step costs then does not grow with the tables. Only for tables in the dtype of the bytes."""

    rows: TableRows | None = None
    """Reads rows of tables that another dtype leaves in their file (`checkpoint/mapped.py`), in place of `ngrams`."""

    def __init__(self, config: NgramConfig, width: int, averaged: bool = False) -> None:
        super().__init__(width)
        self.config = config
        self.longest = max(config.sizes)
        self.ngrams = nn.Parameter(torch.empty(config.num_tables * config.buckets, width))
        self.scale = 1 / (config.num_tables + 1) if averaged else 1.0
        self.register_buffer("hash_weights", ngram_weights(config), persistent=False)
        offsets = torch.arange(config.num_tables, device="cpu") * config.buckets
        self.register_buffer("table_offsets", offsets, persistent=False)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """See `ByteEmbedding`."""
        super().reset_parameters(generator)
        truncated_normal(self.ngrams, self.ngrams.shape[1] ** -0.5, generator)

    def buckets(
        self, ids: Int64[Tensor, "B T"], documents: Int64[Tensor, "B T"] | None = None
    ) -> Int64[Tensor, "B T tables"]:
        """Each position's row in the fused table.

        documents: non-decreasing numbers; an n-gram does not reach into another document.
        """
        return self._buckets(self._windows(ids, documents))

    def _buckets(self, windows: Int64[Tensor, "B T n"]) -> Int64[Tensor, "B T tables"]:
        raw = (windows.unsqueeze(-2) * self.hash_weights).sum(-1)
        return raw.remainder(self.config.buckets) + self.table_offsets

    def forward(
        self, ids: Int64[Tensor, "B T"], documents: Int64[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Arguments as for `buckets`."""
        return self._embed(ids, self._windows(ids, documents))

    def extend(self, window: Int64[Tensor, "R T"]) -> Float[Tensor, "R S D"]:
        """See `ByteEmbedding`."""
        return self._embed(window[:, self.longest - 1 :], window.unfold(1, self.longest, 1))

    def _embed(self, ids: Tensor, windows: Tensor) -> Tensor:
        x = self.bytes(ids)
        x = x + self._sums(self._buckets(windows).flatten(0, 1)).view(x.shape)
        return x if self.scale == 1 else x * self.scale

    def _sums(self, rows: Int64[Tensor, "N tables"]) -> Float[Tensor, "N D"]:
        """The n-gram vectors of each position added up, in the bytes' dtype.

        Of tables in another dtype (16 bits in a file's memory map, see `load_bundle`) only what is looked up is read,
        and widened before it is added.
        """
        dtype = self.bytes.weight.dtype
        if self.ngrams.dtype == dtype:
            return F.embedding_bag(rows, self.ngrams, mode="sum", sparse=self.sparse_gradients)
        if len(rows) <= WIDENED_AT_ONCE:
            return self._looked_up(rows).to(dtype).sum(1)
        return torch.cat([self._looked_up(part).to(dtype).sum(1) for part in rows.split(WIDENED_AT_ONCE)])

    def _looked_up(self, rows: Int64[Tensor, "N tables"]) -> Float[Tensor, "N tables D"]:
        learns = self.ngrams.requires_grad and torch.is_grad_enabled()
        if self.rows is not None and not learns and self.rows.serves(self.ngrams):
            return self.rows(rows)
        return F.embedding(rows, self.ngrams)

    def _windows(self, ids: Tensor, documents: Tensor | None) -> Int64[Tensor, "B T n"]:
        before = self.longest - 1
        windows = F.pad(ids, (before, 0), value=PAD).unfold(1, self.longest, 1)
        if documents is None:
            return windows
        own = F.pad(documents, (before, 0), value=-1).unfold(1, self.longest, 1) == documents[..., None]
        return windows.where(own, PAD)
