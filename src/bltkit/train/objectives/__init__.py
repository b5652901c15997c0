"""Training objectives (seam 3). A new objective is its own file and a line in `OBJECTIVES`."""

from typing import Annotated

from bltkit.registry import Registry
from bltkit.train.objectives.block_diffusion import BlockDiffusion
from bltkit.train.objectives.learned_boundary import LearnedBoundary
from bltkit.train.objectives.next_byte import NextByte
from bltkit.train.objectives.next_token import NextToken
from bltkit.train.objectives.objective import BaseObjective, Losses
from bltkit.train.objectives.token_boundary import TokenBoundary

OBJECTIVES = Registry(
    "objective",
    BaseObjective,
    "bltkit.train.objectives.next_byte:NextByte",
    "bltkit.train.objectives.next_token:NextToken",
    "bltkit.train.objectives.token_boundary:TokenBoundary",
    "bltkit.train.objectives.block_diffusion:BlockDiffusion",
    "bltkit.train.objectives.learned_boundary:LearnedBoundary",
)
"""Every objective by its kind."""

Objective = Annotated[BaseObjective, OBJECTIVES]
"""Any objective; as the type of a config field it reads `{kind = "block-diffusion", block = 4}`."""

__all__ = [
    "OBJECTIVES",
    "BaseObjective",
    "BlockDiffusion",
    "LearnedBoundary",
    "Losses",
    "NextByte",
    "NextToken",
    "Objective",
    "TokenBoundary",
]
