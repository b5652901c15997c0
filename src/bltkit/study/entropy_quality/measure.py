"""The study `entropy`: one row for each model and text, with all that is asked of its entropies.

A row is kept as soon as it is measured, and a study that was broken off goes on behind the last one. What is drawn at
random (bootstrap, random borders, bytes out of predictions) follows from the seed.
"""

import bz2
import hashlib
import lzma
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from bltkit.checkpoint import Bundle, load_bundle, resolve_model
from bltkit.checkpoint.fingerprint import fingerprint
from bltkit.config import Config
from bltkit.eval.score import window_shape
from bltkit.files.json_lines import append_lines, read_lines
from bltkit.study.entropy_quality.borders import (
    agreement,
    behind_spaces,
    border_figures,
    fixed_borders,
    highest_borders,
    mean_figures,
    random_borders,
    token_borders,
    word_borders,
)
from bltkit.study.entropy_quality.characters import Characters, by_script, characters
from bltkit.study.entropy_quality.context_mixing import context_mixing_nats
from bltkit.study.entropy_quality.entropy_metrics import Flags, Numbers, calibration
from bltkit.study.entropy_quality.ranks import spearman_interval
from bltkit.study.entropy_quality.scores import LN2, ByteFigures, byte_figures, entropy_model
from bltkit.study.entropy_quality.texts import StudyText, read_texts
from bltkit.study.row_file import ROWS
from bltkit.tokens import ByteTokenizer

STUDY = "entropy"

BLT, MIXING, OWN, DRAWN = "blt", "context-mixing", "entropy-model", "drawn"
"""Whose surprisals: the BLT's, the independent model's, the entropy model's, and its own for bytes drawn from it."""

MAX_STRAY = 0.01
"""Share of bytes that are no UTF-8 up to which a text has characters and scripts."""

Row = dict[str, Any]


class EntropyPlan(Config):
    """What is measured of each text."""

    bytes: PositiveInt = Field(default=65_536, ge=64)
    primed_bytes: NonNegativeInt = 0
    """Of the same source, for the context-mixing model to learn from before it is asked."""
    seed: NonNegativeInt = 0
    bins: PositiveInt = 20
    block: PositiveInt = 1024
    """Bytes that the bootstrap draws together."""
    resamples: PositiveInt = 300
    random_seeds: PositiveInt = 5
    """Sets of random borders; their figures are means."""
    least_script_bytes: PositiveInt = 256


@dataclass(frozen=True)
class EntropySubject:
    """The model that is studied."""

    name: str
    bundle: Bundle
    weights: str
    """Fingerprint of the checkpoint's files."""


@dataclass(frozen=True)
class Words:
    """The tokenizer whose borders are compared with, or why there is none."""

    tokenizer: ByteTokenizer | None
    about: str


def run(
    plan: EntropyPlan,
    model: str,
    sources: Mapping[str, str],
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    tokenizer: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Measure what `out` does not hold yet; returns all of its rows.

    sources: texts by name, as `read_texts` takes them; none for the default ones.
    tokenizer: a tokenizer.json, by default the package's own. circumstances: what every row says besides.

    Raises ValueError for a model without entropies, a text without bytes, and where `out` holds rows of the same names
    that were measured otherwise.
    """
    texts = read_texts(sources, plan.bytes, plan.primed_bytes)
    directory = resolve_model(model)
    subject = EntropySubject(model, load_bundle(directory), fingerprint(directory))
    entropy_model(subject.bundle)
    tokens = _words(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    rows = read_lines(out / ROWS)
    missing = [text for text in texts if not _there(rows, subject, text, _conditions(plan, subject, text, tokens), out)]
    work = [_work(subject, text) for text in missing]
    for number, text in enumerate(missing):
        before, total = sum(work[:number]), sum(work)
        row = text_row(plan, subject, text, tokens, lambda part: progress(before + part, total))  # noqa: B023
        row |= {"conditions": _conditions(plan, subject, text, tokens), **circumstances}
        append_lines(out / ROWS, [row])
        rows.append(row)
    return rows


def text_row(
    plan: EntropyPlan,
    subject: EntropySubject,
    text: StudyText,
    words: Words,
    progress: Callable[[int], None] = lambda done: None,
) -> Row:
    """Everything about one text. progress: told the bytes that some model has read, of `_work` in all."""
    context, stride = window_shape(subject.bundle.record, None, None)
    figures = byte_figures(
        subject.bundle, text.data, context, stride, seed=plan.seed, progress=lambda done, _: progress(done)
    )
    read = _work(subject, text) - len(text.data) - len(text.primed)
    mixing = context_mixing_nats(text.data, text.primed, progress=lambda done, _: progress(read + done)) / LN2
    judges = ({} if figures.blt is None else {BLT: figures.blt}) | {MIXING: mixing}
    surprisals = judges | {OWN: figures.surprisals}
    found = characters(text.data)
    is_text = found.stray_share <= MAX_STRAY
    return {
        "what": STUDY,
        "model": subject.name,
        "text": text.name,
        "source": text.source,
        "rule": str(subject.bundle.rule),
        "bytes": len(text.data),
        "primed_bytes": len(text.primed),
        "context": context,
        "bits_per_byte": {name: float(values.mean()) for name, values in surprisals.items()} | _compressed(text),
        "mean_entropy": float(figures.entropies.mean()),
        "spearman": _correlations(plan, figures, judges),
        "calibration": calibration(figures.entropies, surprisals, OWN, plan.bins).to_json(),
        "stray_share": found.stray_share,
        "scripts": by_script(found, figures.opens, judges, plan.least_script_bytes) if is_text else {},
        "tokenizer": words.about,
        **_border_sets(plan, figures, text.data, words, judges, found if is_text else None),
    }


def _correlations(plan: EntropyPlan, figures: ByteFigures, judges: Mapping[str, Numbers]) -> dict[str, Any]:
    """Of the entropies with each surprisal, and of the judges' surprisals with one another."""
    entropies = figures.entropies
    pairs = {name: (entropies, values) for name, values in judges.items()}
    pairs |= {OWN: (entropies, figures.surprisals), DRAWN: (entropies, figures.drawn)}
    if BLT in judges:
        pairs["judges"] = judges[BLT], judges[MIXING]
    how = {"block": plan.block, "resamples": plan.resamples, "seed": plan.seed}
    found = {name: spearman_interval(*pair, **how) for name, pair in pairs.items()}
    return {name: {"value": one.value, "interval": one.interval} for name, one in found.items()}


def _border_sets(
    plan: EntropyPlan,
    figures: ByteFigures,
    data: bytes,
    words: Words,
    judges: Mapping[str, Numbers],
    found: Characters | None,
) -> dict[str, Any]:
    """`rules`: figures of each border set. `agreement`: of the entropies' borders with those of words and tokens."""
    size = len(data)
    given: dict[str, Flags] = {"words": word_borders(data)}
    if words.tokenizer is not None:
        given["tokens"] = token_borders(data, words.tokenizer)
    sets = {"own": figures.opens, "fixed": fixed_borders(size, int(figures.opens.sum()))}
    agreed = {}
    for name, borders in given.items():
        count = int(borders.sum())
        alike = highest_borders(figures.entropies, count)
        sets |= {name: borders, f"entropy at {name}": alike, f"fixed at {name}": fixed_borders(size, count)}
        agreed[name] = {"own": vars(agreement(figures.opens, borders)), "same rate": vars(agreement(alike, borders))}
    if "tokens" in given:
        moved = behind_spaces(given["tokens"], data)
        alike = highest_borders(figures.entropies, int(moved.sum()))
        agreed["tokens, behind spaces"] = {
            "own": vars(agreement(figures.opens, moved)),
            "same rate": vars(agreement(alike, moved)),
        }
    rules = {name: border_figures(borders, judges, found) for name, borders in sets.items()}
    count = int(figures.opens.sum())
    drawn = [random_borders(size, count, plan.seed + number) for number in range(plan.random_seeds)]
    rules["random"] = mean_figures([border_figures(borders, judges, found) for borders in drawn])
    return {"rules": rules, "agreement": agreed}


def _compressed(text: StudyText) -> dict[str, float]:
    """Bits per byte of two compressors at their best, given the same bytes before."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "bzip2": lambda data: bz2.compress(data, 9),
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    before = {name: len(pack(text.primed)) if text.primed else 0 for name, pack in packers.items()}
    after = {name: len(pack(text.primed + text.data)) for name, pack in packers.items()}
    return {name: 8 * (after[name] - before[name]) / len(text.data) for name in packers}


def _words(tokenizer: str | Path | None) -> Words:
    """The tokenizer, or why there is none; one that the user names has to be usable."""
    path = Path(tokenizer) if tokenizer else Path(str(files("bltkit"))) / "embedded" / "schemes" / "bpe.json"
    try:
        loaded = ByteTokenizer.load(path)
    except ValueError as error:
        if tokenizer:
            raise
        return Words(None, str(error))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Words(loaded, f"{path.name} with {len(loaded.pieces)} tokens ({digest})")


def _conditions(plan: EntropyPlan, subject: EntropySubject, text: StudyText, words: Words) -> dict[str, Any]:
    """What must be the same for a row to stand for this measurement."""
    return {
        **plan.model_dump(),
        "weights": subject.weights,
        "digest": text.digest,
        "tokenizer": words.about,
    }


def _there(rows: Sequence[Row], subject: EntropySubject, text: StudyText, now: Mapping[str, Any], out: Path) -> bool:
    for row in rows:
        if (row["model"], row["text"]) != (subject.name, text.name):
            continue
        for field, value in now.items():
            if row["conditions"].get(field) != value:
                raise ValueError(
                    f"{out / ROWS} has a row of model {subject.name!r} on text {text.name!r} with {field} = "
                    f"{row['conditions'].get(field)}, now it is {value}; choose another --out, or another name"
                )
        return True
    return False


def _work(subject: EntropySubject, text: StudyText) -> int:
    """Bytes that models read for a row."""
    models = 2 if subject.bundle.model is None else 3
    return models * len(text.data) + len(text.primed)
