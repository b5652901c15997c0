"""`blt check`: is this checkpoint what it claims to be? Each known way to go wrong is one finding, with its remedy.

Reads a `Bundle` and a little text; changes nothing. The failures looked for are those that keep working and only give
worse results: a lost window, a foreign entropy model, a threshold of another text, cross-attention off by one patch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from bltkit.checkpoint import Bundle
from bltkit.data.sources import StdlibSource
from bltkit.eval.alignment import probe_alignment, probe_scorer
from bltkit.eval.entropies import bytes_for_drift, drift, patch_sizes
from bltkit.eval.ngram import ngram_nats
from bltkit.eval.score import byte_scores, window_shape
from bltkit.model import Blt, CnnEntropy, EntropyModel

SAMPLE_BYTES = 16384
"""Held-out text that models are run on: a minute for an entropy model of 100 M parameters on two cores."""
NGRAM_BYTES = 2_000_000
_HELD_OUT = 0.2
_LEAST_SAMPLE = 512

FREQUENT, SPARSE = 1.5, 16.0
"""Mean patch sizes in bytes outside of which a rule that listens to a model has lost its sense (released: 4.1-4.5)."""
DRIFT_WARNING, DRIFT_PROBLEM = 0.2, 0.5
"""Nats; released models have a mean entropy of 0.8 to 0.9."""
NGRAM_SLACK = 1.1
"""Share of the n-gram model's bits per byte above which a warning becomes a problem."""
RECORDED_SLACK = 0.25

_DEFAULT_NAMES = ("argparse.py", "ast.py", "heapq.py", "pydoc_data/topics.py", "statistics.py", "tarfile.py")
_DEFAULT_DOCUMENT_BYTES = 131072

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `cause` says what a bad value usually comes from, `remedy` what to do then.

    value: None where there is nothing to measure (no window, nothing moved) or too little text to measure on.
    expected: the sound range, in words.
    """

    name: str
    status: Status
    value: float | None
    expected: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Health:
    """What the check found, in the order of looking. What does not apply to the checkpoint is not among it."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """No finding is a problem; warnings may be."""
        return all(finding.status != "problem" for finding in self.findings)

    def summary(self) -> str:
        """A line for each finding; those that are not ok with cause and remedy."""
        lines = []
        for finding in self.findings:
            value = "none" if finding.value is None else f"{finding.value:.4g}"
            lines.append(f"{finding.status:<8} {finding.name}: {value} (expected: {finding.expected})")
            if finding.status != "ok":
                lines += [f"{'':<9}cause: {finding.cause}", f"{'':<9}remedy: {finding.remedy}"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `healthy` and `findings`. A value that is no number reads None."""
        rows = [asdict(finding) for finding in self.findings]
        for row in rows:
            if row["value"] is not None and not math.isfinite(row["value"]):
                row["value"] = None
        return {"healthy": self.healthy, "findings": rows}


@dataclass(frozen=True)
class _Sample:
    """`held_out` is run through the models, `rest` never is; `joined` is all text in one piece."""

    held_out: tuple[bytes, ...]
    rest: tuple[bytes, ...]
    joined: bytes

    @property
    def num_held_out(self) -> int:
        return sum(map(len, self.held_out))


def check(
    bundle: Bundle, documents: Sequence[bytes] | None = None, *, progress: Callable[[str], None] | None = None
) -> Health:
    """Look for every known failure.

    documents: text like that which the model is for; by default some modules of Python's standard library.
    progress: told what is being looked at, before each step.

    Raises ValueError for an empty bundle and for documents without bytes.
    """
    if bundle.model is None and bundle.scorer is None:
        raise ValueError("this checkpoint holds no model; there is nothing to check")
    sample = _sample(default_documents() if documents is None else documents)
    say = progress or (lambda _: None)
    say("weights")
    findings = [*_weights(bundle)]
    if findings[0].status == "problem":
        return Health(tuple(findings))
    if bundle.model is not None:
        say("alignment of bytes and patches")
        findings += _alignment(bundle.model)
    if bundle.scorer is not None:
        findings += _scorer(bundle)
    if bundle.rule is not None and bundle.rule.streams:
        say("patch sizes")
        findings += _borders(bundle, sample)
        findings += _threshold(bundle)
    if isinstance(bundle.scorer, EntropyModel):
        say("entropies by position")
        findings += _window(bundle, bundle.scorer, sample)
    if isinstance(bundle.scorer, EntropyModel | CnnEntropy):
        say("comparison with an n-gram model")
        findings += _against_ngram(bundle, sample)
    return Health(tuple(findings))


def default_documents() -> tuple[bytes, ...]:
    """A few modules of the running Python's standard library, code and prose: at most 128 KB of each."""
    return tuple(
        document.data[:_DEFAULT_DOCUMENT_BYTES]
        for document in StdlibSource().documents()
        if document.name in _DEFAULT_NAMES
    )


def _sample(documents: Sequence[bytes]) -> _Sample:
    """The last fifth of each document is held out; of that, so much of each (of 16 at most) as the budget allows."""
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError("the files to check with hold no text; name files with text like the model's own")
    cuts = [int(len(document) * (1 - _HELD_OUT)) for document in documents]
    some = range(0, len(documents), -(-len(documents) // 16))
    share = max(1, SAMPLE_BYTES // len(some))
    return _Sample(
        held_out=tuple(documents[i][cuts[i] :][:share] for i in some),
        rest=tuple(document[:cut] for document, cut in zip(documents, cuts, strict=True)),
        joined=b"".join(documents)[:NGRAM_BYTES],
    )


def _weights(bundle: Bundle) -> Iterator[Finding]:
    modules = [module for module in (bundle.model, bundle.scorer) if module is not None]
    broken = sum(int((~weight.isfinite()).sum()) for module in modules for weight in module.parameters())
    yield Finding(
        "weights",
        "problem" if broken else "ok",
        float(broken),
        "0 weights that are not finite",
        "training diverged, or the file is damaged; nothing else was checked",
        "take an earlier checkpoint and lower optim.lr, or copy the file anew",
    )


def _alignment(model: Blt) -> Iterator[Finding]:
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


def _scorer(bundle: Bundle) -> Iterator[Finding]:
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


def _borders(bundle: Bundle, sample: _Sample) -> Iterator[Finding]:
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
    context, _ = window_shape(bundle.record, None, None)
    sizes = patch_sizes(bundle, sample.held_out, context)
    if bundle.rule.scores is not None:  # other rules are as frequent as they were asked to be
        calibrate = "`blt calibrate --patch-bytes 4.5` finds a threshold for this model and text"
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


def _threshold(bundle: Bundle) -> Iterator[Finding]:
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


def _window(bundle: Bundle, scorer: EntropyModel, sample: _Sample) -> Iterator[Finding]:
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


def _against_ngram(bundle: Bundle, sample: _Sample) -> Iterator[Finding]:
    alone = Bundle(None, bundle.scorer, None, bundle.record)
    # A convolutional model sees no more than such a model itself: it has to beat one that sees a byte less.
    order = bundle.scorer.config.context - 1 if isinstance(bundle.scorer, CnnEntropy) else 2
    enough = sample.num_held_out >= _LEAST_SAMPLE
    ratio, expected = None, f"at least {_LEAST_SAMPLE} bytes of held-out text to measure on"
    if enough:
        context, stride = window_shape(bundle.record, None, None)
        ours = sum(float(byte_scores(alone, text, context, stride).nats.sum()) for text in sample.held_out)
        theirs = float(ngram_nats(_first(sample.rest, NGRAM_BYTES), sample.held_out, order).sum())
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


def _first(documents: Sequence[bytes], num_bytes: int) -> list[bytes]:
    """Whole documents, and a last one cut, up to `num_bytes` in all."""
    kept, left = [], num_bytes
    for document in documents:
        kept.append(document[:left])
        left -= len(kept[-1])
        if left <= 0:
            break
    return kept
