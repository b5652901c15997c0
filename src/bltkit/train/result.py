"""How a run ended, as `train` returns it and `blt train` prints it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Result:
    """How a run ended.

    bits_per_byte: on held-out text; on the first batch of training text where there is none, or no time for it
        (`interrupted`). measured_on: which of the two.
    mean_patch_bytes: of a token model, of its tokens; None for models without patches.
    """

    out: str
    steps: int
    bits_per_byte: float
    bytes_seen: int
    train_flops: float
    mean_patch_bytes: float | None
    interrupted: bool
    measured_on: Literal["held-out", "training"]
