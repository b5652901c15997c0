"""Growing rows of ids as a value: exact decoding with everything cached that a further byte needs.

`extend` reads any number of ids a row; the global transformer runs only for rows in which a patch closes. What comes
out equals the uncached model on each whole row alone, however the rows were cut into calls and whatever stands
beside them. A session is never changed: two that go on from one are independent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit import patching
from bltkit.generate.ledger import Passes
from bltkit.generate.reading import ByteStates, Reading, read
from bltkit.generate.text import Text
from bltkit.model import Blt, Scorer
from bltkit.model.cache import MIN_LANES, StackCache, storage_bytes
from bltkit.model.decoder import PatchKV
from bltkit.model.entropy import stretches
from bltkit.patching import PatchingRule, Stream
from bltkit.vocab import BOS

STAGGER = 8
"""Columns by which the caches that slide in place are apart, so that they do so in different rounds."""

CHUNK = 4096
"""Ids of a long prompt read at once: what bounds its memory. State carries over, so the cut is invisible."""

Rows = Sequence[int] | Sequence[Sequence[int]] | Int64[Tensor, " S"] | Int64[Tensor, "R S"]


@dataclass(frozen=True, eq=False)
class Session:
    """A model, its scorer and rule, and their state behind R rows, of different lengths as it may be.

    A row begins with BOS. Where the model masks documents, a later BOS begins a new one: it closes the open
    patch, and nothing before it is seen again. Such a BOS comes too late for the byte in front of it, whose logits
    were computed with the patch still open, while `patch` on the whole row closes it. No other position sees that.
    """

    model: Blt = field(repr=False)
    scorer: Scorer | None = field(repr=False)
    """May be None for a rule that reads no scores, and is not run then."""
    rule: PatchingRule
    stream: Stream = field(repr=False)
    scorer_state: Any = field(repr=False)
    encoder: StackCache = field(repr=False)
    latents: tuple[StackCache, ...] = field(repr=False)
    """One for every row: their patches close at different times. Its position counts the patches that closed."""
    decoder: StackCache = field(repr=False)
    texts: tuple[Text, ...] = field(repr=False)
    open_patches: tuple[tuple[ByteStates, ...], ...] = field(repr=False)
    """The bytes of each row's patch not yet closed, as they came; empty where the next byte opens one."""
    patch_kv: PatchKV = field(repr=False)
    """[R, 1, ...]: what the decoder reads of the last patch that closed; zeros before there is one."""
    next_logits: Float[Tensor, "R V"] | None = field(default=None, repr=False)
    passes: Passes = field(default_factory=Passes)
    reading: Reading | None = field(default=None, repr=False)
    """The last pass, if it was a small one, for `rollback`; and how much of it was kept."""
    kept: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def start(cls, model: Blt, scorer: Scorer | None, rule: PatchingRule, rows: int = 1) -> Self:
        """The session in front of the first id.

        Raises ValueError for a rule that cannot stream, or that reads scores where there is no scorer.
        """
        if rule.scores is None:
            scorer = None
        elif scorer is None:
            raise ValueError(
                f"rule {rule.kind!r} reads the {rule.scores} score of every byte, but there is no scorer; "
                "pass the scorer model, or use a rule that reads none, such as 'space' or 'stride:k=4.5'"
            )
        device = model.embed.bytes.weight.device
        stream = patching.start_stream(rule, rows, device, documents=model.config.document_masks)
        return cls(
            model=model,
            scorer=scorer,
            rule=rule,
            stream=stream,
            scorer_state=None if scorer is None else scorer.start(rows),
            encoder=model.encoder.stack.empty_cache(rows),
            latents=tuple(model.latent.stack.empty_cache() for _ in range(rows)),
            decoder=model.decoder.stack.empty_cache(rows),
            texts=tuple(Text() for _ in range(rows)),
            open_patches=((),) * rows,
            patch_kv=model.decoder.no_patch(rows),
        )

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
        return (*self._joint, *self.latents)

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

    def extend(self, ids: Rows) -> "Session":
        """The session after further ids: of the one row, or of each row (none in some, as it may be).

        This one stays as it was. Raises ValueError where a row does not begin with BOS.
        """
        session = self
        for _, reading in self.readings(self._checked(ids)):
            session = reading.keep()
        return session

    def along(self, ids: Rows) -> tuple["Session", Float[Tensor, "R S V"]]:
        """`extend`, and the raw logits behind each of the ids; behind a row's own ids they hold nothing of meaning."""
        rows = self._checked(ids)
        parts = list(self.readings(rows))
        if not parts:
            raise ValueError("ids are empty in every row; there are no logits behind none")
        last = parts[-1][1]
        if len(parts) == 1:
            return last.keep(), last.logits
        logits = last.logits.new_zeros(self.rows, max(map(len, rows)), last.logits.shape[2])
        for begins, reading in parts:
            for row, (begin, own) in enumerate(zip(begins, reading.ids, strict=True)):
                logits[row, begin : begin + len(own)] = reading.logits[row, : len(own)]
        return last.keep(), logits

    def readings(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Reading]]:
        """The passes that read these rows, each after all of the one before, and where in each row it begins.

        The ids are not checked: where documents are ignored, a row may begin with any of them.
        """
        pieces = [list(stretches(row, self.resets, CHUNK)) for row in rows]
        session = self
        for turn in range(max(map(len, pieces))):
            now = [
                own[turn] if turn < len(own) else (len(row), len(row)) for row, own in zip(rows, pieces, strict=True)
            ]
            reading = session.read([row[begin:end] for row, (begin, end) in zip(rows, now, strict=True)])
            yield [begin for begin, _ in now], reading
            session = reading.keep()

    def read(self, rows: Sequence[Sequence[int]]) -> Reading:
        """One pass over further ids of each row, of which `Reading.keep` may keep fewer.

        An id that begins a document or resets the scorer may only be the first of its row; there must be some id.
        """
        with torch.inference_mode():
            return read(self.current(), rows)

    def rollback(self, count: int | Sequence[int]) -> "Session":
        """The session without its last `count` ids (of each row: a number for all, or one for each).

        Ids of the last pass are taken back at no cost; for more of them the rows are read anew from their beginning.
        Raises ValueError for more than there are.
        """
        counts = [count] * self.rows if isinstance(count, int) else list(count)
        lengths = [length - n for length, n in zip(self.positions, counts, strict=True)]
        if min(counts) < 0 or min(lengths) < 0:
            raise ValueError(f"rollback = {counts}: rows have {list(self.positions)} ids")
        if not any(counts):
            return self
        self = self.current()
        if self.reading is not None and all(n <= kept for n, kept in zip(counts, self.kept, strict=True)):
            return self.reading.keep([kept - n for n, kept in zip(counts, self.kept, strict=True)])
        return self._reread(lengths)

    def current(self) -> "Session":
        """The session itself; where a batch has moved its rows since (`closed_up`, `entered`, `with_room`), what
        reading its texts again gives: the same state but for rounding."""
        if not any(cache.stale for cache in self._joint):
            return self
        return self._reread(self.positions)

    def _reread(self, lengths: Sequence[int]) -> "Session":
        fresh = replace(Session.start(self.model, self.scorer, self.rule, self.rows), passes=self.passes)
        return fresh.extend([text.items[:length] for text, length in zip(self.texts, lengths, strict=True)])

    def fork(self) -> "Session":
        """The same state with storage of its own, so that both can go on without either copying at its next step."""
        return self.select(range(self.rows))

    def select(self, rows: Sequence[int]) -> "Session":
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

    def closed_up(self, rows: Sequence[int], lanes: int = MIN_LANES) -> tuple["Session", list[int]]:
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

    def entered(self, other: "Session", lanes: int = MIN_LANES) -> "Session":
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

    def with_room(self, size: int) -> "Session":
        """With room for passes of `size` ids in storage that rows share, and for some patches. A session from before
        is restored when somebody uses it again (`current`)."""
        base = self.current()
        with torch.inference_mode():
            # Not all in the same round: each waits for fewer free columns than the next.
            joint = tuple(cache.with_room(size + STAGGER * at) for at, cache in enumerate(base._joint))
            latents = StackCache.grown_early(base.latents)
        if joint == base._joint and latents is base.latents:
            return base
        scored = joint[2] if len(joint) > 2 else base.scorer_state
        return replace(base, encoder=joint[0], decoder=joint[1], scorer_state=scored, latents=latents, reading=None)

    def _reordered(self, rows: Sequence[int]) -> "Session":
        """With these rows of what lies neither in caches nor in texts."""
        at = torch.tensor(rows, device=self.device)
        return replace(
            self,
            stream=self.stream.select(rows),
            open_patches=tuple(self.open_patches[row] for row in rows),
            patch_kv=tuple(tuple(x[at] for x in block) for block in self.patch_kv),
            next_logits=None if self.next_logits is None else self.next_logits[at],
            reading=None,
        )

    @classmethod
    def join(cls, sessions: Sequence["Session"]) -> "Session":
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

    def _beside(
        self, others: Sequence["Session"], scorer_state: Any, encoder: StackCache, decoder: StackCache
    ) -> "Session":
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
            patch_kv=tuple(
                tuple(map(torch.cat, zip(*block, strict=True)))
                for block in zip(*(session.patch_kv for session in sessions), strict=True)
            ),
            next_logits=_joined([each.next_logits for each in sessions], [each.rows for each in sessions]),
            passes=sum((session.passes for session in others), self.passes),
            reading=None,
        )

    def check_joins(self, other: "Session") -> None:
        """Raise ValueError unless both are of one model, scorer and rule."""
        if (self.model, self.scorer, self.rule) != (other.model, other.scorer, other.rule):
            raise ValueError("sessions of different models, scorers or rules cannot be joined")

    def beginning(self, first: Sequence[int | None]) -> "Session":
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

    def _checked(self, ids: Rows) -> list[list[int]]:
        values: list[Any] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if not values:
            return [[] for _ in self.texts]
        rows: list[list[int]] = [values] if isinstance(values[0], int) else [list(row) for row in values]
        if len(rows) != self.rows:
            raise ValueError(f"ids of {len(rows)} rows for a session of {self.rows}")
        for row, text in zip(rows, self.texts, strict=True):
            if row and not text.length and row[0] != BOS:
                raise ValueError(f"a row begins with BOS ({BOS}), got id {row[0]}; vocab.encode(text) puts it in front")
        return rows


def _joined(logits: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """Zeros where nothing was read: `Session.logits` refuses to show them."""
    known = next((one for one in logits if one is not None), None)
    if known is None:
        return None
    pairs = zip(logits, rows, strict=True)
    return torch.cat([known.new_zeros(count, known.shape[1]) if one is None else one for one, count in pairs])
