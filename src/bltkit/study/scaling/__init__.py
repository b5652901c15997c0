"""The study `scaling`: patches against tokens at matched training FLOPs, with seeds.

plan (what is trained) -> prepare (entropy model, thresholds) -> runs (trunk and branches) -> rows -> fits, analysis ->
tables, drawings, report. `cost` tells beforehand what a plan takes.
"""

from bltkit.study.scaling.fits import Isoflop, Parametric, TooFew, fit_isoflop, fit_parametric
from bltkit.study.scaling.plan import ScalingPlan, Unit, read_plan
from bltkit.study.scaling.plan_cost import PlanCost, cost_of
from bltkit.study.scaling.report import PAGE, TABLE, table, write_report
from bltkit.study.scaling.rows import points_of
from bltkit.study.scaling.runs import ScalingTools, run
from bltkit.study.scaling.training_rates import measure_rates

__all__ = [
    "PAGE",
    "TABLE",
    "Isoflop",
    "Parametric",
    "PlanCost",
    "ScalingPlan",
    "ScalingTools",
    "TooFew",
    "Unit",
    "cost_of",
    "fit_isoflop",
    "fit_parametric",
    "measure_rates",
    "points_of",
    "read_plan",
    "run",
    "table",
    "write_report",
]
