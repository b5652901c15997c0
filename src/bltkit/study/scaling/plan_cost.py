"""What a plan of the study `scaling` costs, before anything is run: from the ledger's formulas and a rate.

Patches and tokens are assumed to be as large as they are meant to be; a run counts its own.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bltkit.config import parse
from bltkit.cost.formulas.operations import scorer_flops
from bltkit.model import Blt, EntropyConfig, StackConfig
from bltkit.study.scaling.family_configs import BltFamily, BpeFamily, parameters
from bltkit.study.scaling.plan import ScalingPlan, ScorerTraining, Unit

EVALUATION = 1 / 3
"""Of what training the same bytes costs."""


@dataclass(frozen=True)
class UnitCost:
    """A unit: trunk and branches. Budgets share the trunk, so what is spent is less than the sum of what rows cost.

    scorer_share: of the entropy model in a row's FLOPs. num_bytes: text of each budget's run. spent: FLOPs of all of
    it, evaluation included.
    """

    key: str
    params: int
    params_multiplied: int
    flops_per_byte: float
    scorer_share: float
    num_bytes: tuple[float, ...]
    steps: tuple[int, ...]
    spent: float
    hours: float


@dataclass(frozen=True)
class PlanCost:
    """A plan."""

    plan: str
    budgets: tuple[float, ...]
    units: tuple[UnitCost, ...]
    scorer_flops: float
    flops: float
    hours: float
    processes: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """A table for people."""
        budgets = "".join(f"{f'MB at {budget:.2g}':>14}" for budget in self.budgets)
        lines = [f"{'unit':<26}{'params':>14}{'in products':>14}{'MF/byte':>10}{'scorer':>8}{budgets}{'hours':>8}"]
        for one in self.units:
            text = "".join(f"{num_bytes / 1e6:>14.4g}" for num_bytes in one.num_bytes)
            share = f"{100 * one.scorer_share:.0f} %" if one.scorer_share else ""
            counts = f"{one.params:>14,}{one.params_multiplied:>14,}{one.flops_per_byte / 1e6:>10.3g}"
            lines.append(f"{one.key:<26}{counts}{share:>8}{text}{one.hours:>8.2f}")
        most = max(one.num_bytes[-1] for one in self.units)
        where = "one process" if self.processes == 1 else f"{self.processes} processes"
        lines += [
            f"{len(self.units)} trainings, {self.rows} rows, {self.flops:.3g} FLOPs, {_time(self.hours)} on {where}"
            + (f" ({self.hours * self.processes:,.0f} device hours)" if self.processes > 1 else ""),
            f"MF/byte: training, entropy model included where it counts. The longest run reads {most / 1e6:,.4g} MB.",
        ]
        return "\n".join(lines)


def cost_of(plan: ScalingPlan, units: Sequence[Unit] | None = None, rate: float | None = None) -> PlanCost:
    """The cost of a plan, or of some of its units.

    rate: training FLOPs a second of all sizes, in place of the plan's. Raises ValueError unless it is above 0.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate = {rate / 1e9:g} GFLOP/s: must be above 0 and finite; leave it out for the plan's")
    chosen = plan.units() if units is None else units
    scorer, own = _scorer(plan)
    found = tuple(_unit(plan, unit, scorer, rate) for unit in chosen)
    hours = sum(one.hours for one in found) + own / (plan.rate if rate is None else rate) / 3600
    flops = sum(one.spent for one in found) + own
    return PlanCost(plan.name, plan.budgets, found, own, flops, hours, plan.processes, len(chosen) * len(plan.budgets))


def _unit(plan: ScalingPlan, unit: Unit, scorer: EntropyConfig | None, rate: float | None) -> UnitCost:
    cost = unit.family.cost(unit.size, unit.family.assumed_unit_bytes, plan.row_bytes, scorer)
    counted, whole = cost.training(1, plan.include_scorer), cost.training(1)
    num_bytes = [budget / counted for budget in plan.budgets]
    longest, others = num_bytes[-1], num_bytes[:-1]
    trained = (1 - plan.decay_share) * longest + plan.decay_share * (longest + sum(others))
    held_out = (1 + len(plan.sources)) * len(num_bytes) * plan.validation_batches * plan.batch_rows * plan.row_bytes
    spent = whole * (trained + EVALUATION * held_out)
    params, multiplied = _parameters(unit)
    return UnitCost(
        unit.key,
        params,
        multiplied,
        counted,
        cost.scorer / counted if plan.include_scorer else 0.0,
        tuple(num_bytes),
        tuple(round(one / (plan.row_bytes * plan.batch_rows)) for one in num_bytes),
        spent,
        spent / (plan.rate_of(unit) if rate is None else rate) / 3600,
    )


def _parameters(unit: Unit) -> tuple[int, int]:
    """All, and those in products; from shapes alone, so that token models count where none can be trained."""
    if isinstance(unit.family, BltFamily):
        with torch.device("meta"):
            model = Blt(unit.family.model(unit.size))
        sizes = {name: weight.numel() for name, weight in model.named_parameters()}
        return parameters(sizes)
    assert isinstance(unit.family, BpeFamily)
    stack: StackConfig = parse(StackConfig, unit.size.stack(), unit.key)
    kv = stack.num_kv_heads * stack.head_dim
    layer = 2 * stack.width**2 + 2 * stack.width * kv + 3 * stack.width * stack.ffn + 2 * stack.width
    head = unit.family.vocab_size * stack.width
    body = stack.layers * layer + stack.width + head
    return body + head, body


def _scorer(plan: ScalingPlan) -> tuple[EntropyConfig | None, float]:
    """Its shape, and the FLOPs of its own training."""
    if not any(unit.family.needs_scorer for unit in plan.units()):
        return None, 0.0
    if isinstance(plan.scorer, str):
        from bltkit.cost.ledger import scorer_named

        config = scorer_named(plan.scorer)[0]
        return (config if isinstance(config, EntropyConfig) else None), 0.0
    assert isinstance(plan.scorer, ScorerTraining)
    config = parse(EntropyConfig, plan.scorer.model(), "scorer")
    assert isinstance(config, EntropyConfig)
    text = plan.scorer.steps * plan.row_bytes * plan.batch_rows
    return config, 3 * text * scorer_flops(config, plan.row_bytes)


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days"
