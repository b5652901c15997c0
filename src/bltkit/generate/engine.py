"""Continuous batching: sequences of all strategies in one `SequenceBatch`, with `admit`, `step` and `cancel`.

Nothing here knows text: bytes that are not UTF-8 are bytes like others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from bltkit.generate.group import ActiveSequence, Group, Parked
from bltkit.generate.request import Chunk, Request
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes
from bltkit.generate.strategies import Strategy
from bltkit.model.cache import MIN_LANES, storage_bytes
from bltkit.vocab import BOS


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Rows that are continued side by side: a value. Rows may come in and go at any time.

    groups: the rows of each strategy; no group is empty, and no two have the same strategy.
    passes, seconds: of all rounds so far; time that the caller takes between rounds is not in it.
    lanes: rows of a strategy that storage has room for from the beginning. Without, it grows as rows come, by copies
        that take some rounds. Lanes without a row take no memory on the CPU; on other devices they do.
    """

    groups: tuple[Group, ...] = ()
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    next_key: int = 0
    lanes: int = MIN_LANES

    @property
    def rows(self) -> tuple[ActiveSequence, ...]:
        """All rows, group by group, in no particular order within one."""
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def cache_bytes(self) -> int:
        """Memory of all rows' caches, spare room included; storage that rows share counts once."""
        return storage_bytes(cache for group in self.groups for cache in group.session.caches)

    def row_session(self, key: int) -> Session:
        """The session of one row as it is now, with storage of its own. Raises ValueError for a key that no row has."""
        group, index = self._places([key])[0]
        return group.session.select([index])

    def admit(self, session: Session, requests: Sequence[Request]) -> "SequenceBatch":
        """With the rows of `session`, one for each request. Empty rows begin with BOS.

        `ActiveSequence.key` counts from 0 in the order of admission. Raises ValueError where the numbers differ, for a
        session of another model, and for a model that cannot do what a request's strategy needs.
        """
        for request in requests:
            request.strategy.check(session.model)
        if len(requests) != session.rows:
            raise ValueError(f"{len(requests)} requests for a session of {session.rows} rows")
        if not all(session.positions):
            session = session.extend([[] if position else [BOS] for position in session.positions])
        rows = [ActiveSequence.of(self.next_key + i, request) for i, request in enumerate(requests)]
        batch = replace(self, next_key=self.next_key + len(rows))
        strategies: list[Strategy] = []
        for request in requests:
            strategies += [] if request.strategy in strategies else [request.strategy]
        for strategy in strategies:
            chosen = [i for i, request in enumerate(requests) if request.strategy == strategy]
            part = session if len(chosen) == len(rows) else session.select(chosen)
            batch = batch._with(part, [rows[i] for i in chosen])
        return batch

    def cancel(self, keys: Sequence[int]) -> "SequenceBatch":
        """Without these rows, finished or not."""
        gone = set(keys)
        groups = [left for group in self.groups if (left := group.without(gone)) is not None]
        return replace(self, groups=tuple(groups))

    def park(self, keys: Sequence[int]) -> tuple["SequenceBatch", tuple[Parked, ...]]:
        """Without these rows, and the rows by themselves, in the order of `keys`: `resume` continues them.

        Raises ValueError for a key that no row has.
        """
        parked = tuple(group.parked(i) for group, i in self._places(keys))
        return self.cancel(keys), parked

    def resume(self, parked: Sequence[Parked]) -> "SequenceBatch":
        """With rows of `park` again, under the same keys: they continue as if they had never left.

        Raises ValueError for a key that a row has, and for a session of another model.
        """
        batch = self
        for item in parked:
            if item.key in {row.key for row in batch.rows}:
                raise ValueError(f"key {item.key}: the row is in the batch already; resume it once")
            batch = batch._with(item.session, [item.row])
        return replace(batch, next_key=max([batch.next_key, *(item.key + 1 for item in parked)]))

    def step(self) -> tuple["SequenceBatch", list[tuple[int, Chunk]]]:
        """One round of every group, and what became certain, by key; rows that finished are gone."""
        began, groups, certain, passes = perf_counter(), list[Group](), list[tuple[int, Chunk]](), self.passes
        for group in self.groups:
            left, chunks, cost = group.step()
            certain += chunks
            passes += cost
            groups += [] if left is None else [left]
        seconds = self.seconds + perf_counter() - began
        return replace(self, groups=tuple(groups), passes=passes, seconds=seconds), certain

    def _places(self, keys: Sequence[int]) -> list[tuple[Group, int]]:
        places = {row.key: (group, i) for group in self.groups for i, row in enumerate(group.rows)}
        for key in keys:
            if key not in places:
                raise ValueError(f"keys = {list(keys)}: no row has key {key}; it may have finished")
        return [places[key] for key in keys]

    def _with(self, session: Session, rows: Sequence[ActiveSequence]) -> "SequenceBatch":
        strategy, groups = rows[0].request.strategy, list(self.groups)
        for at, group in enumerate(groups):
            if group.strategy == strategy:
                groups[at] = group.admit(session, rows)
                return replace(self, groups=tuple(groups))
        if groups:
            session.check_joins(groups[0].session)
        return replace(self, groups=(*groups, Group.start(session, rows, self.lanes)))


def generate(session: Session, request: Request) -> Iterator[Chunk]:
    """Continue a session of one row, which stays as it was; an empty one begins with BOS."""
    for _, chunk in generate_rows(session, [request]):
        yield chunk


def generate_rows(session: Session, requests: Sequence[Request]) -> Iterator[tuple[int, Chunk]]:
    """Continue every row of a session side by side, handing out (row, chunk) as bytes become certain.

    A row's stats count the passes made while it ran, which its neighbours of the same strategy shared.
    """
    batch = SequenceBatch().admit(session, requests)
    while batch.rows:
        batch, chunks = batch.step()
        yield from chunks
