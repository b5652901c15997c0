"""`PatchedText`: one text, cut into patches, for people to look at.

What `blt patch` prints and `ByteLM.patches` returns. Tensors end here: offsets count the text's own bytes, so BOS,
which stands in front of every text and is a patch of its own, is seen no more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.patching.apply_rule import patch
from bltkit.patching.calibrate import tuned_field
from bltkit.patching.finite import check_finite
from bltkit.patching.rule import PatchingRule, ScoreKind
from bltkit.vocab import encode

ScoresOf = Callable[[Int64[Tensor, "B T"]], Float[Tensor, "B T"]]
"""`Scorer.scores`: ids to the score of the prediction made at each of them."""


@dataclass(frozen=True)
class PatchedText:
    """A text, its patches and what the scorer thought of each byte."""

    data: bytes
    rule: PatchingRule
    scores: tuple[float, ...] | None
    """scores[i] belongs to the prediction of byte i, made from BOS and the bytes before it; None without a scorer."""
    score_kind: ScoreKind | None
    """What `scores` are: entropies in nats, or boundary logits."""
    next_score: float | None
    """The score of the prediction of the byte behind the text."""
    next_opens: bool | None
    """Does that byte open a patch; None for a rule that cannot tell before it sees the byte."""
    starts: tuple[int, ...]
    """Offsets of the bytes that open a patch, rising; 0 is among them unless the text is empty."""

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Bytes in each patch."""
        return tuple(end - start for start, end in pairwise((*self.starts, len(self.data))))

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The patches; joined, they are the text."""
        return tuple(self.data[start:end] for start, end in pairwise((*self.starts, len(self.data))))

    @property
    def mean_patch_bytes(self) -> float:
        """Bytes of text per patch; 0 for an empty text."""
        return len(self.data) / len(self.starts) if self.starts else 0.0

    @property
    def largest(self) -> int:
        """Bytes in the longest patch; 0 for an empty text."""
        return max(self.lengths, default=0)

    @property
    def border_rate(self) -> float:
        """Share of the bytes that open a patch; 0 for an empty text."""
        return len(self.starts) / len(self.data) if self.data else 0.0

    @property
    def threshold(self) -> float | None:
        """The number that decides how long patches are, where the rule has one (see `calibrate`)."""
        field = tuned_field(self.rule)
        return None if field is None else float(getattr(self.rule, field))

    def to_json(self) -> dict[str, Any]:
        """As `blt patch --json` prints it: the summary first, then what is as long as the text.

        `text` shows bytes that are no UTF-8 as U+FFFD; `hex` is exact.
        """
        entropy = self.score_kind == "entropy"
        logit = self.score_kind == "boundary"
        return {
            "num_bytes": len(self.data),
            "rule": str(self.rule),
            "threshold": self.threshold,
            "num_patches": len(self.starts),
            "mean_patch_bytes": self.mean_patch_bytes,
            "median_patch_bytes": sorted(self.lengths)[(len(self.lengths) - 1) // 2] if self.lengths else 0,
            "largest_patch_bytes": self.largest,
            "border_rate": self.border_rate,
            "next": {
                "entropy": self.next_score if entropy else None,
                "boundary_logit": self.next_score if logit else None,
                "opens": self.next_opens,
            },
            "starts": list(self.starts),
            "entropies": self.scores and list(self.scores) if entropy else None,
            "boundary_logits": self.scores and list(self.scores) if logit else None,
            "patches": [
                {
                    "start": start,
                    "length": len(piece),
                    "hex": piece.hex(),
                    "text": piece.decode("utf-8", "replace"),
                }
                for start, piece in zip(self.starts, self.pieces, strict=True)
            ],
        }


def patch_text(
    data: bytes,
    rule: PatchingRule,
    scores_of: ScoresOf | None = None,
    *,
    score_kind: ScoreKind | None = None,
) -> PatchedText:
    """Cut `data`, read as one document, into patches.

    scores_of: called once with BOS and the text, [1, T]. Its scores are kept even where the rule reads none, so that
        a picture can show them beside any rule.
    score_kind: what `scores_of` gives; by default what the rule reads, and entropies for a rule that reads none.

    Raises ValueError where the rule reads a score and there is none, or one of the other kind, and where a score is
    not finite, whether the rule reads it or not.
    """
    kind = score_kind or rule.scores or "entropy"
    if scores_of is not None and rule.scores not in (None, kind):
        raise ValueError(f"rule {rule.kind!r} reads the {rule.scores} score of every byte, not the {kind} score")
    ids = encode(data)[None]
    scores = None if scores_of is None else scores_of(ids).float().cpu()
    if scores is not None:
        check_finite(scores, kind)
    starts = patch(rule, ids, scores).starts[0]
    values: list[float] | None = None if scores is None else scores[0].tolist()
    return PatchedText(
        data=data,
        rule=rule,
        # Column t speaks of id t + 1, which is text byte t; the last column speaks of the byte not yet there.
        scores=None if values is None else tuple(values[:-1]),
        score_kind=None if values is None else kind,
        next_score=None if values is None else values[-1],
        next_opens=bool(starts[-1]) if rule.streams else None,
        starts=tuple(starts[1:-1].nonzero()[:, 0].tolist()),
    )
