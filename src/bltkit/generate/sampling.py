"""From logits to a byte: greedy, or drawn after temperature, top-k, top-p and min-p.

The noise of a draw is a function of (seed, position) alone. So a byte depends neither on the device and the
batch nor on how the bytes before it were found, and two models that look at the same position see the same
noise: what a draft proposes and what the model would say agree where their distributions do.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from bltkit.config import Config
from bltkit.vocab import NEVER_EMITTED


class Sampling(Config):
    """How the next id is picked. Ids 0, 1 and 3 are never picked; 2 (EOS) may be.

    The filters act in the order top-k, top-p, min-p on the distribution at `temperature`; each sees what the
    one before it left, and the most probable id always stays.
    """

    temperature: NonNegativeFloat = 0.8
    """0: always the most probable id (the lowest of equals)."""
    top_k: PositiveInt | None = None
    """Keep this many of the most probable ids (of equals, the lower id first)."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Keep the fewest of the most probable ids whose probabilities sum to at least this."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Keep ids at least this many times as probable as the most probable one."""
    seed: int = 0

    def pick(self, logits: Float[Tensor, " V"], position: int) -> int:
        """The id at `position` of the row, given the raw logits for it. Raises ValueError where they are not finite."""
        scores = self._log_weights(logits)
        if self.temperature > 0:
            scores = scores + _gumbel(self.seed, position, len(scores))
        return int(scores.argmax())

    def probabilities(self, logits: Float[Tensor, " V"]) -> Float64[Tensor, " V"]:
        """What `pick` draws from, on the CPU; at temperature 0 all mass is on one id."""
        weights = self._log_weights(logits)
        if self.temperature > 0:
            return weights.softmax(0)
        return torch.zeros_like(weights).index_fill(0, weights.argmax(), 1.0)

    def _log_weights(self, logits: Tensor) -> Tensor:
        """Logarithms of the distribution up to a constant, in float64 on the CPU."""
        scores = logits.to("cpu", torch.float64, copy=True)
        scores[list(NEVER_EMITTED)] = -torch.inf
        if not bool(scores.max().isfinite()):
            raise ValueError("the logits are not finite: the model's weights are broken, or its training diverged")
        if self.temperature == 0:
            return scores
        # The shift keeps a tiny temperature from overflowing.
        scores = (scores - scores.max()) / self.temperature
        if self.top_k is None and self.top_p is None and self.min_p is None:
            return scores
        return scores.masked_fill(~self._kept(scores), -torch.inf)

    def _kept(self, scores: Tensor) -> Tensor:
        order = scores.argsort(descending=True, stable=True)
        p = scores[order].softmax(0)
        if self.top_k is not None:
            p[self.top_k :] = 0
        if self.top_p is not None:
            before = p.cumsum(0) - p
            p[1:] *= before[1:] < self.top_p * p.sum()
        if self.min_p is not None:
            p[1:] *= p[1:] >= self.min_p * p[0]
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[order] = p > 0
        return kept


def _gumbel(seed: int, position: int, count: int) -> Float64[Tensor, " V"]:
    """Gumbel noise: log-probabilities plus this have their maximum at an id drawn from the distribution."""
    # A counter-based generator: any (seed, position) at no cost, and raw bits that numpy promises to keep.
    key = np.array([seed % 2**64, position], dtype=np.uint64)
    bits = np.random.Philox(key=key).random_raw(count)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy(-np.log(-np.log(uniform)))
