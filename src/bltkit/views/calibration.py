"""`blt calibrate`: the threshold that gives a wanted mean patch size on one's own text, stored with the model.

The scores are computed for a sample of files, or taken from annotated shards of the same model, which costs nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bltkit.checkpoint import Bundle, ScorerModule, resolve_model, scorer_hash, store_rule
from bltkit.checkpoint.fetch import HUB
from bltkit.checkpoint.locate import EMBEDDED
from bltkit.data.samples import SAMPLE_BYTES, sample_documents, stretches
from bltkit.data.sources import AnnotatedSource
from bltkit.data.sources.annotated import check_dtype
from bltkit.data.sources.shards import AnnotatedDocument, ShardFile
from bltkit.generate.open_bundle import open_bundle
from bltkit.model import BoundaryModel
from bltkit.patching import BothRule, PatchingRule, RiseRule, ThresholdRule, parse_rule
from bltkit.patching.calibrate import calibrate, tuned_field
from bltkit.vocab import encode

MAX_READ_BYTES = 100_000_000
"""Text of annotated shards that is looked at for a sample; of more, row groups spread evenly over it."""


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
        owner = "lies in the hub's cache" if self.model.startswith(HUB) else "belongs to the package"
        place = f"stored in {self.model}" if self.stored else f"not stored: {self.model} {owner}"
        return f"{self.rule}: {self.mean_patch_bytes:.3f} bytes per patch on {self.num_bytes} bytes; {place}"


def calibrate_model(
    model: str,
    files: Sequence[str],
    patch_bytes: float,
    rule: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    annotated: str | Path | None = None,
    device: "str | torch.device" = "cpu",
    weights: str | None = None,
    scorer_weights: str | None = None,
) -> Calibration:
    """Calibrate MODEL's rule (or `rule`, of which only the kind and the other fields count) and store it there.

    files: sources as in `data.sources` (files, globs, jsonl, `stdlib`).
    annotated: a directory of `blt annotate`, made with this model, in place of files; the model does not run then.
    device: what scores the text, in fp32 unless forms are given. weights, scorer_weights: as for `open_bundle`; the
    threshold then is that of entropies in this form.
    A model of the package or of the hub's cache is measured, not changed.

    Raises ValueError for a model without a scorer, a rule without a threshold, shards of another model, or a target
    out of reach.
    """
    if (annotated is None) == (not files):
        raise ValueError("give --files or --annotated, one of them")
    directory = resolve_model(model)
    formed = weights is not None or scorer_weights is not None or torch.device(device).type == "cpu"
    dtype = None if formed else torch.float32
    bundle = open_bundle(directory, dtype=dtype, device=device, weights=weights, scorer_weights=scorer_weights)
    wanted = tunable_rule(bundle, model, rule)
    scorer = bundle.scorer
    assert scorer is not None
    exact = True
    if annotated is None:
        ids, scores = score_documents(scorer, list(sample_documents(files)), progress)
    else:
        source = AnnotatedSource(path=str(annotated))
        source.for_model(scorer_hash(scorer), None)
        if wanted.scores != "entropy":
            raise ValueError(f"rule {wanted.kind!r} reads {wanted.scores} scores, but {annotated} holds entropies")
        exact = source.manifest.dtype == "fp32"
        if not isinstance(wanted, ThresholdRule):  # whose new threshold will be a snapped one
            check_dtype(wanted, source.manifest.dtype, str(annotated))
        ids, scores = _stored(source)
    found, mean = calibrate(wanted, scores, ids, patch_bytes)
    stored = not model.startswith((EMBEDDED, HUB))  # whose files are not the user's to change
    if stored:
        others = _calibrated(scorer, scores, ids, patch_bytes, exact)
        store_rule(directory, found, {"calibrated": others, "calibrated_patch_bytes": patch_bytes})
    return Calibration(
        model=model,
        rule=found,
        threshold=getattr(found, tuned_field(found) or ""),
        mean_patch_bytes=mean,
        num_bytes=sum(len(row) - 1 for row in ids),
        stored=stored,
    )


def tunable_rule(bundle: Bundle, model: str, rule: str | None = None) -> PatchingRule:
    """The rule whose threshold is sought: `rule`, else the bundle's, else a threshold on entropies.

    model: its name, for the message. Raises ValueError for a rule without a threshold, or without its scorer.
    """
    wanted = parse_rule(rule) if rule else bundle.rule or ThresholdRule(threshold=1.0)
    if bundle.scorer is None or wanted.scores is None:
        raise ValueError(f"rule {wanted.kind!r} of {model} reads no scores: there is no threshold to calibrate")
    return wanted


def score_documents(
    scorer: ScorerModule, documents: Sequence[bytes], progress: Callable[[int, int], None] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Ids of each document, BOS in front, and the scores of its predictions, both on the CPU.

    progress: told (documents done, documents in all).
    """
    ids, scores = [], []
    device = next(scorer.parameters()).device
    for number, document in enumerate(documents):
        row = encode(document)
        ids.append(row)
        scores.append(scorer.scores(row[None].to(device))[0].cpu())
        if progress is not None:
            progress(number + 1, len(documents))
    return ids, scores


def _stored(source: AnnotatedSource) -> tuple[list[Tensor], list[Tensor]]:
    """Ids and entropies of a sample of annotated documents, read.

    Of the same stretches as `sample_documents` takes, where the shards hold no more than `MAX_READ_BYTES`. The
    entropies of a stretch out of the middle are those that training will see, with all that stands before it known.
    """
    documents = list(_some_documents(source))
    ids, scores = [], []
    for number, begin, end in stretches(list(accumulate(len(row.document.data) for row in documents)), SAMPLE_BYTES):
        row = documents[number]
        ids.append(encode(row.document.data[begin:end]))
        scores.append(torch.from_numpy(row.entropies[begin : end + 1]))
    return ids, scores


def _some_documents(source: AnnotatedSource) -> Iterator[AnnotatedDocument]:
    """All documents, or those of every n-th row group where that would be too much to hold."""
    entries = source.entries()
    step = -(-sum(entry.bytes for entry in entries) // MAX_READ_BYTES)
    number = 0
    for entry in entries:
        # A sample is not worth reading the files whole: there, checksums of pages have to do.
        shard = ShardFile(source.directory / entry.file, entry if step <= 1 else None)
        with contextlib.closing(shard):
            for group in range(shard.num_groups):
                if number % step == 0:
                    yield from shard.group(group)
                number += 1


def _calibrated(
    scorer: ScorerModule, scores: Sequence[Tensor], ids: Sequence[Tensor], patch_bytes: float, exact: bool
) -> dict[str, str]:
    """Every entropy rule at the same mean patch size, so that pictures compare like with like."""
    if isinstance(scorer, BoundaryModel):
        return {}
    found = {"entropy": calibrate(ThresholdRule(threshold=1.0), scores, ids, patch_bytes)[0]}
    if not exact:  # rounded entropies do not give the differences that the other rules compare
        return {name: str(rule) for name, rule in found.items()}
    with contextlib.suppress(ValueError):  # not every mean is within reach of a rise
        found["rise"] = calibrate(RiseRule(rise=0.5), scores, ids, patch_bytes)[0]
        # Half of its borders' bytes are to pass by entropy alone: then both conditions matter.
        gentle = calibrate(RiseRule(rise=0.5), scores, ids, max(1.0, patch_bytes / 1.5))[0]
        both = BothRule(threshold=1.0, rise=cast(RiseRule, gentle).rise)
        found["both"] = calibrate(both, scores, ids, patch_bytes)[0]
    return {name: str(rule) for name, rule in found.items()}
