"""Where a BLT's patches come from while it trains: the `[patching]` section as a scorer and a rule."""

from torch import Tensor

from bltkit.checkpoint import Bundle, load_bundle, resolve_model
from bltkit.model import BoundaryModel
from bltkit.patches import Patches
from bltkit.patching import PatchingRule
from bltkit.train.config import TrainConfig
from bltkit.vocab import OFFSET


def load_patcher(config: TrainConfig) -> Bundle:
    """The scorer and the rule of a BLT's run; empty for other models.

    Raises ValueError for a rule that is missing, looks ahead, or does not go with the scorer.
    """
    section = config.patching
    if config.model.kind != "blt":
        return Bundle(None, None, None, {})
    source = Bundle(None, None, None, {}) if section.model is None else load_bundle(resolve_model(section.model))
    rule: PatchingRule | None = section.rule or source.rule
    if rule is None:
        raise ValueError(
            f"{section.model} stores no rule: run `blt calibrate --model {section.model}`, or set patching.rule"
        )
    if not rule.streams:
        raise ValueError(
            f"patching.rule = {rule.kind!r} needs to see the byte it decides about, so no model can be trained with it"
        )
    if rule.scores is None:
        return Bundle(None, None, rule, source.record)
    scorer = source.scorer
    if scorer is None:
        raise ValueError(f"patching.rule = {rule.kind!r} reads {rule.scores} scores: set patching.model")
    if (rule.scores == "boundary") != isinstance(scorer, BoundaryModel):
        raise ValueError(
            f"patching.rule = {rule.kind!r} reads {rule.scores} scores, but patching.model = {section.model!r} is "
            f"{'a boundary' if isinstance(scorer, BoundaryModel) else 'an entropy'} model"
        )
    return Bundle(None, scorer, rule, source.record)


def count_text_patches(ids: Tensor, patches: Patches | None) -> Tensor:
    """Patches that a byte of text opens, not BOS or EOS: what mean_patch_bytes divides by."""
    if patches is None:
        return ids.new_zeros(())
    return (patches.own_starts & (ids >= OFFSET)).sum()
