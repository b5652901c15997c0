"""Does a token of a byte-level BPE end after this byte: what the boundary model of rule `bpe` learns."""

from functools import cached_property
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from bltkit.data import IGNORE, Batch
from bltkit.patches import Patches
from bltkit.patching import BpeOracleRule, patch
from bltkit.train.objectives.objective import BaseObjective, Losses


class TokenBoundary(BaseObjective):
    """Binary cross-entropy at the positions that have a next byte; all of them count as text."""

    models: ClassVar[tuple[str, ...]] = ("boundary",)

    kind: Literal["token-boundary"] = "token-boundary"
    tokenizer: str
    """A byte-level BPE tokenizer.json."""

    @cached_property
    def _oracle(self) -> BpeOracleRule:
        return BpeOracleRule(tokenizer=self.tokenizer)

    def check(self) -> None:
        """Raises ValueError where the tokenizer cannot be used."""
        _ = self._oracle.loaded

    def loss(self, model: nn.Module, batch: Batch, patches: Patches | None, seed: int) -> Losses:
        """Nothing is random."""
        labels = patch(self._oracle, batch.ids.cpu(), None, batch.num_bytes.cpu()).starts[:, 1:].to(batch.ids.device)
        logits = model(batch.ids)[..., 0].float()
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        total = each.where(batch.targets != IGNORE, 0).sum()
        return Losses(total, total.detach())
