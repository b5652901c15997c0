"""The bounds of a server: how much it holds, keeps waiting and computes."""

from dataclasses import dataclass, fields

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of the scheduler, checked when they are made.

    Raises ValueError that names field, value and range.
    """

    context: int | None = None
    """Bytes of prompt and continuation together; None: those of a training row, else 2048."""
    sequences: int = 64
    """Sequences that are generated side by side."""
    memory: int | None = None
    """Bytes of keys and values that all sequences and the prefix cache may hold; None: half of what is free."""
    prefixes: int | None = None
    """Bytes of `memory` that the prefix cache may hold; None: a quarter of it; 0: no prefix cache."""
    waiting: int = 256
    """Sequences that may wait; `n` choices are n sequences."""
    waiting_bytes: int = 16 * MIB
    """Bytes of prompts that may wait."""
    window: int = 4096
    """Bytes of a choice that may be handed out and unread; beyond them its sequence pauses."""
    snapshot: int = 512
    """Ids between two states of a prompt that the prefix cache keeps."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("prefixes", "waiting") else 1
            if value is not None and value < least:
                raise ValueError(f"{field.name} = {value}: must be {least} or more")
