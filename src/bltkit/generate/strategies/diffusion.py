"""BLT-D: the decoder fills in blocks of masked bytes, and what it wrote is kept (Fast BLT 2).

A round is the passes of the decoder that fill the block, and one pass of the full model that reads it and chooses the
first byte of the next: with blocks of B bytes B a round. The bytes are the strategy's, not those of autoregressive
decoding.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bltkit.generate.session import Session
from bltkit.generate.strategies.blocks import BlockStrategy, Unmasking, fill_blocks
from bltkit.generate.strategies.strategy import Pending, Proposal

ALPHA = 0.7
"""The paper's main setting."""


class Diffusion(BlockStrategy):
    """Keeps its blocks as they are. With neither `alpha` nor `gamma`, alpha is 0.7.

    The paper's own rule is first = "masked" and latent = "open".
    """

    exact: ClassVar[bool] = False
    kind: Literal["diffusion"] = "diffusion"
    first: Literal["chosen", "masked"] = Field(default="chosen", examples=["chosen", "masked"])
    """The block's first byte: the full model's choice, or masked like the others."""
    latent: Literal["closed", "open"] = Field(default="closed", examples=["closed", "open"])
    """What the block reads: the last patch that closed, or the bytes of the open one as if it ended there, which costs
    a pass of the global transformer."""

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        if self.align_border and self.latent == "open":
            raise ValueError(
                "latent = 'open' with align_border: a block that begins at the border of the open patch would read its "
                "own bytes; leave one of the two out"
            )
        return self

    @property
    def unmasking(self) -> Unmasking:
        """As the fields say."""
        alpha = ALPHA if self.alpha is None and self.gamma is None else self.alpha
        return Unmasking(alpha, self.gamma, self.steps)

    @property
    def draft_column(self) -> int:
        """See `Strategy`."""
        return int(self.first == "chosen")

    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """A filled block for each row, trusted."""
        drafts, passes = fill_blocks(
            session,
            rows,
            self.sizes(session),
            self.unmasking,
            align_border=self.align_border,
            trusted=True,
            masked_first=self.first == "masked",
            open_latent=self.latent == "open",
        )
        return Proposal(drafts, passes, trusted=True)
