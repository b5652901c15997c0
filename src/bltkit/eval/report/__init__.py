"""HTML pages about evaluations: one for each, and several runs side by side. Read from what `blt eval --out` writes."""

from bltkit.eval.report.comparison import write_comparison
from bltkit.eval.report.page import write_page
from bltkit.eval.report.pairing import RunComparison, compare

__all__ = ["RunComparison", "compare", "write_comparison", "write_page"]
