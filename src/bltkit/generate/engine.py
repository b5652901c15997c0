"""The decoding loop, one for every strategy: propose, read, choose, keep what agrees.

A round reads of each row the id chosen last and the ids drafted behind it, in one pass of the full model, and
chooses at every place; drafts count as long as they are what was chosen. A row's bytes follow from its prompt and
its request alone: not from its neighbours, nor from the strategy, unless that is one whose drafts are trusted: these
are kept as they are, and the bytes follow from it as well. Nothing here knows text: bytes that are not UTF-8 are bytes
like others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from bltkit.generate.constraint import Constraint, follow, masks_along
from bltkit.generate.ledger import Passes, Stats
from bltkit.generate.request import Chunk, Finish, Request
from bltkit.generate.sampling import Choice, choose, seen_along
from bltkit.generate.session import Session
from bltkit.generate.stop import StopStrings
from bltkit.generate.strategies import Autoregressive, Outcome, Pending, Proposal, Strategy
from bltkit.vocab import BOS, EOS, OFFSET, VOCAB_SIZE


@dataclass(frozen=True)
class Row:
    """A request on its way."""

    key: int
    request: Request
    stop: StopStrings
    constraint: Constraint | None
    passes: Passes
    """Of the batch when the row came in."""
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
    logprobs: tuple[float, ...] = ()
    opens: tuple[bool, ...] = ()
    """Of bytes held back, as the log-probabilities."""


@dataclass(frozen=True)
class Found:
    """What a round found for a row."""

    taken: Sequence[tuple[int, float, bool]]
    """Ids, with their log-probabilities where these are asked for; does each open a patch."""
    chosen: int | None
    entropy: float | None = None
    outcome: Outcome | None = None
    """None where nothing was proposed, since the row just came in."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are continued side by side: a value. Rows may come in and go at any time.

    passes, seconds: of all rounds so far; time that the caller takes between rounds is not in it.
    """

    strategy: Strategy = field(default_factory=Autoregressive)
    session: Session | None = field(default=None, repr=False)
    rows: tuple[Row, ...] = ()
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    next_key: int = 0

    def admit(self, session: Session, requests: Sequence[Request]) -> "Batch":
        """With the rows of `session` behind those that run, one for each request. Empty rows begin with BOS.

        Row.key counts from 0 in the order of admission. Raises ValueError where the numbers differ, for a session of
        another model, and for a model that cannot do what the strategy needs.
        """
        self.strategy.check(session.model)
        if len(requests) != session.rows:
            raise ValueError(f"{len(requests)} requests for a session of {session.rows} rows")
        if not all(session.positions):
            session = session.extend([[] if position else [BOS] for position in session.positions])
        new = tuple(
            Row(
                key=self.next_key + i,
                request=request,
                stop=StopStrings(request.stop),
                constraint=request.constraint,
                passes=self.passes,
                seconds=self.seconds,
                state=self.strategy.first_state,
            )
            for i, request in enumerate(requests)
        )
        joined = session if self.session is None else Session.join([self.session, session])
        return replace(self, session=joined, rows=(*self.rows, *new), next_key=self.next_key + len(new))

    def cancel(self, keys: Sequence[int]) -> "Batch":
        """Without these rows, finished or not."""
        return self._without({row.key for row in self.rows if row.key in keys})

    def step(self) -> tuple["Batch", list[tuple[int, Chunk]]]:
        """One round for all rows, and what became certain, by key; rows that finished are gone."""
        if self.session is None:
            return self, []
        began = perf_counter()
        fresh = [row.chosen is None and row.request.max_bytes > 0 for row in self.rows]
        if any(fresh) or any(row.request.max_bytes == 0 for row in self.rows):
            session, found, passes = self.session, self._first(self.session, fresh), self.passes
        else:
            session, found, passes = self._round(self.session)
        rows, chunks = [], []
        for row, own in zip(self.rows, found, strict=True):
            moved, chunk = _take(row, own, self.strategy)
            rows.append(moved)
            chunks.append(chunk)
        seconds = self.seconds + perf_counter() - began
        batch = replace(self, session=session, rows=tuple(rows), passes=passes, seconds=seconds)
        finished = {row.key for row, chunk in zip(rows, chunks, strict=True) if chunk.finish is not None}
        out = []
        for row, chunk in zip(rows, chunks, strict=True):
            if chunk.finish is not None:
                out.append((row.key, replace(chunk, stats=batch._stats(row))))
            elif chunk.data:
                out.append((row.key, chunk))
        return batch._without(finished), out

    def _first(self, session: Session, fresh: Sequence[bool]) -> list[Found]:
        """The first id of rows that just came in; what their prompt predicts is known."""
        choice = self._choose(session.logits[:, None], session.positions, ((),) * len(self.rows))
        withheld = self.strategy.withholds
        opens = session.opens
        return [
            self._found(choice, at, 0 if withheld else 1, 0, opens[at : at + 1])
            if new
            else Found((), row.chosen, row.entropy)
            for at, (row, new) in enumerate(zip(self.rows, fresh, strict=True))
        ]

    def _round(self, session: Session) -> tuple[Session, list[Found], Passes]:
        withheld = self.strategy.withholds
        proposal = self.strategy.propose(session, [self._pending(row) for row in self.rows])
        drafts = [self._fitting(row, own, proposal) for row, own in zip(self.rows, proposal.drafts, strict=True)]
        if withheld:
            assert proposal.trusted, "what is not verified cannot stand in place of the model's own choice"
            along = [own or (_chosen(row),) for row, own in zip(self.rows, drafts, strict=True)]
            reading = session.read(along)
            # What was chosen in front of them is not handed out: columns begin there.
            logits = torch.cat((session.logits[:, None], reading.logits), 1)
        else:
            along = drafts
            reading = session.read([(_chosen(row), *own) for row, own in zip(self.rows, drafts, strict=True)])
            logits = reading.logits
        positions = [position + (not withheld) for position in session.positions]
        choice = self._choose(logits, positions, along, proposal.trusted)
        found, counts = [], []
        for row, own in enumerate(along):
            agreed = 0
            while agreed < len(own) and own[agreed] == choice.ids[row][agreed]:
                agreed += 1
            counts.append(agreed if withheld else agreed + 1)
            way = proposal.ways[row] if proposal.ways else ""
            outcome = Outcome(len(drafts[row]), min(agreed, len(drafts[row])), way)
            # A pass says of each id that it reads whether the next one opens a patch.
            opens = (session.opens[row], *reading.opens[row]) if withheld else reading.opens[row]
            found.append(replace(self._found(choice, row, counts[-1], agreed, opens), outcome=outcome))
        return reading.keep(counts), found, self.passes + reading.cost + proposal.passes

    def _pending(self, row: Row) -> Pending:
        room = row.request.max_bytes - row.made - self.strategy.withholds
        return Pending(_chosen(row), room, row.request.sampling, row.constraint, row.state, row.entropy)

    def _fitting(self, row: Row, drafts: Sequence[int], proposal: Proposal) -> tuple[int, ...]:
        """The drafts that there is room for and that the constraint allows."""
        left = row.request.max_bytes - row.made
        drafts = drafts[: left if proposal.trusted else max(0, left - 1)]
        if row.constraint is not None and drafts:
            drafts = drafts[: follow(row.constraint, drafts, left)[0]]
        return tuple(drafts)

    def _choose(
        self,
        logits: Tensor,
        positions: Sequence[int],
        drafts: Sequence[Sequence[int]],
        trusted: bool = False,
    ) -> Choice:
        size = logits.shape[1]
        return choose(
            [row.request.sampling for row in self.rows],
            logits,
            positions,
            allowed=self._allowed(drafts, size),
            seen=self._seen(drafts, size),
            logprobs=any(row.request.logprobs for row in self.rows),
            certainty=self.strategy.reads_entropy,
            decided=drafts if trusted else (),
        )

    def _found(self, choice: Choice, row: int, count: int, last: int, opens: Sequence[bool]) -> Found:
        """The first `count` ids of a row's choice are taken; that of column `last` is to be read next.

        opens: of each column, does the id chosen there open a patch.
        """
        ids = choice.ids[row][:count]
        logprobs = choice.logprobs[row] if choice.logprobs else [0.0] * count
        entropy = None if choice.certainty is None else float(choice.certainty.entropy[row, last])
        return Found(tuple(zip(ids, logprobs, opens, strict=False)), choice.ids[row][last], entropy)

    def _allowed(self, drafts: Sequence[Sequence[int]], size: int) -> Bool[Tensor, "R S V"] | None:
        if all(row.constraint is None for row in self.rows):
            return None
        masks = []
        for row, own in zip(self.rows, drafts, strict=True):
            if row.constraint is None or row.made >= row.request.max_bytes:
                masks.append(torch.ones(size, VOCAB_SIZE, dtype=torch.bool))
            else:
                mask = masks_along(row.constraint, own, row.request.max_bytes - row.made)
                masks.append(torch.cat((mask, mask[-1:].expand(size - len(mask), -1))))
        return torch.stack(masks)

    def _seen(self, drafts: Sequence[Sequence[int]], size: int) -> Bool[Tensor, "R S V"] | None:
        assert self.session is not None
        if all(row.request.sampling.repetition_penalty == 1 for row in self.rows):
            return None
        masks = []
        for row, text, own in zip(self.rows, self.session.texts, drafts, strict=True):
            window = row.request.sampling.repetition_window
            handed_out = row.chosen is not None and not self.strategy.withholds
            before = [*text.latest(window), *([_chosen(row)] if handed_out else [])]
            mask = seen_along(before, own, window)
            masks.append(torch.cat((mask, mask[-1:].expand(size - len(mask), -1))))
        return torch.stack(masks)

    def _stats(self, row: Row) -> Stats:
        assert self.session is not None
        return Stats.of(
            self.session.model,
            self.session.scorer,
            self.passes - row.passes,
            row.handed_out,
            self.seconds - row.seconds,
            row.drafted,
            row.accepted,
        )

    def _without(self, keys: set[int]) -> "Batch":
        if not keys:
            return self
        left = [i for i, row in enumerate(self.rows) if row.key not in keys]
        session = self.session.select(left) if self.session is not None and left else None
        return replace(self, session=session, rows=tuple(self.rows[i] for i in left))


def generate(session: Session, request: Request, strategy: Strategy | None = None) -> Iterator[Chunk]:
    """Continue a session of one row, which stays as it was; an empty one begins with BOS."""
    for _, chunk in generate_rows(session, [request], strategy):
        yield chunk


def generate_rows(
    session: Session, requests: Sequence[Request], strategy: Strategy | None = None
) -> Iterator[tuple[int, Chunk]]:
    """Continue every row of a session side by side, handing out (row, chunk) as bytes become certain.

    A row's stats count the passes made while it ran, which its neighbours shared.
    """
    batch = Batch(strategy or Autoregressive()).admit(session, requests)
    while batch.rows:
        batch, chunks = batch.step()
        yield from chunks


def _chosen(row: Row) -> int:
    assert row.chosen is not None
    return row.chosen


def _take(row: Row, found: Found, strategy: Strategy) -> tuple[Row, Chunk]:
    """The row with its new ids, and what became certain; ids behind an end do not count."""
    data = b""
    finish: Finish | None = None
    constraint, stop, made, taken = row.constraint, row.stop, row.made, 0
    logprobs, opens = row.logprobs, row.opens
    if made >= row.request.max_bytes:
        finish = "length"
    for value, logprob, opening in found.taken:
        taken += 1
        if value == EOS:
            finish = "eos"
            break
        certain, stop = stop.feed(bytes([value - OFFSET]))
        data, made, logprobs, opens = data + certain, made + 1, (*logprobs, logprob), (*opens, opening)
        if stop.found:
            finish = "stop"
            break
        if made == row.request.max_bytes:
            finish = "length"
            break
        constraint = None if constraint is None else constraint.after(value)
    if finish is not None:
        data += stop.held
    outcome = found.outcome or Outcome(0, 0)
    outcome = replace(outcome, accepted=min(outcome.accepted, taken))
    moved = replace(
        row,
        chosen=found.chosen,
        entropy=found.entropy,
        constraint=constraint,
        stop=stop,
        made=made,
        handed_out=row.handed_out + len(data),
        drafted=row.drafted + outcome.drafted,
        accepted=row.accepted + outcome.accepted,
        logprobs=logprobs[len(data) :],
        opens=opens[len(data) :],
        state=row.state if found.outcome is None else strategy.next_state(row.state, outcome),
    )
    chunk = Chunk(data, finish, None, logprobs[: len(data)] if row.request.logprobs else (), opens[: len(data)])
    return moved, chunk
