"""The study `robustness`: curves of models' scores over the intensity of noise."""

from bltkit.study.robustness.curve import Curve, Measured, curves_of, retained
from bltkit.study.robustness.measure import Condition, Plan, conditions, run
from bltkit.study.robustness.report import PAGE, TABLE, page_of, table, write_report

__all__ = [
    "PAGE",
    "TABLE",
    "Condition",
    "Curve",
    "Measured",
    "Plan",
    "conditions",
    "curves_of",
    "page_of",
    "retained",
    "run",
    "table",
    "write_report",
]
