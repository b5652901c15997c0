"""Scores that are not finite: recognised where scores become patches, refused in the same words everywhere.

A damaged scorer gives NaN or an infinity. Every comparison with NaN is False, so such scores would become one long
patch without a word. Models only compute scores; whoever reads them checks them: `patch` and `Answers` in the read from
the device that they make anyway, everything else by `check_finite`.
"""

import math

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from torch import Tensor

from bltkit.patching.rule import ScoreKind


def finite(scores: Float[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
    """Whether each score is a finite number; stays on the device. Two kernels, where `isfinite` takes four."""
    return scores.abs() < math.inf


def not_finite(kind: ScoreKind | None, where: str) -> ValueError:
    """The error for a score that is not finite. kind: of the score. where: its place, for people."""
    model = "boundary model" if kind == "boundary" else "entropy model"
    return ValueError(
        f"the {model}'s scores are not finite ({where}): its weights are broken, or its training diverged; "
        "`blt check` tells more"
    )


def check_finite(
    scores: Float[Tensor, "*B"] | npt.NDArray[np.floating], kind: ScoreKind | None = None, where: str = ""
) -> None:
    """Raise ValueError where a score is not finite. Reads from the device.

    kind: of the scores, entropies by default. where: what the scores belong to; the place of the first bad one follows.
    """
    values = scores.detach().float().cpu().numpy() if isinstance(scores, Tensor) else scores
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        place = f"{values.reshape(-1)[bad[0]]} at position {bad[0]}"
        raise not_finite(kind, f"{where}, {place}" if where else place)
