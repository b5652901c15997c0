"""The study `entropy`: does the entropy that places patches follow the information in a text; a row for each text.

Everything that is drawn at random (bootstrap, random borders, bytes out of predictions) follows from the seed.
"""

import bz2
import hashlib
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveInt

from bltkit.study.store import refuse_other_settings
from bltkit.study.study import Row, Study, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from bltkit.checkpoint import Bundle
    from bltkit.study.entropy_quality.characters import Characters, Flags, Numbers
    from bltkit.study.entropy_quality.scores import ByteFigures
    from bltkit.study.entropy_quality.texts import StudyText
    from bltkit.study.report import Section
    from bltkit.tokens import ByteTokenizer

BLT, MIXING, OWN, DRAWN = "blt", "context-mixing", "entropy-model", "drawn"
"""Whose surprisals: the BLT's, the independent model's, the entropy model's, and its own for bytes drawn from it."""

MAX_STRAY = 0.01
"""Share of bytes that are no UTF-8 up to which a text has characters and scripts."""


class EntropyStudy(Study):
    """Entropy beside surprisal, its calibration, and its borders beside others of the same rate."""

    what: ClassVar[str] = "entropy"
    title: ClassVar[str] = "Entropy and information"

    model: str = Field(
        default="bltkit:tiny",
        description="A MODEL with an entropy model and a rule.",
        json_schema_extra={"aliases": ["-m"]},
    )
    texts: dict[str, str] = Field(
        default={},
        description="Files or folders, each under a name (repeatable); default: a text of each type of data.",
        json_schema_extra={"option": "--text", "metavar": "NAME=FILE"},
    )
    bytes: PositiveInt = Field(
        default=65_536, ge=64, description="Bytes of each text to measure, in stretches all over it."
    )
    primed_bytes: NonNegativeInt = Field(
        default=0, description="Bytes of each text that the context-mixing model learns from before it is asked."
    )
    tokenizer: str = Field(
        default="", description="A tokenizer.json to compare borders with; default: the package's own."
    )
    seed: NonNegativeInt = Field(default=0, description="Seed of everything that is drawn at random.")
    bins: PositiveInt = Field(default=20, description="Bins of the calibration.")
    block: PositiveInt = Field(default=1024, description="Bytes that the bootstrap draws together.")
    resamples: PositiveInt = Field(default=300, description="Resamples of the bootstrap.")
    random_seeds: PositiveInt = Field(default=5, description="Sets of random borders, whose figures are averaged.")
    least_script_bytes: PositiveInt = Field(default=256, description="Bytes from which on a script has figures.")

    @classmethod
    def smoke(cls) -> Self:
        """See `Study`: a little of each default text."""
        return cls(bytes=2048, resamples=20)

    @cached_property
    def subject(self) -> "tuple[Bundle, str]":
        """The studied model and the fingerprint of its files. Raises ValueError for a model without entropies."""
        from bltkit.checkpoint import load_bundle, resolve_model
        from bltkit.checkpoint.fingerprint import fingerprint
        from bltkit.study.entropy_quality.scores import entropy_model

        directory = resolve_model(self.model)
        bundle = load_bundle(directory)
        entropy_model(bundle)
        return bundle, fingerprint(directory)

    @cached_property
    def study_texts(self) -> "Mapping[str, StudyText]":
        """The texts by name. Raises ValueError for one without bytes."""
        from bltkit.study.entropy_quality.texts import read_texts

        return {text.name: text for text in read_texts(self.texts, self.bytes, self.primed_bytes)}

    @cached_property
    def words(self) -> "tuple[ByteTokenizer | None, str]":
        """The tokenizer whose borders are compared with, and its name; or None, and why there is none.

        Raises ValueError where the plan names one that is not usable.
        """
        from bltkit.tokens import ByteTokenizer

        path = Path(self.tokenizer or Path(str(files("bltkit"))) / "embedded" / "schemes" / "bpe.json")
        try:
            loaded = ByteTokenizer.load(path)
        except ValueError as error:
            if self.tokenizer:
                raise
            return None, str(error)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return loaded, f"{path.name} with {len(loaded.pieces)} tokens ({digest})"

    def units(self) -> Sequence[Unit]:
        """See `Study`: the texts."""
        from bltkit.study.entropy_quality.texts import DEFAULTS

        settings = {f"conditions.{name}": value for name, value in self._sizes.items()}
        return [Unit(f"{name}:{self.model}", settings=settings) for name in self.texts or DEFAULTS]

    def prepare(self, run: StudyRun) -> None:
        """See `Study`. Raises ValueError for what cannot be read, and for stored rows of other weights or texts."""
        texts, _, _ = self.study_texts, self.subject, self.words
        for row in run.rows():
            if row["model"] == self.model and row["text"] in texts:
                conditions = self._conditions(row["text"])
                measured = {f"conditions.{name}": conditions[name] for name in ("weights", "digest", "tokenizer")}
                refuse_other_settings([row], measured, run.out, f"model {self.model!r} on text {row['text']!r}")

    def unit_of(self, row: Row) -> str:
        """See `Study`."""
        return f"{row['text']}:{row['model']}"

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        """See `Study`: everything about one text."""
        name = unit.name.removesuffix(f":{self.model}")
        yield {**text_row(self, self.study_texts[name], run.progress), "conditions": self._conditions(name)}

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        """See `Study`."""
        from bltkit.study.entropy_quality.entropy_report import sections

        return sections(frame)

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        """See `Study`."""
        from bltkit.study.entropy_quality.entropy_report import figures

        return figures(frame)

    def _conditions(self, name: str) -> Row:
        """Values that must be the same for a row to stand for this measurement."""
        texts = {"digest": self.study_texts[name].digest, "tokenizer": self.words[1]}
        return self._sizes | {"weights": self.subject[1]} | texts

    @property
    def _sizes(self) -> Row:
        """Fields of the plan that a row depends on."""
        return self.model_dump(exclude={"model", "texts", "tokenizer"})


def text_row(study: EntropyStudy, text: "StudyText", progress: Callable[[float], None] = lambda share: None) -> Row:
    """Row of one text, without the conditions of its measurement. progress: told the share that is done."""
    from bltkit.eval.score import window_shape
    from bltkit.study.entropy_quality.characters import by_script, characters
    from bltkit.study.entropy_quality.context_mixing import context_mixing_nats
    from bltkit.study.entropy_quality.scores import LN2, byte_figures, calibration
    from bltkit.study.stats import spearman_interval

    bundle, size = study.subject[0], len(text.data)
    context, stride = window_shape(bundle.record, None, None)
    read = size * (1 if bundle.model is None else 2)
    total = read + size + len(text.primed)
    figures = byte_figures(
        bundle, text.data, context, stride, seed=study.seed, progress=lambda done, _: progress(done / total)
    )
    mixing = context_mixing_nats(text.data, text.primed, progress=lambda done, _: progress((read + done) / total))
    judges = ({} if figures.blt is None else {BLT: figures.blt}) | {MIXING: mixing / LN2}
    surprisals = judges | {OWN: figures.surprisals}
    pairs = {name: (figures.entropies, bits) for name, bits in (surprisals | {DRAWN: figures.drawn}).items()}
    if BLT in judges:
        pairs["judges"] = judges[BLT], judges[MIXING]
    estimates = {
        name: spearman_interval(*pair, block=study.block, resamples=study.resamples, seed=study.seed)
        for name, pair in pairs.items()
    }
    decoded = characters(text.data)
    is_text = decoded.stray_share <= MAX_STRAY
    return {
        "model": study.model,
        "text": text.name,
        "source": text.source,
        "rule": str(bundle.rule),
        "bytes": size,
        "primed_bytes": len(text.primed),
        "context": context,
        "bits_per_byte": {name: float(bits.mean()) for name, bits in surprisals.items()} | _compressed(text),
        "mean_entropy": float(figures.entropies.mean()),
        "spearman": {
            name: {"value": estimate.value, "interval": estimate.interval} for name, estimate in estimates.items()
        },
        "calibration": calibration(figures.entropies, surprisals, OWN, study.bins),
        "stray_share": decoded.stray_share,
        "scripts": by_script(decoded, figures.opens, judges, study.least_script_bytes) if is_text else {},
        "tokenizer": study.words[1],
        **_border_sets(study, figures, text.data, judges, decoded if is_text else None),
    }


def _border_sets(
    study: EntropyStudy,
    figures: "ByteFigures",
    data: bytes,
    judges: "Mapping[str, Numbers]",
    text: "Characters | None",
) -> dict[str, Any]:
    """`rules`: figures of each border set. `agreement`: of the entropies' borders with those of words and tokens."""
    from bltkit.study.entropy_quality.borders import (
        after_spaces,
        agreement,
        border_figures,
        fixed_borders,
        highest_borders,
        mean_figures,
        random_borders,
        token_borders,
        word_borders,
    )

    size, count, tokenizer = len(data), int(figures.opens.sum()), study.words[0]
    sets = {"own": figures.opens, "fixed": fixed_borders(size, count)}
    wanted: dict[str, Flags] = {"words": word_borders(data)}
    if tokenizer is not None:
        wanted["tokens"] = token_borders(data, tokenizer)
        wanted["tokens, behind spaces"] = after_spaces(wanted["tokens"], data)
    agreed = {}
    for name, borders in wanted.items():
        alike = highest_borders(figures.entropies, int(borders.sum()))
        agreed[name] = {"own": agreement(figures.opens, borders), "same rate": agreement(alike, borders)}
        if name in ("words", "tokens"):
            fixed = fixed_borders(size, int(borders.sum()))
            sets |= {name: borders, f"entropy at {name}": alike, f"fixed at {name}": fixed}
    rules = {name: border_figures(borders, judges, text) for name, borders in sets.items()}
    drawn = [random_borders(size, count, study.seed + number) for number in range(study.random_seeds)]
    rules["random"] = mean_figures([border_figures(borders, judges, text) for borders in drawn])
    return {"rules": rules, "agreement": agreed}


def _compressed(text: "StudyText") -> dict[str, float]:
    """Bits per byte of two compressors at their best, after the same primed bytes."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "bzip2": lambda data: bz2.compress(data, 9),
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    before = {name: len(pack(text.primed)) if text.primed else 0 for name, pack in packers.items()}
    after = {name: len(pack(text.primed + text.data)) for name, pack in packers.items()}
    return {name: 8 * (after[name] - before[name]) / len(text.data) for name in packers}
