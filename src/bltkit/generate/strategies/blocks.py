"""The drafter of block diffusion: masked cells behind a row, which the decoder alone fills in (Fast BLT 2, 4).

The pass that read the round before has made the latent that a block reads and chosen its first byte, so a draft costs
decoder passes and nothing else. A block is [known cells, masked cells]: the chosen byte at its own position and the
cells behind it, or, aligned with the patch border, the bytes of the open patch in front of them: training's layout.
Cells are chosen with the noise of their own position, as the engine chooses, and are never masked again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor

from bltkit.generate.constraint import follow
from bltkit.generate.sampling import Certainty, choose, seen_along
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes, Text
from bltkit.generate.strategies.strategy import Pending, Strategy
from bltkit.model import Blt
from bltkit.model.block_attention import BlockAttention
from bltkit.model.decoder import PatchKV
from bltkit.model.one_segment import OneSegment
from bltkit.model.segment_ops import Segments
from bltkit.patches import Patches
from bltkit.vocab import EOS, MASK, PAD, VOCAB_SIZE

Cells = Bool[np.ndarray, "R S"]

DIGITS = 6
"""Behind the point, to which probabilities and entropies of cells are compared with one another."""


@dataclass(frozen=True)
class Unmasking:
    """Which masked cells a pass writes, always one at least.

    alpha: all whose largest probability is above it. gamma: the surest ones, as many as have a total entropy of at
    most so many nats. steps: at most so many passes, the last of which writes all that is left; with neither alpha
    nor gamma the cells are shared out evenly among them, the surest first (one pass when absent).
    """

    alpha: float | None = None
    gamma: float | None = None
    steps: int | None = None

    def picks(self, masked: Cells, sure: Certainty, step: int) -> Cells:
        """Cells to write in pass `step`, of those masked."""
        if self.steps is not None and step >= self.steps - 1:
            return masked
        # Cells that see the same are equally sure but for rounding, which differs by batch: the first goes first.
        if self.alpha is not None:
            best = np.where(masked, sure.largest.round(DIGITS), -1.0).argmax(1)[:, None] == np.arange(masked.shape[1])
            return masked & (best | (sure.largest > self.alpha))
        if self.gamma is not None:
            order = np.where(masked, sure.entropy.round(DIGITS), np.inf).argsort(1, kind="stable")
            taken = np.take_along_axis(sure.entropy, order, 1).cumsum(1) <= self.gamma
            taken[:, 0] = True
        elif self.steps is not None:
            order = np.where(masked, -sure.largest.round(DIGITS), np.inf).argsort(1, kind="stable")
            share = -(-masked.sum(1, keepdims=True) // (self.steps - step))
            taken = np.arange(masked.shape[1]) < share
        else:
            return masked
        picked = np.zeros_like(masked)
        np.put_along_axis(picked, order, taken, 1)
        return masked & picked


class BlockStrategy(Strategy):
    """Base of the strategies that draft blocks; its fields are theirs."""

    draft: PositiveInt | None = Field(default=None, examples=[None, 2, 4, 8])
    """B, bytes of a block, the one that the engine has chosen included; None: as many as the model was trained for."""
    alpha: float | None = Field(default=None, examples=[None, 0.02])
    """A pass writes every byte more probable than this, from above 0 to 1."""
    gamma: float | None = Field(default=None, examples=[None, 9.0])
    """A pass writes the surest bytes whose entropies sum to at most so many nats."""
    steps: PositiveInt | None = Field(default=None, examples=[None, 3])
    """At most so many passes a block; the last one writes all that is left."""
    align_border: bool = Field(default=False, examples=[False, True])
    """Blocks begin where the open patch does, as in training; the fewer bytes of it are left to draft."""

    @field_validator("alpha")
    @classmethod
    def _alpha(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"alpha = {value:g} is a probability above 0, at most 1; 0.7 is usual")
        return value

    @field_validator("gamma")
    @classmethod
    def _gamma(cls, value: float | None) -> float | None:
        if value is not None and not value > 0:
            raise ValueError(f"gamma = {value:g} is a sum of entropies in nats and must be above 0; 1.0 is usual")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.alpha is not None and self.gamma is not None:
            raise ValueError(
                f"alpha = {self.alpha:g} and gamma = {self.gamma:g} are two rules for the same thing; give one of them"
            )
        return self

    @property
    def unmasking(self) -> Unmasking:
        """As the fields say."""
        return Unmasking(self.alpha, self.gamma, self.steps)

    def check(self, model: Blt) -> None:
        """See `Strategy`: the model was trained for blocks, and for such long ones."""
        check_blocks(self.kind, self.draft, model)

    def sizes(self, session: Session) -> list[int]:
        """Cells of each row's block."""
        size = self.draft or session.model.config.diffusion_block
        assert size is not None, "the strategy was not checked"
        return [size] * session.rows


def check_blocks(strategy: str, draft: int | None, model: Blt) -> None:
    """Raise ValueError, with the remedy, unless the model was trained to fill in blocks of `draft` bytes."""
    trained = model.config.diffusion_block
    if trained is None:
        raise ValueError(
            f"strategy = {strategy!r}: this model has no block-diffusion decoder; use bltkit:tiny-d, train with "
            "objective.kind = 'block-diffusion', or use strategy 'speculative', which works on every model"
        )
    if draft is not None and draft > trained:
        raise ValueError(
            f"draft = {draft}: this model was trained for blocks of at most {trained} bytes; use draft <= {trained}, "
            f"or train with objective.block = {draft}"
        )


def fill_blocks(
    session: Session,
    rows: Sequence[Pending],
    sizes: Sequence[int],
    unmasking: Unmasking,
    *,
    align_border: bool = False,
    trusted: bool = False,
    masked_first: bool = False,
    open_latent: bool = False,
) -> tuple[tuple[tuple[int, ...], ...], Passes]:
    """Drafts for each row from a block of sizes[r] cells (0 or 1: none), and what they cost.

    Blocks are always filled to their end, so that what `room` leaves of a draft is the beginning of what more room
    would. trusted: the drafts may use all the room. masked_first: the chosen id is to be found, too, and the drafts,
    trusted, begin with it. open_latent: blocks of rows with an open patch read the latent of its bytes so far, which
    costs a pass of the global transformer.
    """
    spare = trusted + masked_first - 1
    with torch.inference_mode():
        return _Filling(session, rows, sizes, align_border, masked_first, spare).run(unmasking, open_latent)


class _Filling:
    """One round's blocks; lives for one call. Rows that are done go along with the others, to no effect."""

    def __init__(
        self,
        session: Session,
        rows: Sequence[Pending],
        sizes: Sequence[int],
        align_border: bool,
        masked_first: bool,
        spare: int,
    ) -> None:
        self.session, self.rows, self.passes = session, rows, Passes()
        self.budgets = [row.room + masked_first for row in rows]
        limits = [row.room + spare for row in rows]
        self.hidden, self.known = [], []
        for row, (text, pending) in enumerate(zip(session.texts, rows, strict=True)):
            held = _open_bytes(session, row) if align_border else 0
            known = [*text.tail(held), *([] if masked_first else [pending.chosen])]
            if len(known) >= sizes[row] or limits[row] <= 0:
                held, known, limits[row] = 0, [pending.chosen], 0
            self.hidden.append(held)
            self.known.append(known)
        self.limits = limits
        self.sizes = [max(1, size) for size in sizes]
        self.ids = np.full((len(rows), max(self.sizes)), PAD)
        for row, (known, size) in enumerate(zip(self.known, self.sizes, strict=True)):
            self.ids[row, :size] = [*known, *[MASK] * (size - len(known))]
        drafting = np.array([limit > 0 for limit in limits])
        self.masked = (self.ids == MASK) & drafting[:, None]
        self.constrained = any(row.constraint is not None for row in rows)
        self.penalised = any(row.sampling.repetition_penalty != 1 for row in rows)

    def run(self, unmasking: Unmasking, open_latent: bool) -> tuple[tuple[tuple[int, ...], ...], Passes]:
        """Passes over the block until nothing is masked that counts."""
        session, model, attend, step = self.session, self.session.model, None, 0
        patch_kv, samplings = session.patch_kv, [row.sampling for row in self.rows]
        while self.masked.any():
            x = model.block_inputs(torch.from_numpy(self.ids).to(session.device))
            if attend is None:
                patch_kv = self._open_kv() if open_latent else patch_kv
                config, cache = model.decoder.stack.config, session.decoder
                attend = BlockAttention(config, cache, x.shape[1], x, self.hidden, self.sizes)
            logits = model.decoder.fill(x, patch_kv, attend)
            self.passes += Passes(decoder=1, cells=self.ids.size, kv_bytes=session.decoder.num_bytes)
            found = choose(samplings, logits, attend.firsts, allowed=self._allowed(), seen=self._seen(), certainty=True)
            assert found.certainty is not None
            picked = unmasking.picks(self.masked, found.certainty, step)
            self.ids = np.where(picked, found.ids, self.ids)
            self.masked = self.masked & ~picked & self._in_front_of_ends()
            step += 1
        return tuple(map(self._draft, range(len(self.rows)))), self.passes

    def _draft(self, row: int) -> tuple[int, ...]:
        """The cells up to the first that is masked or resets something, EOS being the last."""
        found: list[int] = []
        for value in self.ids[row, len(self.known[row]) :][: self.limits[row]].tolist():
            if value in (MASK, PAD) or value in self.session.resets:
                break
            found.append(value)
            if value == EOS:
                break
        return tuple(found)

    def _in_front_of_ends(self) -> Cells:
        """What stands behind an end is nobody's, masked or not."""
        ends = np.isin(self.ids, [EOS, *self.session.resets])
        for row, known in enumerate(self.known):
            ends[row, : len(known)] = False
        return np.logical_not(np.logical_or.accumulate(ends, 1))

    def _allowed(self) -> Tensor | None:
        """The constraint of a row's first masked cell; the others' follow from bytes not known yet."""
        if not self.constrained:
            return None
        masks = torch.ones(*self.ids.shape, VOCAB_SIZE, dtype=torch.bool)
        for row, pending in enumerate(self.rows):
            if pending.constraint is None or not self.masked[row].any():
                continue
            drafted, first, remaining = self._draft(row), len(self.known[row]), self.budgets[row]
            count, constraint = follow(pending.constraint, drafted, remaining)
            if count == len(drafted) < remaining and self.masked[row, first + count]:
                masks[row, first + count] = constraint.allowed(remaining - count)
        return masks

    def _seen(self) -> Tensor | None:
        """Masked cells have been seen by nobody."""
        if not self.penalised:
            return None
        found = []
        for text, pending, own, held in zip(self.session.texts, self.rows, self.ids.tolist(), self.hidden, strict=True):
            window = pending.sampling.repetition_window
            found.append(seen_along(_before(text, window, held), own[:-1], window))
        return torch.stack(found)

    def _open_kv(self) -> PatchKV:
        """What cells read where the latent in front of them is that of the open patch, as if it ended there."""
        session, model = self.session, self.session.model
        rows = [row for row, patch in enumerate(session.open_patches) if patch and self.limits[row] > 0]
        if not rows:
            return session.patch_kv
        lengths = [_open_bytes(session, row) for row in rows]
        bytes_of = [[torch.cat(part, 1)[0] for part in zip(*session.open_patches[row], strict=True)] for row in rows]
        states = tuple(
            torch.nn.utils.rnn.pad_sequence(list(own), batch_first=True) for own in zip(*bytes_of, strict=True)
        )
        segments: Segments | OneSegment = OneSegment()
        if len(rows) > 1:
            column = torch.arange(max(lengths) + 1, device=session.device)
            ends = torch.tensor(lengths, device=session.device)
            segments = Segments.of(Patches((column == 0) | (column == ends[:, None]), ends, 1))
        caches = [session.latents[row] for row in rows]
        latents, _ = model.latent.extend(model.encoder.pool(states, segments), caches)
        self.passes += Passes(latent=1, kv_bytes=sum(cache.num_bytes for cache in caches))
        at = torch.tensor(rows, device=session.device)
        return session.patch_kv.replace(at, model.decoder.patch_keys_values(latents))


def _open_bytes(session: Session, row: int) -> int:
    """Bytes of the row's open patch."""
    return sum(part[0].shape[1] for part in session.open_patches[row])


def _before(text: Text, window: int, held: int) -> list[int]:
    """The last `window` ids in front of the text's last `held` ones."""
    ids = text.latest(window + held)
    return ids[: len(ids) - held]
