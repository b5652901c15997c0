"""The sequences that are being generated: a batch, whose row belongs to which choice, and who waits for its reader."""

from collections.abc import Iterator

from bltkit.generate import Chunk, Passes, SequenceBatch, Session
from bltkit.generate.group import ActiveSequence, Parked
from bltkit.serve.jobs import Job, JobChoice


class Running:
    """Sequences from their admission to their end.

    lanes: sequences for which storage is taken at once.
    window: bytes of a choice that may be handed out and unread; beyond them it is parked.
    """

    def __init__(self, lanes: int, window: int) -> None:
        self.window = window
        self.batch = SequenceBatch(lanes=lanes)
        self._owners: dict[int, tuple[Job, int]] = {}
        """Request and choice of every key of the batch, parked ones included."""
        self._leaving: set[int] = set()
        """Keys of the batch that go before the next round."""

    def __len__(self) -> int:
        """Sequences, parked ones included."""
        return len(self._owners)

    @property
    def parked(self) -> int:
        """Sequences that wait for their readers."""
        return sum(choice.parked is not None for _, choice in self._choices())

    @property
    def active(self) -> int:
        """Sequences that the next round steps."""
        return len(self) - self.parked

    @property
    def passes(self) -> Passes:
        """Of all rounds so far."""
        return self.batch.passes

    def begin(self, job: Job, session: Session) -> None:
        """All choices of a request whose prompt is read."""
        if len(job.choices) > 1:
            session = session.select([0] * len(job.choices))
        first = self.batch.next_key
        self.batch = self.batch.admit(session, [choice.request for choice in job.choices])
        for index, choice in enumerate(job.choices):
            choice.row = first + index
            self._owners[choice.row] = (job, index)

    def leave(self, job: Job) -> None:
        """The request's choices go before the next round."""
        for choice in job.choices:
            if choice.row is not None and self._owners.pop(choice.row, None) is not None and choice.parked is None:
                self._leaving.add(choice.row)

    def gather(self) -> bool:
        """Those that left go; those whose readers have read come back. Did anything change."""
        back: list[Parked] = []
        for _, choice in self._choices():
            if choice.parked is not None and choice.unread <= self.window // 2:
                back.append(choice.parked)
                choice.parked = None
        changed = bool(self._leaving or back)
        if self._leaving:
            self.batch = self.batch.cancel(sorted(self._leaving))
            self._leaving.clear()
        if back:
            self.batch = self.batch.resume(back)
        return changed

    def step(self) -> list[tuple[Job, int, Chunk]]:
        """One round: what became certain of which choice. Raises whatever the computation raises; see `isolate`."""
        self.batch, chunks = self.batch.step()
        certain = []
        for row, chunk in chunks:
            job, index = self._owners[row]
            job.choices[index].unread += len(chunk.data)
            certain.append((job, index, chunk))
            if chunk.finish is not None:
                job.choices[index].over = True
                del self._owners[row]
        self._park()
        return certain

    def isolate(self, error: Exception) -> list[tuple[Job, Exception]]:
        """Behind a round that failed: the requests at fault, since they fail alone, too, and what they raise.

        If none does, they fail only together and would again: then all are. Whoever asks has them `leave`.
        """
        try:
            rest, parked = self.batch.park([row.key for row in self.batch.rows])
        except Exception:  # the round has moved rows before it failed
            rest, parked = SequenceBatch(lanes=self.batch.lanes, next_key=self.batch.next_key), ()
        faults: dict[int, tuple[Job, Exception]] = {}
        for item in parked:
            try:
                SequenceBatch().resume([item]).step()
            except Exception as own:
                job, _ = self._owners[item.key]
                faults.setdefault(job.key, (job, own))
        if not faults:
            faults = {job.key: (job, error) for job, choice in self._choices() if choice.parked is None}
        self.batch = rest.resume([item for item in parked if self._owners[item.key][0].key not in faults])
        for job, _ in faults.values():
            self.leave(job)
        self._leaving.clear()  # none of them is in the batch
        return list(faults.values())

    def rows(self, job: Job) -> Iterator[tuple[int, ActiveSequence]]:
        """The request's choices that are being generated, as the last round left them."""
        rows = {row.key: row for row in self.batch.rows}
        for index, choice in enumerate(job.choices):
            if choice.parked is not None:
                yield index, choice.parked.row
            elif choice.row in self._owners and choice.row in rows:
                yield index, rows[choice.row]

    def lengths(self) -> Iterator[tuple[Job, int, int]]:
        """Of every sequence its request, the ids read, and the patches closed."""
        for group in self.batch.groups:
            for index, row in enumerate(group.rows):
                if row.key in self._owners:
                    yield (self._owners[row.key][0], *lengths_of(group.session, index))
        for job, choice in self._choices():
            if choice.parked is not None:
                yield (job, *lengths_of(choice.parked.session, 0))

    def _choices(self) -> Iterator[tuple[Job, JobChoice]]:
        return ((job, job.choices[index]) for job, index in self._owners.values())

    def _park(self) -> None:
        """Sequences whose readers are too far behind leave the batch."""
        slow = {
            choice.row: choice
            for _, choice in self._choices()
            if choice.row is not None and choice.parked is None and choice.unread > self.window
        }
        if slow:
            self.batch, parked = self.batch.park(list(slow))
            for item in parked:
                slow[item.key].parked = item


def lengths_of(session: Session, row: int = 0) -> tuple[int, int]:
    """Ids read, and patches closed."""
    return session.positions[row], session.latents[row].positions[0]
