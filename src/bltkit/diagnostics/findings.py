"""The single findings of `blt check`: each known way to go wrong, how it shows, what it comes from and what helps.

Between the measurements (`alignment`, `entropies`, `ngram`, `score`), which judge nothing, and `health`, which says
what is looked at in which order.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bltkit.checkpoint import Bundle
from bltkit.diagnostics.alignment import probe_alignment, probe_scorer
from bltkit.diagnostics.entropies import ScoredPieces, bytes_for_drift, drift, patch_sizes
from bltkit.diagnostics.finding import Finding, Status
from bltkit.diagnostics.ngram import ngram_nats
from bltkit.diagnostics.thresholds import PUBLISHED_PATCH_BYTES, tuned_to_record
from bltkit.eval.score import byte_scores, predictive_rule, window_shape
from bltkit.model import Blt, CnnEntropy, EntropyModel
from bltkit.model.quantize import FormedLinear, weight_bytes
from bltkit.patching.finite import finite

NGRAM_BYTES = 2_000_000
"""Most text that is looked at without a model, such as by the n-gram model."""
_LEAST_SAMPLE = 512

FREQUENT, SPARSE = 1.5, 16.0
"""Mean patch sizes in bytes outside of which a rule that listens to a model has lost its sense (released: 4.1-4.5)."""
DRIFT_WARNING, DRIFT_PROBLEM = 0.2, 0.5
"""Nats; released models have a mean entropy of 0.8 to 0.9."""
NGRAM_SLACK = 1.1
"""Share of the n-gram model's bits per byte above which a warning becomes a problem."""
RECORDED_SLACK = 0.25

WEIGHTS_AT_ONCE = 2**24
"""Numbers that are looked at together: what bounds the memory of a look at tables of any size."""


@dataclass(frozen=True)
class Sample:
    """`held_out` is run through the models, `rest` never is; `joined` is text in one piece. The latter two hold
    `NGRAM_BYTES` at most.
    """

    held_out: tuple[bytes, ...]
    rest: tuple[bytes, ...]
    joined: bytes

    @property
    def num_held_out(self) -> int:
        """Bytes that are held out."""
        return sum(map(len, self.held_out))


def weight_findings(bundle: Bundle, tell: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Finding]:
    """Is every weight a finite number. tell: told (bytes looked at, bytes in all)."""
    modules = [module for module in (bundle.model, bundle.scorer) if module is not None]
    total, done, broken = sum(map(weight_bytes, modules)), 0, 0
    for module in modules:
        for weight in module.parameters():
            for part in weight.detach().flatten().split(WEIGHTS_AT_ONCE):
                broken += part.numel() - int(part.isfinite().sum())
                done += part.nbytes
                tell(done, total)
        for matrix in module.modules():  # a matrix in another form is no parameter
            if isinstance(matrix, FormedLinear):
                broken += int((~matrix.weight.isfinite()).sum())
                done += matrix.num_bytes
                tell(done, total)
    yield Finding(
        "weights",
        "problem" if broken else "ok",
        float(broken),
        "0 weights that are not finite",
        "training diverged, or the file is damaged; nothing else was checked",
        "take an earlier checkpoint and lower optim.lr, or copy the file again",
    )


def alignment_findings(model: Blt) -> Iterator[Finding]:
    """Do bytes, patches and latents meet where they should, and does nothing see the future."""
    found = probe_alignment(model)
    code = "the code that aligns bytes and patches is changed or broken; see `Patches.byte_patch` and `.byte_latent`"
    yield Finding(
        "future-leak",
        "problem" if found.leak > found.tolerance else "ok",
        found.leak,
        f"predictions in front of a changed byte stay within {found.tolerance:g}",
        "the decoder reads a patch that is not complete yet, or attention is not causal: results are too good",
        code,
    )
    yield Finding(
        "byte-response",
        "ok" if found.response > found.tolerance else "problem",
        found.response,
        f"the prediction at a changed byte moves by more than {found.tolerance:g}",
        "the model ignores its input: untrained or zero weights, or an embedding that was not loaded",
        "check how the weights were converted, or train further",
    )
    for name, offsets, expected, cause in (
        (
            "encoder-pooling",
            found.pooled,
            "a changed byte first moves the patch it lies in (offset 0)",
            "the encoder pools bytes into another patch than their own",
        ),
        (
            "decoder-read",
            found.read,
            "a changed latent first moves the prediction at its patch's last byte (offset 0)",
            "the decoder reads another latent than the last complete one: earlier sees the future, later lags behind; "
            "nothing moving means dead cross-attention",
        ),
    ):
        worst = max(offsets, key=lambda offset: math.inf if offset is None else abs(offset))
        status: Status = "ok" if worst == 0 else "problem"
        yield Finding(name, status, None if worst is None else float(worst), expected, cause, code)


def score_findings(pieces: ScoredPieces) -> Iterator[Finding]:
    """Is every score of the model that places patches a finite number."""
    assert pieces.scores is not None
    broken = sum(int((~finite(scores)).sum()) for scores in pieces.scores)
    yield Finding(
        "scores",
        "problem" if broken else "ok",
        float(broken),
        "0 scores of the model that places patches that are not finite",
        "its weights are too large for their type, or the file is damaged; nothing that depends on patches was checked",
        "load it in fp32, take an earlier checkpoint of it, or copy the file again",
    )


def scorer_findings(bundle: Bundle) -> Iterator[Finding]:
    """Does the model that places patches see only the bytes before."""
    assert bundle.scorer is not None
    moved, tolerance = probe_scorer(bundle.scorer, next(bundle.scorer.parameters()))
    yield Finding(
        "scorer-leak",
        "problem" if moved > tolerance else "ok",
        moved,
        f"scores in front of a changed byte stay within {tolerance:g}",
        "the model that places patches sees the future, so patches give the text away",
        "its attention must be causal; compare its code with the original",
    )


def border_findings(bundle: Bundle, pieces: ScoredPieces, calibrate: str) -> Iterator[Finding]:
    """Are patches of a sensible size, and of the size that the model was trained with.

    calibrate: the command that stores another threshold for the same text, up to the patch size.
    """
    assert bundle.rule is not None
    if bundle.rule.scores is not None and bundle.scorer is None:
        kind = "boundary" if bundle.rule.scores == "boundary" else "entropy"
        yield Finding(
            "scorer-missing",
            "problem",
            None,
            f"a model that gives {bundle.rule.scores} scores",
            f"rule {bundle.rule.kind!r} listens to a model that the checkpoint does not hold",
            f"save it with its {kind} model, or use a rule that reads no scores, such as 'space'",
        )
        return
    rule = predictive_rule(bundle)
    sizes, tuned = patch_sizes(rule, pieces), tuned_to_record(bundle, pieces)
    if rule.scores is not None:  # other rules are as frequent as they were asked to be
        wanted = PUBLISHED_PATCH_BYTES if tuned is None else tuned.patch_bytes
        advice = "" if tuned is None else f"{tuned.advice}; "
        told = f"`{rule}` gives {sizes.mean:.2f} bytes per patch on this text; {advice}".removesuffix("; ")
        calibrate = f"{advice}`{calibrate} {wanted:.3g}` finds a threshold for this model and text, and stores it"
        numbers: dict[str, float | None] = {"patch_bytes": sizes.mean, "patch_bytes_without_maximum": sizes.natural}
        if tuned is not None:
            numbers |= {"wanted_patch_bytes": tuned.patch_bytes, f"{tuned.field}_for_wanted": tuned.threshold}
            numbers[f"{tuned.field}_now"] = float(getattr(rule, tuned.field))
        yield Finding(
            "patch-size",
            "ok",
            sizes.mean,
            "the bounds of the next two findings",
            "the rule, its threshold and the text",
            "nothing is wrong; another threshold gives another size",
            detail=(told,),
            numbers=numbers,
        )
        yield Finding(
            "borders-too-frequent",
            "problem" if sizes.natural < FREQUENT else "ok",
            sizes.natural,
            f"at least {FREQUENT:g} bytes a patch, cuts by max_patch_bytes left out",
            "the threshold is too low, or entropies are too high: a lost window, a foreign or untrained entropy model",
            f"look at the other findings first; then {calibrate}",
        )
        yield Finding(
            "borders-too-sparse",
            "problem" if sizes.natural > SPARSE else "ok",
            sizes.natural,
            f"at most {SPARSE:g} bytes a patch, cuts by max_patch_bytes left out",
            "the threshold is too high for this model or text; or the text repeats itself",
            calibrate,
        )
    recorded = bundle.record.get("mean_patch_bytes")
    if recorded:
        yield Finding(
            "recorded-patch-size",
            "warning" if abs(sizes.mean / recorded - 1) > RECORDED_SLACK else "ok",
            sizes.mean,
            f"within {RECORDED_SLACK:.0%} of the {recorded:.3g} bytes a patch of the training record",
            "rule or entropy model were changed since training, or this text is of another kind",
            "check with text like the training text (--files); restore the rule and entropy model it was trained with",
        )


def threshold_findings(bundle: Bundle) -> Iterator[Finding]:
    """Can rounding entropies to fp16 move a border."""
    threshold = getattr(bundle.rule, "threshold", None)
    if bundle.rule is None or bundle.rule.scores != "entropy" or threshold is None:
        return
    with np.errstate(over="ignore"):
        on_grid = float(np.float16(threshold)) == threshold
    yield Finding(
        "threshold-grid",
        "warning" if on_grid else "ok",
        float(threshold),
        "no number that fp16 can hold",
        "entropies stored in fp16 can equal it, so rounding decides about patches; harmless while none are stored",
        "`blt calibrate` gives a threshold between two fp16 values",
    )


def window_findings(bundle: Bundle, scorer: EntropyModel, sample: Sample) -> Iterator[Finding]:
    """Has the entropy model its window, and is it as sure far into a row as near its start."""
    window, trained = scorer.config.window, _trained_window(bundle)
    needed = bytes_for_drift(window)
    found = drift(scorer, sample.joined) if len(sample.joined) >= needed else None
    growth = None if found is None else found.entropy
    # Past a lost window some models are unsure of everything, and some are sure of the wrong thing.
    runaway = found is not None and max(found.entropy, found.surprise) > DRIFT_PROBLEM
    changed = trained is not None and trained != window
    expected = "a window (released: 512)" if trained is None else f"the window of {trained} that it was trained with"
    if window is None and found is not None:
        expected += (
            f"; bytes {found.far_bytes} into a row cost {found.surprise:+.2f} nats against {found.near_bytes} into it"
        )
    lost: Status = "problem" if changed or (window is None and runaway) else "warning" if window is None else "ok"
    yield Finding(
        "lost-window",
        lost,
        None if window is None else float(window),
        expected,
        "the window is missing from the config, as in early conversions: past it entropies explode and patches shrink "
        "to a byte; or the model was made without one, which makes its cost grow with the text",
        "set `window` (Hugging Face: patcher_config.sliding_window) to what the entropy model was trained with",
    )
    if growth is None:
        status: Status = "warning"
    elif window is None:  # then it should be surer with more context
        status = "problem" if growth > DRIFT_PROBLEM else "warning" if growth > DRIFT_WARNING else "ok"
    else:
        status = "problem" if abs(growth) > DRIFT_PROBLEM else "warning" if abs(growth) > DRIFT_WARNING else "ok"
    expected = f"at least {needed} bytes of text to measure on"
    if found is not None:
        places = f"{found.near_bytes} and {found.far_bytes} bytes into a row"
        expected = f"within {DRIFT_WARNING} nats between the same bytes {places}"
    yield Finding(
        "entropy-drift",
        status,
        growth,
        expected,
        "higher far from the start: positions or a window it was not trained for; lower: it copies from far back",
        "train with longer rows or restore the window; against copying: reset_at_newline, or the rule 'rise'; "
        "not measured: name more text (--files)",
    )


def _trained_window(bundle: Bundle) -> int | None:
    """The window in the training record of an entropy model saved alone; a BLT's record tells of the BLT."""
    if bundle.model is not None:
        return None
    config = bundle.record.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    window = model.get("window") if isinstance(model, dict) else None
    return window if isinstance(window, int) else None


def ngram_findings(bundle: Bundle, sample: Sample) -> Iterator[Finding]:
    """Does the entropy model beat an n-gram model of the same text."""
    alone = Bundle(None, bundle.scorer, None, bundle.record)
    # A convolutional model sees no more than such a model itself: it has to beat one that sees a byte less.
    order = bundle.scorer.config.context - 1 if isinstance(bundle.scorer, CnnEntropy) else 2
    enough = sample.num_held_out >= _LEAST_SAMPLE
    ratio, expected = None, f"at least {_LEAST_SAMPLE} bytes of held-out text to measure on"
    if enough:
        context, stride = window_shape(bundle.record, None, None)
        ours = sum(float(byte_scores(alone, text, context, stride).nats.sum()) for text in sample.held_out)
        theirs = float(ngram_nats(sample.rest, sample.held_out, order).sum())
        ratio = ours / theirs
        bits = [nats / math.log(2) / sample.num_held_out for nats in (ours, theirs)]
        expected = f"below 1: bits per byte ({bits[0]:.3f}) / an order-{order} model's of these files ({bits[1]:.3f})"
    yield Finding(
        "entropy-model-vs-ngram",
        "warning" if ratio is None else "problem" if not ratio <= NGRAM_SLACK else "warning" if ratio > 1 else "ok",
        ratio,
        expected,
        "weights not loaded or trained too little; or the text is of another kind than the training text, and its "
        "patches will follow surprise at the kind and not at the content",
        "train the entropy model further, or on text of this kind; not measured: name more text (--files)",
    )
