"""Borders that are learned with the model that reads the patches: the next byte, and a rate to keep (after H-Net).

loss = sum of next-byte nats + weight x targets x ratio, with ratio = N / (N - 1) ((N - 1) F G + (1 - F) (1 - G)), F the
share of bytes that open a patch, G the router's mean probability, N = `patch_bytes`. Its gradient is that of
(N F - 1) G / (N - 1): every byte's probability falls where there are too many borders and rises where there are too
few, and which of them go is what the next byte's part decides (`model/learned_boundaries.py`). F is counted over the
batch.
"""

import math
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from bltkit.data import Batch
from bltkit.model import BoundaryConfig, RoutedBlt
from bltkit.patches import Patches
from bltkit.patching import BpeRule
from bltkit.train.objectives.objective import BaseObjective, Losses, next_byte_nats
from bltkit.vocab import OFFSET


class LearnedBoundary(BaseObjective):
    """Next byte, with a router beside the BLT that decides where patches begin."""

    models: ClassVar[tuple[str, ...]] = ("blt",)
    per_row: ClassVar[bool] = False

    kind: Literal["learned-boundary"] = "learned-boundary"
    patch_bytes: float = Field(default=4.5, gt=1)
    """N: bytes per patch that the rate is held to."""
    weight: NonNegativeFloat = 0.03
    """Of the rate's part of the loss; H-Net's."""
    router: BoundaryConfig = BoundaryConfig(width=64, layers=1, heads=2, ffn_width=128, window=64)
    """Shape of the router, which is trained from nothing."""

    threshold: float | None = None
    """Of the router's score, where p = 1/2; by default ln(N - 1), above which about one in N begins."""
    max_patch_bytes: PositiveInt | None = None
    """Longest patch in bytes; None: no limit."""

    @property
    def rule(self) -> BpeRule:
        """The router's patches, in training and in what becomes of the checkpoint."""
        threshold = self.threshold
        if threshold is None:
            threshold = round(math.log(max(self.patch_bytes - 1, 0.1)), 3)
        return BpeRule(threshold=threshold, max_patch_bytes=self.max_patch_bytes)

    def loss(self, model: nn.Module, batch: Batch, patches: Patches | None, seed: int) -> Losses:
        """Nothing is random. patches: by `rule` and the model's router."""
        assert isinstance(model, RoutedBlt) and patches is not None
        logits, p = model.routed(batch.ids, patches, self.rule.threshold)
        total, text = next_byte_nats(logits, batch.targets)
        rate = ratio(patches.starts[:, 1:], p, batch.targets >= OFFSET, self.patch_bytes)
        return Losses(total + self.weight * batch.num_targets * rate, text)


def ratio(
    opens: Bool[Tensor, "B T"], p: Float[Tensor, "B T"], counted: Bool[Tensor, "B T"], patch_bytes: float
) -> Float[Tensor, ""]:
    """H-Net's ratio loss over the counted positions; 1 at a rate of 1 / patch_bytes."""
    number = counted.sum().clamp_min(1)
    share = (opens & counted).sum() / number
    mean = p.where(counted, 0).sum() / number
    n = patch_bytes
    return n / (n - 1) * ((n - 1) * share * mean + (1 - share) * (1 - mean))
