"""The next byte, which a BLT, an entropy model and a CNN learn."""

from typing import Literal

from torch import nn

from bltkit.data import Batch
from bltkit.model import Blt
from bltkit.patches import Patches
from bltkit.train.objectives.objective import BaseObjective, Losses, next_byte_nats


class NextByte(BaseObjective):
    """Cross-entropy of the next byte (docs/model.md 9)."""

    kind: Literal["next-byte"] = "next-byte"

    def loss(self, model: nn.Module, batch: Batch, patches: Patches | None, seed: int) -> Losses:
        """Nothing is random."""
        logits = model(batch.ids, patches) if isinstance(model, Blt) else model(batch.ids)
        return Losses(*next_byte_nats(logits, batch.targets))
