"""The study `robustness`: curves of models' scores over the intensity of noise."""

from bltkit.study.robustness.curve import CurvePoint, NoiseCurve, curves_of, retained
from bltkit.study.robustness.measure import Condition, RobustnessPlan, conditions, run
from bltkit.study.robustness.report import PAGE, TABLE, page_of, table, write_report

__all__ = [
    "PAGE",
    "TABLE",
    "Condition",
    "CurvePoint",
    "NoiseCurve",
    "RobustnessPlan",
    "conditions",
    "curves_of",
    "page_of",
    "retained",
    "run",
    "table",
    "write_report",
]
