"""Prompts, read piece by piece, from the longest prefix whose state is there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bltkit.generate import Session
from bltkit.generate.scoring import Predicted, read_scored
from bltkit.generate.top_logprobs import Tops
from bltkit.serve.messages import Submit
from bltkit.serve.prefixes import SHARED, Prefix, PrefixCache


@dataclass(eq=False)
class PromptReader:
    """A prompt on its way into a session."""

    ids: Sequence[int]
    session: Session
    prefixes: PrefixCache
    snapshot: int
    tops: int | None
    """Most probable ids wanted of each id; None: no log-probabilities are."""
    parting: int = 0
    """Where the prompt parts from an earlier one."""
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Tops] = field(default_factory=list)
    hit: int = 0
    """Ids whose state was there."""

    @classmethod
    def of(cls, order: Submit, empty: Session, prefixes: PrefixCache, snapshot: int) -> "PromptReader":
        """empty: the session in front of the first id."""
        reader = cls(order.ids, empty, prefixes, snapshot, order.prompt_logprobs)
        reader.look_up()
        return reader

    def look_up(self) -> None:
        """Go on from the longest prefix whose state is there by now; before the first piece only."""
        prefix = self.prefixes.longest(self.ids, self.tops)
        if prefix is not None and prefix.length > self.hit:
            self.session, self.hit = prefix.session, prefix.length
            self.logprobs, self.top_logprobs = list(prefix.logprobs), list(prefix.top_logprobs)
        self.parting = self.prefixes.parting(self.ids)

    @property
    def at(self) -> int:
        """Ids read."""
        return self.session.positions[0]

    @property
    def left(self) -> int:
        """Ids to be read."""
        return len(self.ids) - self.at

    @property
    def scored(self) -> Predicted:
        """Log-probabilities of all ids but the first, as far as it is read."""
        return Predicted(tuple(self.logprobs), tuple(self.top_logprobs))

    def read(self, size: int) -> int:
        """Read at most `size` further ids, up to the next state worth keeping. Returns how many were read."""
        at, border = self.at, self._border()
        piece = self.ids[at : min(at + size, border)]
        if self.tops is None:
            self.session = self.session.extend(piece)
        else:
            self.session, predicted = read_scored(self.session, piece, self.tops)
            self.logprobs += predicted.logprobs
            self.top_logprobs += predicted.top_logprobs
        if self.at == border:
            scores = (self.scored.logprobs, self.scored.top_logprobs) if self.tops is not None else ((), ())
            self.prefixes.add(self.ids[:border], Prefix(border, self.session, *scores, tops=self.tops))
        return len(piece)

    def _border(self) -> int:
        """Where the next state is kept."""
        at = self.at
        borders = [len(self.ids), at + self.snapshot - at % self.snapshot]
        if self.parting - at >= SHARED and len(self.ids) - self.parting >= SHARED:
            borders.append(self.parting)
        return min(borders)
