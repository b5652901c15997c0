"""The threshold that gives a mean patch size on a text: one computation for `blt calibrate` and `blt check`."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bltkit.checkpoint import Bundle
from bltkit.checkpoint.fetch import HUB
from bltkit.checkpoint.locate import EMBEDDED
from bltkit.data.samples import sample_documents
from bltkit.diagnostics.entropies import ScoredPieces, patch_sizes
from bltkit.diagnostics.finding import Finding
from bltkit.patching.calibrate import calibrate, tuned_field
from bltkit.views.calibration import score_documents, tunable_rule

PUBLISHED_PATCH_BYTES = 4.5
"""Mean patch size of the paper's and of the released models, for a checkpoint whose record names none."""
DEFAULT_FILES = ("stdlib",)
"""Source that `blt calibrate --files` takes where a user names no text."""


@dataclass(frozen=True)
class WantedSize:
    """The patch size that a user asks for.

    patch_bytes: mean bytes per patch. files: sources as in `data.sources`. model: as the user names it.
    Raises ValueError for a size that no text can have.
    """

    patch_bytes: float
    files: Sequence[str]
    model: str

    def __post_init__(self) -> None:
        if not 1 <= self.patch_bytes < math.inf:
            raise ValueError(f"patch_bytes = {self.patch_bytes}: a patch holds 1 byte or more; say for example 4.5")


def calibrate_command(model: str, files: Sequence[str]) -> str:
    """The command that stores the threshold for a patch size, which is its last word and left out."""
    named = [word for file in files for word in ("--files", file)]
    return shlex.join(["blt", "calibrate", "--model", model, *named, "--patch-bytes"])


def wanted_size_finding(
    bundle: Bundle, wanted: WantedSize, progress: Callable[[int, int], None] | None = None
) -> Finding:
    """The threshold for the size that was asked for, on the sample that `blt calibrate` takes.

    Raises ValueError for a rule without a threshold and for sources without text.
    """
    rule, scorer = tunable_rule(bundle, wanted.model), bundle.scorer
    field = tuned_field(rule)
    assert scorer is not None
    files = wanted.files or DEFAULT_FILES
    ids, scores = score_documents(scorer, list(sample_documents(files)), progress)
    now = None if bundle.rule is None else patch_sizes(rule, ScoredPieces(ids, scores)).mean
    numbers: dict[str, float | None] = {"wanted_patch_bytes": wanted.patch_bytes, "patch_bytes_now": now}
    if field is not None and bundle.rule is not None:
        numbers[f"{field}_now"] = float(getattr(rule, field))
    try:
        tuned, reached = calibrate(rule, scores, ids, wanted.patch_bytes)
    except ValueError as error:
        if field is None or "can reach" not in str(error):
            raise
        return Finding(
            "wanted-patch-size",
            "warning",
            None,
            f"{wanted.patch_bytes:g} bytes per patch",
            str(error),
            "ask for a size within reach, or check with another text (--files)",
            numbers=numbers,
        )
    numbers |= {field: float(getattr(tuned, field)), "patch_bytes": reached} if field is not None else {}
    lines = [f"`{tuned}` gives {reached:.3f} bytes per patch on {sum(len(row) - 1 for row in ids):,} bytes of text"]
    if now is not None:
        lines.append(f"now: `{bundle.rule}`, {now:.3f} bytes per patch on the same text")
    lines.append(f"to store it: {calibrate_command(wanted.model, files)} {wanted.patch_bytes:g}")
    if wanted.model.startswith((EMBEDDED, HUB)):
        lines.append(f"{wanted.model} itself is never changed: save a copy first (`bltkit.load(...).save(DIR)`)")
    return Finding(
        "wanted-patch-size",
        "ok",
        reached,
        f"{wanted.patch_bytes:g} bytes per patch",
        "entropies that fp16 cannot tell apart cross a threshold together",
        "calibrate on more text",
        detail=tuple(lines),
        numbers=numbers,
    )


@dataclass(frozen=True)
class Tuned:
    """The threshold that would give a patch size on the sample of the check."""

    patch_bytes: float
    source: str
    """Where the size is from, in words."""
    field: str
    threshold: float | None
    """None where no threshold gives that size on this text."""

    @property
    def advice(self) -> str:
        """One clause for people."""
        if self.threshold is None:
            return f"no {self.field} would give {self.patch_bytes:.3g} ({self.source})"
        return f"{self.field} {self.threshold:g} would give {self.patch_bytes:.3g} ({self.source})"


def tuned_to_record(bundle: Bundle, pieces: ScoredPieces) -> Tuned | None:
    """The threshold for the size of the training record; None for a rule without a threshold."""
    rule = bundle.rule
    field = None if rule is None or rule.scores is None else tuned_field(rule)
    if rule is None or field is None or pieces.scores is None:
        return None
    size, source = bundle.mean_patch_bytes or (PUBLISHED_PATCH_BYTES, "as in the paper; the checkpoint records none")
    try:
        tuned, _ = calibrate(rule, pieces.scores, pieces.ids, size)
    except ValueError:  # out of reach
        return Tuned(size, source, field, None)
    return Tuned(size, source, field, float(getattr(tuned, field)))
