"""`blt study ablation`: what single choices are worth, each by runs that differ in nothing else."""

from bltkit.study.ablation.catalog import ABLATIONS, Ablation, Variant, ablation_named
from bltkit.study.ablation.report import PAGE, PICTURE, table, write_report
from bltkit.study.ablation.runs import Tools, run
from bltkit.study.ablation.settings import Settings

__all__ = [
    "ABLATIONS",
    "PAGE",
    "PICTURE",
    "Ablation",
    "Settings",
    "Tools",
    "Variant",
    "ablation_named",
    "run",
    "table",
    "write_report",
]
