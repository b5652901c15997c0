"""What a checkpoint holds, as one value: a model, the scorer that its patching rule listens to, and the rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bltkit.checkpoint.manifest import ScorerModule
from bltkit.model import Blt
from bltkit.patching import PatchingRule


@dataclass(frozen=True)
class Bundle:
    """What a checkpoint holds: a model with its scorer and rule, or a scorer alone (then `rule` may be its own)."""

    model: Blt | None
    scorer: ScorerModule | None
    rule: PatchingRule | None
    record: dict[str, Any] = field(default_factory=dict)
    """The training record: plain values that JSON can hold."""
    licences: Mapping[str, bytes] = field(default_factory=dict)
    """Files with terms of use that came with the weights, by name: they are saved along."""

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits come out; other parts may lie elsewhere (`DeviceMap`)."""
        if self.model is not None:
            return self.model.embed.bytes.weight.device
        return torch.device("cpu") if self.scorer is None else next(self.scorer.parameters()).device

    @property
    def mean_patch_bytes(self) -> tuple[float, str] | None:
        """Mean bytes per patch, and where it is known from: the rule alone, else training or calibration; else None."""
        if self.rule is not None and self.rule.mean_patch_bytes is not None:
            return self.rule.mean_patch_bytes, f"rule {self.rule}"
        for key, source in (("mean_patch_bytes", "measured in training"), ("calibrated_patch_bytes", "calibrated")):
            value = self.record.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf:
                return float(value), source
        return None
