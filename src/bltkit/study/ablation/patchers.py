"""Patching rules at the common rate, and the entropy models that they use.

A threshold is calibrated on the very rows that training reads: elsewhere the same rule would cut at another rate.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Int64
from torch import Tensor

from bltkit.checkpoint import ScorerModule, load_bundle, resolve_model, scorer_hash
from bltkit.checkpoint.manifest import TableConfig, scorer_config
from bltkit.config import parse
from bltkit.cost.formulas.operations import forward_flops
from bltkit.files import read_json
from bltkit.patching import RULES, PatchingRule, parse_rule, patch
from bltkit.patching.calibrate import calibrate
from bltkit.study.ablation.ablation_plan import AblationPlan
from bltkit.study.ablation.ablation_texts import AblationTexts
from bltkit.study.ablation.catalog import Variant
from bltkit.train import TrainConfig
from bltkit.vocab import BOS, OFFSET

_CALIBRATION_BYTES = 1_000_000


@dataclass(frozen=True)
class VariantPatching:
    """A variant's section [patching], and its entropy model."""

    fields: Mapping[str, Any]
    scorer: str | None = None
    """Hash of the entropy model's weights."""
    scorer_bits: float | None = None
    scorer_flops: float = 0.0
    """Operations per byte of its forward pass: the cost of placing boundaries. Its training is counted nowhere."""


@dataclass
class Cuts:
    """The rules of an ablation. train: trains or resumes a run in a directory and returns its bits per byte."""

    plan: AblationPlan
    texts: AblationTexts
    place: Path
    train: Callable[[TrainConfig, Path], float]
    say: Callable[[str], None]
    rate_of_words: bool
    _by_rule: dict[str, VariantPatching] = field(default_factory=dict)

    def of(self, variant: Variant) -> VariantPatching:
        """The variant's patches, calibrated once."""
        name = json.dumps([variant.rule, dict(variant.scorer)], sort_keys=True)
        if name not in self._by_rule:
            self._by_rule[name] = self._cut(variant)
        return self._by_rule[name]

    @cached_property
    def patch_bytes(self) -> float:
        """The common rate, as a mean patch."""
        if self.plan.patch_bytes is not None:
            return self.plan.patch_bytes
        return _rate(parse_rule("space"), self.rows) if self.rate_of_words else 4.5

    @cached_property
    def rows(self) -> list[Int64[Tensor, " T"]]:
        """Rows that rules are calibrated on."""
        return self.texts.rows(_CALIBRATION_BYTES)

    def _cut(self, variant: Variant) -> VariantPatching:
        if variant.rule is None:
            return VariantPatching({})
        if self.plan.rule is not None and variant.rule == "threshold":
            return VariantPatching({"rule": str(parse_rule(self.plan.rule, "--rule"))})
        kind = RULES[variant.rule]
        if "k" in kind.model_fields:
            return VariantPatching({"rule": str(parse_rule({"kind": variant.rule, "k": self.patch_bytes}))})
        if kind.scores is None:
            return VariantPatching({"rule": variant.rule})
        path, bits = self._scorer(variant.scorer)
        tuned = {"threshold": 1.0} if variant.rule == "threshold" else {"rise": 0.5}
        scorer, rule = self._calibrated(path, parse_rule({"kind": variant.rule} | tuned))
        shape = scorer_config(scorer)
        assert not isinstance(shape, TableConfig), "the study trains its own"
        flops = forward_flops(shape, 1.0, self.plan.row_bytes)
        return VariantPatching({"model": str(path), "rule": str(rule)}, scorer_hash(scorer), bits, flops)

    def of_router(self, run: Path) -> PatchingRule:
        """Rule of a run that learned its boundaries, at the common rate; training leaves it near that."""
        return self._calibrated(run, parse_rule({"kind": "bpe", "threshold": 0.0}))[1]

    def _calibrated(self, model: Path, rule: PatchingRule) -> tuple[ScorerModule, PatchingRule]:
        scorer = load_bundle(resolve_model(str(model))).scorer
        assert scorer is not None
        with torch.no_grad():
            scores = [scorer.scores(row[None])[0] for row in self.rows]
        return scorer, calibrate(rule, scores, self.rows, self.patch_bytes)[0]

    def _scorer(self, model: Mapping[str, Any]) -> tuple[Path, float]:
        """Directory and bits per byte of an entropy model, which one process trains where it is missing."""
        fields = self.texts.sections(model, self.plan.scorer_steps, 0)
        config: TrainConfig = parse(TrainConfig, fields, "the entropy model")
        place = self.place / digest(config, None)
        done = place / "result.json"
        self.place.mkdir(exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if not done.exists():
                self.say(f"training an entropy model, {self.plan.scorer_steps} steps")
                done.write_text(json.dumps(self.train(config, place)), encoding="utf-8")
        result = read_json(done)
        if not isinstance(result, int | float):
            raise ValueError(f"{done}: not a number; remove {place} and run again")
        return place, float(result)


def digest(config: TrainConfig, scorer: str | None) -> str:
    """Hash of the settings that a run's numbers depend on: of the scorer its weights, and no paths of caches."""
    fields = config.model_dump(mode="json", exclude_none=True)
    fields["data"].pop("cache", None)
    if "model" in fields.get("patching", {}):
        fields["patching"]["model"] = scorer
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def _rate(rule: PatchingRule, rows: Sequence[Int64[Tensor, " T"]]) -> float:
    """Mean bytes per patch."""
    patches = sum(int((patch(rule, row[None]).starts[0, :-1] & (row != BOS)).sum()) for row in rows)
    return sum(int((row >= OFFSET).sum()) for row in rows) / patches
