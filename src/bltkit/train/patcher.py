"""Where a BLT's patches come from while it trains: the `[patching]` section as a scorer and a rule.

Three ways lead to the same starts. Annotated text brings them along; else the scorer reads each batch, on the training
device or, where the loader has workers and the section says so, in them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bltkit.checkpoint import Bundle, ScorerModule, load_bundle, resolve_model
from bltkit.checkpoint.manifest import scorer_hash
from bltkit.data import Batch, SourceConfig
from bltkit.data.sources.annotated import AnnotatedSource
from bltkit.model import BltConfig, BoundaryModel, RoutedBlt
from bltkit.patches import Patches
from bltkit.patching import PatchingRule, patch
from bltkit.train.config import TrainConfig
from bltkit.train.objectives import LearnedBoundary, TokenBoundary
from bltkit.vocab import OFFSET


@dataclass(frozen=True)
class Patcher:
    """A rule and the scorer that it listens to; neither for models without patches."""

    rule: PatchingRule | None = None
    scorer: ScorerModule | None = None
    record: dict[str, Any] = field(default_factory=dict)
    """Of the scorer's training."""
    documents: bool = True
    """Does a BOS inside a row begin a new document."""

    def on(self, device: torch.device) -> "Patcher":
        """With the scorer moved there."""
        if self.scorer is not None:
            cast(nn.Module, self.scorer).to(device).eval()
        return self

    def of(self, model: nn.Module) -> "Patcher":
        """For a model: one with a router listens to that."""
        return replace(self, scorer=model.router) if isinstance(model, RoutedBlt) else self

    def source(self, source: SourceConfig) -> SourceConfig:
        """A source for this run: text that was annotated has to be cut by this rule and this scorer."""
        if self.rule is None or not isinstance(source, AnnotatedSource):
            return source
        return source.for_model(None if self.scorer is None else scorer_hash(self.scorer), self.rule)

    def patches(self, batch: Batch, device: torch.device, row_patches: int | None = None) -> Patches:
        """Of a batch on the CPU, whose own starts count if it has some.

        row_patches: size of the patch axis, so that shapes stay the same; a batch that needs more gets more.
        """
        found = self._stored(batch).to(device) if batch.opens is not None else self._scored(batch, device)
        return found if row_patches is None else replace(found, max_patches=max(row_patches, found.max_patches))

    def opens(self, batch: Batch) -> Batch:
        """The batch with the rule's answers: what a loader's worker does for it."""
        patches = self._scored(batch, torch.device("cpu"))
        return replace(batch, opens=patches.starts[:, 1:])

    def _stored(self, batch: Batch) -> Patches:
        assert batch.starts is not None
        return Patches.from_starts(batch.starts, batch.num_bytes)

    def _scored(self, batch: Batch, device: torch.device) -> Patches:
        assert self.rule is not None
        ids, num_bytes = batch.ids.to(device), batch.num_bytes.to(device)
        scores = None
        if self.rule.scores is not None:
            assert self.scorer is not None
            scores = self.scorer.scores(ids)
        return patch(self.rule, ids, scores, num_bytes, documents=self.documents)


def load_patcher(config: TrainConfig) -> Patcher:
    """The scorer and the rule of a BLT's run; nothing for other models.

    Raises ValueError for a rule that is missing, looks ahead, or does not go with the scorer.
    """
    section = config.patching
    if config.model.kind != "blt":
        return Patcher()
    if isinstance(config.objective, LearnedBoundary):
        return _learned(config, config.objective)
    source = (
        Bundle(None, None, None, {})
        if section.model is None
        else load_bundle(resolve_model(section.model), weights="fp32")
    )
    rule: PatchingRule | None = section.rule or source.rule
    if rule is None:
        raise ValueError(
            f"{section.model} stores no rule: run `blt calibrate --model {section.model}`, or set patching.rule"
        )
    if not rule.streams:
        raise ValueError(
            f"patching.rule = {rule.kind!r} needs to see the byte it decides about, so no model can be trained with it"
        )
    documents = config.model.document_masks
    if rule.scores is None:
        return Patcher(rule, None, source.record, documents)
    scorer = source.scorer
    if scorer is None:
        raise ValueError(f"patching.rule = {rule.kind!r} reads {rule.scores} scores: set patching.model")
    if (rule.scores == "boundary") != isinstance(scorer, BoundaryModel):
        raise ValueError(
            f"patching.rule = {rule.kind!r} reads {rule.scores} scores, but patching.model = {section.model!r} is "
            f"{'a boundary' if isinstance(scorer, BoundaryModel) else 'an entropy'} model"
        )
    return Patcher(rule, scorer, source.record, documents)


def _learned(config: TrainConfig, objective: LearnedBoundary) -> Patcher:
    """Without its scorer: that is part of the model, see `Patcher.of`."""
    assert isinstance(config.model, BltConfig)
    for source in config.data.sources:
        if isinstance(source, AnnotatedSource):
            raise ValueError(
                f"{source.label} has its patches already, but objective.kind = 'learned-boundary' makes its own; "
                "train from the text itself"
            )
    return Patcher(objective.rule, None, documents=config.model.document_masks)


def input_digests(config: TrainConfig, patcher: Patcher) -> dict[str, str]:
    """By key of the config: digests of what it names by path and a step depends on, wherever that lies."""
    digests = {}
    if patcher.rule is not None:
        digests["patching.rule"] = json.dumps(patcher.rule.model_dump(mode="json"), sort_keys=True)
    if patcher.scorer is not None:
        digests["patching.model"] = scorer_hash(patcher.scorer)
    if isinstance(config.objective, TokenBoundary):
        data = Path(config.objective.tokenizer).expanduser().read_bytes()
        digests["objective.tokenizer"] = hashlib.sha256(data).hexdigest()
    return digests


def check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises ValueError where a run would go on with another rule, scorer or tokenizer than it began with."""
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            raise ValueError(
                f"{key}: what it stands for is not what this run was trained with so far ({now[key][:60]}, before "
                f"{before[key][:60]}); set it back, or start another run with --out"
            )


def count_text_patches(ids: Tensor, patches: Patches | None) -> Tensor:
    """Patches that a byte of text opens, not BOS or EOS: what mean_patch_bytes divides by."""
    if patches is None:
        return ids.new_zeros(())
    return (patches.own_starts & (ids >= OFFSET)).sum()
