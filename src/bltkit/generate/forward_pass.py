"""One pass of a session over further ids: scorer -> rule -> embed -> encoder -> latents -> decoder.

Nothing of it counts until somebody says how much: `keep` gives the session behind any number of the ids of each row.
An autoregressive step keeps all, verification what it accepts, a roll-back fewer than before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit import patching
from bltkit.generate.session_state import ByteStates, Passes, SessionState
from bltkit.model.cache import Slot
from bltkit.model.decoder import PatchKV
from bltkit.model.entropy import ScoredIds
from bltkit.model.layer_caches import LayerCaches, LayerSlots
from bltkit.model.one_segment import OneSegment
from bltkit.model.segment_ops import Segments
from bltkit.patches import Patches
from bltkit.patching import Answers
from bltkit.vocab import BOS, PAD

S = TypeVar("S", bound=SessionState)

SMALL = 64
"""Ids of a pass whose states may be kept as they are; of longer ones only what is needed is copied."""


@dataclass(frozen=True, eq=False)
class Closed:
    """The patches that close after one of the new bytes."""

    rows: tuple[int, ...]
    """In which some do."""
    slots: tuple[LayerSlots, ...]
    """Of the latent caches of these rows."""
    patch_kv: PatchKV
    """[R, 1 + P, ...]: of the last patch from before, then of the new ones."""
    byte_latent: Int64[Tensor, "R S"]
    """The one among them that each byte sees."""


@dataclass(frozen=True, eq=False)
class Reading(Generic[S]):
    """What a pass over S ids (fewer in some rows) computed.

    ids: of each row; within one document.
    logits: [R, S, V] raw, of the id behind each; columns behind a row's own ids hold nothing of meaning.
    opens: for each row and id, does the byte behind it open a patch.
    """

    origin: S = field(repr=False)
    """What was extended, and `before` what of it the pass saw: in rows that `begun` a document or segment, nothing."""
    before: S = field(repr=False)
    begun: tuple[bool, ...]
    ids: tuple[tuple[int, ...], ...]
    logits: Float[Tensor, "R S V"]
    opens: tuple[tuple[bool, ...], ...]
    answers: Answers = field(repr=False)
    scored: ScoredIds | None = field(repr=False)
    encoder: Slot = field(repr=False)
    decoder: Slot = field(repr=False)
    states: ByteStates = field(repr=False)
    """[R, S, D] each."""
    closed: Closed | None = field(repr=False)
    cost: Passes = field(repr=False)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Ids of each row."""
        return tuple(map(len, self.ids))

    def keep(self, counts: Sequence[int] | None = None) -> S:
        """The session behind the first counts[r] ids of each row; behind all of them when None.

        Raises ValueError for more than were read. Asking for more than ever before, once another pass from the same
        session has overwritten them, is a mistake of ours: an assertion.
        """
        counts = self.counts if counts is None else tuple(counts)
        if len(counts) != len(self.ids) or not all(0 <= n <= own for n, own in zip(counts, self.counts, strict=True)):
            raise ValueError(f"counts = {list(counts)}: of each row 0 to {list(self.counts)} ids can be kept")
        with torch.inference_mode():
            kept = self._kept(counts)
            undone = [self.begun[row] and not count for row, count in enumerate(counts)]
            if not any(undone):
                return kept
            # What these rows forgot in front of the pass is to be there again.
            rows = [(self.origin if old else kept).select([row]) for row, old in enumerate(undone)]
            return replace(type(kept).join(rows), passes=kept.passes)

    def _kept(self, counts: tuple[int, ...]) -> S:
        before, size = self.before, self.logits.shape[1]
        whole = all(n == size for n in counts)
        device = self.logits.device
        chosen = None if whole else torch.tensor(counts, device=device)
        patches = [sum(opens[:n]) for opens, n in zip(self.opens, counts, strict=True)]
        return replace(
            before,
            stream=self.answers.keep(chosen),
            scorer_state=None if self.scored is None else self.scored.keep(counts),
            encoder=self.encoder.keep(counts),
            latents=self._latents(patches),
            decoder=self.decoder.keep(counts),
            texts=tuple(text.append(own[:n]) for text, own, n in zip(before.texts, self.ids, counts, strict=True)),
            open_patches=tuple(self._open_patch(row, n) for row, n in enumerate(counts)),
            patch_kv=self._patch_kv(patches),
            next_logits=self._last_logits() if chosen is None else self._logits_behind(chosen),
            passes=before.passes + self.cost,
            reading=self if size <= SMALL else None,
            kept=counts,
        )

    def _last_logits(self) -> Float[Tensor, "R V"]:
        last = self.logits[:, -1]
        return last if self.logits.shape[1] <= SMALL else last.clone()

    def _logits_behind(self, counts: Int64[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Rows that keep nothing keep their logits, too."""
        found = self.logits[torch.arange(len(counts), device=counts.device), (counts - 1).clamp_min(0)]
        old = self.before.next_logits
        return found if old is None else torch.where(counts[:, None] > 0, found, old)

    def _latents(self, patches: Sequence[int]) -> tuple[LayerCaches, ...]:
        latents = list(self.before.latents)
        if self.closed is not None:
            for row, slot in zip(self.closed.rows, self.closed.slots, strict=True):
                latents[row] = slot.keep([patches[row]])
        return tuple(latents)

    def _patch_kv(self, patches: Sequence[int]) -> PatchKV:
        if self.closed is None:
            return self.before.patch_kv
        # Columns, so that the axis of patches stays.
        at = torch.tensor([range(len(patches)), patches], device=self.logits.device).unsqueeze(-1)
        return self.closed.patch_kv.index(at[0], at[1])

    def _open_patch(self, row: int, count: int) -> tuple[ByteStates, ...]:
        """The bytes of the patch that is open behind the row's first `count` ids."""
        opens = self.opens[row][:count]
        if True not in opens:
            new = tuple(state[row : row + 1, :count] for state in self.states)
            return (*self.before.open_patches[row], new) if count else self.before.open_patches[row]
        last = count - opens[::-1].index(True)
        rest = tuple(state[row : row + 1, last:count] for state in self.states)
        if self.logits.shape[1] > SMALL:
            rest = tuple(state.clone() for state in rest)
        return (rest,) if last < count else ()


def read(session: S, rows: Sequence[Sequence[int]]) -> Reading[S]:
    """The pass. A BOS that begins a document (or an id that resets the scorer) can only be the first of its row."""
    begun = tuple(bool(row) and row[0] in session.resets for row in rows)
    before = session.beginning([row[0] if row else None for row in rows])
    model, scorer = before.model, before.scorer
    size, device = max(map(len, rows)), before.device
    reach, documents = model.embed.longest - 1, before.stream.documents
    # A BOS that begins a document sees none of the ids in front of it either.
    tails = [
        [PAD] * reach if documents and row and row[0] == BOS else text.tail(reach, documents)
        for text, row in zip(before.texts, rows, strict=True)
    ]
    padded = [[*tail, *row, *[PAD] * (size - len(row))] for tail, row in zip(tails, rows, strict=True)]
    window = torch.tensor(padded, device=device)
    ids = window[:, -size:]

    scores, scored = None, None
    if scorer is not None:
        scores, scored = scorer.extend_scores(ids, before.scorer_state)
    answers = patching.ask(before.rule, before.stream, ids, scores)
    outputs, (encoder,) = model.encoder.stack.extend(model.embed.extend(window), [before.encoder])
    states = model.encoder.pooled_from(outputs)

    # The one place where the host waits for the device.
    opens = tuple(map(tuple, answers.read([len(row) for row in rows])))
    closed = _close(before, states, opens) if any(map(any, opens)) else None
    byte_kv = before.patch_kv if closed is None else _of_bytes(closed)
    logits, decoder = model.decoder.extend(model.byte_inputs(outputs[-1], ids), byte_kv, before.decoder)
    return Reading(
        origin=replace(session, reading=None),
        before=before,
        begun=tuple(new and text.length > 0 for new, text in zip(begun, session.texts, strict=True)),
        ids=tuple(map(tuple, rows)),
        logits=logits,
        opens=opens,
        answers=answers,
        scored=scored,
        encoder=encoder,
        decoder=decoder,
        states=states,
        closed=closed,
        cost=_cost(before, sum(map(len, rows)), closed),
    )


def _close(before: SessionState, states: ByteStates, opens: Sequence[Sequence[bool]]) -> Closed:
    """Gathers the rows in which patches close and runs the global transformer over those."""
    model = before.model
    rows = tuple(row for row, own in enumerate(opens) if any(own))
    z = model.encoder.pool(*_finished(before, states, opens, rows))
    latents, slots = model.latent.extend(z, [before.latents[row] for row in rows])
    new_kv = model.decoder.patch_keys_values(latents)
    device = before.device
    if len(rows) < len(opens):
        new_kv = new_kv.spread(torch.tensor(rows, device=device), len(opens))
    patch_kv = PatchKV.cat([before.patch_kv, new_kv], dim=1)
    size = max(map(len, opens))
    seen = [[*accumulate(map(int, own))] + [0] * (size - len(own)) for own in opens]
    return Closed(rows, slots, patch_kv, torch.tensor(seen, device=device))


def _finished(
    before: SessionState, states: ByteStates, opens: Sequence[Sequence[bool]], rows: Sequence[int]
) -> tuple[ByteStates, Segments | OneSegment]:
    """The bytes of the patches that close, those that were open before included, and where they lie."""
    bytes_of, starts = [], []
    for row in rows:
        done = len(opens[row]) - opens[row][::-1].index(True)
        parts = (*before.open_patches[row], tuple(state[row : row + 1, :done] for state in states))
        bytes_of.append([part[0] if len(parts) == 1 else torch.cat(part, 1) for part in zip(*parts, strict=True)])
        held = sum(part[0].shape[1] for part in before.open_patches[row])
        starts.append([True] + [False] * held + list(opens[row][:done]))
    if len(rows) == 1:
        states = tuple(bytes_of[0])
        if sum(starts[0]) == 2:
            return states, OneSegment()
    else:
        lines = zip(*bytes_of, strict=True)
        states = tuple(torch.nn.utils.rnn.pad_sequence([line[0] for line in own], True) for own in lines)
    longest, device = max(map(len, starts)), before.device
    patches = Patches(
        torch.tensor([own + [False] * (longest - len(own)) for own in starts], device=device),
        torch.tensor([len(own) - 1 for own in starts], device=device),
        max(map(sum, starts)) - 1,
    )
    return states, Segments.of(patches)


def _of_bytes(closed: Closed) -> PatchKV:
    rows = torch.arange(len(closed.byte_latent), device=closed.byte_latent.device)[:, None]
    return closed.patch_kv.index(rows, closed.byte_latent)


def _cost(before: SessionState, num_ids: int, closed: Closed | None) -> Passes:
    kv_bytes = before.encoder.num_bytes + before.decoder.num_bytes
    if closed is not None:
        kv_bytes += sum(before.latents[row].num_bytes for row in closed.rows)
    if before.scorer_state is not None:
        kv_bytes += before.scorer_state.num_bytes
    return Passes(int(before.scorer is not None), 1, int(closed is not None), 1, num_ids, kv_bytes)
