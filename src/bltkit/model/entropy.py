"""What reads the text before it is cut: models that score every byte for the patching rule (BLT 2.3, docs/model.md 3).

`EntropyModel` predicts the next byte and scores by the entropy of that prediction, in nats; `BoundaryModel` scores
by a logit for "a token ends here". Scorers that see two bytes only are in `two_id_scorers.py`.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.cache import Slot, StackCache
from bltkit.model.config import BoundaryConfig, ByteTransformerConfig, EntropyConfig
from bltkit.model.fused_linear import Linear, RMSNorm
from bltkit.model.layers import Embedding, Transformer, truncated_normal
from bltkit.vocab import BOS, OFFSET, VOCAB_SIZE

SCORING_CHUNK = 8192
"""Bytes scored at once; state carries the context over, so the cut is invisible."""

NEWLINE = OFFSET + ord("\n")


def entropy(logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """-sum p ln p over all ids, in nats; computed in fp32 at least (docs/model.md 3)."""
    log_p = F.log_softmax(_wide(logits), -1)
    return -(log_p.exp() * log_p).sum(-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def stretches(ids: Sequence[int], resets: frozenset[int], limit: int) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of at most `limit` ids in which one of `resets` can only be the first."""
    borders = [at for at, value in enumerate(ids) if at and value in resets]
    for begin, end in pairwise((0, *borders, len(ids))):
        for at in range(begin, end, limit):
            yield at, min(at + limit, end)


@runtime_checkable
class ScorerState(Protocol):
    """What a scorer remembers of R rows: a value."""

    @property
    def num_bytes(self) -> int:
        """Memory that one step reads of it, in bytes."""
        ...

    def select(self, rows: Sequence[int]) -> "ScorerState":
        """These rows in this order."""
        ...

    def forget(self, rows: Sequence[int]) -> "ScorerState":
        """These rows begin anew."""
        ...

    @classmethod
    def join(cls, states: Sequence[Any]) -> "ScorerState":
        """All rows under one another."""
        ...


@runtime_checkable
class ScoredIds(Protocol):
    """Ids that a scorer has read, of which any number may be kept."""

    def keep(self, counts: Sequence[int]) -> ScorerState:
        """The state behind the first counts[r] of them in each row."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """What a patching rule listens to: scores[t] is about byte t+1 and depends on ids up to t only."""

    @property
    def resets(self) -> frozenset[int]:
        """Ids in front of which everything is forgotten; the caller of `extend_scores` sees to that."""
        ...

    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Scores of whole rows, without gradient."""
        ...

    def start(self, rows: int = 1) -> ScorerState:
        """The state in front of the first id."""
        ...

    def extend_scores(self, ids: Int64[Tensor, "R S"], state: Any) -> tuple[Float[Tensor, "R S"], ScoredIds]:
        """Scores of S further ids of every row, without gradient; `ScoredIds.keep` gives the states that may follow.

        An id of `resets` may only be the first of its row, behind a state that forgot this row.
        """
        ...


class ByteTransformer(nn.Module):
    """Embedding, a stack, a norm and a head: ids [B, T] -> outputs [B, T, num_outputs]."""

    def __init__(self, config: ByteTransformerConfig, num_outputs: int) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(VOCAB_SIZE, config.width)
        self.stack = Transformer(config)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = Linear(config.width, num_outputs)

    def reset_parameters(self, generator: torch.Generator | None = None) -> Self:
        """Initialise as docs/model.md 9 says; returns the model."""
        self.stack.reset_parameters(generator)
        for weight in (self.embed.weight, self.head.weight):
            truncated_normal(weight, weight.shape[1] ** -0.5, generator)
        nn.init.ones_(self.norm.weight)
        return self

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Outputs at every position."""
        return self._outputs(self.stack(self.embed(ids), self._segments(ids))[-1])

    @property
    def resets(self) -> frozenset[int]:
        """Ids that begin a segment."""
        documents = (BOS,) if self.config.document_masks else ()
        return frozenset((*documents, NEWLINE) if self.config.reset_at_newline else documents)

    @torch.no_grad()
    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Scores of whole rows of any length; long ones in linear memory, the context runs across the cuts."""
        if ids.shape[1] <= SCORING_CHUNK:
            return self.score(self(ids))
        return torch.cat([self._scores_in_pieces(row) for row in ids.split(1)])

    def start(self, rows: int = 1) -> StackCache:
        """The state in front of the first id."""
        return self.stack.empty_cache(rows)

    @torch.no_grad()
    def extend_scores(self, ids: Int64[Tensor, "R S"], state: StackCache) -> tuple[Float[Tensor, "R S"], Slot]:
        """Scores of S further ids of every row."""
        outputs, (slot,) = self.stack.extend(self.embed(ids), [state])
        return self.score(self._outputs(outputs[-1])), slot

    def score(self, outputs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
        """The rule's score from the head's outputs."""
        raise NotImplementedError

    def _scores_in_pieces(self, ids: Int64[Tensor, "1 T"]) -> Float[Tensor, "1 T"]:
        pieces, state, values = [], self.start(), ids[0].tolist()
        for begin, end in stretches(values, self.resets, SCORING_CHUNK):
            state = state.forget([0]) if values[begin] in self.resets else state
            scores, slot = self.extend_scores(ids[:, begin:end], state)
            state = slot.keep([end - begin])
            pieces.append(scores)
        return torch.cat(pieces, 1)

    def _outputs(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h))

    def _segments(self, ids: Tensor) -> Tensor | None:
        if not (self.config.document_masks or self.config.reset_at_newline):
            return None
        begins = torch.zeros_like(ids, dtype=torch.bool)
        if self.config.document_masks:
            begins = begins | (ids == BOS)
        if self.config.reset_at_newline:
            begins = begins | (ids == NEWLINE)
        return begins.cumsum(-1)


class EntropyModel(ByteTransformer):
    """A byte language model whose entropies place the patches."""

    config: EntropyConfig

    def __init__(self, config: EntropyConfig) -> None:
        super().__init__(config, VOCAB_SIZE)

    def score(self, outputs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
        """Entropy of the prediction of the next byte, in nats."""
        return entropy(outputs)


class BoundaryModel(ByteTransformer):
    """A byte model that says where BPE tokens end (rule `bpe`)."""

    config: BoundaryConfig

    def __init__(self, config: BoundaryConfig) -> None:
        super().__init__(config, 1)

    def score(self, outputs: Float[Tensor, "B T 1"]) -> Float[Tensor, "B T"]:
        """Logit of "a token ends after this byte", in fp32 at least."""
        return _wide(outputs[..., 0])
