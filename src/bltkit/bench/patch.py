"""Cutting a text: the scorer over a whole row, and the rule."""

from bltkit.bench.record import Row, row_of
from bltkit.bench.subject import Subject, row
from bltkit.bench.timing import Limits, Progress, Side, in_turn, silent, threads_of


def patch(
    subject: Subject,
    context: int,
    *,
    limits: Limits | None = None,
    threads: int | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Row:
    """Bytes per second of patching `context` ids. Raises ValueError for a bad number."""
    ids = row(context).to(subject.device)
    with threads_of(threads) as count:
        patches = subject.patches(ids)  # the first run of a shape is slow, and not timed
        side = Side("patch", context, lambda: subject.patches(ids))
        timings = in_turn([side], limits or Limits(), subject.device, progress)
    return row_of(
        subject,
        "patch",
        timings,
        context=context,
        threads=count,
        mean_patch_bytes=(context - 1) / max(1, patches.max_patches - 1),
        command=command,
    )
