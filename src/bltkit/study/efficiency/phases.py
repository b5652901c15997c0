"""Phases that the study `efficiency` times."""

from typing import Literal, get_args

Phase = Literal["prefill", "decode", "train"]
PHASES: tuple[Phase, ...] = get_args(Phase)
