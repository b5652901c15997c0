"""A training step: patches from the scorer, forward, backward and AdamW, on rows of text.

The optimizer is torch's own on both sides: what is compared is the model. (The trainer's way with n-gram tables is
faster still.)
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bltkit.bench.peer import blt_peer_of, compared
from bltkit.bench.record import Row, row_of
from bltkit.bench.subject import Subject, row
from bltkit.bench.timing import Limits, Progress, Side, in_turn, silent, threads_of

LEARNING_RATE = 1e-4


def train(
    subject: Subject,
    context: int,
    *,
    batch: int = 2,
    peer: str | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Row:
    """Bytes per second of training steps on `batch` rows of `context` ids. The subject keeps its weights.

    Raises ValueError for a bad number or peer, RuntimeError where the peer's logits are others.
    """
    if batch < 1:
        raise ValueError(f"batch = {batch} must be at least 1")
    ids = row(context, batch).to(subject.device)
    with threads_of(threads) as count, blt_peer_of(peer, subject) as other:
        difference = None
        if other is not None:
            # Row by row: the peer's entropies leak from row to row in a batch (spec 11.3).
            difference = compared(subject.logits(ids[:1]), other.logits(ids[:1]))
        trained = replace(subject, model=copy.deepcopy(subject.model))

        def ours() -> Tensor:
            logits: Tensor = trained.model(ids, trained.patches(ids))
            return logits

        step = _step(trained.model.parameters(), ours, ids)
        sides = [Side(f"train {batch} x {context}, ours", batch * context, step)]
        step()
        if other is not None:
            theirs = other.model
            weights = (weight for name, weight in theirs.named_parameters() if ".patcher." not in f".{name}")
            step = _step(weights, lambda: theirs(ids, use_cache=False).logits, ids)
            sides.append(Side(f"train {batch} x {context}, {other.name}", batch * context, step))
            step()
        timings = in_turn(sides, limits or Limits(repeats=3), subject.device, progress)
        patches = int(subject.patches(ids).num_patches.sum())
    return row_of(
        subject,
        "train",
        timings,
        context=context,
        batch=batch,
        threads=count,
        peer_name=None if other is None else other.name,
        max_difference=difference,
        mean_patch_bytes=batch * (context - 1) / max(1, patches - batch),
        command=command,
    )


def _step(weights: Iterable[nn.Parameter], forward: Callable[[], Tensor], ids: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(list(weights), lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward()[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()

    return step
