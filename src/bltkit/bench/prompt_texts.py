"""Prompts from given texts, and how much what was generated from them repeats itself.

A drafted byte is accepted the more easily the duller the text: a small model that repeats itself flatters every
strategy that drafts, so the share of repeated bytes stands beside a speed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

NGRAM = 16
"""Bytes of a passage that does not occur twice by chance."""


def prompts_of(texts: Sequence[bytes], count: int, num_bytes: int) -> tuple[bytes, ...]:
    """`count` prompts of `num_bytes` bytes, spread evenly over the texts laid end to end, each within one text.

    A prompt begins with a line where one begins less than `num_bytes` after its place; it may overlap the next one.

    Raises ValueError for numbers below 1, and where the texts have no room for as many prompts side by side.
    """
    if count < 1 or num_bytes < 1:
        raise ValueError(f"count = {count} and num_bytes = {num_bytes} must be at least 1")
    places = spread_places([len(text) for text in texts], count, num_bytes)
    if not places:
        room = sum(len(text) // num_bytes for text in texts)
        raise ValueError(
            f"the texts have room for {room} prompts of {num_bytes} bytes, not for {count}; "
            "give more text, or ask for fewer or shorter prompts"
        )
    begins = ((texts[number], prompt_begin(texts[number], at, num_bytes, num_bytes - 1)) for number, at in places)
    return tuple(text[begin : begin + num_bytes] for text, begin in begins)


def spread_places(
    sizes: Sequence[int], count: int, num_bytes: int, generator: np.random.Generator | None = None
) -> list[tuple[int, int]]:
    """Text and offset of `count` disjoint stretches of `num_bytes` bytes, each within a text, spread evenly over texts.

    sizes: bytes of each text. generator: draws each place from its share of the texts; without one it is the first
    place of the share. Empty where the texts have no room for as many.
    """
    slots = [(text, at) for text, size in enumerate(sizes) for at in range(0, size - num_bytes + 1, num_bytes)]
    if len(slots) < count:
        return []
    edges = [number * len(slots) // count for number in range(count + 1)]
    draw = generator.integers if generator else lambda low, _: low
    return [slots[int(draw(low, high))] for low, high in pairwise(edges)]


def prompt_begin(
    text: bytes, place: int, num_bytes: int, room: int, fits: Callable[[bytes], bool] = lambda prompt: True
) -> int:
    """Offset, at most `room` bytes after `place`, at which a prompt of `num_bytes` bytes begins within its text.

    The first line that is not empty and whose prompt `fits`; else the first line; else the first character.
    """
    last = min(place + room, len(text) - num_bytes)
    lines = [at for at in range(place, last + 1) if at == 0 or text[at - 1] == 0x0A]
    lines = [at for at in lines if text[at] not in b"\r\n"] or lines
    fitting = next((at for at in lines if fits(text[at : at + num_bytes])), None)
    if fitting is not None:
        return fitting
    return lines[0] if lines else character_begin(text, place, last)


def character_begin(text: bytes, place: int, last: int) -> int:
    """Offset of the first UTF-8 character from `place` on, at most `last` and 3 bytes away; `place` without one."""
    return next((at for at in range(place, min(place + 3, last) + 1) if text[at] & 0xC0 != 0x80), place)


def character_end(text: bytes, at: int) -> int:
    """Last offset, at most 3 bytes before `at`, that cuts no UTF-8 character of `text`; `at` without one."""
    return next((end for end in range(at, max(at - 4, -1), -1) if end >= len(text) or text[end] & 0xC0 != 0x80), at)


def repeated_share(data: bytes, ngram: int = NGRAM) -> float:
    """Share of bytes that lie inside an n-gram occurring at least twice in `data`, overlaps counted; 0 for nothing."""
    count = Counter(data[at : at + ngram] for at in range(len(data) - ngram + 1))
    repeated, covered = 0, 0
    for at in range(len(data) - ngram + 1):
        if count[data[at : at + ngram]] > 1:
            repeated += at + ngram - max(at, covered)
            covered = at + ngram
    return repeated / len(data) if data else 0.0
