"""`blt study ablation`: what single choices are worth, each by runs that differ in nothing else."""

from bltkit.study.ablation.catalog import ABLATIONS, Ablation, Variant, ablation_named
from bltkit.study.ablation.report import PAGE, PICTURE, table, write_report
from bltkit.study.ablation.training_settings import AblationSettings
from bltkit.study.ablation.trainings import AblationTools, run

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
