"""`blt study efficiency`: measured time beside counted operations, for patches and for tokens."""

from bltkit.study.efficiency.efficiency_study import EfficiencyStudy

__all__ = ["EfficiencyStudy"]
