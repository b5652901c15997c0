"""HTML pages about evaluations: one for each, and several runs side by side. Read from what `blt eval --out` writes."""

from bltkit.study.evaluation_page.comparison import write_comparison
from bltkit.study.evaluation_page.page import write_page
from bltkit.study.evaluation_page.pairing import Comparison, compare

__all__ = ["Comparison", "compare", "write_comparison", "write_page"]
