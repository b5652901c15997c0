"""Autoregressive decoding: a pass for every byte."""

from collections.abc import Sequence
from typing import Literal

from bltkit.generate.session import Session
from bltkit.generate.strategies.strategy import Pending, Proposal, Strategy


class Autoregressive(Strategy):
    """Proposes nothing."""

    kind: Literal["ar"] = "ar"

    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """No drafts."""
        return Proposal(((),) * len(rows))
