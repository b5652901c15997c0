"""The study `efficiency`: what the clock says beside what the ledger counts, for patches and for tokens.

cost (exact operations and bytes of a system in a phase) -> sides (the same as something that runs) -> measure (rows)
-> fit (how much of the time the operations explain) -> report (table and picture).
"""

from bltkit.study.efficiency.fit import Fit, fits_of, latest
from bltkit.study.efficiency.measure import EfficiencyPlan, EfficiencyTools, run
from bltkit.study.efficiency.predicted_cost import ByteCost, Phase, System, equal_token_shape, systems_of
from bltkit.study.efficiency.report import PICTURE, TABLE, picture, table, write_report

__all__ = [
    "PICTURE",
    "TABLE",
    "ByteCost",
    "EfficiencyPlan",
    "EfficiencyTools",
    "Fit",
    "Phase",
    "System",
    "equal_token_shape",
    "fits_of",
    "latest",
    "picture",
    "run",
    "systems_of",
    "table",
    "write_report",
]
