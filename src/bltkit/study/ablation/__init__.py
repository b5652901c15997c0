"""`blt study ablation`: what single choices are worth, each by runs that differ in nothing else."""

from bltkit.study.ablation.catalog import ABLATIONS, Ablation, Variant, ablation_named
from bltkit.study.ablation.report import PAGE, PICTURE, table, write_report
from bltkit.study.ablation.runs import ROWS, Settings, Tools, run

__all__ = [
    "ABLATIONS",
    "PAGE",
    "PICTURE",
    "ROWS",
    "Ablation",
    "Settings",
    "Tools",
    "Variant",
    "ablation_named",
    "run",
    "table",
    "write_report",
]
