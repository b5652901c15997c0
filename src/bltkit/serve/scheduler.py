"""The scheduler: one object that owns the model and decides what it computes next, without I/O.

A turn admits what waits, reads a piece of a prompt, makes one round of all sequences and delivers what became certain.
Whatever it decides changes when bytes come, never which.

- Requests are admitted in the order of arrival, as soon as there are places for all of their choices and memory for
  the longest that these may become.
- Prompts are read in the order of arrival + `PATIENCE` times the time that reading takes alone: short ones overtake
  much longer ones, and none waits for ever.
- A choice whose reader is slow leaves the batch with its state and comes back when it has read.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter

import torch

from bltkit.checkpoint import Bundle
from bltkit.generate import Chunk, Session
from bltkit.generate.ledger import WeightReads
from bltkit.serve.budget import Budget
from bltkit.serve.counters import Counters
from bltkit.serve.jobs import Job
from bltkit.serve.limits import Limits
from bltkit.serve.messages import (
    Delta,
    Drained,
    Event,
    Failed,
    Figures,
    Patch,
    Prompted,
    Reason,
    Started,
    Submit,
)
from bltkit.serve.pace import FEWEST, Pace
from bltkit.serve.patched_texts import patched
from bltkit.serve.prefixes import PrefixCache
from bltkit.serve.prompt_reading import PromptReader
from bltkit.serve.running import Running, lengths_of
from bltkit.terminal.control_characters import visible
from bltkit.terminal.streams import say

PATIENCE = 4
"""See above."""

CONTEXT = 2048
"""Bytes, for a model whose record does not say how long a training row was."""

PREFIXES = 4
"""The prefix cache may hold 1 / PREFIXES of the memory."""

BROKEN = "the model could not compute this request; the server's log says why"


class Scheduler:
    """See above.

    bundle: a BLT with its rule (`loading.servable`). clock: seconds, for deadlines and for how long things take.

    Raises ValueError where the memory does not hold a single sequence of the context's length.
    """

    def __init__(self, bundle: Bundle, limits: Limits, clock: Callable[[], float] = perf_counter) -> None:
        assert bundle.model is not None and bundle.rule is not None
        self.bundle, self.limits, self._clock = bundle, limits, clock
        self.context = limits.context or int(bundle.record.get("row_bytes", CONTEXT + 1)) - 1
        self._empty = Session.start(bundle.model, bundle.scorer, bundle.rule)
        self.budget = Budget.of(bundle.model, self._empty.scorer, limits.memory, self._empty.device)
        if (needed := self.budget.needed(self.context + 1, 1)) > self.budget.memory:
            raise ValueError(
                f"memory = {self.budget.memory:,} bytes: a sequence of {self.context:,} bytes, the context, may take "
                f"{needed:,}; give more memory or a shorter context"
            )
        self.prefixes = PrefixCache(self.budget.memory // PREFIXES if limits.prefixes is None else limits.prefixes)
        self.counters = Counters(WeightReads.of(bundle.model, self._empty.scorer))
        self.pace = Pace()
        self.running = Running(self.budget.lanes(limits.sequences), limits.window)
        self.busy = False
        """Did the last turn do anything, or did somebody ask for something since: may another turn do anything."""
        self._jobs: dict[int, Job] = {}
        self._queue: deque[Job] = deque()
        self._reading: list[Job] = []
        self._patches: deque[Patch] = deque()
        self._events: list[Event] = []
        self._drains_at: float | None = None
        self._chose_first = False

    def submit(self, order: Submit) -> None:
        """Take a request; if it can never run it fails at once."""
        self.busy = True
        job = Job.of(order, self._clock())
        self._jobs[job.key] = job
        size = job.longest - 1
        if self._drains_at is not None:
            self._fail(job, "draining", "the server is ending; try another one, or later")
        elif size > self.context:
            self._fail(job, "too_long", f"prompt and max_bytes are {size:,} bytes; the context holds {self.context:,}")
        elif job.places > self.limits.sequences:
            self._fail(job, "no_memory", f"n = {job.places}: the server runs {self.limits.sequences} sequences at most")
        elif (needed := self.budget.needed(job.longest, job.places)) > self.budget.memory:
            text = f"{job.places} sequences of {size:,} bytes may need {needed:,} bytes of memory"
            self._fail(job, "no_memory", f"{text}; the server has {self.budget.memory:,}")
        elif (refusal := self._refusal(job)) is not None:
            self._fail(job, "unsupported", refusal)
        else:
            self._queue.append(job)

    def patch(self, order: Patch) -> None:
        """Take a text that is to be cut into patches."""
        self.busy = True
        self._patches.append(order)

    def cancel(self, key: int) -> None:
        """Forget a request; nothing follows. Its sequences leave before the next round."""
        job = self._jobs.get(key)
        if job is not None:
            self.counters.finished["cancelled"] += sum(not choice.over for choice in job.choices)
            self._remove(job)

    def read(self, key: int, choice: int, size: int) -> None:
        """The client took `size` bytes of a choice."""
        job = self._jobs.get(key)
        if job is not None:
            job.choices[choice].unread -= size
            self.busy = True

    def drain(self, seconds: float) -> None:
        """Take nothing new; what has not finished in `seconds` ends with what it has. `Drained` is the last event."""
        self._drains_at = self._clock() + seconds
        self.busy = True

    def turn(self) -> list[Event]:
        """Admit, step, deliver."""
        self.busy = False
        with torch.inference_mode():
            self._expire()
            self._admit()
            self._read()
            self.busy |= self.running.gather()
            self._step()
            self._patch()
        if self._drains_at is not None and not self._jobs and not self._patches:
            self._events.append(Drained())
        events, self._events = self._events, []
        return events

    def seconds_left(self) -> float | None:
        """Until a deadline passes; None where there is none."""
        times = [job.deadline for job in self._jobs.values() if job.deadline is not None]
        times += [] if self._drains_at is None else [self._drains_at]
        return max(0.0, min(times) - self._clock()) if times else None

    def figures(self) -> Figures:
        """State and counters of now."""
        waiting = [*self._queue, *self._reading]
        return replace(
            self.counters.figures(),
            running=self.running.active,
            parked=self.running.parked,
            waiting=sum(job.places for job in waiting),
            waiting_bytes=sum(len(job.order.ids) for job in waiting),
            cache_bytes=sum(self.budget.sequence.reserved(ids, patches) for _, ids, patches in self._sequences()),
            prefix_bytes=self.prefixes.bytes,
            memory=self.budget.memory,
            median_round=self.pace.median_round,
        )

    # Admit.

    def _admit(self) -> None:
        while self._queue:
            job = self._queue[0]
            needed, free = self.budget.needed(job.longest, job.places), self.budget.memory - self._reserved()
            if not self._has_places(job.places) or needed > free:
                return
            self.prefixes.shrink(free - needed)
            self._queue.popleft()
            job.prompt = PromptReader.of(job.order, self._empty, self.prefixes, self.limits.snapshot)
            job.due = job.arrived + PATIENCE * self.pace.expected(job.prompt.left)
            self._reading.append(job)
            self._events.append(Started(job.key))
            self.busy = True

    def _has_places(self, places: int) -> bool:
        """Parked sequences take no place, or slow readers could lock everybody out; but there are bounds."""
        taken, parked = sum(job.places for job in self._reading) + len(self.running), self.running.parked
        return taken - parked + places <= self.limits.sequences and taken + places <= 2 * self.limits.sequences

    def _reserved(self) -> int:
        """Bytes that all admitted sequences may come to take."""
        return sum(
            self.budget.needed(max(job.longest, ids), job.places if job.prompt is not None else 1, ids, patches)
            for job, ids, patches in self._sequences()
        )

    def _sequences(self) -> Iterator[tuple[Job, int, int]]:
        """Ids read and patches closed of every sequence that holds memory; of a prompt that is being read, once."""
        for job in self._reading:
            assert job.prompt is not None
            yield (job, *lengths_of(job.prompt.session))
        yield from self.running.lengths()

    def _refusal(self, job: Job) -> str | None:
        assert self.bundle.model is not None
        for choice in job.choices:
            try:
                choice.request.strategy.check(self.bundle.model)
            except ValueError as error:
                return str(error)
        return None

    # Read prompts.

    def _read(self) -> None:
        """Pieces of the prompts that are due first, as many as there is time for; at least a small one."""
        running = self.running.active > 0
        if self._chose_first and running:
            # The round before chose the first bytes of new sequences, for which the others have waited already.
            self._chose_first = False
            return
        ends = self._clock() + self.pace.allowance(running)
        least = FEWEST
        while self._reading:
            job = min(self._reading, key=lambda job: job.due)
            assert job.prompt is not None
            if job.prompt.at == job.prompt.hit:
                job.prompt.look_up()  # another request may have read the same since
            size = max(least, self.pace.ids(ends - self._clock())) if job.prompt.left else 0
            if job.prompt.left and size < FEWEST:
                return
            least, self.busy = 0, True
            try:
                self._read_piece(job.prompt, size)
                if not job.prompt.left:
                    self._begin(job, job.prompt)
            except Exception as error:
                self._break(job, error)
            else:
                if job.prompt is None and job.choices and not running:
                    return  # its first byte does not wait for others' prompts

    def _read_piece(self, prompt: PromptReader, size: int) -> None:
        if not size:
            return
        began, before = self._clock(), prompt.session.passes
        count = prompt.read(size)
        _wait_for(self._empty.device)
        self.pace.add_reading(count, self._clock() - began)
        self.counters.passes += prompt.session.passes - before
        self.prefixes.shrink(max(0, self.budget.memory - self._reserved()))

    def _begin(self, job: Job, prompt: PromptReader) -> None:
        """The prompt is read: its choices run."""
        if job.choices:
            self.running.begin(job, prompt.session)
            self._chose_first = True
        self._reading.remove(job)
        job.prompt = None
        self.counters.prompt(len(job.order.ids) - 1, prompt.hit)
        if job.order.prompt_logprobs is not None:
            scored = prompt.scored
            self._events.append(Prompted(job.key, scored.logprobs, scored.top_logprobs))
        if not job.choices:
            self._remove(job)

    # Step and deliver.

    def _step(self) -> None:
        rows = self.running.active
        if not rows:
            return
        self.busy = True
        began, passes = self._clock(), self.running.passes
        try:
            certain = self.running.step()
        except Exception as error:
            for job, fault in self.running.isolate(error):
                self._break(job, fault)
            return
        seconds, cost = self._clock() - began, self.running.passes - passes
        if cost.decoder:  # else it only chose the first bytes of new rows
            self.pace.add_round(seconds)
            self.counters.round(rows, seconds, cost)
        for job, index, chunk in certain:
            self._deliver(job, index, chunk)

    def _deliver(self, job: Job, index: int, chunk: Chunk) -> None:
        self._events.append(Delta(job.key, index, chunk))
        self.counters.chunk(chunk)
        if job.over:
            self._remove(job)

    def _patch(self) -> None:
        if self._patches:
            self.busy = True
            self._events.append(patched(self.bundle, self._patches.popleft(), self.context))

    def _expire(self) -> None:
        """Requests whose deadline has passed end with what they have; so do all at the end of draining."""
        now = self._clock()
        if self._drains_at is not None and now >= self._drains_at:
            for job in list(self._jobs.values()):
                self._hand_out_rest(job)
                self._fail(job, "draining", "the server is ending; this is what was generated until then")
        for job in list(self._jobs.values()):
            if job.deadline is not None and now >= job.deadline:
                self._hand_out_rest(job)
                self._fail(job, "timeout", f"the request took longer than {job.order.seconds:g} seconds")

    def _hand_out_rest(self, job: Job) -> None:
        """Bytes that were held back since a stop string might have begun."""
        for index, row in self.running.rows(job):
            chunk = row.rest()
            self.counters.drafts(row.drafted, row.accepted)
            if chunk.data:
                self._deliver(job, index, chunk)

    def _break(self, job: Job, error: Exception) -> None:
        say(visible(f"request {job.key} failed: {type(error).__name__}: {error}"))
        self._fail(job, "internal", BROKEN)

    def _fail(self, job: Job, reason: Reason, text: str) -> None:
        self.counters.finished[reason] += max(1, sum(not choice.over for choice in job.choices))
        self._events.append(Failed(job.key, reason, text))
        self._remove(job)

    def _remove(self, job: Job) -> None:
        """Forget it and all that it holds; its rows leave the batch before the next round."""
        self.busy = True
        if self._jobs.pop(job.key, None) is None:
            return
        if job in self._queue:
            self._queue.remove(job)
        if job in self._reading:
            self._reading.remove(job)
        self.running.leave(job)


def _wait_for(device: torch.device) -> None:
    """Until what was launched is done, so that what was measured is the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
