"""Entropy rules: a byte that is hard to predict opens a patch (BLT section 2.3 and 4.4; docs/model.md 4.1 and 4.2).

Score e[t] is the entropy in nats of the prediction of byte t+1, so e[0], made from BOS alone, is never used.
All comparisons are strict and in fp32.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from bltkit.patching.rule import PatchingRule, ScoreKind


class ThresholdRule(PatchingRule):
    """Global threshold (BLT 2.3): byte t+1 opens a patch where e[t] > threshold. The released models'
    rule."""

    kind: Literal["threshold"] = "threshold"
    threshold: float = Field(examples=[0.5, 1.25])
    """Nats."""

    scores: ClassVar[ScoreKind | None] = "entropy"

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        assert scores is not None
        return scores > self.threshold


class RiseRule(PatchingRule):
    """Approximate monotonicity (BLT 2.3): byte t+1 opens a patch where e[t] - e[t-1] > rise.

    Byte 2 always opens one: its rise would need e[0].
    """

    kind: Literal["rise"] = "rise"
    rise: float = Field(examples=[-0.25, 0.125])
    """Nats."""

    scores: ClassVar[ScoreKind | None] = "entropy"
    lookback: ClassVar[int] = 1

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        assert scores is not None
        return (scores[:, 1:] - scores[:, :-1] > self.rise) | (position == 1)


class BothRule(PatchingRule):
    """Threshold and rise at once: byte t+1 opens a patch where e[t] > threshold and e[t] - e[t-1] > rise.

    Byte 2 always opens one. `skip_third` reproduces the reference, whose "not right after a border" clause
    bites at byte 3 only: byte 3 then never opens a patch.
    """

    kind: Literal["both"] = "both"
    threshold: float = Field(examples=[0.5, 1.25])
    """Nats."""
    rise: float = Field(examples=[-0.25, 0.125])
    """Nats."""
    skip_third: bool = Field(default=False, examples=[False, True])
    """Byte 3 never opens a patch, as in the reference."""

    scores: ClassVar[ScoreKind | None] = "entropy"
    lookback: ClassVar[int] = 1

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        assert scores is not None
        now, before = scores[:, 1:], scores[:, :-1]
        hard = (now > self.threshold) & (now - before > self.rise)
        if self.skip_third:
            hard = hard & (position != 2)
        return hard | (position == 1)
