"""Decoding byte by byte behind a context, and where the time of a step goes.

The bytes fed are those of the text and not the model's own choice: a random model soon repeats one byte, whose
patches are nothing like a text's. The choice is made all the same. The peer's only correct way is a full forward pass
for every byte.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bltkit.bench.peer import compared, peer_of
from bltkit.bench.subject import MAX_CONTEXT, Subject, row
from bltkit.bench.timing import Limits, Progress, Row, finish, in_turn, row_of, silent, threads_of
from bltkit.generate.session import Session
from bltkit.model import BoundaryModel, EntropyModel
from bltkit.model.cross import CrossAttention
from bltkit.vocab import OFFSET

PART_STEPS = 256
"""Steps of the instrumented pass."""


def decode(
    subject: Subject,
    context: int,
    *,
    steps: int = 32,
    peer: str | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Row:
    """Bytes per second of single steps behind `context` ids; a run has `steps` of them, and runs follow one another.

    Row.parts: for each module its milliseconds per byte and share of a step, and the bytes of cached keys and values
    that it reads per byte. Raises ValueError for a bad number or peer, RuntimeError where the peer's logits are others.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps} must be at least 1")
    ids = row(context + 1).to(subject.device)
    with threads_of(threads) as count, peer_of(peer, subject) as other:
        progress(f"decode {context}: reading the context")
        session = Session.start(subject.model, subject.scorer, subject.rule).extend(ids[0, :context])
        line = _Line(session, row(MAX_CONTEXT)[0].tolist())
        difference = None
        if other is not None:
            further = session.extend(ids[0, context:])
            theirs = other.logits(ids)[0, context - 1 :]
            difference = max(compared(session.logits[None], theirs[:1]), compared(further.logits[None], theirs[1:]))
        line.walk(steps)  # the first steps copy and grow caches
        before = line.session.passes
        sides: list[tuple[str, int, Any]] = [(f"decode {context}, ours", steps, lambda: line.walk(steps))]
        if other is not None:
            sides.append((f"decode {context}, {other.name}", 1, lambda: other.logits(ids[:, :context])))
        timings = in_turn(sides, limits or Limits(), subject.device, progress)
        spent = line.session.passes - before
        parts = _parts(subject, line)
    return row_of(
        subject,
        "decode",
        timings,
        context=context,
        threads=count,
        peer_name=None if other is None else other.name,
        max_difference=difference,
        mean_patch_bytes=spent.ids / max(1, spent.latent),
        command=command,
        parts=parts,
    )


class _Line:
    """A session that walks on through the text, from its end to its beginning again; the one state of this file."""

    def __init__(self, session: Session, ids: list[int]) -> None:
        self.session, self.ids = session, ids

    def walk(self, steps: int) -> None:
        """Choose a byte and read the text's next one, `steps` times."""
        for _ in range(steps):
            self.session.logits[OFFSET:].argmax().item()
            self.session = self.session.extend([self.ids[1 + self.session.position % (len(self.ids) - 1)]])


@dataclass
class _Clock:
    """Seconds by module, filled in by hooks."""

    device: Any
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = 0.0

    def start(self, *_: object) -> None:
        """Hook in front of a module."""
        finish(self.device)
        self.began = time.perf_counter()

    def stop(self, part: str) -> Any:
        """Hook behind a module of `part`."""

        def hook(*_: object) -> None:
            finish(self.device)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - self.began

        return hook


def _parts(subject: Subject, line: _Line) -> dict[str, dict[str, float]]:
    """An instrumented walk: time per byte in the layers of each stack and in the cross-attention blocks."""
    clock = _Clock(subject.device)
    model, before = subject.model, line.session.passes
    with ExitStack() as hooks:
        stacks = {"encoder": model.encoder.stack, "latent": model.latent.stack, "decoder": model.decoder.stack}
        if isinstance(subject.scorer, EntropyModel | BoundaryModel):
            stacks["entropy"] = subject.scorer.stack
        for part, stack in stacks.items():
            for layer in stack.layers:
                hooks.enter_context(_between(layer, layer, clock, part))
        for part, blocks in (("encoder_cross", model.encoder.cross), ("decoder_cross", model.decoder.cross)):
            # A block's first step is the norm of its queries, its last the output projection (and a sum).
            for block in map(_cross, blocks):
                hooks.enter_context(_between(block.q_norm, block.out, clock, part))
        began = time.perf_counter()
        line.walk(PART_STEPS)
        total = time.perf_counter() - began
    spent = line.session.passes - before
    clock.seconds["other"] = total - sum(clock.seconds.values())
    reads = _kv_bytes(line.session, spent.latent / spent.ids)
    return {
        part: {
            "ms_per_byte": 1000 * seconds / PART_STEPS,
            "share": seconds / total,
            "kv_bytes": reads.get(part, 0.0),
        }
        for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])
    }


def _cross(block: nn.Module) -> CrossAttention:
    assert isinstance(block, CrossAttention)
    return block


@contextmanager
def _between(first: nn.Module, last: nn.Module, clock: _Clock, part: str) -> Iterator[None]:
    handles = (first.register_forward_pre_hook(clock.start), last.register_forward_hook(clock.stop(part)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kv_bytes(session: Session, patches_per_byte: float) -> dict[str, float]:
    """Bytes of cached keys and values that a step reads; the latent transformer's once a patch."""
    held = sum(x.numel() * x.element_size() for pair in session.patch_kv or () for x in pair)
    return {
        "entropy": float(getattr(getattr(session.scorer_state, "cache", None), "num_bytes", 0)),
        "encoder": float(session.encoder.num_bytes),
        "latent": session.latent.num_bytes * patches_per_byte,
        "decoder": float(session.decoder.num_bytes),
        "decoder_cross": float(held),
    }
