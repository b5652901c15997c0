"""Sequences that one strategy continues side by side, and their round: propose, read, choose, keep what agrees.

A round reads the id chosen last of every row and the ids drafted after it, in one pass of the full model, and chooses
at every position; drafts count as long as they equal the choice. A row's bytes follow from its prompt and its request
alone: neither from its neighbours nor from the strategy, unless the strategy's drafts are trusted: these are kept as
they are, and the bytes follow from the strategy as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from bltkit.generate.constraint import Constraint, follow, masks_along
from bltkit.generate.ledger import Stats
from bltkit.generate.request import Chunk, Finish, Request
from bltkit.generate.sampling import Choice, choose, seen_along
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes
from bltkit.generate.stop import StopStrings
from bltkit.generate.strategies import Outcome, Pending, Proposal, Strategy
from bltkit.generate.top_logprobs import Tops
from bltkit.model.cache import MIN_LANES
from bltkit.vocab import EOS, OFFSET, VOCAB_SIZE

ROOM = 64
"""Columns that caches have free before a round: more than it drafts and reads as a rule."""


class ChosenId(NamedTuple):
    """An id, and what is handed out with its byte."""

    id: int
    logprob: float
    """0 where no row asks for it."""
    opens: bool
    """Does it open a patch."""
    tops: Tops


@dataclass(frozen=True)
class ActiveSequence:
    """A request that is being continued."""

    key: int
    request: Request
    stop: StopStrings
    constraint: Constraint | None
    passes: Passes
    """Of the group when the row came in."""
    seconds: float
    state: Any
    """See `Strategy.first_state`."""
    chosen: int | None = None
    """Not read yet; None in front of the first."""
    entropy: float | None = None
    """See `Pending`."""
    made: int = 0
    handed_out: int = 0
    drafted: int = 0
    accepted: int = 0
    held: tuple[ChosenId, ...] = ()
    """Of bytes held back."""

    @classmethod
    def of(cls, key: int, request: Request) -> Self:
        """A row in front of its first byte, in a group that has made no pass."""
        stop, state = StopStrings(request.stop), request.strategy.first_state
        return cls(key, request, stop, request.constraint, Passes(), 0.0, state)

    def rest(self) -> Chunk:
        """The bytes that are held back, for who ends the row here."""
        return _chunk(self.request, self.stop.held, self.held[: len(self.stop.held)], None)


@dataclass(frozen=True)
class RoundResult:
    """Result of one round for one row."""

    taken: Sequence[ChosenId]
    chosen: int | None
    entropy: float | None = None
    outcome: Outcome | None = None
    """None where nothing was proposed, since the row just came in."""


@dataclass(frozen=True, eq=False)
class Parked:
    """A row that left its batch and may come back: `SequenceBatch.park`, `SequenceBatch.resume`."""

    row: ActiveSequence
    session: Session = field(repr=False)
    """Of this row alone."""

    @property
    def key(self) -> int:
        """The row's key in the batch."""
        return self.row.key


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one strategy: a value. Row i of the session is that of `rows[i]`.

    passes, seconds: of all rounds so far.
    lanes: rows that storage has room for at least, once there are several.
    """

    strategy: Strategy
    session: Session = field(repr=False)
    rows: tuple[ActiveSequence, ...]
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    lanes: int = MIN_LANES

    def admit(self, session: Session, rows: Sequence[ActiveSequence]) -> "Group":
        """With further rows, which have spent what their `passes` and `seconds` say."""
        return replace(self, session=self.session.entered(session, self.lanes), rows=(*self.rows, *self._started(rows)))

    @classmethod
    def start(cls, session: Session, rows: Sequence[ActiveSequence], lanes: int = MIN_LANES) -> "Group":
        """A group of these rows, which have spent what their `passes` and `seconds` say."""
        empty = cls(rows[0].request.strategy, session, (), lanes=lanes)
        return replace(empty, rows=empty._started(rows))

    def _started(self, rows: Sequence[ActiveSequence]) -> tuple[ActiveSequence, ...]:
        return tuple(replace(row, passes=self.passes - row.passes, seconds=self.seconds - row.seconds) for row in rows)

    def without(self, keys: set[int]) -> "Group | None":
        """Without these rows; None where no row is left."""
        left = [i for i, row in enumerate(self.rows) if row.key not in keys]
        if len(left) == len(self.rows):
            return self
        if not left:
            return None
        session, order = self.session.closed_up(left, self.lanes)
        return replace(self, session=session, rows=tuple(self.rows[i] for i in order))

    def parked(self, index: int) -> Parked:
        """Row `index` by itself. Its `passes` and `seconds` are those that it has spent."""
        row = self.rows[index]
        spent = replace(row, passes=self.passes - row.passes, seconds=self.seconds - row.seconds)
        return Parked(spent, self.session.select([index]))

    def step(self) -> tuple["Group | None", list[tuple[int, Chunk]], Passes]:
        """One round: the group without the rows that finished, what became certain, by key, and the passes made.

        Where a row has no id yet, the round chooses the first id of these rows and reads nothing.
        """
        began = perf_counter()
        fresh = [i for i, row in enumerate(self.rows) if row.chosen is None and row.request.max_bytes > 0]
        if fresh or any(row.request.max_bytes == 0 for row in self.rows):
            session, results, cost = self.session, self._first(fresh), Passes()
        else:
            session, results, cost = self._round()
        rows, chunks = [], []
        for row, result in zip(self.rows, results, strict=True):
            moved, chunk = _take(row, result, self.strategy)
            rows.append(moved)
            chunks.append(chunk)
        seconds = self.seconds + perf_counter() - began
        group = replace(self, session=session, rows=tuple(rows), passes=self.passes + cost, seconds=seconds)
        certain = []
        for row, chunk in zip(rows, chunks, strict=True):
            if chunk.finish is not None:
                certain.append((row.key, replace(chunk, stats=group._stats(row))))
            elif chunk.data:
                certain.append((row.key, chunk))
        return group.without({key for key, chunk in certain if chunk.finish is not None}), certain, cost

    def _first(self, fresh: Sequence[int]) -> list[RoundResult]:
        """The first id of rows that just came in; their prompt's logits are there."""
        # No pass: what is needed lies in no cache.
        results = [RoundResult((), row.chosen, row.entropy) for row in self.rows]
        if not fresh:
            return results
        logits, opens, positions = self.session.logits, self.session.opens, self.session.positions
        rows = [self.rows[i] for i in fresh]
        texts = [
            self.session.texts[i].latest(row.request.sampling.repetition_window)
            for i, row in zip(fresh, rows, strict=True)
        ]
        choice = self._choose(rows, logits[list(fresh), None], [positions[i] for i in fresh], texts, ((),) * len(rows))
        for at, i in enumerate(fresh):
            results[i] = _result(choice, at, self.strategy.draft_column, 0, opens[i : i + 1])
        return results

    def _round(self) -> tuple[Session, list[RoundResult], Passes]:
        session, first = self.session.with_room(ROOM), self.strategy.draft_column
        proposal = self.strategy.propose(session, [self._pending(row) for row in self.rows])
        drafts = [_fitting(row, own, proposal) for row, own in zip(self.rows, proposal.drafts, strict=True)]
        # The ids of the columns from `first` on.
        along = drafts if first else [own or (_chosen(row),) for row, own in zip(self.rows, drafts, strict=True)]
        reading = session.read([(*_read_first(row, first), *own) for row, own in zip(self.rows, along, strict=True)])
        logits = reading.logits
        if not first:
            assert proposal.trusted, "what is not verified cannot stand in place of the model's own choice"
            logits = torch.cat((session.logits[:, None], logits), 1)
        positions = [position + first for position in session.positions]
        choice = self._choose(self.rows, logits, positions, self._texts(), along, proposal.trusted)
        results, counts = [], []
        for row, own in enumerate(along):
            agreed = 0
            while agreed < len(own) and own[agreed] == choice.ids[row][agreed]:
                agreed += 1
            counts.append(agreed + first)
            way = proposal.ways[row] if proposal.ways else ""
            outcome = Outcome(len(drafts[row]), min(agreed, len(drafts[row])), way)
            # A pass says of each id that it reads whether the next one opens a patch.
            opens = reading.opens[row] if first else (session.opens[row], *reading.opens[row])
            results.append(_result(choice, row, counts[-1], agreed, opens, outcome))
        return reading.keep(counts), results, reading.cost + proposal.passes

    def _texts(self) -> list[list[int]]:
        """The last ids of each row, as many as its penalty looks back; the chosen one is the last where it is handed
        out."""
        if all(row.request.sampling.repetition_penalty == 1 for row in self.rows):
            return [[]] * len(self.rows)
        first = self.strategy.draft_column
        return [
            [*text.latest(row.request.sampling.repetition_window), *_read_first(row, first)]
            for row, text in zip(self.rows, self.session.texts, strict=True)
        ]

    def _pending(self, row: ActiveSequence) -> Pending:
        room = row.request.max_bytes - row.made - (1 - self.strategy.draft_column)
        return Pending(_chosen(row), room, row.request.sampling, row.constraint, row.state, row.entropy)

    def _choose(
        self,
        rows: Sequence[ActiveSequence],
        logits: Tensor,
        positions: Sequence[int],
        texts: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
        trusted: bool = False,
    ) -> Choice:
        size = logits.shape[1]
        return choose(
            [row.request.sampling for row in rows],
            logits,
            positions,
            allowed=_allowed(rows, drafts, size),
            seen=_seen(rows, texts, drafts, size),
            logprobs=any(row.request.logprobs for row in rows),
            tops=[row.request.top_logprobs for row in rows],
            certainty=self.strategy.reads_entropy,
            decided=drafts if trusted else (),
        )

    def _stats(self, row: ActiveSequence) -> Stats:
        return Stats.of(
            self.session.model,
            self.session.scorer,
            self.passes - row.passes,
            row.handed_out,
            self.seconds - row.seconds,
            row.drafted,
            row.accepted,
        )


def _chosen(row: ActiveSequence) -> int:
    assert row.chosen is not None
    return row.chosen


def _read_first(row: ActiveSequence, draft_column: int) -> tuple[int, ...]:
    """The chosen id where a round reads it in front of the drafts."""
    return (_chosen(row),) if draft_column else ()


def _fitting(row: ActiveSequence, drafts: Sequence[int], proposal: Proposal) -> tuple[int, ...]:
    """The drafts that there is room for and that the constraint allows."""
    left = row.request.max_bytes - row.made
    drafts = drafts[: left if proposal.trusted else max(0, left - 1)]
    if row.constraint is not None and drafts:
        drafts = drafts[: follow(row.constraint, drafts, left)[0]]
    return tuple(drafts)


def _allowed(
    rows: Sequence[ActiveSequence], drafts: Sequence[Sequence[int]], size: int
) -> Bool[Tensor, "R S V"] | None:
    if all(row.constraint is None for row in rows):
        return None
    masks = []
    for row, own in zip(rows, drafts, strict=True):
        if row.constraint is None or row.made >= row.request.max_bytes:
            masks.append(torch.ones(size, VOCAB_SIZE, dtype=torch.bool))
        else:
            mask = masks_along(row.constraint, own, row.request.max_bytes - row.made)
            masks.append(torch.cat((mask, mask[-1:].expand(size - len(mask), -1))))
    return torch.stack(masks)


def _seen(
    rows: Sequence[ActiveSequence], texts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], size: int
) -> Bool[Tensor, "R S V"] | None:
    if all(row.request.sampling.repetition_penalty == 1 for row in rows):
        return None
    masks = []
    for row, text, own in zip(rows, texts, drafts, strict=True):
        mask = seen_along(text, own, row.request.sampling.repetition_window)
        masks.append(torch.cat((mask, mask[-1:].expand(size - len(mask), -1))))
    return torch.stack(masks)


def _result(
    choice: Choice, row: int, count: int, last: int, opens: Sequence[bool], outcome: Outcome | None = None
) -> RoundResult:
    """The first `count` ids of a row's choice are taken; that of column `last` is to be read next.

    opens: of each column, does the id chosen there open a patch.
    """
    ids = choice.ids[row][:count]
    logprobs = choice.logprobs[row] if choice.logprobs else [0.0] * count
    tops = choice.tops[row] if choice.tops else [()] * count
    entropy = None if choice.certainty is None else float(choice.certainty.entropy[row, last])
    # `opens` may end in front of `ids`' last column or after it.
    taken = tuple(map(ChosenId, ids, logprobs, opens, tops))
    return RoundResult(taken, choice.ids[row][last], entropy, outcome)


def _take(row: ActiveSequence, result: RoundResult, strategy: Strategy) -> tuple[ActiveSequence, Chunk]:
    """The row with its new ids, and what became certain; ids behind an end do not count."""
    data, held = b"", list(row.held)
    finish: Finish | None = None
    ending: ChosenId | None = None
    constraint, stop, made, taken = row.constraint, row.stop, row.made, 0
    if made >= row.request.max_bytes:
        finish = "length"
    for item in result.taken:
        taken += 1
        if item.id == EOS:
            finish, ending = "eos", item
            break
        certain, stop = stop.feed(bytes([item.id - OFFSET]))
        data, made = data + certain, made + 1
        held.append(item)
        if stop.found:
            finish = "stop"
            break
        constraint = None if constraint is None else constraint.after(item.id)
        if constraint is not None and constraint.finished(row.request.max_bytes - made):
            finish = "eos"
            break
        if made == row.request.max_bytes:
            finish = "length"
            break
    if finish is not None:
        data += stop.held
    outcome = result.outcome or Outcome(0, 0)
    outcome = replace(outcome, accepted=min(outcome.accepted, taken))
    moved = replace(
        row,
        chosen=result.chosen,
        entropy=result.entropy,
        constraint=constraint,
        stop=stop,
        made=made,
        handed_out=row.handed_out + len(data),
        drafted=row.drafted + outcome.drafted,
        accepted=row.accepted + outcome.accepted,
        held=tuple(held[len(data) :]),
        state=row.state if result.outcome is None else strategy.next_state(row.state, outcome),
    )
    chunk = _chunk(row.request, data, held[: len(data)], finish)
    if ending is not None and row.request.logprobs:
        chunk = replace(chunk, eos_logprob=ending.logprob, eos_top_logprobs=ending.tops)
    return moved, chunk


def _chunk(request: Request, data: bytes, made: Sequence[ChosenId], finish: Finish | None) -> Chunk:
    return Chunk(
        data,
        finish,
        logprobs=tuple(item.logprob for item in made) if request.logprobs else (),
        opens=tuple(item.opens for item in made),
        top_logprobs=tuple(item.tops for item in made) if request.top_logprobs else (),
    )
