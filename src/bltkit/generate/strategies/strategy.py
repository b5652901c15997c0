"""What a decoding strategy is (seam 4): a frozen config that proposes bytes. It never decides one.

The engine reads every proposal with the full model, chooses for itself at each place and keeps what agrees. So
every strategy gives the bytes of plain autoregressive decoding, and exactness is tested once for all.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from bltkit.config import Config
from bltkit.generate.constraint import Constraint
from bltkit.generate.ledger import Passes
from bltkit.generate.sampling import Sampling
from bltkit.generate.session import Session


@dataclass(frozen=True)
class Pending:
    """A row of the session in front of a round: its next id is chosen, but not read."""

    chosen: int
    room: int
    """Bytes that may still be made behind the chosen one."""
    sampling: Sampling
    constraint: Constraint | None
    """Behind the chosen id."""
    pace: int
    """How many bytes the strategy means to propose for this row: `Strategy.first_pace`, then `next_pace`."""


@dataclass(frozen=True)
class Proposal:
    """Drafted ids for each row, and what it cost to find them."""

    drafts: tuple[tuple[int, ...], ...]
    passes: Passes = field(default_factory=Passes)


class Strategy(Config):
    """Base of every strategy. Fields carry `examples`: the values that the contract tests run it with."""

    kind: str

    @abstractmethod
    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """Ids that may follow each row's chosen one: at most room - 1, since the engine adds one of its own, and
        none of `session.resets`."""

    @property
    def first_pace(self) -> int:
        """Of a new row."""
        return 0

    def next_pace(self, pace: int, drafted: int, accepted: int) -> int:
        """After a round in which `accepted` of the `drafted` bytes were kept."""
        return pace
