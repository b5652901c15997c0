"""The work of a process that annotates: load the entropy model, compute a shard, write it, note that it is finished.

`compute_shard` is the one function that makes shards, whatever the engine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bltkit.annotate.annotation_plan import AnnotationPlan, ShardPlan, ShardReader
from bltkit.annotate.batched_scoring import entropies_of
from bltkit.checkpoint import load_bundle, resolve_model, write_atomic
from bltkit.checkpoint.intact import sha256
from bltkit.compute import device_of
from bltkit.data.sources.shards import AnnotatedDocument, Cut, EntropyType, ShardEntry, cut, shard_name, write_shard
from bltkit.model import BoundaryModel, CnnEntropy, EntropyModel, EntropyTable, Scorer
from bltkit.patching import PatchingRule

NEAR = 1e-4
"""Nats. Where stored and recomputed entropies are on different sides of a threshold, they are nearer to it than
this."""


@dataclass(frozen=True)
class ShardWork:
    """All that a process needs to compute shards; plain values that travel to other machines."""

    out: str
    model: str
    scorer_sha256: str
    rule: PatchingRule | None
    dtype: EntropyType
    device: str
    plan: AnnotationPlan


def load_scorer(model: str, device: str) -> tuple[EntropyModel | CnnEntropy | EntropyTable, PatchingRule | None]:
    """The entropy model of MODEL in float32 on `device`, and the rule stored with it, if entropies decide it.

    Raises ValueError where MODEL holds none, or there is no such device.
    """
    bundle = load_bundle(resolve_model(model), dtype=torch.float32, device=device_of(device))
    scorer = bundle.scorer
    if scorer is None:
        raise ValueError(f'{model} holds no entropy model; train one (model.kind = "entropy") and name it')
    if isinstance(scorer, BoundaryModel):
        raise ValueError(
            f"{model} is a boundary model, which has no entropies; train with it directly (patching.model), its "
            "scores are computed as the text is read"
        )
    rule = bundle.rule
    return scorer.eval(), None if rule is None or rule.scores == "boundary" or not rule.streams else rule


def compute_shard(
    work: ShardWork, scorer: Scorer, documents: ShardReader, shard: ShardPlan, workers: int, tell: Any
) -> int:
    """Compute one shard, write its file and then the note that it is finished; returns its bytes of text.

    The one function that makes shards, whatever the engine.
    """
    read = documents.read(shard)
    texts = [document.data for document in read]
    entropies = entropies_of(scorer, texts, workers=workers, device=work.device, progress=tell)
    cuts: list[Cut | None] = [None] * len(read)
    if work.rule is not None:
        cuts = [*cut(work.rule, texts, entropies)]
    rows = [
        AnnotatedDocument(document, values, *(one or (None, None)))
        for document, values, one in zip(read, entropies, cuts, strict=True)
    ]
    path = Path(work.out) / shard_name(shard.number)
    write_shard(path, rows, work.dtype)
    entry = ShardEntry(
        file=path.name,
        source=shard.source,
        documents=shard.documents,
        bytes=shard.bytes,
        patches=None if work.rule is None else sum(len(one.starts) for one in cuts if one is not None),
        near_threshold=0 if work.rule is None else sum(near_threshold(work.rule, values) for values in entropies),
        content=shard.content,
        sha256=sha256(path),
    )
    write_atomic(note_of(Path(work.out), shard.number), entry.model_dump_json().encode())
    return shard.bytes


def near_threshold(rule: PatchingRule, entropies: npt.NDArray[np.float32]) -> int:
    """Of a document's decisions: those that a change of `NEAR` nats could turn."""
    decisive = entropies[1:].astype(np.float64)  # the first byte opens a patch whatever its entropy
    near = np.zeros(len(decisive), dtype=np.bool_)
    if rule.scores == "entropy":
        fields = type(rule).model_fields
        if "threshold" in fields:
            near |= np.abs(decisive - rule.threshold) < NEAR  # type: ignore[attr-defined]
        if "rise" in fields:
            near |= np.abs(np.diff(entropies.astype(np.float64)) - rule.rise) < NEAR  # type: ignore[attr-defined]
    return int(near.sum())


def note_of(out: Path, number: int) -> Path:
    """The file that says that shard `number` is finished, until the manifest does."""
    return out / shard_name(number).replace(".parquet", ".json")
