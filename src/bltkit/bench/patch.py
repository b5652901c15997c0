"""Cutting a text: the scorer over whole rows, and the rule; side by side with transformers' patcher."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.bench.bench_subject import BenchSubject, row
from bltkit.bench.peer import BltPeer, blt_peer_of
from bltkit.bench.record import BenchRow, row_of
from bltkit.bench.timing import Progress, RepeatLimits, Side, check_batch, in_turn, silent, threads_of

TOLERANCE = 1e-4
"""Nats that the two sides' entropies may differ by."""


def patch(
    subject: BenchSubject,
    context: int,
    *,
    batch: int = 1,
    peer: str | None = None,
    limits: RepeatLimits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> BenchRow:
    """Bytes per second of patching rows of `context` ids.

    batch: rows that our side reads at once. The peer reads the same rows one after another: that is how whoever
        annotates with it gets entropies that do not depend on what else is in the batch.

    Raises ValueError for a bad number or peer, RuntimeError where the peer's entropies are others.
    """
    check_batch(batch)
    ids = row(context, batch).to(subject.device)
    with threads_of(threads) as count, blt_peer_of(peer, subject) as other:
        patches = subject.patches(ids)  # the first run of a shape is slow, and not timed
        sides = [Side(f"patch {context} x {batch}, ours", batch * context, lambda: subject.patches(ids))]
        difference = None
        if other is not None:
            difference = _compared(subject.scorer.scores(ids), _entropies(other, ids))
            sides.append(Side(f"patch {context}, {other.name}", batch * context, lambda: _entropies(other, ids)))
        timings = in_turn(sides, limits or RepeatLimits(), subject.device, progress)
    found = row_of(
        subject,
        "patch",
        timings,
        context=context,
        batch=batch,
        threads=count,
        peer_name=None if other is None else other.name,
        max_difference=difference,
        mean_patch_bytes=batch * (context - 1) / max(1, int(patches.num_patches.sum()) - batch),
        command=command,
    )
    # What ran is the scorer; the model beside it may be held in another form.
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in subject.scorer.parameters()}
    return replace(found, dtype=", ".join(sorted(dtypes)))


@torch.inference_mode()
def _entropies(peer: BltPeer, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Entropies by transformers' patcher, which finds the patches as well."""
    model = peer.model.model
    config = model.config
    found = [
        model.patcher(one, patch_size=config.patch_size, threshold=config.patching_threshold)[0] for one in ids.split(1)
    ]
    return torch.cat(found)


def _compared(ours: Float[Tensor, "B T"], peer: Float[Tensor, "B T"]) -> float:
    """The largest difference. Raises RuntimeError where it is no rounding."""
    difference = float((ours - peer).abs().max())
    if not difference <= TOLERANCE:  # NaN is wrong as well
        raise RuntimeError(f"ours and the peer's entropies differ by up to {difference:.2g} nats")
    return difference
