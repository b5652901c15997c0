"""BLT-DV (also called BLT-H): the decoder fills in blocks of masked bytes, the full model verifies (Fast BLT 4).

The pass that verified the round before has made the latent that the block reads, so a round has one global pass, where
the paper charges two.
"""

from collections.abc import Sequence
from typing import Literal

from bltkit.generate.session import Session
from bltkit.generate.strategies.blocks import BlockStrategy, fill_blocks
from bltkit.generate.strategies.strategy import Pending, Proposal


class Verified(BlockStrategy):
    """Drafts a block a round, in one pass unless `alpha`, `gamma` or `steps` say otherwise."""

    kind: Literal["verified"] = "verified"

    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """A filled block for each row."""
        sizes = self.sizes(session)
        return Proposal(*fill_blocks(session, rows, sizes, self.unmasking, align_border=self.align_border))
