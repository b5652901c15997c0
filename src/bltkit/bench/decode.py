"""Decoding byte by byte behind a context, held to a text.

A random model soon repeats one byte, whose patches are nothing like a text's; so the bytes are the text's. It is the
engine's own loop, and the choice is made all the same: a constraint allows the text's next byte and no other. Every
run begins with the same state and reads the same bytes, and these are the same behind every context: speeds at
several contexts differ by what the context costs alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bltkit.bench.bench_subject import MAX_CONTEXT, BenchSubject, benchmark_text
from bltkit.bench.machine_rates import MachineRates, machine_rates
from bltkit.bench.peer import BYTES_PER_TOKEN, BltPeer, LlamaPeer, Peer, compared, peer_of
from bltkit.bench.record import BenchRow, DecodingFigures, Form, row_of
from bltkit.bench.step_parts import parts_of
from bltkit.bench.timing import Progress, RepeatLimits, Side, Timing, check_batch, in_turn, silent, threads_of
from bltkit.config import parse
from bltkit.generate import Passes, Request, Sampling, SequenceBatch, Session, Stats
from bltkit.generate.sampling import choose
from bltkit.model.quantize import LOSSLESS, WeightForm
from bltkit.vocab import VOCAB_SIZE, encode

NUM_BYTES = 128
"""Bytes of a run."""

PLACE = 378_800
"""Of the first row's bytes in the text. Random entropies cut these as often as the thousands of bytes before."""

ROW_DISTANCE = 7_000
"""From each row's place to the next one's, which lies before it: patches of rows close at different times."""


@dataclass(frozen=True)
class HeldTo:
    """A constraint: these ids in this order."""

    ids: tuple[int, ...]

    def allowed(self, remaining: int) -> Bool[Tensor, " V"]:
        """See `Constraint`."""
        mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
        mask[self.ids[0]] = True
        return mask

    def after(self, chosen: int) -> "HeldTo":
        """See `Constraint`."""
        return HeldTo(self.ids[1:])

    def finished(self, remaining: int) -> bool:
        """See `Constraint`; a run ends by its number of bytes."""
        return False


def decoding_rows(context: int, num_bytes: int = NUM_BYTES, batch: int = 1) -> Int64[Tensor, "R T"]:
    """What `decode` reads: `context` ids, BOS the first of them, and the `num_bytes` + 1 bytes behind.

    The latter do not depend on the context. Raises ValueError for numbers below 1, and for more than the text holds.
    """
    check_batch(batch)
    if context < 1 or num_bytes < 1:
        raise ValueError(f"context = {context} and num_bytes = {num_bytes} must be at least 1")
    places = [PLACE - row * ROW_DISTANCE for row in range(batch)]
    if places[-1] < context - 1 or PLACE + num_bytes >= MAX_CONTEXT:
        raise ValueError(
            f"context = {context}, num_bytes = {num_bytes} and batch = {batch}: the benchmark text is not so long"
        )
    text = benchmark_text(MAX_CONTEXT)
    return torch.stack([encode(text[place - context + 1 : place + num_bytes + 1]) for place in places])


def decode(
    subject: BenchSubject,
    contexts: Sequence[int] = (1024,),
    *,
    batches: Sequence[int] = (1,),
    forms: Sequence[WeightForm] = ("fp32",),
    num_bytes: int = NUM_BYTES,
    temperature: float = 0.0,
    peer: str | None = None,
    peer_dtype: torch.dtype = torch.float32,
    limits: RepeatLimits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Iterator[BenchRow]:
    """Bytes per second of `batches` rows side by side behind each of `contexts`; a row for each form of the weights.

    Speeds are those of all rows of a batch together. All forms and the peer take turns. Row.parts: see `parts_of`.
    Raises ValueError for a bad number, form or peer, RuntimeError where the peer's logits are others.
    """
    parse(Sampling, {"temperature": temperature}, "sampling")
    if peer == "transformers" and max(batches) > 1:
        raise ValueError(f"batch = {max(batches)}: peer 'transformers' decodes one row, its patches depend on others")
    for context in contexts:
        for batch in batches:
            decoding_rows(context, num_bytes, batch)
    formed = {form: subject.reformed(form) for form in forms}
    with threads_of(threads) as count, peer_of(peer, subject, peer_dtype) as other:
        rates = machine_rates(subject.device, list(dict.fromkeys(("fp32", *forms))))
        for context in contexts:
            for batch in batches:
                point = _Point(subject, formed, context, batch, num_bytes, temperature)
                yield from point.measure(other, limits or RepeatLimits(), rates, count, command, progress)


class _DecodingWalk:
    """Rounds of the engine, in every run the same."""

    def __init__(self, session: Session, requests: Sequence[Request], rounds: int) -> None:
        self.session, self.requests, self.rounds = session, requests, rounds
        self.batch = SequenceBatch()

    def prepare(self) -> None:
        """Everything in front of the first pass; storage of its own, so that the run copies none."""
        self.batch = SequenceBatch()
        self.batch, _ = SequenceBatch().admit(self.session.fork(), self.requests).step()

    def run(self) -> None:
        """A pass and a choice in each round."""
        for _ in range(self.rounds):
            self.batch, _ = self.batch.step()

    @property
    def now(self) -> Session:
        """The state that the last run came to."""
        (group,) = self.batch.groups
        return group.session

    @property
    def patches(self) -> int:
        """Closed by the last run, in all rows."""
        return _patches_of(self.now) - _patches_of(self.session)


class _Point:
    """One context and batch."""

    def __init__(
        self,
        subject: BenchSubject,
        formed: dict[WeightForm, BenchSubject],
        context: int,
        batch: int,
        num_bytes: int,
        temperature: float,
    ) -> None:
        self.subject, self.formed, self.context, self.batch = subject, formed, context, batch
        self.num_bytes, self.temperature = num_bytes, temperature
        self.name = f"decode {context}" + (f" x {batch}" if batch > 1 else "")
        self.ids = decoding_rows(context, num_bytes, batch)
        self.fed = self.ids[:, context:].tolist()
        self.samplings = [Sampling(temperature=temperature, seed=row) for row in range(batch)]

    def measure(
        self,
        peer: Peer | None,
        limits: RepeatLimits,
        rates: MachineRates,
        threads: int,
        command: str,
        progress: Progress,
    ) -> Iterator[BenchRow]:
        """A row for each form."""
        progress(f"{self.name}: reading the context")
        sessions = {form: self._session(subject) for form, subject in self.formed.items()}
        logits = {form: self._logits(session) for form, session in sessions.items()}
        if "fp32" not in logits:
            logits["fp32"] = self._logits(self._session(self.subject))
        differences = {} if not isinstance(peer, BltPeer) else self._compared(peer, logits)
        walks = {form: _DecodingWalk(session, self._requests(), self.num_bytes) for form, session in sessions.items()}
        sides = [
            Side(f"{self.name}, {form}", self.batch * self.num_bytes, walk.run, walk.prepare)
            for form, walk in walks.items()
        ]
        if peer is not None:
            side = peer_side(peer, self.context, self.batch, self.num_bytes, self.ids)
            sides.append(replace(side, name=f"{self.name}, {side.name}"))
        timings = in_turn(sides, limits, self.subject.device, progress)
        for (form, walk), timing in zip(walks.items(), timings, strict=False):
            subject = self.formed[form]
            decoding = DecodingFigures(
                temperature=self.temperature,
                form=Form(form),
                peer_dtype=dtype_of(peer),
                max_bytes=self.num_bytes,
                agreement=None if form == "fp32" else self._agreement(logits[form], logits["fp32"]),
                ledger=self._ledger(subject, walk, timing),
                machine_rates=rates,
            )
            mean_patch_bytes = self.batch * self.num_bytes / max(1, walk.patches)
            walk.prepare()
            yield row_of(
                subject,
                "decode",
                [timing, *timings[len(walks) :]],
                context=self.context,
                batch=self.batch,
                threads=threads,
                peer_name=None if peer is None else peer.name,
                max_difference=differences.get(form),
                mean_patch_bytes=mean_patch_bytes,
                command=command,
                parts=parts_of(subject, walk.run, self.num_bytes, walk.now, self.samplings),
                decoding=decoding,
            )

    def _session(self, subject: BenchSubject) -> Session:
        session = Session.start(subject.model, subject.scorer, subject.rule, self.batch)
        return session.extend(self.ids[:, : self.context].to(subject.device))

    def _requests(self) -> list[Request]:
        # Further bytes may be made than are: no row ends.
        return [
            Request(sampling, self.num_bytes + 2, constraint=HeldTo(tuple(own)))
            for sampling, own in zip(self.samplings, self.fed, strict=True)
        ]

    def _logits(self, session: Session) -> Float[Tensor, "S R V"]:
        """Behind the context and each byte that a run reads, in steps as in a run; the first steps are slow."""
        found = [session.logits]
        for column in range(self.num_bytes):
            session = session.extend([[own[column]] for own in self.fed])
            found.append(session.logits)
        return torch.stack(found)

    def _compared(self, peer: BltPeer, logits: dict[WeightForm, Tensor]) -> dict[WeightForm, float]:
        theirs = peer.logits(self.ids[:, :-1].to(self.subject.device))[0, self.context - 1 :]
        found = {form: float((own[:, 0] - theirs).abs().max()) for form, own in logits.items()}
        return found | {form: compared(own[:, 0], theirs) for form, own in logits.items() if form in LOSSLESS}

    def _agreement(self, logits: Tensor, exact: Tensor) -> float:
        greedy = [Sampling(temperature=0.0)] * len(logits)
        ours, right = (torch.tensor(choose(greedy, one, [0] * len(one)).ids) for one in (logits, exact))
        return float((ours == right).double().mean())

    def _ledger(self, subject: BenchSubject, walk: _DecodingWalk, timing: Timing) -> Stats:
        runs = len(timing.seconds)
        passes = sum([walk.batch.passes] * runs, Passes())
        num_bytes = runs * self.batch * self.num_bytes
        return Stats.of(subject.model, subject.scorer, passes, num_bytes, sum(timing.seconds))


def peer_side(peer: Peer, context: int, batch: int, num_bytes: int, ids: Int64[Tensor, "R T"]) -> Side:
    """A peer that makes about `num_bytes` bytes a row behind `context` ids, the same in every run.

    `transformers` makes one byte, by reading `ids[:, :context]` whole. The first run, which is slow, is made here.
    """
    if isinstance(peer, BltPeer):
        whole = ids[:, :context].to(peer.model.device)
        peer.logits(whole)
        return Side(peer.name, 1.0, lambda: peer.logits(whole))
    return _llama_side(peer, context, batch, max(1, round(num_bytes / BYTES_PER_TOKEN)))


def _llama_side(llama: LlamaPeer, context: int, batch: int, steps: int) -> Side:
    start = llama.start(context, batch)

    def run() -> None:
        state = start
        for _ in range(steps):
            state = llama.step(state)

    run()
    return Side(llama.name, steps * BYTES_PER_TOKEN * batch, run)


def dtype_of(peer: Peer | None) -> str | None:
    """What `DecodingFigures.peer_dtype` says."""
    return None if peer is None else str(peer.model.dtype).removeprefix("torch.")


def _patches_of(session: Session) -> int:
    return sum(cache.positions[0] for cache in session.latents)
