"""The plan of the study `scaling`: what is trained, on what, how far, and how often. A TOML file, or a preset.

A plan lists units: a family at a size with a seed. A unit is one training at the full rate, off which a branch with its
own decay goes for each budget; a branch makes a row.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bltkit.config import Config, apply_overrides, load_toml, nearest, parse
from bltkit.data import DataConfig
from bltkit.data.sources import Source, StdlibSource
from bltkit.study.scaling.family_configs import BltFamily, Family, ScalingSize, grown, parse_family
from bltkit.study.scaling.plan_presets import PLANS


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
class Unit:
    """A family at a size with a seed."""

    family: Family
    size: ScalingSize
    seed: int

    @property
    def name(self) -> tuple[str, str, int]:
        """Family, size and seed."""
        return self.family.name, self.size.name, self.seed

    @property
    def key(self) -> str:
        """As `--only` has it."""
        return ":".join(map(str, self.name))

    @property
    def directory(self) -> str:
        """Of its files, below the study's."""
        return self.key.replace(":", "_").replace("@", "-at-")


class ScalingPlan(Config):
    """What is trained and how. Budgets are training FLOPs, exact count, forward and backward."""

    name: str = "own"
    families: tuple[str, ...] = Field(min_length=1)
    sizes: tuple[ScalingSize, ...] = Field(min_length=1)
    """Smallest first."""
    budgets: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Ascending."""
    seeds: PositiveInt = 3
    """Of each family in `seeded` at the size `seeds_at`: 0, 1, ..."""
    seeds_at: str | None = None
    """The smallest size by default."""
    seeds_above: PositiveInt = 1
    """At all other sizes, and of families that are not in `seeded`."""
    seeded: tuple[str, ...] | None = None
    """All families by default."""
    fixed_inference: FixedInference | None = None
    include_scorer: bool = True
    """Does the entropy model's forward pass over every byte of training count towards a budget."""
    scorer: ScorerTraining | str = ScorerTraining()
    """A MODEL in place of a table: its entropy model, as it is."""
    calibration_bytes: PositiveInt = 400_000
    """Text of training documents on which a threshold is found for each patch size."""
    sources: tuple[Source, ...] = (StdlibSource(),)
    row_bytes: PositiveInt = 1024
    batch_rows: PositiveInt = 8
    validation_fraction: float = Field(default=0.02, gt=0, lt=1)
    validation_batches: PositiveInt = 32
    """Of held-out rows, the same for all: first of all sources together, and so many again of each source."""
    decay_share: float = Field(default=0.2, gt=0, lt=1)
    """Of a budget's steps, that its branch decays in."""
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    warmup_steps: PositiveInt = 60
    min_lr_ratio: float = Field(default=0.02, ge=0, le=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    threads: PositiveInt = 1
    device: str = "cpu"
    processes: PositiveInt = 1
    """That a training runs on. The study itself runs plans of one; of others it tells the cost."""
    rate: PositiveFloat = 2e10
    """Training FLOPs a second on all processes, of sizes that name none: for estimates only."""
    keep_models: bool = False
    """Keep the branches' checkpoints; else what is left of a row is its config and its curve of losses."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        families = [parse_family(name) for name in self.families]
        names = [size.name for size in self.sizes]
        for what, given in (("families", self.families), ("sizes", names), ("budgets", self.budgets)):
            if len(set(given)) != len(given):
                raise ValueError(f"{what} names one twice: {', '.join(map(str, given))}")
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
                family.cost(size, family.assumed_unit_bytes, self.row_bytes, None)  # a shape that cannot be
        return self

    def units(self) -> tuple[Unit, ...]:
        """All, the cheap ones of every family first, so that a study that is broken off has something of each."""
        found = [
            Unit(parse_family(name), size, seed)
            for size in self.sizes
            for name in self.families
            for seed in range(self._seeds(name, size))
        ]
        fixed = self.fixed_inference
        for name in fixed.sizes if fixed else ():
            assert fixed is not None
            size = next(size for size in self.sizes if size.name == name)
            for patch in fixed.patches:
                family = parse_family(f"blt-{fixed.rule}-{patch:g}")
                larger = grown(size, family, fixed.base_patch, self.row_bytes)
                found += [Unit(family, larger, seed) for seed in range(fixed.seeds)]
        return tuple(sorted(found, key=lambda unit: unit.seed))

    def _seeds(self, family: str, size: ScalingSize) -> int:
        several = size.name == (self.seeds_at or self.sizes[0].name) and family in (self.seeded or self.families)
        return self.seeds if several else self.seeds_above

    def chosen(self, only: Sequence[str]) -> tuple[Unit, ...]:
        """The units that `only` names as family:size:seed, where a part may be `*`; all of them for nothing.

        Raises ValueError for a name that fits none.
        """
        units = self.units()
        if not only:
            return units
        wanted: set[str] = set()
        for name in only:
            parts = name.split(":")
            fits = [unit.key for unit in units if len(parts) == 3 and _fits(parts, unit.key.split(":"))]
            if not fits:
                raise ValueError(f"--only {name!r}{nearest(name, [unit.key for unit in units])}")
            wanted.update(fits)
        return tuple(unit for unit in units if unit.key in wanted)

    def basis(self, unit: Unit) -> str:
        """A hash of all that a unit's rows depend on besides the seed and the budget."""
        apart = {
            "name",
            "families",
            "sizes",
            "budgets",
            "seeds",
            "seeds_at",
            "seeds_above",
            "seeded",
            "fixed_inference",
            "rate",
        }
        common = self.model_dump(mode="json", exclude=apart | {"keep_models", "processes"})
        own = {"family": unit.family.model_dump(mode="json"), "size": unit.size.model_dump(mode="json")}
        for estimate in ("rate", "token_rate"):
            own["size"].pop(estimate, None)
        return digest(common | own)

    def rate_of(self, unit: Unit) -> float:
        """Training FLOPs a second that estimates count on."""
        tokens = unit.size.token_rate if unit.family.unit == "token" else None
        return tokens or unit.size.rate or self.rate

    def data(self, cache: Path) -> dict[str, Any]:
        """The section `[data]`."""
        found = DataConfig(
            sources=self.sources,
            row_bytes=self.row_bytes,
            batch_rows=self.batch_rows,
            validation_fraction=self.validation_fraction,
            cache=str(cache),
        )
        return found.model_dump(mode="json", exclude_none=True)


def digest(value: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_plan(name: str, overrides: Sequence[str] = ()) -> ScalingPlan:
    """`cpu`, `gpu`, `cluster`, or a TOML file, with `key=value` on top. Raises ValueError for anything else."""
    if name.endswith(".toml"):
        data = load_toml(name, overrides)
    elif name in PLANS:
        data = apply_overrides(PLANS[name] | {"name": name}, overrides)
    else:
        raise ValueError(f"--plan {name!r} is neither a .toml file nor a preset{nearest(name, list(PLANS))}")
    plan: ScalingPlan = parse(ScalingPlan, data, f"plan {name}")
    return plan


def _fits(wanted: Sequence[str], found: Sequence[str]) -> bool:
    return all(part in ("*", own) for part, own in zip(wanted, found, strict=True))


def entropy_patches(units: Sequence[Unit]) -> list[float]:
    """Patch sizes for which a threshold is needed, ascending."""
    found = {
        unit.family.patch_bytes for unit in units if isinstance(unit.family, BltFamily) and unit.family.needs_scorer
    }
    return sorted(patch for patch in found if patch is not None)
