"""What a patching rule is: a frozen config and one method, "does the byte after t open a patch?".

A rule sees ids, per-byte scores and positions; it knows nothing of document borders, maximum lengths,
batches or streams. `rule_stream.py` adds those once for every rule, so that a new rule is one file and one line in
`rules.py`.
"""

import json
from abc import abstractmethod
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from bltkit.config import Config

ScoreKind = Literal["entropy", "boundary"]
"""What a per-byte score is: the entropy (nats) of the prediction made at t about byte t+1, or the logit of "a
token ends after byte t"."""


class PatchingRule(Config):
    """Base of every rule. Fields carry `examples`: the values that the contract tests run the rule with."""

    kind: str
    max_patch_bytes: int | None = Field(default=None, ge=1, examples=[None, 1, 2, 3])
    """Longest patch in bytes: a patch that starts at s is cut at s+m, s+2m, ... None: no limit."""

    streams: ClassVar[bool] = True
    """Does the answer for the next byte need only the bytes so far; only then can the rule generate."""
    scores: ClassVar[ScoreKind | None] = None
    """The per-byte score that the rule reads, if any."""
    lookback: ClassVar[int] = 0
    """How many columns before t the answer at t reads."""

    @property
    def mean_patch_bytes(self) -> float | None:
        """Mean bytes per patch where the rule alone decides it; None where the text, or a model, has a say."""
        return 1.0 if self.max_patch_bytes == 1 else None

    @abstractmethod
    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        """Does the byte after each of the last S columns open a patch, by the rule itself.

        ids, scores: W = lookback + S columns; the first `lookback` are context. Scores are fp32, and None
            exactly where the class reads none. Context from before the document is arbitrary: mask it by
            `position`.
        position: of the last S columns inside their document (0 is its BOS). The answer at position 0 is
            ignored, since the byte after BOS always opens a patch.
        """

    def __str__(self) -> str:
        """As `parse_rule` reads it: `stride:k=6.0,max_patch_bytes=8`; defaults are left out."""
        values = self.model_dump(exclude_defaults=True, exclude={"kind"})
        own_first = sorted(values, key=lambda name: name in PatchingRule.model_fields)
        items = ",".join(f"{name}={_toml(values[name])}" for name in own_first)
        return f"{self.kind}:{items}" if items else self.kind


def _toml(value: object) -> str:
    # JSON writes numbers and truth values as TOML does.
    return value if isinstance(value, str) else json.dumps(value)
