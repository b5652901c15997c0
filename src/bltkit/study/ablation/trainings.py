"""Trainings of an ablation: their configs, and the row that a finished one gives."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock

from bltkit.config import apply_overrides, parse
from bltkit.study.ablation.ablation_plan import AblationPlan, rate_of
from bltkit.study.ablation.ablation_texts import AblationTexts
from bltkit.study.ablation.catalog import Variant
from bltkit.study.ablation.heldout import heldout, seconds_of
from bltkit.study.ablation.patchers import Cuts, VariantPatching, digest
from bltkit.study.ablation.shapes import BASE
from bltkit.study.study import Row, StudyRun
from bltkit.train import Result, TrainConfig
from bltkit.train.learner import build_trained


class AblationTrainings:
    """The trainings of one plan in one directory; entropy models and calibrated rules are kept for all of them."""

    def __init__(self, plan: AblationPlan, run: StudyRun) -> None:
        self.plan, self.ablation, self.study_run = plan, plan.ablation, run
        self.texts = AblationTexts(plan, run.out)

        def train(config: TrainConfig, place: Path) -> float:
            return self._train(config, place).bits_per_byte

        self.cuts = Cuts(plan, self.texts, run.out / "scorers", train, run.say, self.ablation.rate_of_words)

    def check(self) -> None:
        """Raises ValueError for impossible texts and trainings, and for stored rows of other settings."""
        assert len(self.texts.corpus)
        units = {unit.name for unit in self.study_run.units}
        variants = {variant.name: variant for name, (variant, _, _) in self.plan.trainings().items() if name in units}
        for variant in variants.values():
            self.config(variant, 0, 1.0, VariantPatching({} if variant.rule is None else {"rule": "stride:k=4"}), 1)
        for row in self.study_run.rows():
            if self.plan.unit_of(row) in units:
                variant = variants[row["variant"]]
                config, cut = self._training(variant, row["seed"], rate_of(row))
                if row["basis"] != digest(config, cut.scorer):
                    raise ValueError(
                        f"{self.study_run.out} holds a row of {variant.name!r}, seed {row['seed']}, that was made with "
                        "other settings (steps, text, rate or shape); use a new --out, or restore the original plan"
                    )

    def rows(self, variant: Variant, seed: int, rate: float) -> Iterator[Row]:
        """Train, or resume, and measure: one row. Raises KeyboardInterrupt after a signal, the training saved."""
        config, cut = self._training(variant, seed, rate)
        place = self.study_run.out / "runs" / digest(config, cut.scorer)
        place.parent.mkdir(exist_ok=True)
        # Two ablations in one directory may have a training in common.
        with FileLock(place.with_suffix(".lock")):
            self.study_run.say(f"{self.ablation.name}: {variant.name}, seed {seed}, lr {config.optim.lr:g}")
            yield self._measured(variant, seed, cut, config, place) | {"rate": rate}
            # Only now is the row on disk.
            if not self.plan.keep_models:
                shutil.rmtree(place, ignore_errors=True)

    def config(self, variant: Variant, seed: int, rate: float, cut: VariantPatching, steps: int) -> TrainConfig:
        """Config of a variant's whole training. rate: multiple of the plan's learning rate."""
        fields = self.texts.sections(BASE, steps, seed) | {"patching": dict(cut.fields)}
        fields["optim"]["lr"] *= rate
        if variant.learned:
            fields["objective"] = {"kind": "learned-boundary", "patch_bytes": self.cuts.patch_bytes}
        for name, value in variant.changes.items():
            section, _, key = name.partition(".")
            fields[section] = value if not key else fields[section] | {key: value}
        if not fields["patching"]:
            del fields["patching"]
        fields = apply_overrides(fields, self.plan.changes)
        config: TrainConfig = parse(TrainConfig, fields, f"{self.ablation.name}, {variant.name}")
        return config

    def _training(self, variant: Variant, seed: int, rate: float) -> tuple[TrainConfig, VariantPatching]:
        cut, steps = self.cuts.of(variant), self.plan.steps
        if self.ablation.same_flops:
            first = next(other for other in self.ablation.variants if other.group == variant.group)
            steps = round(steps * self._flops(first, self.cuts.of(first)) / self._flops(variant, cut))
        return self.config(variant, seed, rate, cut, steps), cut

    def _flops(self, variant: Variant, cut: VariantPatching) -> float:
        """Operations per byte of training at the common rate of patches."""
        return self.config(variant, 0, 1.0, cut, 1).train_flops(1.0, self.cuts.patch_bytes) + cut.scorer_flops

    def _measured(self, variant: Variant, seed: int, cut: VariantPatching, config: TrainConfig, place: Path) -> Row:
        result, names = self._train(config, place), list(self.plan.texts)
        by_text, as_trained = heldout(config, place, names), None
        if variant.learned:
            # Training leaves the rate near the wanted one; compared is at the rate of all others.
            as_trained = by_text.pop("")
            by_text = heldout(config, place, names, self.cuts.of_router(place))
        whole = by_text.pop("")
        with torch.device("meta"):
            sizes = {name: weight.numel() for name, weight in build_trained(config).named_parameters()}
        return {
            "ablation": self.ablation.name,
            "variant": variant.name,
            "group": variant.group,
            "seed": seed,
            "bits_per_byte": whole["bits_per_byte"],
            "unit_bytes": whole["unit_bytes"],
            "unit_bytes_in_training": result.mean_patch_bytes,
            "by_text": by_text,
            "as_trained": as_trained,
            "params": sum(sizes.values()),
            "params_tables": sizes.get("embed.ngrams", 0),
            "flops_per_byte": result.train_flops / max(1, result.bytes_seen) + cut.scorer_flops,
            "scorer_flops_per_byte": cut.scorer_flops,
            "scorer_bits_per_byte": cut.scorer_bits,
            "steps": result.steps,
            "bytes_seen": result.bytes_seen,
            "seconds": seconds_of(place),
            "changes": list(self.plan.changes),
            "basis": place.name,
            "scorer": cut.scorer,
            "config": config.model_dump(mode="json", exclude_none=True),
        }

    def _train(self, config: TrainConfig, place: Path) -> Result:
        result = self.study_run.train(config, place, resume=place.exists(), say=lambda line: None)
        if result.interrupted:
            raise KeyboardInterrupt
        return result
