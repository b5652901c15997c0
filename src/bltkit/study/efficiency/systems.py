"""The systems as something that can be timed: a run of each phase, and how many bytes it is worth.

Both families are made of the same layers and go through the same caches, so what differs is the architecture. What is
random is the weights; borders do not depend on them, nor do times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from bltkit import patching
from bltkit.bench import decoding_rows, row
from bltkit.bench.timing import Side
from bltkit.generate import Session
from bltkit.model import Blt, EntropyModel
from bltkit.model.cache import StackCache
from bltkit.model.config import TokenConfig
from bltkit.model.token_llama import TokenLlama
from bltkit.patches import Patches
from bltkit.patching.stride import StrideRule
from bltkit.study.efficiency.predicted_cost import (
    ByteCost,
    Phase,
    System,
    decoding_cost,
    reading_cost,
    training_cost,
)
from bltkit.train.optim import trainers_update

Made = tuple[Side, ByteCost]
"""What is timed, and what it costs."""


class TimedLearner:
    """A model and, once it is trained, its optimizer; systems that differ in their patches alone share it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device

    @cached_property
    def update(self) -> Callable[[], object]:
        """The trainer's: clip, update, forget the gradients."""
        return trainers_update(self.model)


def learner_of(system: System, device: torch.device) -> TimedLearner:
    """Random weights of seed 0."""
    generator = torch.Generator().manual_seed(0)
    if system.kind == "blt":
        return TimedLearner(Blt(system.shape).reset_parameters(generator).eval(), device)  # type: ignore[arg-type]
    config = TokenConfig(**system.shape.model_dump())
    return TimedLearner(TokenLlama(config).reset_parameters(generator).eval(), device)


def scorer_of(system: System, device: torch.device) -> EntropyModel | None:
    """Random weights of seed 0."""
    if system.scorer is None:
        return None
    return EntropyModel(system.scorer).reset_parameters(torch.Generator().manual_seed(0)).eval().to(device)


@dataclass(frozen=True)
class Runner:
    """A system with its weights, in the one form that every phase asks for."""

    system: System
    learner: TimedLearner
    scorer: EntropyModel | None

    def side(self, phase: Phase, context: int, num_bytes: int) -> Made:
        """What is timed in a phase: `context` bytes read or learnt; or `num_bytes` bytes decoded behind them."""
        if self.system.kind == "blt":
            of_blt = {"prefill": self._prefill, "train": self._train}
            return self._decode(context, num_bytes) if phase == "decode" else of_blt[phase](context)
        of_tokens = {"prefill": self._token_prefill, "train": self._token_train}
        return self._token_decode(context, num_bytes) if phase == "decode" else of_tokens[phase](context)

    @property
    def _blt(self) -> Blt:
        return cast(Blt, self.learner.model)

    @property
    def _llama(self) -> TokenLlama:
        return cast(TokenLlama, self.learner.model)

    @property
    def _rule(self) -> StrideRule:
        return StrideRule(k=self.system.unit_bytes)

    def _patches(self, ids: Int64[Tensor, "B T"]) -> Patches:
        if self.scorer is not None:
            self.scorer.scores(ids)
        return patching.patch(self._rule, ids, None, documents=self._blt.config.document_masks)

    def _prefill(self, context: int) -> Made:
        ids = row(context).to(self.learner.device)

        @torch.inference_mode()
        def run() -> None:
            self._blt(ids, self._patches(ids))

        return Side(self.system.name, context, run), reading_cost(self.system, context, self._patches(ids).max_patches)

    def _train(self, context: int) -> Made:
        ids = row(context).to(self.learner.device)

        def run() -> None:
            logits = self._blt(ids, self._patches(ids))
            F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            self.learner.update()

        return Side(self.system.name, context, run), training_cost(self.system, context, self._patches(ids).max_patches)

    def _decode(self, context: int, num_bytes: int) -> Made:
        """Held to the text, each byte chosen (greedily) all the same."""
        ids = decoding_rows(context, num_bytes)
        # Reading byte t says whether byte t + 1 opens a patch, which closes the one before it.
        starts = self._patches(ids.to(self.learner.device)).starts[0]
        closed = int(starts[context + 1 : context + num_bytes + 1].sum())
        if not closed:
            raise ValueError(
                f"num_bytes = {num_bytes}: no patch of {self.system.unit_bytes:g} bytes closes in it; decode more"
            )
        walk = _ReadingWalk(
            Session.start(self._blt, None, self._rule).extend(ids[:, :context]), self.scorer, ids, context
        )
        return (
            Side(self.system.name, num_bytes, walk.run, walk.prepare),
            decoding_cost(self.system, context, num_bytes, closed),
        )

    def _tokens(self, num_bytes: int) -> Int64[Tensor, "R T"]:
        """Random ones, as many as stand for so many bytes."""
        count = max(1, round(num_bytes / self.system.unit_bytes))
        generator = torch.Generator().manual_seed(0)
        found = torch.randint(self._llama.config.vocab_size, (1, count), generator=generator)
        return found.to(self.learner.device)

    def _bytes(self, tokens: int) -> float:
        return tokens * self.system.unit_bytes

    def _token_prefill(self, context: int) -> Made:
        ids = self._tokens(context)

        @torch.inference_mode()
        def run() -> None:
            self._llama(ids)

        tokens = ids.shape[1]
        return Side(self.system.name, self._bytes(tokens), run), reading_cost(self.system, tokens, tokens)

    def _token_train(self, context: int) -> Made:
        ids = self._tokens(context)

        def run() -> None:
            logits = self._llama(ids)
            F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            self.learner.update()

        tokens = ids.shape[1]
        return Side(self.system.name, self._bytes(tokens), run), training_cost(self.system, tokens, tokens)

    def _token_decode(self, context: int, num_bytes: int) -> Made:
        ids, steps = self._tokens(context), max(1, round(num_bytes / self.system.unit_bytes))
        walk = _TokenWalk(self._llama, ids, steps)
        return (
            Side(self.system.name, self._bytes(steps), walk.run, walk.prepare),
            decoding_cost(self.system, ids.shape[1], steps, steps),
        )


class _ReadingWalk:
    """A BLT that reads a text byte by byte behind a context, the scorer beside it."""

    def __init__(self, session: Session, scorer: EntropyModel | None, ids: Int64[Tensor, "R T"], context: int) -> None:
        self.session, self.scorer, self.fed = session, scorer, ids[0, context:-1].tolist()
        self.state = None
        if scorer is not None:
            with torch.inference_mode():
                read = scorer.extend_scores(ids[:, :context].to(session.device), scorer.start())[1]
                self.state = read.keep([context])
        self.now, self.now_scored = session, self.state
        self.device = session.device

    def prepare(self) -> None:
        """Storage of its own, so that the run copies none."""
        with torch.inference_mode():
            self.now = self.session.fork()
            self.now_scored = None if self.state is None else self.state.select([0])

    @torch.inference_mode()
    def run(self) -> None:
        """A pass and a choice for every byte."""
        for value in self.fed:
            if self.scorer is not None and self.now_scored is not None:
                scored = self.scorer.extend_scores(torch.tensor([[value]], device=self.device), self.now_scored)[1]
                self.now_scored = scored.keep([1])
            self.now = self.now.extend([value])
            self.now.logits.argmax(-1).tolist()


class _TokenWalk:
    """A token model that writes the likeliest token behind a context, again and again."""

    def __init__(self, model: TokenLlama, ids: Int64[Tensor, "R T"], steps: int) -> None:
        self.model, self.steps = model, steps
        with torch.inference_mode():
            self.first, self.start = self._read(ids, model.stack.empty_cache())
        self.token, self.cache = self.first, self.start

    def prepare(self) -> None:
        """Storage of its own, so that the run copies none."""
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
