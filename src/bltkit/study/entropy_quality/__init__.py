"""The study `entropy`: does the entropy that places patches follow the information in a text?"""

from bltkit.study.entropy_quality.measure import EntropyPlan, run
from bltkit.study.entropy_quality.report import PAGE, TABLE, table, write_report

__all__ = ["PAGE", "TABLE", "EntropyPlan", "run", "table", "write_report"]
