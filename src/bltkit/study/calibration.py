"""`blt calibrate`: the threshold that gives a wanted mean patch size on one's own text, stored with the model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bltkit.checkpoint import ScorerModule, load_bundle, resolve_model, store_rule
from bltkit.checkpoint.locate import EMBEDDED
from bltkit.data import read_documents
from bltkit.model import BoundaryModel
from bltkit.patching import BothRule, PatchingRule, RiseRule, ThresholdRule, parse_rule
from bltkit.patching.calibrate import calibrate, tuned_field
from bltkit.vocab import encode

SAMPLE_BYTES = 400_000
"""Text that is calibrated on: the error of a mean patch size from so much is well below one per cent."""

PIECE_BYTES = 16_384
"""Longest stretch taken from one document, so that one long book does not decide alone."""


@dataclass(frozen=True)
class Calibration:
    """What was found: the rule with its threshold, and the mean patch size that it gives on the sample."""

    model: str
    rule: PatchingRule
    threshold: float
    mean_patch_bytes: float
    num_bytes: int
    stored: bool

    def to_json(self) -> dict[str, Any]:
        """As `blt calibrate --json` prints it."""
        return asdict(self) | {"rule": str(self.rule)}

    def summary(self) -> str:
        """One line for people."""
        place = f"stored in {self.model}" if self.stored else f"not stored: {self.model} belongs to the package"
        return f"{self.rule}: {self.mean_patch_bytes:.3f} bytes per patch on {self.num_bytes} bytes; {place}"


def calibrate_model(
    model: str,
    files: Sequence[str],
    patch_bytes: float,
    rule: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibrate MODEL's rule (or `rule`, of which only the kind and the other fields count) and store it there.

    files: sources as in `data.sources` (files, globs, jsonl, `stdlib`). An embedded model is measured, not changed.
    Raises ValueError for a model without a scorer, a rule without a threshold, or a target out of reach.
    """
    directory = resolve_model(model)
    bundle = load_bundle(directory)
    wanted = parse_rule(rule) if rule else bundle.rule or ThresholdRule(threshold=1.0)
    scorer = bundle.scorer
    if scorer is None or wanted.scores is None:
        raise ValueError(f"rule {wanted.kind!r} of {model} reads no scores: there is no threshold to calibrate")
    sample = list(sample_documents(files))
    ids, scores = [], []
    for number, document in enumerate(sample):
        row = encode(document)
        ids.append(row)
        scores.append(scorer.scores(row[None])[0])
        if progress is not None:
            progress(number + 1, len(sample))
    found, mean = calibrate(wanted, scores, ids, patch_bytes)
    stored = not model.startswith(EMBEDDED)
    if stored:
        others = _calibrated(scorer, scores, ids, patch_bytes)
        store_rule(directory, found, {"calibrated": others, "calibrated_patch_bytes": patch_bytes})
    return Calibration(
        model=model,
        rule=found,
        threshold=getattr(found, tuned_field(found) or ""),
        mean_patch_bytes=mean,
        num_bytes=sum(len(document) for document in sample),
        stored=stored,
    )


def _calibrated(
    scorer: ScorerModule, scores: Sequence[Tensor], ids: Sequence[Tensor], patch_bytes: float
) -> dict[str, str]:
    """Every entropy rule at the same mean patch size, so that pictures compare like with like."""
    if isinstance(scorer, BoundaryModel):
        return {}
    found = {"entropy": calibrate(ThresholdRule(threshold=1.0), scores, ids, patch_bytes)[0]}
    with contextlib.suppress(ValueError):  # not every mean is within reach of a rise
        found["rise"] = calibrate(RiseRule(rise=0.5), scores, ids, patch_bytes)[0]
        # Half of its borders' bytes are to pass by entropy alone: then both conditions matter.
        gentle = calibrate(RiseRule(rise=0.5), scores, ids, max(1.0, patch_bytes / 1.5))[0]
        both = BothRule(threshold=1.0, rise=cast(RiseRule, gentle).rise)
        found["both"] = calibrate(both, scores, ids, patch_bytes)[0]
    return {name: str(rule) for name, rule in found.items()}


def sample_documents(files: Sequence[str], num_bytes: int = SAMPLE_BYTES) -> Iterator[bytes]:
    """Stretches of the sources' documents, the same each time: every n-th document, from its middle."""
    documents = [document.data for document in read_documents(files)]
    sizes = torch.tensor([min(len(data), PIECE_BYTES) for data in documents])
    step = max(1, int(sizes.sum()) // num_bytes)
    for data in documents[:: min(step, len(documents))]:
        begin = max(0, (len(data) - PIECE_BYTES) // 2)
        yield data[begin : begin + PIECE_BYTES]
