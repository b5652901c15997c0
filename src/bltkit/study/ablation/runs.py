"""Runs of an ablation: the entropy models, a training for each variant and seed, a row for each. Resumable.

Rows are JSON lines; one that is there is not made again. A training that was broken off goes on from its checkpoint, in
a directory named after its config, so that nothing goes on from something else.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from bltkit.checkpoint import load_bundle, resolve_model, scorer_hash
from bltkit.checkpoint.manifest import TableConfig, scorer_config
from bltkit.config import Config, parse
from bltkit.data import Corpus, DataConfig
from bltkit.eval.json_lines import append_lines, read_lines
from bltkit.model.flops import forward_flops
from bltkit.patching import RULES, PatchingRule, parse_rule, patch
from bltkit.patching.calibrate import calibrate
from bltkit.study.ablation.catalog import COMMON_MODEL, Ablation, Variant
from bltkit.study.ablation.heldout import Heldout, heldout
from bltkit.train import Result, TrainConfig
from bltkit.train import train as train_run
from bltkit.train.learner import build_trained
from bltkit.vocab import encode

ROWS = "rows.jsonl"
WHAT = "ablation"
_CALIBRATION_BYTES = 200_000
_HELD_BACK = 0.05

Row = dict[str, Any]


class Settings(Config):
    """What all runs of an ablation share."""

    steps: PositiveInt = 300
    scorer_steps: PositiveInt = 300
    seeds: tuple[NonNegativeInt, ...] = (0,)
    patch_bytes: PositiveFloat | None = None
    """Mean patch that all variants cut at; by default 4.5, or that of words where the ablation says so."""
    texts: Mapping[str, str] = {"stdlib": "stdlib"}
    """Name -> data source; each is about as much of the training as any other."""
    rule: str | None = None
    """In place of the calibrated entropy rule of variants that have it."""
    row_bytes: PositiveInt = 1024
    batch_rows: PositiveInt = 4
    lr: PositiveFloat = 3e-3
    threads: PositiveInt = 1
    validation_batches: PositiveInt = 32
    keep_models: bool = False


@dataclass(frozen=True)
class Tools:
    """What trains and measures; tests put something quick in its place."""

    train: Callable[..., Result] = train_run
    heldout: Callable[[TrainConfig, Path, Sequence[str]], Mapping[str, Heldout]] = heldout
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Cut:
    """A variant's patches: what goes into [patching], and what the scorer is."""

    fields: Mapping[str, Any]
    scorer: str | None = None
    """Hash of its weights."""
    scorer_bits: float | None = None
    scorer_flops: float = 0.0
    """Operations of one forward pass per byte: what placing the borders costs. Its own training is counted nowhere."""


def run(
    ablation: Ablation,
    settings: Settings,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    tools: Tools = Tools(),
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Make the rows that `out` does not hold yet; returns all of this ablation.

    only: variants. Raises ValueError for what does not fit, and where `out` holds rows that were made otherwise;
    KeyboardInterrupt after a signal, when what was being trained is saved.
    """
    if ablation.needs_texts and len(settings.texts) < 2:
        raise ValueError(f"ablation {ablation.name!r} needs texts of several kinds: --text NAME=FILE, more than once")
    unknown = [name for name in only if name not in {variant.name for variant in ablation.variants}]
    if unknown:
        known = ", ".join(repr(variant.name) for variant in ablation.variants)
        raise ValueError(f"ablation {ablation.name!r} has no variant {unknown[0]!r}; it has {known}")
    out.mkdir(parents=True, exist_ok=True)
    study = _Study(ablation, settings, out, tools, say)
    todo = [
        (seed, variant) for seed in settings.seeds for variant in ablation.variants if not only or variant.name in only
    ]
    for number, (seed, variant) in enumerate(todo):
        progress(number, len(todo))
        study.row(variant, seed, circumstances)
    progress(len(todo), len(todo))
    return study.rows()


class _Study:
    def __init__(
        self, ablation: Ablation, settings: Settings, out: Path, tools: Tools, say: Callable[[str], None]
    ) -> None:
        self.ablation, self.settings, self.out, self.tools, self.say = ablation, settings, out, tools, say
        self._sample: list[bytes] | None = None

    def rows(self) -> list[Row]:
        return [
            row
            for row in read_lines(self.out / ROWS)
            if row.get("what") == WHAT and row["ablation"] == self.ablation.name
        ]

    def row(self, variant: Variant, seed: int, circumstances: Mapping[str, Any]) -> None:
        """Make it, where it is not there."""
        cut = self.cut(variant)
        config = self.config(variant, seed, cut)
        basis = _digest(config, cut.scorer)
        for row in self.rows():
            if (row["variant"], row["seed"]) == (variant.name, seed):
                if row["basis"] != basis:
                    raise ValueError(
                        f"{self.out} holds a row of {variant.name!r}, seed {seed}, that was made otherwise (steps, "
                        "text, rate or shape); take another --out, or the settings of then"
                    )
                return
        self.say(f"{self.ablation.name}: {variant.name}, seed {seed}")
        place = self.out / "runs" / basis
        began = self.tools.clock()
        result = self._train(config, place)
        seconds = self.tools.clock() - began
        names = list(self.settings.texts)
        found = {name: vars(one) for name, one in self.tools.heldout(config, place, names).items()}
        whole = found.pop("")
        with torch.device("meta"):
            sizes = {name: weight.numel() for name, weight in build_trained(config).named_parameters()}
        row = {
            "what": WHAT,
            "ablation": self.ablation.name,
            "variant": variant.name,
            "group": variant.group,
            "seed": seed,
            "bits_per_byte": whole["bits_per_byte"],
            "unit_bytes": whole["unit_bytes"],
            "unit_bytes_in_training": result.mean_patch_bytes,
            "by_text": found,
            "params": sum(sizes.values()),
            "params_tables": sizes.get("embed.ngrams", 0),
            "flops_per_byte": result.train_flops / max(1, result.bytes_seen) + cut.scorer_flops,
            "scorer_flops_per_byte": cut.scorer_flops,
            "scorer_bits_per_byte": cut.scorer_bits,
            "steps": result.steps,
            "bytes_seen": result.bytes_seen,
            "seconds": seconds,
            "basis": basis,
            "scorer": cut.scorer,
            "config": config.model_dump(mode="json", exclude_none=True),
        }
        append_lines(self.out / ROWS, [row | dict(circumstances)])
        if not self.settings.keep_models:
            shutil.rmtree(place, ignore_errors=True)

    def config(self, variant: Variant, seed: int, cut: Cut) -> TrainConfig:
        """A variant's whole training."""
        fields = self._common(COMMON_MODEL, self.settings.steps, seed) | {"patching": dict(cut.fields)}
        if variant.learned:
            fields["objective"] = {"kind": "learned-boundary", "patch_bytes": self.patch_bytes}
        for name, value in variant.changes.items():
            section, _, key = name.partition(".")
            fields[section] = value if not key else fields[section] | {key: value}
        if not fields["patching"]:
            del fields["patching"]
        found: TrainConfig = parse(TrainConfig, fields, f"{self.ablation.name}, {variant.name}")
        return found

    def cut(self, variant: Variant) -> Cut:
        """The rule at the common rate, and the scorer that it listens to, trained where it is not there."""
        if variant.rule is None:
            return Cut({})
        if self.settings.rule is not None and variant.rule == "threshold":
            return Cut({"rule": str(parse_rule(self.settings.rule, "--rule"))})
        kind = RULES[variant.rule]
        if "k" in kind.model_fields:
            return Cut({"rule": str(parse_rule({"kind": variant.rule, "k": self.patch_bytes}))})
        if kind.scores is None:
            return Cut({"rule": variant.rule})
        path, bits = self._scorer(variant.scorer)
        scorer = load_bundle(resolve_model(str(path))).scorer
        assert scorer is not None
        ids = [encode(document) for document in self.sample]
        scores = [scorer.scores(row[None])[0] for row in ids]
        first = parse_rule(
            {"kind": variant.rule} | ({"threshold": 1.0} if variant.rule == "threshold" else {"rise": 0.5})
        )
        rule, _ = calibrate(first, scores, ids, self.patch_bytes)
        shape = scorer_config(scorer)
        assert not isinstance(shape, TableConfig), "the study trains its own"
        flops = forward_flops(shape, 1.0, self.settings.row_bytes)
        return Cut({"model": str(path), "rule": str(rule)}, scorer_hash(scorer), bits, flops)

    @property
    def patch_bytes(self) -> float:
        """The common rate, as a mean patch."""
        if self.settings.patch_bytes is not None:
            return self.settings.patch_bytes
        return _rate(parse_rule("space"), self.sample) if self.ablation.rate_of_words else 4.5

    @property
    def sample(self) -> list[bytes]:
        """Text that rules are calibrated on."""
        if self._sample is None:
            size = self.settings.row_bytes - 2
            pieces = _CALIBRATION_BYTES // size // len(self.corpora)
            self._sample = [piece for corpus in self.corpora for piece in _pieces(corpus, pieces, size)]
        return self._sample

    @cached_property
    def corpora(self) -> list[Corpus]:
        """Of each text."""
        data: DataConfig = parse(DataConfig, {"sources": list(self.settings.texts.values())}, "texts")
        return [Corpus.from_sources([source], _HELD_BACK, directory=self.out / "corpus") for source in data.sources]

    def _scorer(self, model: Mapping[str, Any]) -> tuple[Path, float]:
        config: TrainConfig = parse(
            TrainConfig, self._common(model, self.settings.scorer_steps, 0), "the entropy model"
        )
        place = self.out / "scorers" / _digest(config, None)
        done = place / "result.json"
        if not done.exists():
            self.say(f"training an entropy model, {self.settings.scorer_steps} steps")
            result = self._train(config, place)
            done.write_text(json.dumps(result.bits_per_byte), encoding="utf-8")
        return place, float(json.loads(done.read_text(encoding="utf-8")))

    def _common(self, model: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
        own = self.settings
        data: DataConfig = parse(DataConfig, {"sources": list(own.texts.values())}, "texts")
        weights = [1.0]
        if len(own.texts) > 1:
            sizes = [int(corpus.offsets[-1]) for corpus in self.corpora]
            weights = [round(sum(sizes) / len(sizes) / max(1, size), 3) for size in sizes]
        sources = [
            source.replace(weight=weight).model_dump(mode="json", exclude_none=True)
            for source, weight in zip(data.sources, weights, strict=True)
        ]
        return {
            "model": dict(model),
            "data": {
                "sources": sources,
                "row_bytes": own.row_bytes,
                "batch_rows": own.batch_rows,
                "validation_fraction": _HELD_BACK,
                "cache": str(self.out / "corpus"),
            },
            "optim": {"lr": own.lr, "warmup_steps": min(100, steps // 4), "min_lr_ratio": 0.05},
            "trainer": {
                "max_steps": steps,
                "seed": seed,
                "threads": own.threads,
                "device": "cpu",
                "precision": "fp32",
                "log_every": 20,
                "validation_batches": own.validation_batches,
            },
            "checkpoint": {"export": "end"},
        }

    def _train(self, config: TrainConfig, place: Path) -> Result:
        result = self.tools.train(config, place, resume=place.exists(), say=lambda line: None)
        if result.interrupted:
            raise KeyboardInterrupt
        return result


def _pieces(corpus: Corpus, count: int, size: int) -> list[bytes]:
    """Of training documents, evenly spaced over all their bytes, and as long as a row shows them: the beginning of a
    row, without context, has more borders than its end."""
    places = [
        (int(document), begin)
        for document in corpus.train
        for begin in range(0, int(corpus.offsets[document + 1] - corpus.offsets[document]), size)
    ]
    count = min(count, len(places))
    chosen = [places[(2 * number + 1) * len(places) // (2 * count)] for number in range(count)]
    return [corpus.document(document)[begin : begin + size] for document, begin in chosen]


def _rate(rule: PatchingRule, documents: Sequence[bytes]) -> float:
    """Mean bytes per patch."""
    patches = sum(int(patch(rule, encode(one)[None]).starts[0, 1:-1].sum()) for one in documents)
    return sum(map(len, documents)) / patches


def _digest(config: TrainConfig, scorer: str | None) -> str:
    """Of what decides a run's numbers: the scorer counts by its weights, and where files lie does not."""
    fields = config.model_dump(mode="json", exclude_none=True)
    fields["data"].pop("cache", None)
    if "model" in fields.get("patching", {}):
        fields["patching"]["model"] = scorer
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
