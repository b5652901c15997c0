"""Training objectives, and the one line that registers each: its place in `Objective`."""

from typing import Annotated

from pydantic import Field

from bltkit.train.objectives.block_diffusion import BlockDiffusion
from bltkit.train.objectives.learned_boundary import LearnedBoundary
from bltkit.train.objectives.next_byte import NextByte
from bltkit.train.objectives.next_token import NextToken
from bltkit.train.objectives.objective import BaseObjective, Losses
from bltkit.train.objectives.token_boundary import TokenBoundary

Objective = Annotated[
    NextByte | NextToken | TokenBoundary | BlockDiffusion | LearnedBoundary, Field(discriminator="kind")
]

__all__ = [
    "BaseObjective",
    "BlockDiffusion",
    "LearnedBoundary",
    "Losses",
    "NextByte",
    "NextToken",
    "Objective",
    "TokenBoundary",
]
