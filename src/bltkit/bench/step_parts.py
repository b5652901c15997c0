"""Where the time of a decoding step goes: seconds by module, taken by hooks during a run of its own."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from bltkit.bench.bench_subject import BenchSubject
from bltkit.bench.timing import finish, timed
from bltkit.generate import Sampling, Session
from bltkit.generate.sampling import choose
from bltkit.model.cross import CrossAttention

Parts = Mapping[str, Mapping[str, float]]


@dataclass
class _Clock:
    """Seconds by part, filled in by hooks."""

    device: torch.device
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


def parts_of(
    subject: BenchSubject, run: Callable[[], object], num_steps: int, session: Session, sampling: Sequence[Sampling]
) -> Parts:
    """By part: `ms_per_step`, its `share` of a step, and `kv_bytes`, cached keys and values read a step by all rows.

    The layers of each stack, the cross-attention blocks, the head; `choice` is what finding ids takes, timed apart
    from the run; `other` is the rest: embedding, scores, rule, the engine. Each hook costs some microseconds, which
    are in it.

    run: `num_steps` passes of the subject. session: a state on the way, for the caches' sizes and for logits.
    sampling: how each of its rows chooses.
    """
    clock = _Clock(subject.device)
    with ExitStack() as hooks:
        for part, first, last in _places(subject):
            hooks.enter_context(_between(first, last, clock, part))
        total = timed(run, subject.device)
    logits, positions = session.logits[:, None], session.positions
    clock.seconds["choice"] = timed(
        lambda: [choose(sampling, logits, [at + i for at in positions]) for i in range(num_steps)], subject.device
    )
    clock.seconds["other"] = total - sum(clock.seconds.values())
    reads = _kv_bytes(session)
    return {
        part: {
            "ms_per_step": 1000 * seconds / num_steps,
            "share": seconds / total,
            "kv_bytes": reads.get(part, 0.0),
        }
        for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])
    }


def _places(subject: BenchSubject) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Parts, each between the beginning of a module and the end of another; none lies within another."""
    model = subject.model
    stacks = {"encoder": model.encoder.stack, "latent": model.latent.stack, "decoder": model.decoder.stack}
    stacks |= {"entropy": stack} if (stack := getattr(subject.scorer, "stack", None)) is not None else {}
    for part, stack in stacks.items():
        for layer in stack.layers:
            yield part, layer, layer
    # A block's first step is the norm of its queries, its last the output projection (and a sum).
    for block in model.encoder.cross:
        yield "encoder_cross", cast(CrossAttention, block).q_norm, cast(CrossAttention, block).out
    for reader in model.decoder.readers:
        if isinstance(reader, CrossAttention):
            yield "decoder_cross", reader.q_norm, reader.out
            # Of patches, once each: outside of the steps that read them.
            yield "decoder_cross", reader.kv_norm, reader.kv
    yield "head", model.decoder.norm, model.decoder.head


@contextmanager
def _between(first: nn.Module, last: nn.Module, clock: _Clock, part: str) -> Iterator[None]:
    handles = (first.register_forward_pre_hook(clock.start), last.register_forward_hook(clock.stop(part)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kv_bytes(session: Session) -> dict[str, float]:
    """What a step reads; of the latent transformer: what a step reads that closes a patch in every row."""
    return {
        "entropy": float(getattr(session.scorer_state, "num_bytes", 0)),
        "encoder": float(session.encoder.num_bytes),
        "latent": float(sum(cache.num_bytes for cache in session.latents)),
        "decoder": float(session.decoder.num_bytes),
        "decoder_cross": float(session.patch_kv.num_bytes),
    }
