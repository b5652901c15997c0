"""All patching schemes of the paper under one another, for one text (BLT Figure 3).

How a scheme cuts a text decides how often the latent transformer runs, which is most of a BLT's cost: patches of
twice the size halve it. Thresholds come from the model and its record, never from the text that is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from bltkit.checkpoint import Bundle, load_bundle
from bltkit.config import nearest
from bltkit.cost.formulas.operations import exact_flops
from bltkit.model import RELEASED_THRESHOLD, BltConfig, BoundaryModel, EntropyModel, EntropyTable, Scorer
from bltkit.patching import (
    BothRule,
    BpeOracleRule,
    ByteRule,
    PatchingRule,
    RiseRule,
    SpaceRule,
    StrideRule,
    ThresholdRule,
    parse_rule,
)
from bltkit.patching.patched import PatchedText, ScoresOf, patch_text
from bltkit.vocab import encode

STRIDE = 4.0
"""MegaByte's patches, as in the paper's figure."""

RISE = 0.1
"""Rise, in nats, where none was calibrated: the paper's for evaluation (BLT 4.4, docs/model.md 4.4)."""

CONTEXT = 8192
"""Bytes in the row that is priced, where the model's record does not name its training row."""


@dataclass(frozen=True)
class Scheme:
    """One row: a scheme and what it made of the text."""

    name: str
    title: str
    patched: PatchedText
    latent_flops: float | None
    """Forward operations of the latent transformer per byte of text at this row's mean patch size; None without a
    model."""

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        patched = self.patched
        return {
            "name": self.name,
            "title": self.title,
            "rule": str(patched.rule),
            "num_patches": len(patched.starts),
            "mean_patch_bytes": patched.mean_patch_bytes,
            "largest_patch_bytes": patched.largest,
            "border_rate": patched.border_rate,
            "global_flops_per_byte": self.latent_flops,
            "starts": list(patched.starts),
        }


@dataclass(frozen=True)
class LeftOut:
    """A scheme that could not be applied, and why."""

    name: str
    title: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """One text under every scheme."""

    data: bytes
    schemes: tuple[Scheme, ...]
    left_out: tuple[LeftOut, ...]
    context: int
    """Bytes in the row that the operations are counted for."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: `schemes`, `left_out` with reasons, and what the operations are counted for."""
        return {
            "num_bytes": len(self.data),
            "context": self.context,
            "schemes": [scheme.to_json() for scheme in self.schemes],
            "left_out": [{"name": row.name, "title": row.title, "reason": row.reason} for row in self.left_out],
        }


def compare_bundle(data: bytes, bundle: Bundle, *, tokenizer: str | Path | None = None) -> Comparison:
    """`compare` for a loaded checkpoint, priced for its training row.

    The CNN entropies, their threshold and, unless one is named, the BPE tokenizer are the package's own. The record's
    `calibrated` may hold rules as text by row name.
    """
    package = Path(str(files("bltkit"))) / "embedded" / "schemes"
    calibrated = {
        name: parse_rule(rule, f"calibrated.{name}") for name, rule in bundle.record.get("calibrated", {}).items()
    }
    cnn: EntropyTable | None = None
    if (package / "cnn").is_dir():
        own = load_bundle(package / "cnn")
        assert isinstance(own.scorer, EntropyTable), "the package's CNN entropies are a table"
        cnn = own.scorer
        calibrated = ({} if own.rule is None else {"cnn": own.rule}) | calibrated
    return compare(
        data,
        config=None if bundle.model is None else bundle.model.config,
        scorer=bundle.scorer,
        rule=bundle.rule,
        calibrated=calibrated,
        cnn=cnn,
        tokenizer=tokenizer or package / "bpe.json",
        context=int(bundle.record.get("row_bytes", CONTEXT)),
    )


def compare(
    data: bytes,
    *,
    config: BltConfig | None,
    scorer: Scorer | None,
    rule: PatchingRule | None = None,
    calibrated: Mapping[str, PatchingRule] | None = None,
    cnn: EntropyTable | None = None,
    tokenizer: str | Path | None = None,
    context: int = CONTEXT,
) -> Comparison:
    """Cut `data` by every scheme: byte, stride, BPE, space, entropy, rise, both, CNN, and entropy with newline reset.

    config: the model whose latent transformer is priced; None leaves the price out.
    scorer: its entropy model; without one the rows that need entropies are left out.
    rule: the model's own rule. It stands in the row of its kind, and gives its threshold to the rows that have none
        of their own; a kind without a row here is added as `own`.
    calibrated: rules calibrated to the same mean patch size, by row name (`entropy`, `rise`, `both`, `cnn`), where
        the model's record has some. Without, rows take the threshold of `rule` (else the released models') and RISE.
    cnn: entropies of a CNN model. tokenizer: a tokenizer.json, for the BPE row. context: bytes in a priced row.

    Rows that cannot be made are listed in `left_out` with the reason. Raises ValueError for an empty text, and where
    `rule` itself cannot be applied.
    """
    if not data:
        raise ValueError("the text is empty; patching schemes are compared on at least one byte")
    rules = _rules(rule, calibrated or {})
    rows: list[Scheme | LeftOut] = []

    def add(name: str, title: str, scheme: PatchingRule, scores_of: ScoresOf | None = None) -> None:
        patched = patch_text(data, scheme, scores_of)
        flops = None if config is None else exact_flops(config, patched.mean_patch_bytes, context)["latent"]
        rows.append(Scheme(name, title, patched, flops))

    def skip(name: str, title: str, reason: str) -> None:
        rows.append(LeftOut(name, title, reason))

    add("byte", "Bytes", rules["byte"])
    add("stride", "Stride", rules["stride"])
    if isinstance(rule, BpeOracleRule):
        add("bpe", "BPE", rule)
    elif tokenizer is None:
        skip("bpe", "BPE", "no tokenizer.json was named")
    else:
        try:
            add("bpe", "BPE", BpeOracleRule(tokenizer=str(tokenizer)))
        except ValueError as error:
            skip("bpe", "BPE", str(error))
    add("space", "Space", rules["space"])

    entropies, missing = _entropies(scorer, data)
    for name, title in (("entropy", "Entropy"), ("rise", "Rise"), ("both", "Both")):
        if entropies is None:
            skip(name, title, missing)
        else:
            add(name, title, rules[name], entropies)
    if cnn is None:
        skip("cnn", "CNN entropy", "no CNN entropy table was given")
    else:
        add("cnn", "CNN entropy", rules["cnn"], _scores_of(cnn))
    resetting = _with_newline_reset(scorer)
    if resetting is not None and b"\n" in data:
        add("newline", "Newline reset", rules["entropy"], _scores_of(resetting))
    elif resetting is not None:
        skip("newline", "Newline reset", "without a newline in the text it equals the entropy row")
    if rule is not None and rule.kind not in _ROW_OF and rule.kind != "bpe-oracle":
        add("own", "This model", rule, None if scorer is None else _scores_of(scorer))
    schemes = tuple(row for row in rows if isinstance(row, Scheme))
    return Comparison(data, schemes, tuple(row for row in rows if isinstance(row, LeftOut)), context)


_ROW_OF = {kind: kind for kind in ("byte", "stride", "space", "rise", "both")} | {"threshold": "entropy"}
"""Kind of a rule -> the row that shows it."""


def _rules(own: PatchingRule | None, calibrated: Mapping[str, PatchingRule]) -> dict[str, PatchingRule]:
    """Rule of every row: the model's own, else a calibrated one, else the default."""
    threshold, rise = RELEASED_THRESHOLD, RISE
    if own is not None and own.scores == "entropy":
        threshold, rise = getattr(own, "threshold", threshold), getattr(own, "rise", rise)
    defaults: dict[str, PatchingRule] = {
        "byte": ByteRule(),
        "stride": StrideRule(k=STRIDE),
        "space": SpaceRule(),
        "entropy": ThresholdRule(threshold=threshold),
        "rise": RiseRule(rise=rise),
        "both": BothRule(threshold=threshold, rise=rise),
        "cnn": ThresholdRule(threshold=threshold),
    }
    for name in calibrated:
        if name not in defaults:
            raise ValueError(f"calibrated: no row {name!r}{nearest(name, list(defaults))}")
    row = None if own is None else _ROW_OF.get(own.kind)
    return defaults | dict(calibrated) | ({} if own is None or row is None else {row: own})


def _entropies(scorer: Scorer | None, data: bytes) -> tuple[ScoresOf | None, str]:
    """The entropies of `data`, computed once for several rows; or why there are none."""
    if scorer is None:
        return None, "the model has no entropy model"
    if isinstance(scorer, BoundaryModel):
        return None, "the model's scorer predicts token borders, not entropies"
    scores = _scores_of(scorer)(encode(data)[None])
    return lambda ids: scores, ""


def _scores_of(scorer: Scorer) -> ScoresOf:
    """`scorer.scores`, wherever its weights are."""
    if not isinstance(scorer, nn.Module):
        return scorer.scores
    device = next(scorer.parameters()).device
    return lambda ids: scorer.scores(ids.to(device))


def _with_newline_reset(scorer: Scorer | None) -> EntropyModel | None:
    """`scorer`, same weights, with a context that begins anew at every newline (BLT 4.4)."""
    if not isinstance(scorer, EntropyModel) or scorer.config.reset_at_newline:
        return None
    resetting = EntropyModel(scorer.config.replace(reset_at_newline=True))
    resetting.load_state_dict(scorer.state_dict(), assign=True)
    return resetting.eval()
