"""Training objectives (seam 3): what a batch's loss is. One class and its membership in `Objective` make a new one."""

from functools import cached_property
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from bltkit.config import Config
from bltkit.data import IGNORE, Batch
from bltkit.model import Blt
from bltkit.patches import Patches
from bltkit.patching import BpeOracleRule, patch
from bltkit.vocab import OFFSET


class NextByte(Config):
    """Cross-entropy of the next byte (spec 8): for a BLT, an entropy model and a CNN."""

    kind: Literal["next-byte"] = "next-byte"

    def check(self) -> None:
        """Nothing that could be missing."""

    def loss(
        self, model: nn.Module, batch: Batch, patches: Patches | None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Nats summed over all targets, and over the targets that are bytes of text (EOS left out)."""
        logits = model(batch.ids, patches) if isinstance(model, Blt) else model(batch.ids)
        each = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none", ignore_index=IGNORE
        )
        text = each.detach().where(batch.targets.flatten() >= OFFSET, 0)
        return each.sum(), text.sum()


class TokenBoundary(Config):
    """Does a BPE token end after this byte: binary cross-entropy, for the boundary model of rule `bpe`."""

    kind: Literal["token-boundary"] = "token-boundary"
    tokenizer: str
    """A byte-level BPE tokenizer.json."""

    @cached_property
    def _oracle(self) -> BpeOracleRule:
        return BpeOracleRule(tokenizer=self.tokenizer)

    def check(self) -> None:
        """Raises ValueError where the tokenizer cannot be used."""
        _ = self._oracle.loaded

    def loss(
        self, model: nn.Module, batch: Batch, patches: Patches | None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Nats summed over the positions that have a next byte; the second number equals the first."""
        labels = patch(self._oracle, batch.ids.cpu(), None, batch.num_bytes.cpu()).starts[:, 1:].to(batch.ids.device)
        logits = model(batch.ids)[..., 0].float()
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        total = each.where(batch.targets != IGNORE, 0).sum()
        return total, total.detach()


Objective = Annotated[NextByte | TokenBoundary, Field(discriminator="kind")]
