"""Cost of a plan of the study `scaling` before it runs: from the formulas of `cost` and an assumed rate.

Patches and tokens are assumed to have their nominal size; a run counts its own.
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
from bltkit.study.scaling.scaling_plan import ScalingPlan, ScorerTraining, Trunk

EVALUATION = 1 / 3
"""Cost of evaluating a byte relative to training on it."""


@dataclass(frozen=True)
class TrunkCost:
    """Cost of a trunk with its branches. Budgets share the trunk, so `spent` is less than the sum of its rows' FLOPs.

    scorer_share: share of the entropy model in a row's FLOPs. num_bytes: text of each budget's run. spent: FLOPs of all
    of them, evaluation included.
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
    """Cost of a plan; `units` are its trunks."""

    plan: str
    budgets: tuple[float, ...]
    units: tuple[TrunkCost, ...]
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
        for cost in self.units:
            text = "".join(f"{num_bytes / 1e6:>14.4g}" for num_bytes in cost.num_bytes)
            share = f"{100 * cost.scorer_share:.0f} %" if cost.scorer_share else ""
            counts = f"{cost.params:>14,}{cost.params_multiplied:>14,}{cost.flops_per_byte / 1e6:>10.3g}"
            lines.append(f"{cost.key:<26}{counts}{share:>8}{text}{cost.hours:>8.2f}")
        most = max(cost.num_bytes[-1] for cost in self.units)
        where = "one process" if self.processes == 1 else f"{self.processes} processes"
        lines += [
            f"{len(self.units)} trainings, {self.rows} rows, {self.flops:.3g} FLOPs, {_time(self.hours)} on {where}"
            + (f" ({self.hours * self.processes:,.0f} device hours)" if self.processes > 1 else ""),
            f"MF/byte: training, entropy model included where it counts. The longest run reads {most / 1e6:,.4g} MB.",
        ]
        return "\n".join(lines)


def cost_of(plan: ScalingPlan, trunks: Sequence[Trunk] | None = None, rate: float | None = None) -> PlanCost:
    """Cost of a plan, or of some of its trunks.

    rate: training FLOP/s of all sizes, in place of the plan's. Raises ValueError unless it is above 0.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate = {rate / 1e9:g} GFLOP/s: must be above 0 and finite; leave it out for the plan's")
    scorer, scorer_training = _scorer(plan)
    costs = tuple(_trunk(plan, trunk, scorer, rate) for trunk in (plan.trunks() if trunks is None else trunks))
    hours = sum(cost.hours for cost in costs) + scorer_training / (plan.rate if rate is None else rate) / 3600
    flops = sum(cost.spent for cost in costs) + scorer_training
    rows = len(costs) * len(plan.budgets)
    return PlanCost(plan.name, plan.budgets, costs, scorer_training, flops, hours, plan.processes, rows)


def _trunk(plan: ScalingPlan, trunk: Trunk, scorer: EntropyConfig | None, rate: float | None) -> TrunkCost:
    cost = trunk.family.cost(trunk.size, trunk.family.assumed_unit_bytes, plan.row_bytes, scorer)
    counted, whole = cost.training(1, plan.include_scorer), cost.training(1)
    num_bytes = [budget / counted for budget in plan.budgets]
    longest, others = num_bytes[-1], num_bytes[:-1]
    trained = (1 - plan.decay_share) * longest + plan.decay_share * (longest + sum(others))
    held_out = (1 + len(plan.sources)) * len(num_bytes) * plan.validation_batches * plan.batch_rows * plan.row_bytes
    spent = whole * (trained + EVALUATION * held_out)
    params, multiplied = _parameters(trunk)
    return TrunkCost(
        trunk.key,
        params,
        multiplied,
        counted,
        cost.scorer / counted if plan.include_scorer else 0.0,
        tuple(num_bytes),
        tuple(round(text / (plan.row_bytes * plan.batch_rows)) for text in num_bytes),
        spent,
        spent / (plan.rate_of(trunk) if rate is None else rate) / 3600,
    )


def _parameters(trunk: Trunk) -> tuple[int, int]:
    """All parameters, and those in products; from shapes alone, so that it needs no tokenizer."""
    if isinstance(trunk.family, BltFamily):
        with torch.device("meta"):
            model = Blt(trunk.family.model(trunk.size))
        sizes = {name: weight.numel() for name, weight in model.named_parameters()}
        return parameters(sizes)
    assert isinstance(trunk.family, BpeFamily)
    stack: StackConfig = parse(StackConfig, trunk.size.stack(), trunk.key)
    kv = stack.num_kv_heads * stack.head_dim
    layer = 2 * stack.width**2 + 2 * stack.width * kv + 3 * stack.width * stack.ffn + 2 * stack.width
    head = trunk.family.vocab_size * stack.width
    body = stack.layers * layer + stack.width + head
    return body + head, body


def _scorer(plan: ScalingPlan) -> tuple[EntropyConfig | None, float]:
    """Shape of the entropy model, and the FLOPs of its own training."""
    if not any(trunk.family.needs_scorer for trunk in plan.trunks()):
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
