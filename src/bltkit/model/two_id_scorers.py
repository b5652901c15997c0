"""Scorers that see the last two ids only, so that their entropies fit in a table (BLT 2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import CnnConfig
from bltkit.model.entropy import entropy
from bltkit.model.fused_linear import Linear
from bltkit.model.layers import Embedding, truncated_normal
from bltkit.vocab import BOS, PAD, VOCAB_SIZE


@dataclass(frozen=True, eq=False)
class _LastIds:
    """The state of a scorer that sees two ids."""

    ids: Int64[Tensor, "R 1"]
    num_bytes = 0

    def select(self, rows: Sequence[int]) -> "_LastIds":
        return _LastIds(self.ids[list(rows)])

    def forget(self, rows: Sequence[int]) -> "_LastIds":
        return _LastIds(self.ids.index_fill(0, torch.tensor(rows, device=self.ids.device), PAD))

    @classmethod
    def join(cls, states: Sequence["_LastIds"]) -> "_LastIds":
        return cls(torch.cat([state.ids for state in states]))


@dataclass(frozen=True, eq=False)
class _ReadIds:
    ids: Int64[Tensor, "R S1"]
    """The state's and the new ones."""

    def keep(self, counts: Sequence[int]) -> _LastIds:
        return _LastIds(self.ids.gather(1, torch.tensor(counts, device=self.ids.device)[:, None]))


class _TwoIds:
    """Of a scorer that sees the last two ids, and the first only within its document."""

    resets: frozenset[int] = frozenset()

    def start(self, rows: int = 1) -> _LastIds:
        """The state in front of the first id."""
        return _LastIds(torch.full((rows, 1), PAD))

    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Entropies of whole rows, in nats."""
        return self.extend_scores(ids, self.start(len(ids)))[0]

    @torch.no_grad()
    def extend_scores(self, ids: Int64[Tensor, "R S"], state: _LastIds) -> tuple[Float[Tensor, "R S"], _ReadIds]:
        """Entropies of S further ids of every row."""
        both = torch.cat((state.ids.to(ids.device), ids), 1)
        return self._entropies(both), _ReadIds(both)

    def _entropies(self, both: Int64[Tensor, "R S1"]) -> Float[Tensor, "R S"]:
        raise NotImplementedError


class CnnEntropy(_TwoIds, nn.Module):
    """A convolutional byte model over the last `context` ids: the simplest scorer (BLT 2.3, docs/model.md 4.2)."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(VOCAB_SIZE, config.width)
        self.mix = Linear(config.context * config.width, 2 * config.width)
        self.head = Linear(2 * config.width, VOCAB_SIZE)

    def reset_parameters(self, generator: torch.Generator | None = None) -> Self:
        """Truncated normal, sigma = fan_in^-1/2; returns the model."""
        for weight in self.parameters():
            truncated_normal(weight, weight.shape[1] ** -0.5, generator)
        return self

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the next id; nothing is seen of what lies before a document's BOS."""
        window = [ids]
        if self.config.context == 2:
            before = F.pad(ids, (1, 0), value=PAD)[:, :-1]
            window = [before.where(ids != BOS, PAD), ids]
        x = torch.cat([self.embed(part) for part in window], -1)
        return self.head(F.silu(self.mix(x)))

    def _entropies(self, both: Int64[Tensor, "R S1"]) -> Float[Tensor, "R S"]:
        return entropy(self(both)[:, 1:])

    @torch.no_grad()
    def table(self) -> "EntropyTable":
        """All entropies that this model can give, as a table of the last two ids."""
        pairs = torch.cartesian_prod(torch.arange(VOCAB_SIZE), torch.arange(VOCAB_SIZE)).to(self.head.weight.device)
        pairs[:, 0] = pairs[:, 0].where(pairs[:, 1] != BOS, PAD)
        return EntropyTable(entropy(self(pairs)[:, 1]).reshape(VOCAB_SIZE, VOCAB_SIZE).float())


class EntropyTable(_TwoIds, nn.Module):
    """Entropies looked up by the last two ids."""

    def __init__(self, entropies: Float[Tensor, "V V"]) -> None:
        super().__init__()
        self.entropies = nn.Parameter(entropies, requires_grad=False)

    def _entropies(self, both: Int64[Tensor, "R S1"]) -> Float[Tensor, "R S"]:
        before, now = both[:, :-1], both[:, 1:]
        return self.entropies[before.where(now != BOS, PAD), now].float()
