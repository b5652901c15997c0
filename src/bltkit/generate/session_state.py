"""The state of a session as a value: what is cached of R rows, and rows that leave, come in and change places.

No model runs here: session.py reads ids and takes them back, forward_pass.py is one pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bltkit.model import Blt, Scorer
from bltkit.model.cache import MIN_LANES, StackCache, storage_bytes
from bltkit.model.decoder import PatchKV
from bltkit.model.layer_caches import LayerCaches
from bltkit.patching import PatchingRule, Stream
from bltkit.vocab import BOS, PAD

ByteStates = tuple[Tensor, ...]
"""States [1, n, D] of n bytes that pooling reads: `LocalEncoder.pooled_from`."""

STAGGER = 8
"""Columns by which the caches that slide in place are apart, so that they do so in different rounds."""


@dataclass(frozen=True, eq=False)
class Text:
    """The ids of one row so far. The list is shared and append-only; a text that others outgrew copies it."""

    items: list[int] = field(default_factory=list, repr=False)
    length: int = 0

    def append(self, more: Sequence[int]) -> "Text":
        """The text with further ids."""
        items = self.items if len(self.items) == self.length else self.items[: self.length]
        items.extend(more)
        return Text(items, self.length + len(more))

    def latest(self, count: int) -> list[int]:
        """The last `count` ids, or all there are."""
        return self.items[max(0, self.length - count) : self.length]

    def tail(self, count: int, documents: bool = False) -> list[int]:
        """The last `count` ids, PAD in front of the row and, with `documents`, of the document."""
        ids = self.latest(count)
        if documents and BOS in ids:
            ids = ids[len(ids) - 1 - ids[::-1].index(BOS) :]
        return [PAD] * (count - len(ids)) + ids


@dataclass(frozen=True)
class Passes:
    """Counts of passes since a session's start: one forward call of a module's layers each, whatever the number of
    positions or rows it covers. The difference of two values is what lay between them.
    """

    entropy: int = 0
    """Calls of the scorer."""
    encoder: int = 0
    latent: int = 0
    """Calls of the global transformer; byte by byte, one for every patch that closes."""
    decoder: int = 0
    ids: int = 0
    """Ids that scorer, encoder and decoder read: each looks up its rows in all embedding tables."""
    kv_bytes: int = 0
    """Cached keys and values that passes read, in bytes; those that a pass itself makes are not counted."""
    draft_ids: int = 0
    """Ids that encoder and decoder read to draft: as `ids`, but for the scorer's tables."""
    cells: int = 0
    """Ids that the decoder reads by itself, those of blocks: each looks up one row of a table of bytes."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.entropy + other.entropy,
            self.encoder + other.encoder,
            self.latent + other.latent,
            self.decoder + other.decoder,
            self.ids + other.ids,
            self.kv_bytes + other.kv_bytes,
            self.draft_ids + other.draft_ids,
            self.cells + other.cells,
        )

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@runtime_checkable
class TentativePass(Protocol):
    """A pass of which any part may be kept."""

    def keep(self, counts: Sequence[int] | None = None) -> Any:
        """The session after the first counts[r] ids of each row."""
        ...


@dataclass(frozen=True, eq=False)
class SessionState(ABC):
    """A model, its scorer and rule, and the cached state after R sequences, possibly of different lengths."""

    model: Blt = field(repr=False)
    scorer: Scorer | None = field(repr=False)
    """May be None for a rule that reads no scores, and is not run then."""
    rule: PatchingRule
    stream: Stream = field(repr=False)
    scorer_state: Any = field(repr=False)
    encoder: StackCache = field(repr=False)
    latents: tuple[LayerCaches, ...] = field(repr=False)
    """One for every row: their patches close at different times. Its position counts the patches that closed."""
    decoder: StackCache = field(repr=False)
    texts: tuple[Text, ...] = field(repr=False)
    open_patches: tuple[tuple[ByteStates, ...], ...] = field(repr=False)
    """The bytes of each row's patch not yet closed, as they came; empty where the next byte opens one."""
    patch_kv: PatchKV = field(repr=False)
    """[R, 1, ...]: what the decoder reads of the last patch that closed; zeros before there is one."""
    next_logits: Float[Tensor, "R V"] | None = field(default=None, repr=False)
    passes: Passes = field(default_factory=Passes)
    reading: TentativePass | None = field(default=None, repr=False)
    """The last pass, if it was a small one, for `rollback`; and how much of it was kept."""
    kept: tuple[int, ...] = field(default=(), repr=False)

    @property
    def rows(self) -> int:
        """How many rows grow side by side."""
        return len(self.texts)

    @property
    def positions(self) -> tuple[int, ...]:
        """Ids read of each row."""
        return tuple(text.length for text in self.texts)

    @property
    def logits(self) -> Float[Tensor, "R V"]:
        """Raw logits of each row's next id. Raises ValueError before the first one."""
        if self.next_logits is None or not all(self.positions):
            raise ValueError("an empty row predicts nothing; extend it with ids that begin with BOS (1)")
        return self.next_logits

    @property
    def opens(self) -> tuple[bool, ...]:
        """Does each row's next byte open a patch."""
        return tuple(not patch for patch in self.open_patches)

    @property
    def resets(self) -> frozenset[int]:
        """Ids in front of which the model or the scorer forgets: in a pass they can only be the first of a row."""
        documents = frozenset((BOS,)) if self.stream.documents else frozenset()
        return documents if self.scorer is None else documents | self.scorer.resets

    @property
    def caches(self) -> tuple[StackCache, ...]:
        """All of them; several may share storage."""
        return (*self._joint, *(part for cache in self.latents for part in cache.parts))

    @property
    def _joint(self) -> tuple[StackCache, ...]:
        """Those that hold all rows."""
        scoring = (self.scorer_state,) if isinstance(self.scorer_state, StackCache) else ()
        return (self.encoder, self.decoder, *scoring)

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches, spare room included; storage that rows share counts once."""
        return storage_bytes(self.caches)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.stream.position.device

    @abstractmethod
    def current(self) -> Self:
        """The state itself; where a batch has moved its rows since (`closed_up`, `entered`, `with_room`), a state that
        is restored from its texts."""

    def select(self, rows: Sequence[int]) -> Self:
        """These rows in this order, any of them also several times: to end rows, or to branch from a prefix.

        Raises ValueError where none is left.
        """
        rows = list(rows)
        if not rows:
            raise ValueError("rows = []: a session has at least one row")
        if any(cache.stale for cache in self._joint):
            return self.current().select(rows)
        with torch.inference_mode():
            return replace(
                self._reordered(rows),
                scorer_state=None if self.scorer is None else self.scorer_state.select(rows),
                encoder=self.encoder.select(rows),
                latents=tuple(self.latents[row].select([0]) for row in rows),
                decoder=self.decoder.select(rows),
                texts=tuple(Text().append(self.texts[row].tail(self.texts[row].length)) for row in rows),
            )

    def closed_up(self, rows: Sequence[int], lanes: int = MIN_LANES) -> tuple[Self, list[int]]:
        """Without all other rows, as cheaply as can be, and the order: row i is what row order[i] was.

        The last rows take the place of those that leave, in storage that the rows of a batch share, and texts and
        global caches are not copied. A session from before is restored when somebody uses it again (`current`).
        lanes: rows that storage has room for at least.
        """
        count, stay = len(rows), set(rows)
        behind = [row for row in range(count, self.rows) if row in stay]
        order = [row if row in stay else behind.pop() for row in range(count)]
        if any(cache.stale for cache in self._joint):
            return self.current().select(order), order
        with torch.inference_mode():
            scored = self.scorer_state
            if scored is not None:
                scored = scored.closed_up(order, lanes) if isinstance(scored, StackCache) else scored.select(order)
            return replace(
                self._reordered(order),
                scorer_state=scored,
                encoder=self.encoder.closed_up(order, lanes),
                latents=tuple(self.latents[row] for row in order),
                decoder=self.decoder.closed_up(order, lanes),
                texts=tuple(self.texts[row] for row in order),
            ), order

    def entered(self, other: Self, lanes: int = MIN_LANES) -> Self:
        """With the rows of `other` behind its own, as cheaply as can be: they are copied into spare room beside those
        of this session, which is then restored when somebody uses it again (`current`). `other` stays as it is.
        lanes: rows that new storage has room for at least.

        Raises ValueError as `join` does.
        """
        other.check_joins(self)
        base, other = self.current(), other.current()
        with torch.inference_mode():
            scored = base.scorer_state
            if isinstance(scored, StackCache):
                scored = scored.entered(other.scorer_state, lanes)
            elif scored is not None:
                scored = type(scored).join([scored, other.scorer_state])
            return base._beside(
                [other], scored, base.encoder.entered(other.encoder, lanes), base.decoder.entered(other.decoder, lanes)
            )

    def with_room(self, size: int) -> Self:
        """With room for passes of `size` ids in storage that rows share, and for some patches. A session from before
        is restored when somebody uses it again (`current`)."""
        base = self.current()
        with torch.inference_mode():
            # Not all in the same round: each waits for fewer free columns than the next.
            joint = tuple(cache.with_room(size + STAGGER * at) for at, cache in enumerate(base._joint))
            latents = type(base.latents[0]).grown_early(base.latents)
        if joint == base._joint and latents is base.latents:
            return base
        scored = joint[2] if len(joint) > 2 else base.scorer_state
        return replace(base, encoder=joint[0], decoder=joint[1], scorer_state=scored, latents=latents, reading=None)

    def _reordered(self, rows: Sequence[int]) -> Self:
        """With these rows of what lies neither in caches nor in texts."""
        at = torch.tensor(rows, device=self.device)
        return replace(
            self,
            stream=self.stream.select(rows),
            open_patches=tuple(self.open_patches[row] for row in rows),
            patch_kv=self.patch_kv.select(at),
            next_logits=None if self.next_logits is None else self.next_logits[at],
            reading=None,
        )

    @classmethod
    def join(cls, sessions: Sequence[Self]) -> Self:
        """All rows under one another, of one model, scorer and rule: so rows come in while others run.

        Raises ValueError for sessions of different models, scorers or rules.
        """
        for other in sessions:
            other.check_joins(sessions[0])
        first, *others = (session.current() for session in sessions)
        with torch.inference_mode():
            scored = [session.scorer_state for session in (first, *others)]
            return first._beside(
                others,
                None if first.scorer is None else type(first.scorer_state).join(scored),
                StackCache.join([session.encoder for session in (first, *others)]),
                StackCache.join([session.decoder for session in (first, *others)]),
            )

    def _beside(self, others: Sequence[Self], scorer_state: Any, encoder: StackCache, decoder: StackCache) -> Self:
        """With the others' rows behind its own, given what caches hold of all of them."""
        sessions = [self, *others]
        return replace(
            self,
            stream=Stream.join([session.stream for session in sessions]),
            scorer_state=scorer_state,
            encoder=encoder,
            latents=tuple(cache for session in sessions for cache in session.latents),
            decoder=decoder,
            texts=tuple(text for session in sessions for text in session.texts),
            open_patches=tuple(patch for session in sessions for patch in session.open_patches),
            patch_kv=PatchKV.cat([session.patch_kv for session in sessions]),
            next_logits=_joined([each.next_logits for each in sessions], [each.rows for each in sessions]),
            passes=sum((session.passes for session in others), self.passes),
            reading=None,
        )

    def check_joins(self, other: Self) -> None:
        """Raise ValueError unless both are of one model, scorer and rule."""
        if (self.model, self.scorer, self.rule) != (other.model, other.scorer, other.rule):
            raise ValueError("sessions of different models, scorers or rules cannot be joined")

    def beginning(self, first: Sequence[int | None]) -> Self:
        """In front of a pass in which rows begin with these ids: a new document or segment sees nothing of what was.

        Only positions run on. The patch that ends so takes one, but its latent is not computed: nobody would read it.
        """
        before = replace(self, reading=None)
        resets = frozenset() if self.scorer is None else self.scorer.resets
        if scored := [row for row, value in enumerate(first) if value in resets]:
            before = replace(before, scorer_state=before.scorer_state.forget(scored))
        begun = [row for row, value in enumerate(first) if value == BOS] if self.stream.documents else []
        if not begun:
            return before
        latents, open_patches = list(self.latents), list(self.open_patches)
        for row in begun:
            latents[row] = latents[row].forget([0], skipped=int(bool(open_patches[row])))
            open_patches[row] = ()
        return replace(
            before,
            encoder=self.encoder.forget(begun),
            latents=tuple(latents),
            decoder=self.decoder.forget(begun),
            open_patches=tuple(open_patches),
        )


def _joined(logits: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """Zeros where nothing was read: `Session.logits` refuses to show them."""
    shown = next((values for values in logits if values is not None), None)
    if shown is None:
        return None
    pairs = zip(logits, rows, strict=True)
    return torch.cat([shown.new_zeros(count, shown.shape[1]) if values is None else values for values, count in pairs])
