"""What all runs of the study share, made once: the entropy model, and a threshold for each mean patch size.

Both come from training documents alone. Who comes second waits for the first, and finds the file.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from bltkit.study.scaling.plan import ScalingPlan, ScorerTraining, Unit, digest, entropy_patches
from bltkit.train import Result, TrainConfig
from bltkit.vocab import encode

PREPARED = "prepared.json"
SCORER = "scorer"
CORPUS = "corpus"

_BASIS = {
    *("scorer", "sources", "validation_fraction", "row_bytes", "batch_rows"),
    *("calibration_bytes", "precision", "threads"),
}
_PIECE = 1000
"""Bytes of a stretch that is calibrated on: as a row would show them."""


@dataclass(frozen=True)
class Prepared:
    """scorer: a MODEL; None where no family reads entropies. fingerprint: of its weights. rules: by patch size.

    reached: mean bytes per patch on the sample. bits_per_byte, train_flops: of the scorer's own training, where the
    study did it; these FLOPs are told beside the study and count towards no budget.
    """

    scorer: str | None
    fingerprint: str | None
    rules: dict[str, str]
    reached: dict[str, float]
    bits_per_byte: float | None = None
    train_flops: float | None = None
    basis: str = ""

    def rule(self, patch_bytes: float | None) -> str | None:
        """The rule of a patch size; None where that needs none."""
        return None if patch_bytes is None else self.rules.get(f"{patch_bytes:g}")


def prepare(
    plan: ScalingPlan, units: Sequence[Unit], out: Path, train: Callable[..., Result], say: Callable[[str], None]
) -> Prepared:
    """What `out` holds for some units of the plan, made where it is missing.

    Raises ValueError where `out` holds that of another text or entropy model.
    """
    patches = entropy_patches(units)
    basis = digest(plan.model_dump(mode="json", include=_BASIS))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".prepare.lock"):
        known = _read(out / PREPARED)
        if known is not None and known.basis != basis:
            raise ValueError(
                f"--out {out} was begun with another text or entropy model ({PREPARED}); take another directory"
            )
        if not patches:
            return known or Prepared(None, None, {}, {}, basis=basis)
        missing = [patch for patch in patches if known is None or f"{patch:g}" not in known.rules]
        if known is not None and not missing:
            return known
        if known is None or known.scorer is None:
            known = _scorer(plan, out, train, say, basis)
        known = _calibrated(plan, known, missing, out)
        write_atomic(out / PREPARED, (json.dumps(asdict(known), indent=1) + "\n").encode())
        return known


def scorer_config(plan: ScalingPlan, out: Path) -> TrainConfig:
    """The training of the study's own entropy model."""
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
    found: TrainConfig = parse(TrainConfig, fields, "the entropy model")
    return found


def _scorer(
    plan: ScalingPlan, out: Path, train: Callable[..., Result], say: Callable[[str], None], basis: str
) -> Prepared:
    bits = flops = None
    name = plan.scorer
    if isinstance(name, ScorerTraining):
        say(f"training the entropy model, {name.steps} steps")
        result = train(scorer_config(plan, out), out / SCORER, resume=True, say=_quiet)
        if result.interrupted:
            raise KeyboardInterrupt
        name, bits, flops = str(out / SCORER), result.bits_per_byte, result.train_flops
    scorer = load_bundle(resolve_model(name)).scorer
    if not isinstance(scorer, EntropyModel):
        raise ValueError(f"scorer = {name!r} holds no entropy model")
    return Prepared(name, scorer_hash(scorer), {}, {}, bits, flops, basis)


def _calibrated(plan: ScalingPlan, known: Prepared, patches: list[float], out: Path) -> Prepared:
    assert known.scorer is not None
    scorer = cast(EntropyModel, load_bundle(resolve_model(known.scorer)).scorer)
    corpus = Corpus.from_sources(list(plan.sources), plan.validation_fraction, directory=out / CORPUS)
    ids = [encode(piece) for piece in sample(corpus, plan.calibration_bytes)]
    scores = [scorer.scores(row[None])[0] for row in ids]
    rules, reached = dict(known.rules), dict(known.reached)
    for patch in patches:
        rule, mean = calibrate(ThresholdRule(threshold=1.0), scores, ids, patch)
        rules[f"{patch:g}"], reached[f"{patch:g}"] = str(rule), mean
    return Prepared(**(asdict(known) | {"rules": rules, "reached": reached}))


def sample(corpus: Corpus, num_bytes: int) -> Iterator[bytes]:
    """Stretches of training documents, evenly spaced over all their bytes; all of them where there is no more."""
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
        raise ValueError(f"{path}: not what a study prepares; remove it, or take another directory") from None


def _quiet(line: str) -> None:
    """A run that begins anew is nothing to tell here."""
