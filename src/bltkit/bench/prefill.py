"""Reading a prompt: scorer, rule and model over a whole row, logits of every position."""

from bltkit.bench.bench_subject import BenchSubject, row
from bltkit.bench.peer import blt_peer_of, compared
from bltkit.bench.record import BenchRow, row_of
from bltkit.bench.timing import Progress, RepeatLimits, Side, in_turn, silent, threads_of


def prefill(
    subject: BenchSubject,
    context: int,
    *,
    peer: str | None = None,
    limits: RepeatLimits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> BenchRow:
    """Bytes per second of a full forward pass over `context` ids.

    Raises ValueError for a bad number or peer, RuntimeError where the peer's logits are others.
    """
    ids = row(context).to(subject.device)
    with threads_of(threads) as count, blt_peer_of(peer, subject) as other:
        ours = subject.logits(ids)  # the first run of a shape is slow: it is the check, and not timed
        difference = None if other is None else compared(ours, other.logits(ids))
        sides = [Side(f"prefill {context}, ours", context, lambda: subject.logits(ids))]
        if other is not None:
            sides.append(Side(f"prefill {context}, {other.name}", context, lambda: other.logits(ids)))
        timings = in_turn(sides, limits or RepeatLimits(), subject.device, progress)
        patches = subject.patches(ids).max_patches
    return row_of(
        subject,
        "prefill",
        timings,
        context=context,
        threads=count,
        peer_name=None if other is None else other.name,
        max_difference=difference,
        mean_patch_bytes=(context - 1) / max(1, patches - 1),
        command=command,
    )
