"""Prompts from given texts, and how much what was generated from them repeats itself.

A drafted byte is accepted the more easily the duller the text: a small model that repeats itself flatters every
strategy that drafts, so the share of repeated bytes stands beside a speed.
"""

from collections import Counter
from collections.abc import Sequence

NGRAM = 16
"""Bytes of a passage that does not occur twice by chance."""


def prompts_of(texts: Sequence[bytes], count: int, num_bytes: int) -> tuple[bytes, ...]:
    """`count` prompts of `num_bytes` bytes, spread evenly over the texts laid end to end, each within one text.

    A prompt begins with a line where one begins less than `num_bytes` behind its place; it may overlap the next one.

    Raises ValueError for numbers below 1, and where the texts have no room for so many prompts side by side.
    """
    if count < 1 or num_bytes < 1:
        raise ValueError(f"count = {count} and num_bytes = {num_bytes} must be at least 1")
    # Room for whole prompts only, so that a place never reaches past its text.
    slots = [(text, at) for text in texts for at in range(0, len(text) - num_bytes + 1, num_bytes)]
    if len(slots) < count:
        raise ValueError(
            f"the texts have room for {len(slots)} prompts of {num_bytes} bytes, not for {count}; "
            "give more text, or ask for fewer or shorter prompts"
        )
    return tuple(_at_line(*slots[i * len(slots) // count], num_bytes) for i in range(count))


def _at_line(text: bytes, at: int, num_bytes: int) -> bytes:
    line = text.find(b"\n", at - 1) + 1 if at else 0
    begin = line if at <= line < at + num_bytes and line + num_bytes <= len(text) else at
    return text[begin : begin + num_bytes]


def repeated_share(data: bytes, ngram: int = NGRAM) -> float:
    """Share of bytes that lie inside an n-gram occurring at least twice in `data`, overlaps counted; 0 for nothing."""
    count = Counter(data[at : at + ngram] for at in range(len(data) - ngram + 1))
    repeated, covered = 0, 0
    for at in range(len(data) - ngram + 1):
        if count[data[at : at + ngram]] > 1:
            repeated += at + ngram - max(at, covered)
            covered = at + ngram
    return repeated / len(data) if data else 0.0
