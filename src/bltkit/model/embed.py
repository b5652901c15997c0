"""Byte embedding plus hash n-gram embeddings: the first stage of the local encoder (BLT 3.2.1, spec 4).

The hash reads ids (byte + 4, BOS = 1), oldest first with exponent 0, in wrapping signed 64-bit arithmetic; the bucket
is the floor modulo. Positions before the row, and before the document's BOS, count as id 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import NGRAM_PRIMES, NgramConfig
from bltkit.model.layers import Embedding, truncated_normal
from bltkit.vocab import BOS, PAD, VOCAB_SIZE


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
    """x_t = E[c_t] + sum over tables of T[hash of the n-gram that ends at t]."""

    hash_weights: Tensor
    table_offsets: Tensor

    def __init__(self, config: NgramConfig, width: int, averaged: bool = False) -> None:
        super().__init__()
        self.config = config
        self.longest = max(config.sizes)
        self.bytes = Embedding(VOCAB_SIZE, width)
        self.ngrams = nn.Parameter(torch.empty(config.num_tables * config.buckets, width))
        self.scale = 1 / (config.num_tables + 1) if averaged else 1.0
        self.register_buffer("hash_weights", ngram_weights(config), persistent=False)
        offsets = torch.arange(config.num_tables, device="cpu") * config.buckets
        self.register_buffer("table_offsets", offsets, persistent=False)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal, sigma = width^-1/2 (spec 8)."""
        for weight in (self.bytes.weight, self.ngrams):
            truncated_normal(weight, weight.shape[1] ** -0.5, generator)

    def buckets(
        self,
        ids: Int64[Tensor, "B T"],
        documents: Int64[Tensor, "B T"] | None = None,
        history: Int64[Tensor, "B h"] | None = None,
    ) -> Int64[Tensor, "B T tables"]:
        """Each position's row in the fused table.

        documents: non-decreasing numbers; an n-gram does not reach into another document.
        history: the longest - 1 ids before the row (`next_history`); None at a start.
        """
        windows = self._windows(ids, documents, history)
        raw = (windows.unsqueeze(-2) * self.hash_weights).sum(-1)
        return raw.remainder(self.config.buckets) + self.table_offsets

    def forward(
        self,
        ids: Int64[Tensor, "B T"],
        documents: Int64[Tensor, "B T"] | None = None,
        history: Int64[Tensor, "B h"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Arguments as for `buckets`."""
        rows = self.buckets(ids, documents, history)
        ngrams = F.embedding_bag(rows.flatten(0, 1), self.ngrams, mode="sum").unflatten(0, ids.shape)
        return (self.bytes(ids) + ngrams) * self.scale

    def next_history(
        self,
        ids: Int64[Tensor, "B T"],
        documents: Int64[Tensor, "B T"] | None = None,
        history: Int64[Tensor, "B h"] | None = None,
    ) -> Int64[Tensor, "B h"]:
        """What a further `forward` needs as its history, once `ids` are seen; ids of earlier documents are blank."""
        return self._windows(ids, documents, history)[:, -1, 1:]

    def _windows(self, ids: Tensor, documents: Tensor | None, history: Tensor | None) -> Int64[Tensor, "B T n"]:
        before = self.longest - 1
        if history is None:
            history = ids.new_full((len(ids), before), PAD)
        elif documents is not None:
            history = history.where(ids[:, :1] != BOS, PAD)
        windows = torch.cat((history, ids), 1).unfold(1, self.longest, 1)
        if documents is None:
            return windows
        # What is left of the history belongs to the document that the row continues.
        first = documents[:, :1].expand(-1, before)
        own = torch.cat((first, documents), 1).unfold(1, self.longest, 1) == documents[..., None]
        return windows.where(own, PAD)
