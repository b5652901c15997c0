"""The next token, which a token model learns. Its figures are in bits per byte of text, as everybody's."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from bltkit.data import IGNORE, Batch, TokenBatch
from bltkit.patches import Patches
from bltkit.train.objectives.objective import BaseObjective, Losses


class NextToken(BaseObjective):
    """Cross-entropy of the next token; EOS is learned and, as with bytes, left out of the text's bits."""

    models: ClassVar[tuple[str, ...]] = ("bpe",)

    kind: Literal["next-token"] = "next-token"

    def loss(self, model: nn.Module, batch: Batch, patches: Patches | None, seed: int) -> Losses:
        """Nothing is random."""
        assert isinstance(batch, TokenBatch)
        rows = batch.tokens
        logits = model(rows.ids, rows.documents)
        each = F.cross_entropy(
            logits.flatten(0, 1).float(), rows.targets.flatten(), reduction="none", ignore_index=IGNORE
        )
        return Losses(each.sum(), each.detach().where(rows.target_bytes.flatten() > 0, 0).sum())
