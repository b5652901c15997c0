"""The decoding loop in place of transformers': one pass of cached state a byte, or drafts that are verified.

The model is bltkit's session; everything else is what transformers prepared: processors, criteria, streamer and the
fields of GenerationConfig mean what they mean there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.generate import Autoregressive, Session, Speculative
from bltkit.generate.strategies import Outcome
from bltkit.generate.strategies.speculative import LocalModel
from bltkit.hf.columns import Columns
from bltkit.hf.processing import Noise, Processors
from bltkit.hf.prompts import PromptRows
from bltkit.vocab import BOS

ROOM = 64
"""Columns that caches have free before a pass."""


def decode(
    start: Callable[[int], Session],
    strategy: Autoregressive | Speculative,
    input_ids: Int64[Tensor, "B T"],
    attention_mask: Tensor | None,
    processors: Any,
    criteria: Any,
    config: Any,
    streamer: Any,
) -> Any:
    """Continue every row of a batch; returns what transformers' `generate` does.

    start: makes the session of a number of empty rows. The rest is what transformers prepares for a loop.
    Raises ValueError as `PromptRows.of` does.
    """
    prompts = PromptRows.of(input_ids, attention_mask)
    session = prefilled(start, prompts.ids)
    columns = Columns(input_ids, criteria, config, streamer)
    process = Processors(processors, prompts.real)
    if isinstance(strategy, Speculative):
        _Speculation(columns, process, bool(config.do_sample), strategy).run(session)
    else:
        _step_by_step(session, columns, process, bool(config.do_sample))
    return columns.result()


def prefilled(start: Callable[[int], Session], prompts: Sequence[tuple[int, ...]]) -> Session:
    """The session after these rows; equal ones are read once. start: see `decode`.

    Raises ValueError for a row without BOS where the model reads documents.
    """
    distinct = list(dict.fromkeys(prompts))
    session = start(len(distinct))
    if session.stream.documents:
        for index, prompt in enumerate(prompts):
            if prompt[0] != BOS:
                raise ValueError(
                    f"input_ids: row {index} begins with id {prompt[0]}; this model reads documents, which begin with "
                    f"BOS ({BOS}): the checkpoint's tokenizer puts it in front"
                )
    for _, reading in session.readings(distinct):
        session = reading.keep()
    if len(distinct) == len(prompts):
        return session
    return session.select([distinct.index(prompt) for prompt in prompts])


def _step_by_step(session: Session, columns: Columns, process: Processors, sample: bool) -> None:
    """A pass of every growing row for each column."""
    rows = list(range(len(columns.ids)))
    everyone = list(rows)
    while True:
        logits = _spread(session.logits, rows, columns.ids)
        scores = process(everyone, columns.ids, logits) if process else logits
        tokens = scores.softmax(-1).multinomial(1)[:, 0] if sample else scores.argmax(-1)
        columns.emit(tokens, scores, logits)
        if columns.ended:
            return
        session, rows = _without_ended(session, rows, columns)
        chosen: list[int] = columns.ids[:, -1].tolist()
        session = session.with_room(ROOM).read([[chosen[row]] for row in rows]).keep()


def _spread(logits: Float[Tensor, "R V"], rows: Sequence[int], ids: Tensor) -> Float[Tensor, "B V"]:
    """Logits in fp32 beside the ids, zeros for rows that ended. The copy is the caller's to change."""
    wide = logits.to(device=ids.device, dtype=torch.float32, copy=True)
    if len(rows) == len(ids) and list(rows) == sorted(rows):
        return wide
    everyone = wide.new_zeros(len(ids), wide.shape[1])
    everyone[list(rows)] = wide
    return everyone


def _without_ended(session: Session, rows: list[int], columns: Columns) -> tuple[Session, list[int]]:
    left = [at for at, row in enumerate(rows) if columns.growing[row]]
    if len(left) == len(rows):
        return session, rows
    session, order = session.closed_up(left)
    return session, [rows[at] for at in order]


@dataclass
class _Row:
    """A row on its way, ahead of the columns that were emitted."""

    index: int
    ids: Int64[Tensor, " N"]
    """Padded prompt, chosen and drafted ids, spare room behind."""
    prompt: int
    made: int
    """Ids chosen so far; the last one is not read yet."""
    state: int
    scores: list[Tensor]
    """Of the chosen ids that are not emitted yet, where they are handed out; and raw logits."""
    logits: list[Tensor]

    def id(self, step: int) -> int:
        return int(self.ids[self.prompt + step])

    def put(self, step: int, value: int) -> None:
        at = self.prompt + step
        if at >= len(self.ids):
            self.ids = torch.cat((self.ids, self.ids.new_zeros(len(self.ids))))
        self.ids[at] = value


class _Speculation:
    """Drafts of the local model, verified by the full one (BLT-S): each row at a pace of its own.

    A choice is the one that `_step_by_step` makes: the same scores, and the same random numbers for the same step. So
    are the columns, which are emitted as soon as every row has chosen its id. Processors are called for one row at a
    time and also for drafts that are rejected: what they return may depend on their arguments alone.
    """

    def __init__(self, columns: Columns, process: Processors, sample: bool, strategy: Speculative) -> None:
        self.columns, self.process, self.strategy = columns, process, strategy
        ids = columns.ids
        self.noise = Noise(len(ids)) if sample else None
        limit = getattr(columns.criteria, "max_length", None)
        self.limit: int | None = None if limit is None else max(1, limit - ids.shape[1])
        ending = [criterion.eos_token_id for criterion in columns.criteria if hasattr(criterion, "eos_token_id")]
        self.ending = {int(value) for values in ending for value in values.reshape(-1).tolist()}
        room = 2 * ids.shape[1] + ROOM
        self.rows = [
            _Row(i, torch.cat((row, row.new_zeros(room))), len(row), 0, strategy.first_state, [], [])
            for i, row in enumerate(ids)
        ]

    def run(self, session: Session) -> None:
        """Emit columns until every row has ended."""
        order = list(range(len(self.rows)))
        first = session.logits
        for row in self.rows:
            self._take(row, *self._choice(row, 0, first[row.index]))
        while True:
            while not self.columns.ended and all(
                row.made > self.columns.count for row in self.rows if self.columns.growing[row.index]
            ):
                self._emit()
            if self.columns.ended:
                if self.noise is not None:
                    self.noise.rewind()
                return
            session, order = _without_ended(session, order, self.columns)
            session = self._round(session.with_room(ROOM), [self.rows[index] for index in order])

    def _round(self, session: Session, rows: Sequence[_Row]) -> Session:
        drafts = self._drafts(session, rows)
        along = [
            [row.id(row.made - 1), *draft] if self._room(row) else [] for row, draft in zip(rows, drafts, strict=True)
        ]
        reading = session.read(along)
        counts = []
        for at, (row, ids) in enumerate(zip(rows, along, strict=True)):
            agreed = 0
            for column in range(len(ids)):
                value, scores, logits = self._choice(row, row.made, reading.logits[at, column])
                self._take(row, value, scores, logits)
                agreed = column + 1
                if column + 1 == len(ids) or value != ids[column + 1] or value in self.ending:
                    break
            counts.append(agreed)
            if ids:
                row.state = self.strategy.next_state(row.state, Outcome(len(ids) - 1, agreed - 1))
        return reading.keep(counts)

    def _drafts(self, session: Session, rows: Sequence[_Row]) -> list[list[int]]:
        """Ids that may follow each row's last one."""
        limits = [min(row.state, self._room(row) - 1) if self._room(row) else 0 for row in rows]
        drafts: list[list[int]] = [[] for _ in rows]
        if max(limits) < 1:
            return drafts
        growing, chosen = [limit > 0 for limit in limits], [row.id(row.made - 1) for row in rows]
        with torch.inference_mode():
            local = LocalModel(session)
            for step in range(max(limits)):
                if not any(growing):
                    break
                logits = local.logits(chosen)[:, 0]
                for at, row in enumerate(rows):
                    if not growing[at]:
                        continue
                    value, _, _ = self._choice(row, row.made + step, logits[at])
                    if value in session.resets:
                        growing[at] = False
                        continue
                    row.put(row.made + step, value)
                    drafts[at].append(value)
                    chosen[at] = value
                    growing[at] = value not in self.ending and len(drafts[at]) < limits[at]
        return drafts

    def _room(self, row: _Row) -> int:
        """Ids that the row may still choose; 0 while it waits for the other rows at its end."""
        if row.made > self.columns.count and row.id(row.made - 1) in self.ending:
            return 0
        return ROOM if self.limit is None else max(0, self.limit - row.made)

    def _choice(self, row: _Row, step: int, logits: Float[Tensor, " V"]) -> tuple[int, Tensor, Tensor]:
        """The id of a step, with scores [1, V] and raw logits [1, V]; what was chosen or drafted before is in place."""
        raw = logits[None].to(device=row.ids.device, dtype=torch.float32, copy=True)
        scores = self.process([row.index], row.ids[None, : row.prompt + step], raw) if self.process else raw
        value = int(scores.argmax()) if self.noise is None else self.noise.draw(row.index, step, scores)
        return value, scores, raw

    def _take(self, row: _Row, value: int, scores: Tensor, logits: Tensor) -> None:
        row.put(row.made, value)
        row.made += 1
        if self.columns.stored:
            row.scores.append(scores)
            row.logits.append(logits)

    def _emit(self) -> None:
        """The next column. Rows that have ended hold any id there."""
        step, stored = self.columns.count, self.columns.stored
        growing = [self.columns.growing[row.index] for row in self.rows]
        tokens = torch.tensor(
            [row.id(step) if grows else 0 for row, grows in zip(self.rows, growing, strict=True)],
            device=self.columns.ids.device,
        )
        scores = logits = None
        if stored:
            pairs = list(zip(self.rows, growing, strict=True))
            like = next(row.scores[0] for row, grows in pairs if grows)
            empty = torch.zeros_like(like)
            scores = torch.cat([row.scores.pop(0) if grows else empty for row, grows in pairs])
            logits = torch.cat([row.logits.pop(0) if grows else empty for row, grows in pairs])
        self.columns.emit(tokens, scores, logits)
        if self.noise is not None:
            self.noise.forget(step + 1)
