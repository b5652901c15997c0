"""The compared systems as something that is timed: a run of each phase, and the bytes of text that it is worth.

Both kinds are made of the same layers and use the same caches, so what differs is the architecture. Weights are random;
neither patch boundaries nor times depend on them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit import patching
from bltkit.bench import decoding_rows, row
from bltkit.bench.timing import Side
from bltkit.generate import Session
from bltkit.model import Blt, BltConfig, EntropyModel
from bltkit.model.cache import StackCache
from bltkit.model.config import TokenConfig, TokenShape
from bltkit.model.token_llama import TokenLlama
from bltkit.patches import Patches
from bltkit.patching.stride import StrideRule
from bltkit.study.efficiency.phases import Phase
from bltkit.study.efficiency.predicted_cost import ByteCost, System, decoding_cost, reading_cost, training_cost
from bltkit.train.optim import trainers_update

Timed = tuple[Side, ByteCost]
"""What is timed, and its exact cost."""


class TimedLearner:
    """A model and, once it is trained, its optimizer; systems that differ in their patches alone share it."""

    def __init__(self, model: Blt | TokenLlama, device: torch.device) -> None:
        self.model: Any = model.reset_parameters(_seed()).eval().to(device)
        self.device = device

    @cached_property
    def update(self) -> Callable[[], object]:
        """The trainer's step after a backward pass: clip, update, zero the gradients."""
        return trainers_update(self.model)


def runners_of(systems: Sequence[System], device: torch.device) -> list["Runner"]:
    """The systems with random weights of seed 0; all BLTs of a preset share theirs, and one optimizer."""
    learners = {system.shape: TimedLearner(model_of(system.shape), device) for system in dict.fromkeys(systems)}
    scorers: dict[Any, EntropyModel | None] = {None: None}
    for config in dict.fromkeys(system.scorer for system in systems):
        if config is not None:
            scorers[config] = EntropyModel(config).reset_parameters(_seed()).eval().to(device)
    return [Runner(system, learners[system.shape], scorers[system.scorer]) for system in systems]


def model_of(shape: BltConfig | TokenShape) -> Blt | TokenLlama:
    """A model of that shape."""
    return Blt(shape) if isinstance(shape, BltConfig) else TokenLlama(TokenConfig(**shape.model_dump()))


@dataclass(frozen=True)
class Runner:
    """A system with its weights. scorer: the entropy model beside a BLT."""

    system: System
    learner: TimedLearner
    scorer: EntropyModel | None = None

    def side(self, phase: Phase, context: int, num_bytes: int) -> Timed:
        """What is timed in a phase: `context` bytes read or trained on, or `num_bytes` decoded after them."""
        if phase == "decode":
            return self._decode_tokens(context, num_bytes) if self.is_token else self._decode(context, num_bytes)
        ids = self.ids(context)
        length = ids.shape[1]
        units = length if self.is_token else self.patches(ids).max_patches

        @torch.inference_mode()
        def read() -> None:
            self.forward(ids)

        def train() -> None:
            logits = self.forward(ids)
            F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            self.learner.update()

        if phase == "prefill":
            return Side(self.system.name, self.num_bytes(length), read), reading_cost(self.system, length, units)
        return Side(self.system.name, self.num_bytes(length), train), training_cost(self.system, length, units)

    @property
    def is_token(self) -> bool:
        """A token model, not a BLT."""
        return self.system.kind == "token"

    @property
    def rule(self) -> StrideRule:
        """Patches of equal size."""
        return StrideRule(k=self.system.unit_bytes)

    def ids(self, num_bytes: int) -> Int64[Tensor, "1 T"]:
        """The benchmark text; of a token model, random tokens that stand for as many bytes, at least one."""
        if not self.is_token:
            return row(num_bytes).to(self.learner.device)
        shape = 1, self._num_tokens(num_bytes)
        return torch.randint(self.learner.model.config.vocab_size, shape, generator=_seed()).to(self.learner.device)

    def num_bytes(self, length: int) -> float:
        """Bytes of text that `length` positions stand for."""
        return length * self.system.unit_bytes if self.is_token else length

    def patches(self, ids: Int64[Tensor, "B T"]) -> Patches:
        """Cut the rows; the entropy model scores them meanwhile."""
        if self.scorer is not None:
            self.scorer.scores(ids)
        return patching.patch(self.rule, ids, None, documents=self.learner.model.config.document_masks)

    def forward(self, ids: Int64[Tensor, "1 T"]) -> Float[Tensor, "1 T V"]:
        """Logits at all positions."""
        logits: Tensor = self.learner.model(ids, *(() if self.is_token else (self.patches(ids),)))
        return logits

    def _decode(self, context: int, num_bytes: int) -> Timed:
        """Teacher-forced to the text; each byte is chosen greedily all the same."""
        ids = decoding_rows(context, num_bytes)
        # Reading byte t tells whether byte t + 1 opens a patch, which closes the one before it.
        starts = self.patches(ids.to(self.learner.device)).starts[0]
        closed = int(starts[context + 1 : context + num_bytes + 1].sum())
        if not closed:
            raise ValueError(
                f"num_bytes = {num_bytes}: no patch of {self.system.unit_bytes:g} bytes closes in it; decode more"
            )
        session = Session.start(self.learner.model, None, self.rule).extend(ids[:, :context])
        walk = ReadingWalk(session, self.scorer, ids, context)
        cost = decoding_cost(self.system, context, num_bytes, closed)
        return Side(self.system.name, num_bytes, walk.run, walk.prepare), cost

    def _decode_tokens(self, context: int, num_bytes: int) -> Timed:
        ids, steps = self.ids(context), self._num_tokens(num_bytes)
        walk = TokenWalk(self.learner.model, ids, steps)
        cost = decoding_cost(self.system, ids.shape[1], steps, steps)
        return Side(self.system.name, self.num_bytes(steps), walk.run, walk.prepare), cost

    def _num_tokens(self, num_bytes: int) -> int:
        return max(1, round(num_bytes / self.system.unit_bytes))


class ReadingWalk:
    """A BLT that reads a text byte by byte after a context, the entropy model beside it."""

    def __init__(self, session: Session, scorer: EntropyModel | None, ids: Int64[Tensor, "R T"], context: int) -> None:
        self.session, self.scorer, self.fed = session, scorer, ids[0, context:-1].tolist()
        self.scored = None
        if scorer is not None:
            with torch.inference_mode():
                read = scorer.extend_scores(ids[:, :context].to(session.device), scorer.start())[1]
                self.scored = read.keep([context])
        self.now, self.now_scored = session, self.scored

    def prepare(self) -> None:
        """Fork the state, so that the timed run copies none."""
        with torch.inference_mode():
            self.now = self.session.fork()
            self.now_scored = None if self.scored is None else self.scored.select([0])

    @torch.inference_mode()
    def run(self) -> None:
        """A pass and a choice for every byte."""
        for value in self.fed:
            if self.scorer is not None and self.now_scored is not None:
                byte = torch.tensor([[value]], device=self.session.device)
                self.now_scored = self.scorer.extend_scores(byte, self.now_scored)[1].keep([1])
            self.now = self.now.extend([value])
            self.now.logits.argmax(-1).tolist()


class TokenWalk:
    """A token model that writes the likeliest token after a context, again and again."""

    def __init__(self, model: TokenLlama, ids: Int64[Tensor, "R T"], steps: int) -> None:
        self.model, self.steps = model, steps
        with torch.inference_mode():
            self.first, self.start = self._read(ids, model.stack.empty_cache())
        self.token, self.cache = self.first, self.start

    def prepare(self) -> None:
        """Fork the state, so that the timed run copies none."""
        with torch.inference_mode():
            self.token, self.cache = self.first, self.start.select([0])

    @torch.inference_mode()
    def run(self) -> None:
        """A pass and a choice for every token."""
        for _ in range(self.steps):
            self.token, self.cache = self._read(self.token, self.cache)
            self.token.tolist()

    def _read(self, ids: Int64[Tensor, "R S"], cache: StackCache) -> tuple[Int64[Tensor, "R 1"], StackCache]:
        model = self.model
        outputs, (slot,) = model.stack.extend(model.embed(ids), [cache])
        h = model.norm(outputs[-1][:, -1:])
        logits = F.linear(h, model.embed.weight) if model.head is None else model.head(h)
        return logits.argmax(-1), slot.keep([ids.shape[1]])


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)
