"""What a decoding strategy is (seam 5): a frozen config that proposes bytes.

The engine reads every proposal with the full model, chooses for itself at each place and keeps what agrees. So a
strategy gives the bytes of plain autoregressive decoding, and exactness is tested once for all; but for those whose
proposals are to be kept as they are (`exact` is False), whose bytes are the strategy's.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bltkit.config import Config
from bltkit.generate.constraint import Constraint
from bltkit.generate.sampling import Sampling
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes
from bltkit.model import Blt


@dataclass(frozen=True)
class Pending:
    """A row of the session in front of a round: its next id is chosen, but not read."""

    chosen: int
    room: int
    """Bytes that may still be made behind the chosen one."""
    sampling: Sampling
    constraint: Constraint | None
    """Constraint on the ids from column `Strategy.draft_column` on."""
    state: Any = None
    """What the strategy remembers of this row: `Strategy.first_state`, then `next_state`."""
    entropy: float | None = None
    """Nats, of the model's own distribution that the chosen id is from; None unless the strategy `reads_entropy`."""


@dataclass(frozen=True)
class Proposal:
    """Drafted ids for each row, and what it cost to find them."""

    drafts: tuple[tuple[int, ...], ...]
    passes: Passes = field(default_factory=Passes)
    trusted: bool = False
    """The drafts are kept as they are, not verified."""
    ways: tuple[str, ...] = ()
    """For each row the name of the way in which its draft was made, for `Outcome.way`; empty where there is one way."""


@dataclass(frozen=True)
class Outcome:
    """What became of a row's proposal."""

    drafted: int
    """Bytes that were read behind the chosen one: what a constraint refused is not among them."""
    accepted: int
    """Of these, the bytes kept; what came behind an end is not among them."""
    way: str = ""
    """See `Proposal.ways`."""


class Strategy(Config):
    """Base of every strategy. Fields carry `examples`: the values that the contract tests run it with."""

    exact: ClassVar[bool] = True
    """Is every byte the model's own choice: no proposal is ever trusted."""
    reads_entropy: ClassVar[bool] = False
    """Does it need `Pending.entropy`, which costs some microseconds a row."""

    kind: str

    @abstractmethod
    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """Ids that may follow each row's chosen one: at most room - 1, since the engine adds one of its own (trusted
        ones may use all the room), and none of `session.resets`. What a row's constraint refuses the engine cuts off.
        """

    def check(self, model: Blt) -> None:
        """Raise ValueError, with the remedy, where the model cannot do what the strategy needs."""
        return

    @property
    def draft_column(self) -> int:
        """Column of a round in which its drafts begin. 1: column 0 holds the chosen id, which is handed out already.

        0: trusted drafts, of room + 1 at most, stand in place of the chosen id, which is not handed out before and
        counts only where nothing is drafted.
        """
        return 1

    @property
    def first_state(self) -> Any:
        """Of a new row: any frozen value."""
        return None

    def next_state(self, state: Any, outcome: Outcome) -> Any:
        """Behind a round; one without drafts says nothing."""
        return state
