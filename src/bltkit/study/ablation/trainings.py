"""Runs of an ablation: the entropy models, a training for each variant and seed, a row for each. Resumable.

Rows are JSON lines; one that is there is not made again. A training that was broken off goes on from its checkpoint, in
a directory named after its config, so that nothing goes on from something else. It belongs to whoever holds its lock,
so several processes share a directory.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bltkit.config import apply_overrides, parse
from bltkit.patching import PatchingRule
from bltkit.study.ablation.catalog import Ablation, Variant
from bltkit.study.ablation.heldout import HeldoutText, heldout, seconds_of
from bltkit.study.ablation.patchers import Cuts, VariantPatching, digest
from bltkit.study.ablation.shapes import BASE
from bltkit.study.ablation.training_settings import AblationSettings, AblationTexts
from bltkit.study.row_file import RowFile
from bltkit.train import Result, TrainConfig
from bltkit.train import train as train_run
from bltkit.train.learner import build_trained

WHAT = "ablation"

Row = dict[str, Any]


def rate_of(row: Mapping[str, Any]) -> float:
    """The learning rate of a row, as a multiple of the ablation's; rows of old have the common one."""
    return float(row.get("rate", 1.0))


def best_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """That of the row with the fewest bits per byte."""
    return rate_of(min(rows, key=lambda row: row["bits_per_byte"]))


@dataclass(frozen=True)
class AblationTools:
    """What trains and measures; tests put something quick in its place."""

    train: Callable[..., Result] = train_run
    heldout: Callable[..., Mapping[str, HeldoutText]] = heldout
    router: Callable[[Cuts, Path], PatchingRule] = Cuts.of_router
    seconds: Callable[[Path], float] = seconds_of


def run(
    ablation: Ablation,
    settings: AblationSettings,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    tools: AblationTools = AblationTools(),
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Make the rows that `out` does not hold yet; returns all of this ablation.

    only: variants. Those that another process works on are left to it. Raises ValueError for what does not fit, and
    where `out` holds rows that were made otherwise; KeyboardInterrupt after a signal, when what was being trained is
    saved.
    """
    if ablation.needs_texts and len(settings.texts) < 2:
        raise ValueError(f"ablation {ablation.name!r} needs texts of several kinds: --text NAME=FILE, more than once")
    unknown = [name for name in only if name not in {variant.name for variant in ablation.variants}]
    if unknown:
        known = ", ".join(repr(variant.name) for variant in ablation.variants)
        raise ValueError(f"ablation {ablation.name!r} has no variant {unknown[0]!r}; it has {known}")
    out.mkdir(parents=True, exist_ok=True)
    study = _AblationStudy(ablation, settings, out, tools, say)
    study.check(only)
    todo = [
        (seed, variant) for seed in settings.seeds for variant in ablation.variants if not only or variant.name in only
    ]
    for number, (seed, variant) in enumerate(todo):
        progress(number, len(todo))
        for rate in study.rates(variant, seed):
            study.row(variant, seed, rate, circumstances)
    progress(len(todo), len(todo))
    return study.rows()


class _AblationStudy:
    def __init__(
        self,
        ablation: Ablation,
        settings: AblationSettings,
        out: Path,
        tools: AblationTools,
        say: Callable[[str], None],
    ) -> None:
        self.ablation, self.settings, self.out, self.tools, self.say = ablation, settings, out, tools, say
        self.file, self.texts = RowFile(out, WHAT), AblationTexts(settings, out)

        def train(config: TrainConfig, place: Path) -> float:
            return self._train(config, place).bits_per_byte

        self.cuts = Cuts(settings, self.texts, out / "scorers", train, say, ablation.rate_of_words)

    def check(self, only: Sequence[str]) -> None:
        """Raises ValueError for texts and trainings that cannot be, before anything is trained."""
        assert len(self.texts.corpus)
        for variant in self.ablation.variants:
            if not only or variant.name in only:
                self._config(
                    variant, 0, 1.0, VariantPatching({} if variant.rule is None else {"rule": "stride:k=4"}), 1
                )

    def rows(self) -> list[Row]:
        return [row for row in self.file.read() if row["ablation"] == self.ablation.name]

    def rates(self, variant: Variant, seed: int) -> tuple[float, ...]:
        """Learning rates to train at: all with the first seed, then the best of them, once all are there."""
        rates, first = self.ablation.rates, self.settings.seeds[0]
        if len(rates) == 1 or seed == first:
            return rates
        tried = [row for row in self.rows() if (row["variant"], row["seed"]) == (variant.name, first)]
        if len(tried) < len(rates):
            self.say(f"{self.ablation.name}: {variant.name}: another process still tries its learning rates; skipping")
            return ()
        return (best_rate(tried),)

    def row(self, variant: Variant, seed: int, rate: float, circumstances: Mapping[str, Any]) -> None:
        """Make it, where it is not there and nobody else is at it."""
        cut = self.cuts.of(variant)
        config = self._config(variant, seed, rate, cut, self._steps(variant, cut))
        place = self.out / "runs" / digest(config, cut.scorer)
        place.parent.mkdir(exist_ok=True)
        try:
            with FileLock(place.with_suffix(".lock"), timeout=0):
                if not self._known(variant, seed, rate, place.name):
                    self.say(f"{self.ablation.name}: {variant.name}, seed {seed}, lr {config.optim.lr:g}")
                    row = self._make(variant, seed, cut, config, place) | {"rate": rate}
                    self.file.add(row | dict(circumstances))
        except Timeout:
            self.say(f"{self.ablation.name}: {variant.name}, seed {seed}: another process is at it")

    def _known(self, variant: Variant, seed: int, rate: float, basis: str) -> bool:
        """Raises ValueError for a row that was made otherwise."""
        for row in self.rows():
            if (row["variant"], row["seed"], rate_of(row)) == (variant.name, seed, rate):
                if row["basis"] != basis:
                    raise ValueError(
                        f"{self.out} holds a row of {variant.name!r}, seed {seed}, that was made otherwise (steps, "
                        "text, rate or shape); take another --out, or the settings of then"
                    )
                return True
        return False

    def _make(self, variant: Variant, seed: int, cut: VariantPatching, config: TrainConfig, place: Path) -> Row:
        result = self._train(config, place)
        names, as_trained = list(self.settings.texts), None
        found = {name: vars(one) for name, one in self.tools.heldout(config, place, names).items()}
        if variant.learned:
            # Training leaves the rate near the wanted one; compared is at the rate of all others.
            as_trained, rule = found.pop(""), self.tools.router(self.cuts, place)
            found = {name: vars(one) for name, one in self.tools.heldout(config, place, names, rule).items()}
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
            "as_trained": as_trained,
            "params": sum(sizes.values()),
            "params_tables": sizes.get("embed.ngrams", 0),
            "flops_per_byte": result.train_flops / max(1, result.bytes_seen) + cut.scorer_flops,
            "scorer_flops_per_byte": cut.scorer_flops,
            "scorer_bits_per_byte": cut.scorer_bits,
            "steps": result.steps,
            "bytes_seen": result.bytes_seen,
            "seconds": self.tools.seconds(place),
            "changes": list(self.settings.changes),
            "basis": place.name,
            "scorer": cut.scorer,
            "config": config.model_dump(mode="json", exclude_none=True),
        }
        if not self.settings.keep_models:
            shutil.rmtree(place, ignore_errors=True)
        return row

    def _steps(self, variant: Variant, cut: VariantPatching) -> int:
        if not self.ablation.same_flops:
            return self.settings.steps
        first = next(one for one in self.ablation.variants if one.group == variant.group)
        return round(self.settings.steps * self._flops(first, self.cuts.of(first)) / self._flops(variant, cut))

    def _flops(self, variant: Variant, cut: VariantPatching) -> float:
        """Of a byte of training at the common rate."""
        return self._config(variant, 0, 1.0, cut, 1).train_flops(1.0, self.cuts.patch_bytes) + cut.scorer_flops

    def _config(self, variant: Variant, seed: int, rate: float, cut: VariantPatching, steps: int) -> TrainConfig:
        """A variant's whole training."""
        fields = self.texts.sections(BASE, steps, seed) | {"patching": dict(cut.fields)}
        fields["optim"]["lr"] *= rate
        if variant.learned:
            fields["objective"] = {"kind": "learned-boundary", "patch_bytes": self.cuts.patch_bytes}
        for name, value in variant.changes.items():
            section, _, key = name.partition(".")
            fields[section] = value if not key else fields[section] | {key: value}
        if not fields["patching"]:
            del fields["patching"]
        fields = apply_overrides(fields, self.settings.changes)
        found: TrainConfig = parse(TrainConfig, fields, f"{self.ablation.name}, {variant.name}")
        return found

    def _train(self, config: TrainConfig, place: Path) -> Result:
        result = self.tools.train(config, place, resume=place.exists(), say=lambda line: None)
        if result.interrupted:
            raise KeyboardInterrupt
        return result
