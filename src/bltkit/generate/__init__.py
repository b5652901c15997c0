"""Generation: a `Session` holds growing rows, a `Strategy` drafts, `Sampling` chooses, `SequenceBatch` joins them."""

from bltkit.generate.constraint import Constraint, Utf8
from bltkit.generate.engine import SequenceBatch, generate, generate_rows
from bltkit.generate.forward_pass import Reading
from bltkit.generate.group import Group, Parked
from bltkit.generate.ledger import Stats
from bltkit.generate.memory import SequenceMemory
from bltkit.generate.options import (
    Options,
    Prompt,
    at_least_one,
    parse_options,
    prompt_bytes,
    several_prompts,
    spelled_out,
    text_of,
    typed,
)
from bltkit.generate.request import Chunk, Finish, Generation, Request
from bltkit.generate.sampling import Sampling
from bltkit.generate.scoring import Predicted, read_scored
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes
from bltkit.generate.stop import StopStrings
from bltkit.generate.strategies import (
    ALIASES,
    STRATEGIES,
    Auto,
    Autoregressive,
    Diffusion,
    Speculative,
    Strategy,
    Verified,
    parse_strategy,
    strategy_kind,
    strategy_of,
)

Batch = SequenceBatch
"""The former name of `SequenceBatch`, for one release."""

__all__ = [
    "ALIASES",
    "STRATEGIES",
    "Auto",
    "Autoregressive",
    "Batch",
    "Chunk",
    "Constraint",
    "Diffusion",
    "Finish",
    "Generation",
    "Group",
    "Options",
    "Parked",
    "Passes",
    "Predicted",
    "Prompt",
    "Reading",
    "Request",
    "Sampling",
    "SequenceBatch",
    "SequenceMemory",
    "Session",
    "Speculative",
    "Stats",
    "StopStrings",
    "Strategy",
    "Utf8",
    "Verified",
    "at_least_one",
    "generate",
    "generate_rows",
    "parse_options",
    "parse_strategy",
    "prompt_bytes",
    "read_scored",
    "several_prompts",
    "spelled_out",
    "strategy_kind",
    "strategy_of",
    "text_of",
    "typed",
]
