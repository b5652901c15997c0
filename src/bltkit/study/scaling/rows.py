"""Rows of the study `scaling`: one for each family, size, seed and budget, and what fits and tables read of them.

A row holds the config of one whole run: `blt train` of it gives the row's bits per byte again, without trunk or branch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch

from bltkit.study.row_file import RowFile
from bltkit.study.scaling.batches import Heldout, Seen
from bltkit.study.scaling.family_configs import ForwardCost, parameters
from bltkit.study.scaling.plan import ScalingPlan, Unit, digest
from bltkit.study.scaling.prepare import Prepared
from bltkit.train import TrainConfig, build_model

WHAT, RATE = "scaling", "scaling-rate"

Row = dict[str, Any]
Key = tuple[str, str, int, float]


@dataclass(frozen=True)
class ScalingPoint:
    """What a row says, for fits: bits per byte `loss` of a model of `params` that are multiplied with, after
    `num_bytes` of text and `flops` of training. seconds: NaN where no rate was measured."""

    family: str
    size: str
    seed: int
    budget: float
    params: float
    num_bytes: float
    flops: float
    seconds: float
    loss: float
    unit_bytes: float = 1.0

    @classmethod
    def of(cls, row: Mapping[str, Any], seconds_per_byte: float = math.nan) -> Self:
        """seconds_per_byte: as `training_rates.py` measured it; a run's clock ran on a machine that others shared."""
        return cls(
            row["family"],
            row["size"],
            row["seed"],
            row["budget"],
            row["params_multiplied"],
            row["bytes_seen"],
            row["flops"],
            row["bytes_seen"] * seconds_per_byte,
            row["bits_per_byte"],
            row["unit_bytes"],
        )

    @property
    def main(self) -> bool:
        """Is the size one of the plan's, not one that grew with its patch."""
        return "@" not in self.size


def key_of(row: Mapping[str, Any]) -> Key:
    """What there is one row of."""
    return row["family"], row["size"], row["seed"], row["budget"]


def make_row(
    plan: ScalingPlan,
    unit: Unit,
    budget: float,
    *,
    whole: TrainConfig,
    begin: int,
    seen: Seen,
    cost: ForwardCost,
    bits_per_byte: float,
    by_source: Mapping[str, Heldout],
    seconds: float,
    prepared: Prepared,
    circumstances: Mapping[str, Any],
) -> Row:
    """The row. whole: the config of the run as one. begin: the step at which its decay begins. seen, seconds: at its
    end."""
    flops, paper = cost.training(seen.num_bytes, plan.include_scorer), 3 * cost.paper * seen.num_bytes
    params, multiplied = parameters_of(whole)
    config = whole.model_dump(mode="json", exclude_none=True)
    return {
        "what": WHAT,
        "plan": plan.name,
        "family": unit.family.name,
        "size": unit.size.name,
        "seed": unit.seed,
        "budget": budget,
        "bits_per_byte": bits_per_byte,
        "by_source": {label: asdict(one) for label, one in by_source.items()},
        "flops": flops,
        "flops_without_scorer": cost.training(seen.num_bytes, False),
        "flops_of_scorer": cost.scorer * seen.num_bytes,
        "flops_of_scorer_training": prepared.train_flops if unit.family.needs_scorer else None,
        "flops_paper": paper,
        "forward_flops_per_byte": cost.exact,
        "bytes_seen": seen.num_bytes,
        "seconds": seconds,
        "params": params,
        "params_multiplied": multiplied,
        "unit": unit.family.unit,
        "unit_bytes": seen.unit_bytes,
        "steps": seen.step,
        "decay_begins": begin,
        "threads": plan.threads,
        "precision": plan.precision,
        "basis": plan.basis(unit),
        "config_hash": config_hash(config, prepared.fingerprint),
        "config": config,
        "scorer": None if not unit.family.needs_scorer else prepared.fingerprint,
        **circumstances,
    }


def config_hash(config: Mapping[str, Any], scorer: str | None) -> str:
    """Of what decides a run's numbers: where files lie does not, and the entropy model counts by its weights."""
    found = {name: dict(section) if isinstance(section, dict) else section for name, section in config.items()}
    if "model" in found.get("patching", {}):
        found["patching"]["model"] = scorer
    found.get("data", {}).pop("cache", None)
    return digest(found)


def parameters_of(config: TrainConfig) -> tuple[int, int]:
    """Of a run's model: all, and those without tables that are only looked up."""
    with torch.device("meta"):
        model = build_model(config.model)
    return parameters({name: weight.numel() for name, weight in model.named_parameters()})


def known_rows(rows: RowFile, plan: ScalingPlan, units: Iterable[Unit]) -> set[Key]:
    """What there is of a plan already. Raises ValueError for rows of the same name that were made otherwise."""
    basis = {unit.key: plan.basis(unit) for unit in units}
    found = set()
    for row in rows.read():
        unit = f"{row['family']}:{row['size']}:{row['seed']}"
        if unit in basis and row["basis"] != basis[unit]:
            raise ValueError(
                f"{rows.out} holds rows of {unit} that were made otherwise (text, shape, optimizer or threads); take "
                "another --out, or the plan of then"
            )
        found.add(key_of(row))
    return found


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[ScalingPoint]:
    """Of several rows of one key the last one counts. Raises ValueError where there are none."""
    own = {key_of(row): row for row in rows if row.get("what") == WHAT}
    rates = {(row["family"], row["size"]): row["seconds_per_byte"] for row in rows if row.get("what") == RATE}
    found = [ScalingPoint.of(row, rates.get((row["family"], row["size"]), math.nan)) for row in own.values()]
    if not found:
        raise ValueError("there are no rows of `blt study scaling` to report; run it without --report first")
    return found


def mean_over_seeds(points: Sequence[ScalingPoint]) -> list[ScalingPoint]:
    """One point for each family, size and budget: means, with seed -1."""
    cells: dict[tuple[str, str, float], list[ScalingPoint]] = {}
    for point in points:
        cells.setdefault((point.family, point.size, point.budget), []).append(point)
    found = []
    for cell in cells.values():
        means = {
            name: sum(getattr(one, name) for one in cell) / len(cell)
            for name in ("num_bytes", "flops", "seconds", "loss", "unit_bytes")
        }
        found.append(replace(cell[0], seed=-1, **means))
    return found
