"""From a rule's answers to the patches of whole batches.

`patch` runs the step of `rule_stream.py` once, from an empty stream, so that it gives the same answers as `extend`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bltkit.patches import Patches
from bltkit.patching.finite import finite, not_finite
from bltkit.patching.rule import PatchingRule
from bltkit.patching.rule_stream import advance, checked_scores, empty_stream, place_of
from bltkit.vocab import BOS, PAD


def patch(
    rule: PatchingRule,
    ids: Int64[Tensor, "B T"],
    scores: Float[Tensor, "B T"] | None = None,
    num_bytes: Int64[Tensor, " B"] | None = None,
    *,
    documents: bool = True,
) -> Patches:
    """The patches of B rows.

    scores: scores[b, t] belongs to the prediction made at t about byte t+1 (entropy in nats or boundary
        logit, whichever `rule.scores` names); None for rules that read none. Compared in fp32.
    num_bytes: [B] ids in each row (default: T). What stands behind them does not matter.
    documents: whether a BOS inside a row begins a new document.

    Raises ValueError where the rule reads scores and none, or scores of another shape, are given, and where a score of
    a row's own ids is not finite.
    """
    scores = checked_scores(rule, ids, scores)
    if num_bytes is not None:
        columns = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.masked_fill(columns >= num_bytes[:, None], PAD)
    stream = empty_stream(rule, ids.shape[0], ids.device, documents)
    starts = F.pad(advance(rule, stream, ids, scores).opens, (1, 0), value=True)
    if documents:
        starts = starts | F.pad(ids == BOS, (0, 1))
    return Patches.from_starts(starts, num_bytes, _refusal(rule, scores, num_bytes))


def _refusal(
    rule: PatchingRule, scores: Float[Tensor, "B T"] | None, num_bytes: Int64[Tensor, " B"] | None
) -> tuple[Bool[Tensor, ""], Callable[[], ValueError]] | None:
    """The condition "a score of a row's own ids is not finite", and its error."""
    if scores is None:
        return None
    broken = ~finite(scores)
    if num_bytes is not None:
        broken = broken & (torch.arange(scores.shape[1], device=scores.device) < num_bytes[:, None])

    def error() -> ValueError:
        row, at = broken.nonzero()[0].tolist()
        return not_finite(rule.scores, place_of(float(scores[row, at]), row, len(scores), at))

    return broken.any(), error
