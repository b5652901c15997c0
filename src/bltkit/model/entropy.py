"""What reads the text before it is cut: models that give every byte a score for the patching rule (BLT 2.3, spec 2).

`EntropyModel` predicts the next byte and scores by the entropy of that prediction, in nats; `BoundaryModel` scores
by a logit for "a token ends here"; `CnnEntropy` sees two bytes, so that its entropies fit in a table.
"""

from dataclasses import dataclass
from typing import Protocol, Self, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.cache import StackCache
from bltkit.model.config import BoundaryConfig, ByteTransformerConfig, CnnConfig, EntropyConfig
from bltkit.model.layers import Embedding, Linear, RMSNorm, Transformer, truncated_normal
from bltkit.vocab import BOS, OFFSET, PAD, VOCAB_SIZE

SCORING_CHUNK = 8192
"""Bytes scored at once; state carries the context over, so the cut is invisible."""

NEWLINE = OFFSET + ord("\n")


def entropy(logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """-sum p ln p over all ids, in nats; computed in fp32 at least (spec 2)."""
    log_p = F.log_softmax(_wide(logits), -1)
    return -(log_p.exp() * log_p).sum(-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@runtime_checkable
class Scorer(Protocol):
    """What a patching rule listens to: scores[t] is about byte t+1 and depends on ids up to t only."""

    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Scores of whole rows, without gradient."""
        ...

    def extend_scores(
        self, ids: Int64[Tensor, "B S"], state: object | None = None
    ) -> tuple[Float[Tensor, "B S"], object]:
        """Scores of S further ids, and the state that follows; `None` is the state in front of a row."""
        ...


@dataclass(frozen=True, eq=False)
class _StackState:
    """State of a byte transformer: its cache, and the number of the segment that the last id lies in."""

    cache: StackCache
    segment: Int64[Tensor, "B 1"] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that one step's attention reads, in bytes."""
        return self.cache.num_bytes


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
        """Initialise as spec 8 says; returns the model."""
        self.stack.reset_parameters(generator)
        for weight in (self.embed.weight, self.head.weight):
            truncated_normal(weight, weight.shape[1] ** -0.5, generator)
        nn.init.ones_(self.norm.weight)
        return self

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Outputs at every position."""
        return self._outputs(self.stack(self.embed(ids), self._segments(ids))[-1])

    def extend(
        self, ids: Int64[Tensor, "B S"], state: _StackState | None = None
    ) -> tuple[Float[Tensor, "B S V"], _StackState]:
        """`forward` for S further ids."""
        if state is None:
            state = _StackState(self.stack.empty_cache())
        segments = self._segments(ids)
        if segments is not None and state.segment is not None:
            segments = segments + state.segment
        outputs, cache = self.stack.extend(self.embed(ids), state.cache, segments)
        return self._outputs(outputs[-1]), _StackState(cache, None if segments is None else segments[:, -1:])

    @torch.no_grad()
    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Scores of whole rows of any length, in linear memory: context runs across the chunks of the computation."""
        pieces, state = [], None
        for chunk in ids.split(SCORING_CHUNK, 1):
            scores, state = self.extend_scores(chunk, state)
            pieces.append(scores)
        return torch.cat(pieces, 1)

    @torch.no_grad()
    def extend_scores(
        self, ids: Int64[Tensor, "B S"], state: object | None = None
    ) -> tuple[Float[Tensor, "B S"], object]:
        """Scores of S further ids."""
        outputs, following = self.extend(ids, cast(_StackState | None, state))
        return self.score(outputs), following

    def score(self, outputs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
        """The rule's score from the head's outputs."""
        raise NotImplementedError

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


class CnnEntropy(nn.Module):
    """A convolutional byte model over the last `context` ids: the simplest entropy source (BLT 2.3, spec 3.7)."""

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

    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Entropies of whole rows, in nats."""
        return self.extend_scores(ids)[0]

    @torch.no_grad()
    def extend_scores(
        self, ids: Int64[Tensor, "B S"], state: object | None = None
    ) -> tuple[Float[Tensor, "B S"], object]:
        """Entropies of S further ids; the state is the last id."""
        last = torch.full_like(ids[:, :1], PAD) if state is None else cast(Tensor, state)
        return entropy(self(torch.cat((last, ids), 1))[:, 1:]), ids[:, -1:]

    @torch.no_grad()
    def table(self) -> "EntropyTable":
        """All entropies that this model can give, as a table of the last two ids."""
        pairs = torch.cartesian_prod(torch.arange(VOCAB_SIZE), torch.arange(VOCAB_SIZE)).to(self.head.weight.device)
        pairs[:, 0] = pairs[:, 0].where(pairs[:, 1] != BOS, PAD)
        return EntropyTable(entropy(self(pairs)[:, 1]).reshape(VOCAB_SIZE, VOCAB_SIZE).float())


class EntropyTable(nn.Module):
    """Entropies looked up by the last two ids."""

    def __init__(self, entropies: Float[Tensor, "V V"]) -> None:
        super().__init__()
        self.entropies = nn.Parameter(entropies, requires_grad=False)

    def scores(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Entropies of whole rows, in nats."""
        return self.extend_scores(ids)[0]

    @torch.no_grad()
    def extend_scores(
        self, ids: Int64[Tensor, "B S"], state: object | None = None
    ) -> tuple[Float[Tensor, "B S"], object]:
        """Entropies of S further ids; the state is the last id."""
        last = torch.full_like(ids[:, :1], PAD) if state is None else cast(Tensor, state)
        before = torch.cat((last, ids[:, :-1]), 1)
        return self.entropies[before.where(ids != BOS, PAD), ids].float(), ids[:, -1:]
