"""The threshold that gives a wanted mean patch size on given documents (BLT 2.3: "patch size" is set this way).

Fewer bytes pass a higher threshold, so the mean patch size never falls as it rises, and bisection finds it. Only the
midpoints of neighbouring fp16 numbers are tried: entropies that were stored in fp16 then give the same patches as the
fp32 ones they were rounded from.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.patching.apply_rule import patch
from bltkit.patching.finite import check_finite
from bltkit.patching.rule import PatchingRule, ScoreKind
from bltkit.vocab import BOS, OFFSET


def tuned_field(rule: PatchingRule) -> str | None:
    """The field of `rule` that scales its patches: `threshold`, else `rise`; None for a rule that has neither."""
    return next((name for name in ("threshold", "rise") if name in type(rule).model_fields), None)


def snapped(threshold: float) -> bool:
    """Does `threshold` lie midway between two neighbouring fp16 numbers, as every calibrated one does?

    Then entropies rounded to fp16 are on the same side of it as before, but for one right on it.
    """
    if not abs(threshold) < np.finfo(np.float16).max:
        return False
    near = np.float16(threshold)
    others = np.nextafter(near, np.float16("-inf")), np.nextafter(near, np.float16("inf"))
    return any(float(near) + float(other) == 2 * threshold for other in others)


def calibrate(
    rule: PatchingRule,
    scores: Sequence[Float[Tensor, "_"]],
    ids: Sequence[Int64[Tensor, "_"]],
    patch_bytes: float,
) -> tuple[PatchingRule, float]:
    """Set the threshold of `rule` so that its mean patch size on these documents is as near `patch_bytes` as it gets.

    ids, scores: one of each per document, BOS included; scores[t] belongs to the prediction made at t. EOS may stand
        behind, padding not. All other fields of the rule, `max_patch_bytes` among them, stay as they are and take part.

    Returns the rule and its mean patch size: bytes of text per patch, BOS's own patches not counted. Scores that
    fp16 cannot tell apart cross the threshold together, so a short text may miss the target: the nearest mean wins.

    Raises ValueError for a rule without a threshold, for documents without text or with broken scores, and for a
    target out of reach (the message says which are within).
    """
    field = tuned_field(rule)
    if field is None:
        raise ValueError(
            f"rule {rule.kind!r} has no threshold to calibrate; use 'threshold', 'rise', 'both' or 'bpe', "
            "or give 'stride' its patch size as k"
        )
    row, row_scores = _one_row(ids, scores, rule.scores)
    num_bytes = int((row >= OFFSET).sum())
    if num_bytes == 0:
        raise ValueError("the documents hold no text; calibration needs some bytes")

    candidates = _candidates(row_scores if field == "threshold" else row_scores[1:] - row_scores[:-1])

    def mean_at(index: int) -> float:
        starts = patch(rule.replace(**{field: candidates[index]}), row[None], row_scores[None]).starts
        return num_bytes / int((starts[0, :-1] & (row != BOS)).sum())

    low, high = 0, len(candidates) - 1
    least, most = mean_at(low), mean_at(high)
    if not least <= patch_bytes <= most:
        raise ValueError(
            f"patch_bytes = {patch_bytes}: rule '{rule}' can reach {least:.3g} to {most:.3g} bytes per patch on these "
            f"{num_bytes} bytes of text by its {field}"
        )
    while high - low > 1:  # mean(low) <= patch_bytes <= mean(high)
        middle = (low + high) // 2
        mean = mean_at(middle)
        if mean <= patch_bytes:
            low, least = middle, mean
        else:
            high, most = middle, mean
    index, reached = (high, most) if most - patch_bytes < patch_bytes - least else (low, least)
    return rule.replace(**{field: candidates[index]}), reached


def _one_row(
    ids: Sequence[Int64[Tensor, "_"]], scores: Sequence[Float[Tensor, "_"]], kind: ScoreKind | None
) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """All documents behind one another: patching treats each as if it stood alone, and many are patched at once."""
    if len(ids) != len(scores):
        raise ValueError(f"{len(ids)} documents but {len(scores)} rows of scores; there must be one per document")
    for number, (document, values) in enumerate(zip(ids, scores, strict=True)):
        if document.shape != values.shape:
            raise ValueError(
                f"document {number}: {len(document)} ids but {len(values)} scores; there must be one score per id"
            )
        if len(document) == 0 or int(document[0]) != BOS:
            raise ValueError(f"document {number} does not begin with BOS; encode it with bos=True")
    if not ids:
        raise ValueError("no documents to calibrate on; name some files")
    row_scores = torch.cat([values.float() for values in scores])
    check_finite(row_scores, kind)
    return torch.cat(list(ids)), row_scores


def _candidates(values: Float[Tensor, " N"]) -> list[float]:
    """Thresholds that part the values in every way that fp16 can, rising, from below all of them to above all."""
    distinct = np.unique(values.numpy(force=True).astype(np.float16))
    edges = np.concatenate([np.nextafter(distinct[:1], np.float16("-inf")), distinct])
    middles = (edges.astype(np.float32) + np.nextafter(edges, np.float16("inf")).astype(np.float32)) / 2
    thresholds: list[float] = middles[np.isfinite(middles)].tolist()
    return thresholds
