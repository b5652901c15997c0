"""What a training objective is (seam 3): a frozen config that says what a batch's loss is."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.config import Config
from bltkit.data import IGNORE, Batch
from bltkit.patches import Patches
from bltkit.vocab import OFFSET


class Losses(NamedTuple):
    """Sums over a batch."""

    total: Float[Tensor, ""]
    """Nats, what gradients are of; divided by the number of targets before that."""
    text: Float[Tensor, ""]
    """Nats of the next-byte targets that are bytes of text (EOS left out)."""
    parts: tuple[tuple[Float[Tensor, ""], Float[Tensor, ""]], ...] = ()
    """For each of `Objective.parts`: nats, and how many bytes they belong to."""


class BaseObjective(Config):
    """Base of every objective."""

    models: ClassVar[tuple[str, ...]] = ("blt", "entropy", "cnn")
    """Values of `model.kind` that it trains."""
    per_row: ClassVar[bool] = True
    """The loss of a batch is the sum of its rows' losses. Several processes, or accumulated batches, then give the same
    gradient as one large batch."""

    kind: str
    parts: ClassVar[tuple[str, ...]] = ()
    """Names of what a loss is made up of, each reported in bits a byte."""

    @property
    def cells(self) -> int:
        """Rows that the decoder gets for every patch besides the text's own."""
        return 0

    def check(self) -> None:
        """Raises ValueError where something is missing."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, patches: Patches | None, seed: int) -> Losses:
        """patches: of a BLT. seed: what is random follows from it and from the row alone: not from other rows of the
        batch, nor from the process or device."""


def next_byte_nats(
    logits: Float[Tensor, "B T V"], targets: Int64[Tensor, "B T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy summed over all targets, and, without gradient, over those that are bytes of text."""
    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORE)
    return each.sum(), each.detach().where(targets.flatten() >= OFFSET, 0).sum()
