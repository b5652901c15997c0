"""Constraints: which ids may come next, whatever the model says. Here: valid UTF-8; see also `structured_output.py`.

A constraint is a value: its masks go into `choose`, and `after` gives the one for the next id. So drafted ids are
tried without committing to them, and rows have constraints of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from bltkit.vocab import EOS, OFFSET, VOCAB_SIZE

# RFC 3629, section 4: a first byte from .. to, how many bytes follow it, and the second byte from .. to.
_FORMS = (
    (0x00, 0x7F, 0, 0x80, 0xBF),
    (0xC2, 0xDF, 1, 0x80, 0xBF),
    (0xE0, 0xE0, 2, 0xA0, 0xBF),
    (0xE1, 0xEC, 2, 0x80, 0xBF),
    (0xED, 0xED, 2, 0x80, 0x9F),
    (0xEE, 0xEF, 2, 0x80, 0xBF),
    (0xF0, 0xF0, 3, 0x90, 0xBF),
    (0xF1, 0xF3, 3, 0x80, 0xBF),
    (0xF4, 0xF4, 3, 0x80, 0x8F),
)
_LONGEST = 4


@runtime_checkable
class Constraint(Protocol):
    """The state of a constraint at one place of one row. Instances are values: neither method changes anything."""

    def allowed(self, remaining: int) -> Bool[Tensor, " V"]:
        """Ids that may come next, on the CPU; the caller must not write to it.

        remaining: bytes that may still be made, this one included; at least 1. EOS is an id like others. An id
        that the model can emit (not 0, 1 or 3) must always be left.
        """
        ...

    def after(self, chosen: int) -> "Constraint":
        """The state behind `chosen`, one of the ids that were allowed."""
        ...

    def finished(self, remaining: int) -> bool:
        """Is the text complete, so that the generation ends here as if EOS had been chosen.

        remaining: bytes that may still be made, 0 included.
        """
        ...


def masks_along(constraint: Constraint, drafts: Sequence[int], remaining: int) -> Bool[Tensor, "S V"]:
    """Allowed ids for len(drafts) + 1 columns: column i stands behind the first i drafts.

    remaining: bytes that may still be made at column 0. A draft that its mask forbids will not be chosen, and what
    comes behind it, like what comes behind EOS or the budget's end, does not matter: those columns repeat the last
    mask.
    """
    masks = [constraint.allowed(remaining)]
    for column, draft in enumerate(drafts, 1):
        if draft == EOS or column == remaining or not masks[-1][draft]:
            break
        constraint = constraint.after(draft)
        masks.append(constraint.allowed(remaining - column))
    masks += [masks[-1]] * (len(drafts) + 1 - len(masks))
    return torch.stack(masks)


def follow(constraint: Constraint, drafts: Sequence[int], remaining: int) -> tuple[int, Constraint]:
    """How many of the first drafts are allowed, and the state behind them (of EOS: in front of it).

    remaining: as for `masks_along`; drafts that exceed it are not allowed.
    """
    for column, draft in enumerate(drafts):
        if column == remaining or not constraint.allowed(remaining - column)[draft]:
            return column, constraint
        if draft == EOS:
            return column + 1, constraint
        constraint = constraint.after(draft)
    return len(drafts), constraint


@dataclass(frozen=True)
class Utf8:
    """Only valid UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).

    EOS comes at a character's border only, and a character begins only where the budget holds all of it: what is
    made is valid however it ends. One exception has no remedy: if the prompt ends within a character and the budget
    is too small for the rest, the bytes made are the right ones, but the character stays open.
    """

    missing: int = 0
    """Bytes that the character begun still lacks; 0 at a border."""
    lowest: int = 0x80
    """The next byte of that character is at least this,"""
    highest: int = 0xBF
    """and at most this."""

    @classmethod
    def behind(cls, prompt: bytes) -> Self:
        """The state that makes prompt + continuation valid, where anything can.

        Where the prompt ends with the beginning of a valid character, that is to be finished; else (any other
        invalid bytes included) a new one begins.
        """
        # A byte that opens a character never continues one, so at most one of these starts is right.
        for start in range(max(0, len(prompt) - 3), len(prompt)):
            state = cls()
            for byte in prompt[start:]:
                if not state._accepts(byte):
                    break
                state = state.after(byte + OFFSET)
            else:
                if state.missing:
                    return state
        return cls()

    def allowed(self, remaining: int) -> Bool[Tensor, " V"]:
        """See `Constraint`; bytes that continue the character, or else EOS and bytes that begin one that fits."""
        assert remaining >= 1, "nothing may be chosen where no byte may be made"
        return _mask(self, 0 if self.missing else min(remaining, _LONGEST))

    def after(self, chosen: int) -> Self:
        """See `Constraint`."""
        assert self.allowed(_LONGEST)[chosen], f"id {chosen} is not allowed after {self}"
        if chosen == EOS:
            return self
        if self.missing:
            return type(self)(self.missing - 1)
        byte = chosen - OFFSET
        return type(self)(*next(form[2:] for form in _FORMS if form[0] <= byte <= form[1]))

    def finished(self, remaining: int) -> bool:
        """See `Constraint`; the model says when a text is complete."""
        return False

    def _accepts(self, byte: int) -> bool:
        return bool(self.allowed(_LONGEST)[byte + OFFSET])


@cache
def _mask(state: Utf8, room: int) -> Bool[Tensor, " V"]:
    """Allowed ids. `room`, which counts at a border only: bytes that the next character may have."""
    mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    if state.missing:
        mask[OFFSET + state.lowest : OFFSET + state.highest + 1] = True
        return mask
    mask[EOS] = True
    for first, last, following, _, _ in _FORMS:
        mask[OFFSET + first : OFFSET + last + 1] = following < room
    return mask
