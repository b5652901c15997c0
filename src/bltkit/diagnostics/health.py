"""`blt check`: is this checkpoint what it claims to be? Each known way to go wrong is one finding, with its remedy.

Reads a `Bundle` and a little text; changes nothing. The failures looked for are those that keep working and only give
worse results: a lost window, a foreign entropy model, a threshold of another text, cross-attention off by one patch.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import MANIFEST, Bundle, is_token_model, load_token_model
from bltkit.data.sources import StdlibSource, Texts
from bltkit.diagnostics.entropies import score_pieces
from bltkit.diagnostics.finding import Finding
from bltkit.diagnostics.findings import (
    NGRAM_BYTES,
    Sample,
    alignment_findings,
    border_findings,
    ngram_findings,
    score_findings,
    scorer_findings,
    threshold_findings,
    weight_findings,
    window_findings,
)
from bltkit.diagnostics.sound_files import checkpoint_finding, data_findings, training_finding
from bltkit.diagnostics.thresholds import DEFAULT_FILES, WantedSize, calibrate_command, wanted_size_finding
from bltkit.diagnostics.windows import window_effect_findings, window_field_finding
from bltkit.eval.score import window_shape
from bltkit.generate.open_bundle import open_bundle
from bltkit.model import CnnEntropy, EntropyModel
from bltkit.views.calibration import tunable_rule

SAMPLE_BYTES = 16384
"""Held-out text that models are run on: a minute for an entropy model of 100 M parameters on two cores."""
_HELD_OUT = 0.2

_DEFAULT_NAMES = ("argparse.py", "ast.py", "heapq.py", "pydoc_data/topics.py", "statistics.py", "tarfile.py")
_DEFAULT_DOCUMENT_BYTES = 131072


@dataclass(frozen=True)
class Health:
    """What the check found, in the order of looking. What does not apply to the checkpoint is not among it."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """No finding is a problem; warnings may be."""
        return all(finding.status != "problem" for finding in self.findings)

    def summary(self) -> str:
        """A line for each finding and its explanation; those that are not ok with cause and remedy."""
        lines = []
        for finding in self.findings:
            value = "none" if finding.value is None else f"{finding.value:.4g}"
            lines.append(f"{finding.status:<8} {finding.name}: {value} (expected: {finding.expected})")
            lines += [f"{'':<9}{line}" for line in finding.detail]
            if finding.status != "ok":
                lines += [f"{'':<9}cause: {finding.cause}", f"{'':<9}remedy: {finding.remedy}"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `healthy` and `findings`. A value that is no number reads None."""
        rows = [asdict(finding) for finding in self.findings]
        for row in rows:
            row["value"] = _json_number(row["value"])
            row["numbers"] = {name: _json_number(value) for name, value in row["numbers"].items()}
        return {"healthy": self.healthy, "findings": rows}


def check(
    bundle: Bundle,
    documents: Sequence[bytes] | None = None,
    *,
    wanted: WantedSize | None = None,
    model: str = "MODEL",
    files: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Health:
    """Look for every known failure.

    documents: text like that which the model is for; by default some modules of Python's standard library.
    wanted: a mean patch size, whose threshold is sought as well.
    model, files: names of the model and of the documents' sources, for the commands that findings recommend.
    progress: told what is being looked at, before each step and during long ones.

    Raises ValueError for an empty bundle, for documents without bytes, and for a wanted size where the rule has no
    threshold.
    """
    if bundle.model is None and bundle.scorer is None:
        raise ValueError("this checkpoint holds no model; there is nothing to check")
    if wanted is not None:
        tunable_rule(bundle, wanted.model)
    sample = _sample(default_documents() if documents is None else documents)
    say = progress or (lambda _: None)

    def count(what: str, unit: int, name: str) -> Callable[[int, int], None]:
        return lambda done, total: say(f"{what}: {done / unit:,.0f} of {total / unit:,.0f} {name}")

    say("weights")
    findings = [*weight_findings(bundle, count("weights", 1_000_000, "MB"))]
    if findings[0].status == "problem":
        return Health(tuple(findings))
    if bundle.model is not None:
        say("alignment of bytes and patches")
        findings += alignment_findings(bundle.model)
    names = files or (DEFAULT_FILES if documents is None else ("FILES",))
    context, _ = window_shape(bundle.record, None, None)
    pieces = score_pieces(bundle.scorer, sample.held_out, context, count("scores", 1, "bytes"))
    if bundle.scorer is not None:
        findings += score_findings(pieces)
        if findings[-1].status == "problem":
            return Health(tuple(findings))
        findings += scorer_findings(bundle)
    if bundle.rule is not None and bundle.rule.streams:
        say("patch sizes")
        findings += border_findings(bundle, pieces, calibrate_command(model, names))
        findings += threshold_findings(bundle)
    if wanted is not None:
        findings.append(wanted_size_finding(bundle, wanted, count("threshold", 1, "stretches of the text")))
    if isinstance(bundle.scorer, EntropyModel):
        say("entropies by position")
        findings += window_findings(bundle, bundle.scorer, sample)
        say("entropies with the window and without")
        findings += window_effect_findings(bundle.scorer, bundle.rule, sample.joined)
    if isinstance(bundle.scorer, EntropyModel | CnnEntropy):
        say("comparison with an n-gram model")
        findings += ngram_findings(bundle, sample)
    return Health(tuple(findings))


def check_directory(
    directory: Path,
    documents: Sequence[bytes] | None = None,
    *,
    wanted: WantedSize | None = None,
    model: str | None = None,
    files: Sequence[str] = (),
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
    weights: str | None = None,
    scorer_weights: str | None = None,
) -> Health:
    """Compare the files of a directory with its manifest, and then look for every known failure of a checkpoint in it.

    directory: a checkpoint, or a training run, of which all complete checkpoints are compared; or annotated shards or a
    mapped corpus, which have files alone. Of a token model the files are compared and it is loaded. Other arguments:
    as for `check`; model is the directory where it is not named otherwise. weights, scorer_weights: forms of a BLT's
    weights, as for `open_bundle`.

    Raises ValueError for a directory that holds none of these, and for a checkpoint that cannot be loaded although its
    files are those that were written.
    """
    say = progress or (lambda _: None)

    def tell(done: int, total: int) -> None:
        say(f"files: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    if not os.path.lexists(directory / "config.json") and not os.path.lexists(directory / MANIFEST):
        findings = data_findings(directory, tell)
        if findings is not None:
            return Health(findings)
    state = training_finding(directory, tell)
    states = () if state is None else (state,)
    if states and not os.path.lexists(directory / "config.json"):  # no model yet (`checkpoint.export = "end"`)
        return Health(states)
    first = (*states, checkpoint_finding(directory, tell))
    if first[-1].status == "problem":
        return Health(first)
    say("loading")
    if is_token_model(directory):
        load_token_model(directory)
        return Health(first)
    bundle = open_bundle(directory, device=device, weights=weights, scorer_weights=scorer_weights)
    name = str(directory) if model is None else model
    field = window_field_finding(directory)
    rest = check(bundle, documents, wanted=wanted, model=name, files=files, progress=progress)
    return Health((*first, *(() if field is None else (field,)), *rest.findings))


def default_documents() -> tuple[bytes, ...]:
    """A few modules of the running Python's standard library, code and prose: at most 128 KB of each."""
    return tuple(
        document.data[:_DEFAULT_DOCUMENT_BYTES]
        for document in StdlibSource().documents()
        if document.name in _DEFAULT_NAMES
    )


def _json_number(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _sample(documents: Sequence[bytes]) -> Sample:
    """The last fifth of each document is held out; of that, so much of each (of 16 at most) as the budget allows."""
    texts = documents if isinstance(documents, Texts) else Texts(documents)
    if not texts:
        raise ValueError("the files to check with hold no text; name files with text like the model's own")
    some = [texts[i] for i in range(0, len(texts), -(-len(texts) // 16))]
    share = max(1, SAMPLE_BYTES // len(some))
    return Sample(
        held_out=tuple(text[_cut(text) :][:share] for text in some),
        rest=tuple(_first((text[: _cut(text)] for text in texts), NGRAM_BYTES)),
        joined=b"".join(_first(texts, NGRAM_BYTES)),
    )


def _cut(text: bytes) -> int:
    return int(len(text) * (1 - _HELD_OUT))


def _first(texts: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    """Whole texts, and a last one cut, up to `num_bytes` in all."""
    left = num_bytes
    for text in texts:
        yield text[:left]
        left -= min(left, len(text))
        if not left:
            return
