"""Plan of an ablation: its settings, and the trainings that are its units."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, PositiveInt

from bltkit.study.study import Row, Study, Unit

if TYPE_CHECKING:
    from bltkit.study.ablation.catalog import Ablation, Variant


class AblationPlan(Study):
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
    row_bytes: PositiveInt = Field(1024, description="Bytes of a row.")
    batch_rows: PositiveInt = Field(4, description="Rows of a step.")
    lr: PositiveFloat = Field(3e-3, description="Learning rate; ablations may try multiples of it.")
    validation_batches: PositiveInt = Field(32, description="Largest number of held-out batches of a text.")
    threads: PositiveInt = Field(1, description="Threads of the CPU.")
    keep_models: bool = Field(False, description="Keep every run's checkpoint.")

    @classmethod
    def smoke(cls) -> Self:
        sizes = {"steps": 2, "row_bytes": 64, "batch_rows": 2, "validation_batches": 1}
        return cls.model_validate({"name": "cross-attention", "rule": "stride:k=4", **sizes})

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
