"""`blt study ablation`: the value of single choices, each by trainings that differ in nothing else."""

from bltkit.study.ablation.ablation_study import AblationStudy

__all__ = ["AblationStudy"]
