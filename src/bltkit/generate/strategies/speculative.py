"""BLT-S: the local model drafts past the patch border, the full model verifies (Fast BLT section 3).

Drafting runs embedding, the encoder's byte layers and the decoder one byte at a time, against the last patch that
closed: no entropy model, no pooling, no global transformer; nor the encoder, where the decoder has a byte table of its
own. The pass that verified the round before has made that patch's latent, so a round has one global pass, where the
paper charges two. A draft is chosen with the noise of its position, as the engine will choose: the two agree wherever
the stale latent does not matter.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from bltkit.generate.constraint import Constraint
from bltkit.generate.sampling import choose, seen_along
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes
from bltkit.generate.strategies.strategy import Outcome, Pending, Proposal, Strategy
from bltkit.vocab import EOS, VOCAB_SIZE

FIRST_PACE = 8
LONGEST = 32
"""Drafts of the adaptive pace: from 2 up to this."""


class Speculative(Strategy):
    """Drafts `draft` bytes a round; None adapts their number to what was accepted."""

    kind: Literal["speculative"] = "speculative"
    draft: PositiveInt | None = Field(default=None, examples=[None, 1, 2, 4, 8, 16])
    """k."""

    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """k bytes of the local model for each row."""
        limits = [max(0, min(row.state, row.room - 1)) for row in rows]
        with torch.inference_mode():
            return _Drafting(session, rows, limits).run()

    @property
    def first_state(self) -> int:
        """Bytes to draft: k, or where adapting begins."""
        return self.draft or FIRST_PACE

    def next_state(self, state: int, outcome: Outcome) -> int:
        """Twice as many after a draft that was accepted whole, else one more than were accepted."""
        if self.draft is not None or outcome.drafted < state:
            return state
        return min(2 * state, LONGEST) if outcome.accepted == outcome.drafted else max(2, outcome.accepted + 1)


class LocalModel:
    """The local model as a drafter: it continues every row of a session byte by byte against the newest latent.

    The session stays as it was. Under inference mode.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.model = session, session.model
        self.encoder, self.decoder = session.encoder, session.decoder
        self.tails = [text.tail(self.model.embed.longest, session.stream.documents) for text in session.texts]
        self.passes = Passes()

    def logits(self, chosen: Sequence[int]) -> Float[Tensor, "R 1 V"]:
        """Read one more id of each row; raw logits of the id after it."""
        inputs = self._inputs(chosen)
        self.passes += Passes(decoder=1, kv_bytes=self.decoder.num_bytes)
        logits, slot = self.model.decoder.extend(inputs, self.session.patch_kv, self.decoder)
        self.decoder = slot.drafted()
        return logits

    def _inputs(self, chosen: Sequence[int]) -> Tensor:
        """What the decoder begins with: rows of its own table if it has one, else what the encoder's layers make."""
        if self.model.decoder.bytes is not None:
            self.passes += Passes(cells=len(chosen))
            return self.model.block_inputs(torch.tensor(chosen, device=self.session.device)[:, None])
        for tail, value in zip(self.tails, chosen, strict=True):
            tail.append(value)
        longest = self.model.embed.longest
        window = torch.tensor([tail[-longest:] for tail in self.tails], device=self.session.device)
        self.passes += Passes(encoder=1, draft_ids=len(chosen), kv_bytes=self.encoder.num_bytes)
        outputs, (slot,) = self.model.encoder.stack.extend(self.model.embed.extend(window), [self.encoder])
        self.encoder = slot.drafted()
        return outputs[-1]


class _Drafting:
    """One round's drafts; lives for one call."""

    def __init__(self, session: Session, rows: Sequence[Pending], limits: Sequence[int]) -> None:
        self.session, self.rows, self.limits = session, rows, limits
        self.local = LocalModel(session)
        self.drafts: list[list[int]] = [[] for _ in rows]
        self.constraints: list[Constraint | None] = [row.constraint for row in rows]
        self.resets = session.resets

    def run(self) -> Proposal:
        """Rows that are done go along with the others, to no effect."""
        chosen, growing = [row.chosen for row in self.rows], [limit > 0 for limit in self.limits]
        for step in range(max(self.limits)):
            if not any(growing):
                break
            chosen = self._next(chosen, step)
            for row, value in enumerate(chosen):
                if growing[row] and value not in self.resets:
                    self.drafts[row].append(value)
                    self._advance(row, value)
                growing[row] = (
                    growing[row]
                    and value not in self.resets
                    and value != EOS
                    and len(self.drafts[row]) < self.limits[row]
                )
        return Proposal(tuple(map(tuple, self.drafts)), self.local.passes)

    def _next(self, chosen: Sequence[int], step: int) -> list[int]:
        """Reads an id of each row and chooses the one behind it."""
        found = choose(
            [row.sampling for row in self.rows],
            self.local.logits(chosen),
            [position + 1 + step for position in self.session.positions],
            allowed=self._allowed(),
            seen=self._seen(),
        )
        return [own[0] for own in found.ids]

    def _advance(self, row: int, value: int) -> None:
        constraint = self.constraints[row]
        if constraint is not None and value != EOS:
            self.constraints[row] = constraint.after(value)

    def _allowed(self) -> Tensor | None:
        if all(constraint is None for constraint in self.constraints):
            return None
        everything = torch.ones(VOCAB_SIZE, dtype=torch.bool)
        return torch.stack(
            [
                everything if constraint is None else constraint.allowed(max(1, row.room - len(drafts)))
                for constraint, row, drafts in zip(self.constraints, self.rows, self.drafts, strict=True)
            ]
        )[:, None]

    def _seen(self) -> Tensor | None:
        if all(row.sampling.repetition_penalty == 1 for row in self.rows):
            return None
        windows = [row.sampling.repetition_window for row in self.rows]
        texts = [text.latest(window) for text, window in zip(self.session.texts, windows, strict=True)]
        pieces = zip(texts, self.rows, self.drafts, windows, strict=True)
        return torch.stack([seen_along([*text, row.chosen, *drafts], (), n) for text, row, drafts, n in pieces])
