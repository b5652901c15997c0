"""What a draft is worth: how far drafts were right lately, what a round costs, and the plan that makes most of it.

Plain numbers in and out, and no clock: the same text is decoded by the same plans every time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from jaxtyping import Float64

Grid = Float64[np.ndarray, "s b"]
"""For drafts of at most 0, 1, 2, ... bytes in the first way and in the second."""

Way = Literal["bytes", "block"]
"""How a draft is made: byte by byte by the local model (BLT-S), or as a block in one pass of the decoder (BLT-DV)."""

WAYS: tuple[Way, ...] = ("bytes", "block")

LONGEST = 32
"""Bytes of a draft."""

_WIDTHS = (1, 2, 4, 8, 16, 1)
"""Places in a draft that are counted together: the first, the next two, and so on up to the last."""

FIRST_CHANCE = 0.95
"""Of a way about which nothing is known: what was never tried is worth a try."""

FIRST_TRIALS: Mapping[Way, float] = {"bytes": 4.0, "block": 2.0}
"""And the trials that this counts for. Bytes drafted one by one are right as a rule, since the model itself makes them
so, from a younger latent; how often blocks are depends on how long the model was trained for them."""

LEAN = 20.0
"""Trials that a way's chance at all places counts for in that of each: deep ones are reached seldom."""

OWN = 40.0
"""Trials that all rounds together count for in the chance of those as sure, or as unsure, as this one."""

FADE_TRIED, FADE_OTHERS = 0.9, 0.98
"""What is left of a way's counts after a round that tried it, and after another. The text changes; and a way that is
left alone comes back to `FIRST_CHANCE` little by little, until it is worth another try."""

NOTHING = (0.0,) * len(_WIDTHS)


@dataclass(frozen=True)
class AcceptanceTally:
    """Drafted bytes that were reached by verification, and those of them that it kept, by their place in the draft."""

    tried: tuple[float, ...] = NOTHING
    kept: tuple[float, ...] = NOTHING

    def after(self, drafted: int, accepted: int) -> Self:
        """With a draft of which the first `accepted` bytes were kept. What stands behind the first wrong one was not
        tried."""
        tried, kept, place = list(self.tried), list(self.kept), 0
        for bucket, width in enumerate(_WIDTHS):
            tried[bucket] += min(max(min(drafted, accepted + 1) - place, 0), width)
            kept[bucket] += min(max(accepted - place, 0), width)
            place += width
        return replace(self, tried=tuple(tried), kept=tuple(kept))

    def faded(self, share: float) -> Self:
        """With so much of what it was."""
        return replace(self, tried=tuple(share * n for n in self.tried), kept=tuple(share * n for n in self.kept))


@dataclass(frozen=True)
class Experience:
    """How drafts fared in a row: a tally for each way and for each of whether the model was sure of the byte in front
    of the draft."""

    tallies: tuple[AcceptanceTally, ...] = (AcceptanceTally(),) * (2 * len(WAYS))
    """Of each way of `WAYS` that of unsure rounds, then that of sure ones."""

    def after(self, way: Way | None, sure: bool, drafted: int, accepted: int) -> Self:
        """Behind a round of this way; None: without a draft."""
        now = None if way is None or not drafted else WAYS.index(way)
        faded = [tally.faded(FADE_TRIED if at // 2 == now else FADE_OTHERS) for at, tally in enumerate(self.tallies)]
        if now is not None:
            faded[2 * now + sure] = faded[2 * now + sure].after(drafted, accepted)
        return replace(self, tallies=tuple(faded))

    def chances(self, way: Way, sure: bool) -> tuple[float, ...]:
        """For every bucket of places, that a byte there is right where all in front of it are."""
        at = 2 * WAYS.index(way)
        own, other = self.tallies[at + sure], self.tallies[at + (not sure)]
        kept, tried = sum(own.kept) + sum(other.kept), sum(own.tried) + sum(other.tried)
        overall = (kept + FIRST_TRIALS[way] * FIRST_CHANCE) / (tried + FIRST_TRIALS[way])
        found = []
        for own_kept, own_tried, kept, tried in zip(own.kept, own.tried, other.kept, other.tried, strict=True):
            chance = (own_kept + kept + LEAN * overall) / (own_tried + tried + LEAN)
            found.append((own_kept + OWN * chance) / (own_tried + OWN))
        return tuple(found)

    def gains(self, way: Way, sure: bool, room: int, longest: int = LONGEST) -> Float64[np.ndarray, " n"]:
        """[1 + longest]: bytes of a draft of at most 0, 1, 2, ... that will be kept on average, where there is room
        for so many."""
        if not longest:
            return np.zeros(1)
        survival = np.repeat(self.chances(way, sure), _WIDTHS)[:longest].cumprod()
        survival[max(0, room) :] = 0.0
        return np.concatenate(([0.0], survival.cumsum()))


@dataclass(frozen=True)
class Machine:
    """What passes cost beside the reading of weights, by the kind of device.

    layer: bytes that could be read in the time that calling a layer takes. several: what reading weights for more
    than one position costs more, as a share. position: and for every position beyond the first.
    """

    layer: float
    several: float
    position: float

    def times(self, positions: Grid) -> Grid:
        """How often weights could be read in the time of a pass over so many positions, one at least."""
        more = positions - 1.0
        return 1.0 + self.several * np.minimum(more, 1.0) + self.position * more


CPU = Machine(layer=2.5e5, several=0.4, position=0.08)
"""From passes of bltkit:tiny in one thread, which these numbers give within a quarter; beside larger matrices calls
count for less by themselves."""

GPU = Machine(layer=1e8, several=0.0, position=0.003)
"""An estimate: 50 microseconds a layer at 2 TB/s, and some 300 operations in the time of reading a byte."""


@dataclass(frozen=True)
class RoundCosts:
    """What the parts of a round of R rows cost, in bytes that could be read in the same time. No clock is asked.

    read, bytes, block: weights and cached keys of a pass of scorer, encoder and decoder; of one that drafts a byte; of
    one that fills a block. latent: of the global transformer, which runs where a patch closes.
    layers: of these four passes. closing: share of bytes that close a patch.
    """

    machine: Machine
    rows: int
    read: float
    bytes: float
    block: float
    latent: float
    layers: tuple[int, int, int, int]
    closing: float

    def rounds(self, num_bytes: int, num_block: int) -> Grid:
        """[1 + num_bytes, 1 + num_block]: of a round in which rows draft at most so many bytes in each way."""
        read, drafting, filling, latent = self.layers
        shape = _shape(self.machine, self.rows, num_bytes, num_block)
        fixed = self.machine.layer * (read + shape.drafts * drafting + shape.blocks * filling)
        weights = self.read * shape.reading + self.bytes * shape.drafting + self.block * shape.filling
        closes = 1.0 - (1.0 - self.closing) ** shape.positions
        found: Grid = fixed + weights + closes * (self.machine.layer * latent + self.latent)
        return found


@dataclass(frozen=True, eq=False)
class _Shape:
    """What does not change from round to round, for the longest drafts in each way.

    positions: that the round reads. drafts, blocks: drafting passes. reading, drafting, filling: times that weights
    are read, passes over several positions counting as their machine says.
    """

    positions: Grid
    drafts: Grid
    blocks: Grid
    reading: Grid
    drafting: Grid
    filling: Grid


@lru_cache(maxsize=64)
def _shape(machine: Machine, rows: int, num_bytes: int, num_block: int) -> _Shape:
    one, block = np.meshgrid(np.arange(1.0 + num_bytes), np.arange(1.0 + num_block), indexing="ij")
    positions, cells, used = rows * (1.0 + np.maximum(one, block)), rows * (1.0 + block), np.minimum(block, 1.0)
    drafting = one * machine.times(np.full_like(one, rows))
    found = _Shape(positions, one, used, machine.times(positions), drafting, used * machine.times(cells))
    for array in vars(found).values():
        array.setflags(write=False)
    return found


@dataclass(frozen=True)
class DraftPlan:
    """Of a round, for each row: in which way how many bytes are drafted; None and 0 where none are."""

    ways: tuple[Way | None, ...]
    counts: tuple[int, ...]

    def counts_of(self, way: Way) -> list[int]:
        """Bytes that each row drafts in this way."""
        return [count if own == way else 0 for own, count in zip(self.ways, self.counts, strict=True)]


def plan(gains: Mapping[Way, Float64[np.ndarray, "R n"]], rounds: Grid) -> DraftPlan:
    """The drafts that make the most bytes for their cost, where a round makes one byte a row without any.

    gains: of each row, bytes kept of a draft of at most 0, 1, 2, ... (`Experience.gains`).
    rounds: the cost of a round by the longest draft in each way: passes serve all rows, so what one row drafts is
        free for the others, in that way. Of equals the shorter drafts are taken.
    """
    by_bytes, by_block = gains["bytes"], gains["block"]
    made = len(by_bytes) + np.maximum(by_bytes[:, :, None], by_block[:, None, :]).sum(0)
    longest = np.unravel_index((made / rounds).argmax(), rounds.shape)
    ways: list[Way | None] = []
    counts = []
    for own in zip(by_bytes, by_block, strict=True):
        best = max(range(len(WAYS)), key=lambda at: own[at][longest[at]])
        gain = own[best][longest[best]]
        count = int((own[best] < gain).sum())
        ways.append(WAYS[best] if count else None)
        counts.append(count)
    return DraftPlan(tuple(ways), tuple(counts))
