"""The plan of the study `scaling`: what is trained, on what, how far, and how often. A TOML file, or a preset.

A plan lists trunks: a family at a size with a seed, trained at the full rate. For each budget a decay branch leaves the
trunk (WSD); a branch makes a row.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bltkit.config import Config, nearest
from bltkit.data import DataConfig
from bltkit.data.sources import Source, StdlibSource
from bltkit.study.scaling.family_configs import BltFamily, Family, ScalingSize, grown, parse_family
from bltkit.study.study import Study


class ScorerTraining(Config):
    """The entropy model that the study trains for itself, once, on the same training documents."""

    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 1
    ffn_width: PositiveInt | None = 192
    window: PositiveInt = 128
    steps: PositiveInt = 1500
    lr: PositiveFloat = 3e-3

    def model(self) -> dict[str, Any]:
        """The section `[model]` of its training."""
        return {"kind": "entropy"} | self.model_dump(exclude={"steps", "lr"}, exclude_none=True)


class FixedInference(Config):
    """Patch and model grow together, so that a byte costs as much at inference as at `base_patch` (BLT 5.3)."""

    sizes: tuple[str, ...]
    base_patch: PositiveFloat = 4.5
    patches: tuple[PositiveFloat, ...] = (6.0, 8.0)
    rule: Literal["entropy", "stride"] = "entropy"
    seeds: PositiveInt = 1


@dataclass(frozen=True)
class Trunk:
    """A family at a size with a seed: one training, which the branches of all budgets share."""

    family: Family
    size: ScalingSize
    seed: int

    @property
    def key(self) -> str:
        """FAMILY:SIZE:SEED."""
        return f"{self.family.name}:{self.size.name}:{self.seed}"

    @property
    def directory(self) -> str:
        """Name of the directory of its files."""
        return self.key.replace(":", "_").replace("@", "-at-")


class ScalingPlan(Study):
    """Compare patches and tokens over sizes and training FLOPs: bits per byte of models at matched budgets.

    A budget is met by the exact count of forward and backward operations. `--dry-run` prints what a plan costs.
    """

    name: str = "own"
    families: tuple[str, ...] = Field(min_length=1)
    """blt-entropy-PATCH, blt-stride-PATCH, blt-space or bpe-VOCABULARY."""
    sizes: tuple[ScalingSize, ...] = Field(min_length=1)
    """Smallest first."""
    budgets: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Training FLOPs, ascending."""
    seeds: PositiveInt = 3
    """Number of seeds of each family in `seeded` at the size `seeds_at`."""
    seeds_at: str | None = None
    """The smallest size by default."""
    seeds_above: PositiveInt = 1
    """Number of seeds at all other sizes, and of families that are not in `seeded`."""
    seeded: tuple[str, ...] | None = None
    """All families by default."""
    fixed_inference: FixedInference | None = None
    include_scorer: bool = True
    """Whether the entropy model's forward pass over every byte of training counts towards a budget."""
    scorer: ScorerTraining | str = ScorerTraining()
    """A MODEL in place of a table: its entropy model is used as it is."""
    calibration_bytes: PositiveInt = 400_000
    """Text of training documents on which the threshold of each patch size is calibrated."""
    sources: tuple[Source, ...] = Field(
        default=(StdlibSource(),), json_schema_extra={"option": "--source", "metavar": "SOURCE"}
    )
    """Text in place of the plan's, as in data.sources (repeatable); stdlib by default."""
    row_bytes: PositiveInt = 1024
    batch_rows: PositiveInt = 8
    validation_fraction: float = Field(default=0.02, gt=0, lt=1)
    validation_batches: PositiveInt = 32
    """Batches of held-out rows, the same for all: of all sources together, and as many of each source."""
    decay_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of a budget's steps in which its branch decays."""
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    warmup_steps: PositiveInt = 60
    min_lr_ratio: float = Field(default=0.02, ge=0, le=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    threads: PositiveInt = 1
    """Threads of a training."""
    device: str = "cpu"
    """Device of a training: auto, cpu, cuda, cuda:N or mps."""
    processes: PositiveInt = 1
    """Processes of a training. The study runs plans of one process, and estimates the cost of others."""
    rate: PositiveFloat = 2e10
    """Training FLOP/s on all processes for sizes without a rate: for estimates only."""
    keep_models: bool = False
    """Keep the branches' checkpoints; else a row's config and loss curve remain."""
    rates: bool = False
    """Measure the time of a byte of training instead, of all models in turn; best on a quiet machine."""
    rounds: PositiveInt = 5
    """Rounds of --rates."""
    assumed_rate: float | None = Field(default=None, json_schema_extra={"option": "--rate"})
    """With --dry-run: training GFLOP/s of all sizes, in place of the plan's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        families = [parse_family(name) for name in self.families]
        names = [size.name for size in self.sizes]
        for what, values in (("families", self.families), ("sizes", names), ("budgets", self.budgets)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} names one twice: {', '.join(map(str, values))}")
        if list(self.budgets) != sorted(self.budgets):
            raise ValueError("budgets: write them in ascending order, since a training passes them in turn")
        wrong = next((name for name in self.seeded or () if name not in self.families), None)
        if wrong is not None:
            raise ValueError(f"seeded names {wrong!r}, which is not in families{nearest(wrong, self.families)}")
        if self.seeds_at is not None and self.seeds_at not in names:
            raise ValueError(f"seeds_at names {self.seeds_at!r}{nearest(self.seeds_at, names)}")
        for name in self.fixed_inference.sizes if self.fixed_inference else ():
            if name not in names:
                raise ValueError(f"fixed_inference.sizes names {name!r}{nearest(name, names)}")
        for size in self.sizes:
            for family in families:
                family.cost(size, family.assumed_unit_bytes, self.row_bytes, None)  # refuses impossible shapes
        return self

    def trunks(self) -> tuple[Trunk, ...]:
        """All trunks, the cheap ones of every family first, so that an interrupted study has some of each."""
        trunks = [
            Trunk(parse_family(name), size, seed)
            for size in self.sizes
            for name in self.families
            for seed in range(self._seeds(name, size))
        ]
        if (fixed := self.fixed_inference) is not None:
            sizes = {size.name: size for size in self.sizes}
            for name in fixed.sizes:
                for patch in fixed.patches:
                    family = parse_family(f"blt-{fixed.rule}-{patch:g}")
                    larger = grown(sizes[name], family, fixed.base_patch, self.row_bytes)
                    trunks += [Trunk(family, larger, seed) for seed in range(fixed.seeds)]
        return tuple(sorted(trunks, key=lambda trunk: trunk.seed))

    def _seeds(self, family: str, size: ScalingSize) -> int:
        several = size.name == (self.seeds_at or self.sizes[0].name) and family in (self.seeded or self.families)
        return self.seeds if several else self.seeds_above

    def basis(self, trunk: Trunk) -> str:
        """Hash of everything that a trunk's rows depend on besides the seed and the budget."""
        common = self.model_dump(mode="json", exclude=_NOT_IN_BASIS)
        size = trunk.size.model_dump(mode="json", exclude={"rate", "token_rate"})
        return digest(common | {"family": trunk.family.model_dump(mode="json"), "size": size})

    def rate_of(self, trunk: Trunk) -> float:
        """Training FLOP/s that estimates assume."""
        tokens = trunk.size.token_rate if trunk.family.unit == "token" else None
        return tokens or trunk.size.rate or self.rate

    def data(self, cache: Path) -> dict[str, Any]:
        """The section `[data]`."""
        section = DataConfig(
            sources=self.sources,
            row_bytes=self.row_bytes,
            batch_rows=self.batch_rows,
            validation_fraction=self.validation_fraction,
            cache=str(cache),
        )
        return section.model_dump(mode="json", exclude_none=True)


_NOT_IN_BASIS = {
    *("name", "families", "sizes", "budgets", "seeds", "seeds_at", "seeds_above", "seeded", "fixed_inference"),
    *("rate", "keep_models", "processes", "rates", "rounds", "assumed_rate"),
}
"""Fields that select trunks or affect estimates and files; a trunk's family and size are hashed apart."""


def digest(value: Any) -> str:
    """Hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def entropy_patches(trunks: Iterable[Trunk]) -> list[float]:
    """Patch sizes for which a threshold is needed, ascending."""
    families = {trunk.family for trunk in trunks if isinstance(trunk.family, BltFamily) and trunk.family.needs_scorer}
    return sorted({family.patch_bytes for family in families if family.patch_bytes is not None})
