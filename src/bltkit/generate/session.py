"""Growing rows of ids as a value: exact decoding with everything cached that a further byte needs.

`extend` reads any number of ids a row; the global transformer runs only for rows in which a patch closes. What comes
out equals the uncached model on each whole row alone, however the rows were cut into calls and whatever stands
beside them. A session is never changed: two that go on from one are independent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit import patching
from bltkit.generate.forward_pass import Reading, read
from bltkit.generate.session_state import SessionState, Text
from bltkit.model import Blt, Scorer
from bltkit.model.entropy import stretches
from bltkit.patching import PatchingRule
from bltkit.vocab import BOS

CHUNK = 4096
"""Ids of a long prompt read at once: what bounds its memory. State carries over, so the cut is invisible."""

Rows = Sequence[int] | Sequence[Sequence[int]] | Int64[Tensor, " S"] | Int64[Tensor, "R S"]


@dataclass(frozen=True, eq=False)
class Session(SessionState):
    """A model, its scorer and rule, and their state behind R rows, of different lengths as it may be.

    A row begins with BOS. Where the model masks documents, a later BOS begins a new one: it closes the open
    patch, and nothing before it is seen again. Such a BOS comes too late for the byte in front of it, whose logits
    were computed with the patch still open, while `patch` on the whole row closes it. No other position sees that.
    """

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

    def readings(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], "Reading[Session]"]]:
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

    def read(self, rows: Sequence[Sequence[int]]) -> "Reading[Session]":
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
