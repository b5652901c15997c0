"""Generation from prompts by several strategies: what drafting gains on a trained model, and whether bytes stay equal.

Sides take turns prompt by prompt: autoregressive decoding, each strategy, the peer. A side's speed is that of all
its bytes over all its seconds, so that no prompt counts for more than its length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from bltkit.bench.bench_subject import BenchSubject
from bltkit.bench.decode import dtype_of, peer_side
from bltkit.bench.machine_rates import MachineRates, machine_rates
from bltkit.bench.peer import BltPeer, Peer, compared, peer_of
from bltkit.bench.prompt_texts import prompts_of, repeated_share
from bltkit.bench.record import BenchRow, DecodingFigures, Form, row_of
from bltkit.bench.timing import Progress, Side, Timing, silent, threads_of, timed
from bltkit.config import parse
from bltkit.generate import (
    STRATEGIES,
    Autoregressive,
    Passes,
    Request,
    Sampling,
    SequenceBatch,
    Session,
    Stats,
    Strategy,
    parse_strategy,
    strategy_kind,
)
from bltkit.generate.sampling import MAX_BIAS
from bltkit.model.quantize import WeightForm
from bltkit.vocab import EOS, encode

WARM_UP = 16
"""Bytes of each side's first generation, which is slow and not timed."""
NO_EOS = ((EOS, -MAX_BIAS),)
"""`Sampling.logit_bias` that keeps EOS out."""


def strategies_of(kinds: Sequence[str], drafts: Sequence[int | None] = ()) -> tuple[Strategy, ...]:
    """Each strategy, written as `parse_strategy` reads it, once.

    drafts: one that drafts is there for each of these numbers; None adapts, which is the default. Raises
    ValueError for an unknown strategy, and for drafts where none of them drafts.
    """
    drafting = [kind for kind in kinds if "draft" in STRATEGIES[strategy_kind(kind.partition(":")[0])].model_fields]
    strategies: list[Strategy] = []
    for kind in kinds:
        sizes = (drafts or (None,)) if kind in drafting else (None,)
        strategies += [parse_strategy(kind, draft=draft) for draft in sizes]
    if drafts and not drafting:
        raise ValueError(f"draft = {list(drafts)}: none of the strategies {', '.join(kinds) or 'ar'} drafts")
    return tuple(dict.fromkeys(strategies))


def generate(
    subject: BenchSubject,
    texts: Sequence[bytes],
    contexts: Sequence[int] = (256,),
    *,
    strategies: Sequence[Strategy] = (),
    batches: Sequence[int] = (1,),
    forms: Sequence[WeightForm] = ("fp32",),
    prompts: int = 64,
    max_bytes: int = 256,
    temperature: float = 0.8,
    seed: int = 0,
    eos: bool = True,
    rounds: int = 1,
    backend: str = "eager",
    peer: str | None = None,
    peer_dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Iterator[BenchRow]:
    """Bytes per second of continuing prompts; a row for each form of the weights and strategy, `ar` always the first.

    contexts: bytes of a prompt. prompts: as many of each text, spread evenly over it; those of the texts in turn.
    batches: rows side by side, each with a prompt of its own. max_bytes: at most; EOS may come before, unless `eos` is
    False.
    backend: what runs the steps of every side.
    rounds: how often each prompt is continued. Generation i has seed `seed` + i.

    Bytes that differ from autoregressive decoding's are counted (Decoding.identical), not refused. Raises ValueError
    for a bad number, form, strategy or peer, and where nothing is generated, RuntimeError where the logits of a peer
    with the same weights are others.
    """
    if min(prompts, max_bytes, rounds, *batches) < 1:
        raise ValueError(
            f"prompts = {prompts}, max_bytes = {max_bytes}, rounds = {rounds} and batch = {list(batches)}: "
            "each must be at least 1"
        )
    parse(Sampling, {"temperature": temperature, "seed": seed}, "sampling")
    if prompts % len(texts):
        raise ValueError(f"prompts = {prompts} must be a multiple of the number of texts, {len(texts)}")
    if uneven := [batch for batch in batches if prompts % batch]:
        raise ValueError(f"prompts = {prompts} must be a multiple of batch = {uneven[0]}")
    if peer == "transformers" and max(batches) > 1:
        raise ValueError(f"batch = {max(batches)}: peer 'transformers' decodes one row, its patches depend on others")
    found = {context: _prompts(texts, prompts, context) for context in contexts}
    formed = {form: subject.reformed(form).run_by(backend) for form in forms}
    several = tuple(dict.fromkeys((Autoregressive(), *strategies)))
    with threads_of(threads) as count, peer_of(peer, subject, peer_dtype) as other:
        rates = machine_rates(subject.device, list(dict.fromkeys(("fp32", *forms))))
        for context in contexts:
            for batch in batches:
                groups = [found[context][at : at + batch] for at in range(0, prompts, batch)]
                sides = [_Side(formed[form], form, strategy) for form in formed for strategy in several]
                race = _Race(subject, sides, groups, max_bytes, temperature, seed, eos, rounds)
                yield from race.measure(other, rates, count, command, progress)


def _prompts(texts: Sequence[bytes], count: int, num_bytes: int) -> list[bytes]:
    found = [prompts_of([text], count // len(texts), num_bytes) for text in texts]
    return [prompt for turn in zip(*found, strict=True) for prompt in turn]


@dataclass
class _Side:
    """A way of decoding, and what it has made so far."""

    subject: BenchSubject
    form: WeightForm
    strategy: Strategy
    seconds: float = 0.0
    passes: Passes = field(default_factory=Passes)
    drafted: int = 0
    accepted: int = 0
    outputs: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        draft = _draft(self.strategy)
        return f"{self.strategy.kind}{'' if draft is None else f' {draft}'} {self.form}"

    @property
    def num_bytes(self) -> int:
        """Made."""
        return sum(map(len, self.outputs))

    @property
    def timing(self) -> Timing:
        """One run, of everything."""
        return Timing(self.num_bytes, (self.seconds,))

    def go(self, session: Session, requests: Sequence[Request]) -> None:
        """Continue every row to its end. The session is the caller's and stays as it was."""
        own, made = session.fork(), [b""] * len(requests)

        def run() -> None:
            batch = SequenceBatch().admit(own, [replace(request, strategy=self.strategy) for request in requests])
            while batch.rows:
                batch, chunks = batch.step()
                for key, chunk in chunks:
                    made[key] += chunk.data
                    if chunk.stats is not None:
                        self.drafted += chunk.stats.drafted
                        self.accepted += chunk.stats.accepted
            self.passes += batch.passes

        self.seconds += timed(run, self.subject.device)
        self.outputs += made


class _Race:
    """All sides on the same groups of prompts."""

    def __init__(
        self,
        subject: BenchSubject,
        sides: Sequence[_Side],
        groups: Sequence[Sequence[bytes]],
        max_bytes: int,
        temperature: float,
        seed: int,
        eos: bool,
        rounds: int,
    ) -> None:
        self.subject, self.sides, self.groups, self.rounds = subject, sides, groups, rounds
        self.bias = () if eos else NO_EOS
        self.max_bytes, self.temperature, self.seed = max_bytes, temperature, seed
        self.context, self.batch = len(groups[0][0]), len(groups[0])

    def measure(
        self, peer: Peer | None, rates: MachineRates, threads: int, command: str, progress: Progress
    ) -> Iterator[BenchRow]:
        """A row for each side."""
        name = f"generate {self.context}" + (f" x {self.batch}" if self.batch > 1 else "")
        progress(f"{name}: warming up")
        difference = self._checked(peer)
        self._warm_up()
        rival = None if peer is None else self._rival(peer)
        peer_bytes, peer_seconds = 0.0, 0.0
        turns = [group for _ in range(self.rounds) for group in self.groups]
        for turn, group in enumerate(turns):
            requests = [self._request(turn * self.batch + row, self.max_bytes) for row in range(self.batch)]
            self._turn(self.sides, group, requests)
            speeds = {side.name: side.num_bytes / side.seconds for side in self.sides}
            if rival is not None:
                peer_seconds += timed(rival.run, self.subject.device)
                peer_bytes += rival.bytes_per_run
                speeds[rival.name] = peer_bytes / peer_seconds
            so_far = ", ".join(f"{side} {speed:,.1f}" for side, speed in speeds.items())
            progress(f"{name}: prompt {(turn + 1) * self.batch}/{len(turns) * self.batch}; bytes/s: {so_far}")
        theirs = [] if peer is None else [Timing(peer_bytes, (peer_seconds,))]
        if not all(side.num_bytes for side in self.sides):
            raise ValueError("the model ended every prompt at once, so there is nothing to measure; give other texts")
        patch_bytes = {side.form: self._mean_patch_bytes(side) for side in self.sides if _is_ar(side.strategy)}
        for side in self.sides:
            yield row_of(
                side.subject,
                "decode",
                [side.timing, *theirs],
                context=self.context,
                batch=self.batch,
                threads=threads,
                peer_name=None if peer is None else peer.name,
                max_difference=difference if side.form == "fp32" else None,
                mean_patch_bytes=patch_bytes[side.form],
                command=command,
                decoding=self._decoding(side, peer, rates),
            )

    def _turn(self, sides: Sequence[_Side], group: Sequence[bytes], requests: Sequence[Request]) -> None:
        """Every side continues the prompts of one group; a prompt is read once in each form, and not timed."""
        sessions: dict[WeightForm, Session] = {}
        for side in sides:
            if side.form not in sessions:
                own = side.subject
                session = Session.start(own.model, own.scorer, own.rule, len(group))
                sessions[side.form] = session.extend([encode(prompt).tolist() for prompt in group])
            side.go(sessions[side.form], requests)

    def _warm_up(self) -> None:
        """Sides that nobody looks at."""
        sides = [_Side(side.subject, side.form, side.strategy) for side in self.sides]
        requests = [self._request(row, min(WARM_UP, self.max_bytes)) for row in range(self.batch)]
        self._turn(sides, self.groups[0], requests)

    def _request(self, index: int, max_bytes: int) -> Request:
        return Request(Sampling(temperature=self.temperature, seed=self.seed + index, logit_bias=self.bias), max_bytes)

    def _rival(self, peer: Peer) -> Side:
        """The peer behind a context of the same length. What the text says does not change its speed."""
        ids = torch.stack([encode(prompt) for prompt in self.groups[0]])
        return peer_side(peer, self.context + 1, self.batch, self.max_bytes, ids)

    def _checked(self, peer: Peer | None) -> float | None:
        if not isinstance(peer, BltPeer):
            return None
        ids = encode(self.groups[0][0])[None].to(self.subject.device)
        return compared(self.subject.logits(ids), peer.logits(ids))

    def _decoding(self, side: _Side, peer: Peer | None, rates: MachineRates) -> DecodingFigures:
        ar = next(one for one in self.sides if _is_ar(one.strategy) and one.form == side.form)
        exact = next((one for one in self.sides if _is_ar(one.strategy) and one.form == "fp32"), None)
        repeated = sum(repeated_share(data) * len(data) for data in side.outputs)
        return DecodingFigures(
            strategy=side.strategy.kind,
            draft=_draft(side.strategy),
            temperature=self.temperature,
            form=Form(side.form),
            peer_dtype=dtype_of(peer),
            prompts=len(side.outputs),
            max_bytes=self.max_bytes,
            identical=None if side is ar else _equal(side, ar),
            identical_to_fp32=None if side.form == "fp32" or exact is None else _equal(side, exact),
            against_ar=None if side is ar else side.timing.bytes_per_second / ar.timing.bytes_per_second,
            repeated_share=repeated / side.num_bytes,
            ledger=Stats.of(
                side.subject.model,
                side.subject.scorer,
                side.passes,
                side.num_bytes,
                side.seconds,
                side.drafted,
                side.accepted,
            ),
            machine_rates=rates,
        )

    def _mean_patch_bytes(self, side: _Side) -> float:
        """Of what was generated, by reading it whole."""
        prompts = [prompt for _ in range(self.rounds) for group in self.groups for prompt in group]
        opened = 0
        for prompt, data in zip(prompts, side.outputs, strict=True):
            ids = encode(prompt + data)[None].to(self.subject.device)
            opened += int(side.subject.patches(ids).starts[0, 1 + len(prompt) : ids.shape[1]].sum())
        return side.num_bytes / max(1, opened)


def _is_ar(strategy: Strategy) -> bool:
    return isinstance(strategy, Autoregressive)


def _draft(strategy: Strategy) -> int | None:
    draft = getattr(strategy, "draft", None)
    assert draft is None or isinstance(draft, int)
    return draft


def _equal(side: _Side, other: _Side) -> int:
    return sum(map(bytes.__eq__, side.outputs, other.outputs))
