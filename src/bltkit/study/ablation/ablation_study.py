"""The study `ablation`: small trainings that differ in one thing, at an equal rate of patches and with the same seeds.

A unit is one training of a variant: a seed and, where the ablation tries several learning rates with the first seed,
one of these. A training that was interrupted resumes from its checkpoint, in a directory named after its config, so
that nothing resumes from something else.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr

from bltkit.study.study import Row, Study, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd

    from bltkit.study.ablation.catalog import Ablation, Variant
    from bltkit.study.ablation.trainings import AblationTrainings
    from bltkit.study.report import Section
    from bltkit.views.figures import Figure


class AblationStudy(Study):
    """Small trainings that differ in one thing, at an equal rate of patches and with the same seeds."""

    what: ClassVar[str] = "ablation"
    title: ClassVar[str] = "Ablations"
    default_out: ClassVar[str] = "ablation"

    name: str = Field(
        "",
        description="optimizer, patching, ngrams, cross-attention, local, entropy-model or scripts; --report: all.",
        json_schema_extra={"positional": True, "report": True},
    )
    steps: PositiveInt = Field(
        300,
        description="Steps of every training; where all of a group train on the same operations, of its first variant.",
    )
    scorer_steps: PositiveInt = Field(300, description="Steps of the entropy model.")
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="Number of seeds, from 0 on.")
    patch_bytes: PositiveFloat | None = Field(
        None, description="Mean patch that all variants cut at; default: 4.5, or that of words."
    )
    texts: dict[str, str] = Field(
        {"stdlib": "stdlib"},
        description="NAME=SOURCE, a part of the mixture (repeatable); each has about the same share of the training.",
        json_schema_extra={"option": "--text"},
    )
    rule: str | None = Field(
        None,
        description="Rule in place of the calibrated entropy rule; `list` shows all.",
        json_schema_extra={"lists": "rules"},
    )
    changes: tuple[str, ...] = Field(
        (),
        description="KEY=VALUE on top of every training, such as model.encoder.window=16 (repeatable).",
        json_schema_extra={"option": "--change", "aliases": ["--set"]},
    )
    row_bytes: PositiveInt = 1024
    batch_rows: PositiveInt = 4
    lr: PositiveFloat = 3e-3
    validation_batches: PositiveInt = 32
    threads: PositiveInt = Field(1, description="Threads of the CPU.")
    keep_models: bool = Field(False, description="Keep every run's checkpoint.")

    _trainings: "AblationTrainings | None" = PrivateAttr(None)

    @classmethod
    def smoke(cls) -> Self:
        return cls(name="cross-attention", steps=2, rule="stride:k=4", row_bytes=64, batch_rows=2, validation_batches=1)

    @property
    def ablation(self) -> "Ablation":
        """The catalogue's entry. Raises ValueError for no name, and for an unknown one."""
        from bltkit.study.ablation.catalog import ABLATIONS, ablation_named

        if not self.name:
            raise ValueError(f"study 'ablation' needs the name of one: {', '.join(ABLATIONS)}")
        return ablation_named(self.name)

    def units(self) -> Sequence[Unit]:
        ablation = self.ablation
        if ablation.needs_texts and len(self.texts) < 2:
            raise ValueError(f"ablation {self.name!r} needs texts of several kinds: --text NAME=FILE, more than once")
        return [Unit(name, "runs/" + re.sub(r"[^\w.+-]+", "-", name)) for name in self.trainings()]

    def unit_of(self, row: Row) -> str:
        if row["ablation"] != self.name:
            return f"{row['ablation']}:{row['variant']}"
        return self._unit_name(row["variant"], row["seed"], rate_of(row))

    def prepare(self, run: StudyRun) -> None:
        from bltkit.study.ablation.trainings import AblationTrainings

        self._trainings = AblationTrainings(self, run)
        self._trainings.check()

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        assert self._trainings is not None, "prepare comes first"
        variant, seed, rate = self.trainings()[unit.name]
        if rate is None:
            first = [
                row
                for row in run.rows()
                if (row["ablation"], row["variant"], row["seed"]) == (self.name, variant.name, 0)
            ]
            if len(first) < len(self.ablation.rates):
                run.say(f"{unit.name}: its learning rates are not all tried yet; skipping")
                return
            rate = best_rate(first)
        yield from self._trainings.rows(variant, seed, rate)

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        from bltkit.study.ablation.ablation_tables import section

        return [section(rows) for _, rows in self._by_ablation(frame)]

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        from bltkit.study.ablation.ablation_tables import figure

        return {name: figure(rows) for name, rows in self._by_ablation(frame)}

    def _by_ablation(self, frame: "pd.DataFrame") -> "list[tuple[str, pd.DataFrame]]":
        """Rows by ablation, in the order of measurement; of the named one alone where there is a name."""
        groups = [(str(name), rows) for name, rows in frame.groupby("ablation", sort=False)]
        return [(name, rows) for name, rows in groups if self.name in ("", name)]

    def trainings(self) -> "dict[str, tuple[Variant, int, float | None]]":
        """Variant, seed and learning rate by unit; None: the best of the rates that the first seed tried."""
        ablation = self.ablation
        parts: dict[str, tuple[Variant, int, float | None]] = {}
        for seed in range(self.seeds):
            for variant in ablation.variants:
                for rate in ablation.rates if len(ablation.rates) == 1 or not seed else (None,):
                    parts[self._unit_name(variant.name, seed, rate)] = variant, seed, rate
        return parts

    def _unit_name(self, variant: str, seed: int, rate: float | None) -> str:
        several = len(self.ablation.rates) > 1 and not seed
        return f"{variant}:seed {seed}" + (f":rate {rate:g}" if several else "")


def rate_of(row: Mapping[str, Any]) -> float:
    """Learning rate of a row, as a multiple of the ablation's; rows of the first release have the common one."""
    return float(row.get("rate", 1.0))


def best_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """Learning rate of the row with the fewest bits per byte."""
    return rate_of(min(rows, key=lambda row: row["bits_per_byte"]))
