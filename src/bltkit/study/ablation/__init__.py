"""`blt study ablation`: what single choices are worth, each by runs that differ in nothing else."""

from bltkit.study.ablation.catalog import ABLATIONS, Ablation, Variant, ablation_named
from bltkit.study.ablation.report import PAGE, PICTURE, table, write_report
from bltkit.study.ablation.runs import AblationTools, run
from bltkit.study.ablation.settings import AblationSettings

__all__ = [
    "ABLATIONS",
    "PAGE",
    "PICTURE",
    "Ablation",
    "AblationSettings",
    "AblationTools",
    "Variant",
    "ablation_named",
    "run",
    "table",
    "write_report",
]
