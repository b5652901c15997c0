"""Entropy model that all trainings of the study share, and a calibrated threshold for each mean patch size.

Both are computed once, from training documents alone. Of several processes one computes them, and the others wait.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from bltkit.checkpoint import load_bundle, resolve_model, scorer_hash, write_atomic
from bltkit.config import parse
from bltkit.data import Corpus
from bltkit.files import read_json_object
from bltkit.model import EntropyModel
from bltkit.patching import ThresholdRule
from bltkit.patching.calibrate import calibrate
from bltkit.study.scaling.scaling_plan import ScalingPlan, ScorerTraining, digest
from bltkit.study.study import StudyRun
from bltkit.train import TrainConfig
from bltkit.vocab import encode

PREPARED = "prepared.json"
SCORER = "scorer"
CORPUS = "corpus"

_BASIS = {
    *("scorer", "sources", "validation_fraction", "row_bytes", "batch_rows"),
    *("calibration_bytes", "precision", "threads"),
}
_PIECE = 1000
"""Bytes of a stretch of text to calibrate on, about as long as a row."""


@dataclass(frozen=True)
class Prepared:
    """Contents of prepared.json.

    scorer: a MODEL; None where no family reads entropies. fingerprint: hash of its weights. rules: rule by patch size.
    reached: mean bytes per patch on the sample. bits_per_byte, train_flops: results of the scorer's own training, if
    the study trained it; these FLOPs are reported apart and count towards no budget.
    """

    scorer: str | None
    fingerprint: str | None
    rules: dict[str, str]
    reached: dict[str, float]
    bits_per_byte: float | None = None
    train_flops: float | None = None
    basis: str = ""

    def rule(self, patch_bytes: float | None) -> str | None:
        """The rule of a patch size; None without one."""
        return None if patch_bytes is None else self.rules.get(f"{patch_bytes:g}")


def prepare(plan: ScalingPlan, patches: Sequence[float], run: StudyRun) -> Prepared:
    """Entropy model and thresholds of patch sizes, from the study's directory or computed where they are missing.

    Raises ValueError where the directory holds those of another text or entropy model.
    """
    out = run.out
    basis = digest(plan.model_dump(mode="json", include=_BASIS))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".prepare.lock"):
        prepared = _read(out / PREPARED) or Prepared(None, None, {}, {}, basis=basis)
        if prepared.basis != basis:
            raise ValueError(
                f"--out {out} was begun with another text or entropy model ({PREPARED}); use a new --out, or "
                "restore the original plan"
            )
        missing = [patch for patch in patches if prepared.rule(patch) is None]
        if missing:
            if prepared.scorer is None:
                prepared = _with_scorer(plan, run, basis)
            prepared = _calibrated(plan, prepared, missing, out)
            write_atomic(out / PREPARED, (json.dumps(asdict(prepared), indent=1) + "\n").encode())
        return prepared


def scorer_config(plan: ScalingPlan, out: Path) -> TrainConfig:
    """Training config of the study's own entropy model."""
    assert isinstance(plan.scorer, ScorerTraining)
    fields: dict[str, Any] = {
        "model": plan.scorer.model(),
        "data": plan.data(out / CORPUS),
        "optim": {"lr": plan.scorer.lr, "warmup_steps": plan.warmup_steps, "min_lr_ratio": plan.min_lr_ratio},
        "trainer": {
            "max_steps": plan.scorer.steps,
            "threads": plan.threads,
            "device": plan.device,
            "precision": plan.precision,
            "log_every": 50,
            "validation_batches": plan.validation_batches,
        },
    }
    config: TrainConfig = parse(TrainConfig, fields, "the entropy model")
    return config


def _with_scorer(plan: ScalingPlan, run: StudyRun, basis: str) -> Prepared:
    bits = flops = None
    name = plan.scorer
    if isinstance(name, ScorerTraining):
        run.say(f"training the entropy model, {name.steps} steps")
        result = run.train(scorer_config(plan, run.out), run.out / SCORER, resume=True, say=lambda line: None)
        if result.interrupted:
            raise KeyboardInterrupt
        name, bits, flops = str(run.out / SCORER), result.bits_per_byte, result.train_flops
    scorer = load_bundle(resolve_model(name)).scorer
    if not isinstance(scorer, EntropyModel):
        raise ValueError(f"scorer = {name!r} holds no entropy model")
    return Prepared(name, scorer_hash(scorer), {}, {}, bits, flops, basis)


def _calibrated(plan: ScalingPlan, prepared: Prepared, patches: list[float], out: Path) -> Prepared:
    assert prepared.scorer is not None
    scorer = cast(EntropyModel, load_bundle(resolve_model(prepared.scorer)).scorer)
    corpus = Corpus.from_sources(list(plan.sources), plan.validation_fraction, directory=out / CORPUS)
    ids = [encode(piece) for piece in sample(corpus, plan.calibration_bytes)]
    scores = [scorer.scores(row[None])[0] for row in ids]
    rules, reached = dict(prepared.rules), dict(prepared.reached)
    for patch in patches:
        rule, mean = calibrate(ThresholdRule(threshold=1.0), scores, ids, patch)
        rules[f"{patch:g}"], reached[f"{patch:g}"] = str(rule), mean
    return replace(prepared, rules=rules, reached=reached)


def sample(corpus: Corpus, num_bytes: int) -> Iterator[bytes]:
    """Stretches of training documents, evenly spaced over all their bytes, about `num_bytes` in all."""
    pieces = [
        (int(document), begin)
        for document in corpus.train
        for begin in range(0, int(corpus.offsets[document + 1] - corpus.offsets[document]), _PIECE)
    ]
    count = min(len(pieces), max(1, num_bytes // _PIECE))
    for number in range(count):
        document, begin = pieces[(2 * number + 1) * len(pieces) // (2 * count)]
        yield corpus.document(document)[begin : begin + _PIECE]


def _read(path: Path) -> Prepared | None:
    if not path.exists():
        return None
    try:
        return Prepared(**read_json_object(path))
    except TypeError:
        raise ValueError(f"{path}: not the file of a study; remove it, or use a new --out") from None
