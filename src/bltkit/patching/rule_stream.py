"""A rule's answers byte by byte: what it remembers of growing rows, document borders and maximum length.

Positions count from the document's BOS. With `documents` (the default) every BOS begins a document wherever it stands:
it opens a patch, the byte after it opens the next, and the count restarts. Without, as in Hugging Face's port, a row is
one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bltkit.patching.finite import finite, not_finite
from bltkit.patching.rule import PatchingRule
from bltkit.vocab import BOS, PAD


@dataclass(frozen=True, eq=False)
class Stream:
    """Where a rule stands in B growing rows: all it needs to go on. A value: keep an old one to roll back."""

    position: Int64[Tensor, " B"]
    """Position of the next byte inside its document."""
    open_bytes: Int64[Tensor, " B"]
    """Bytes since the rule itself last opened a patch, 0 where the next byte does; unused without limit."""
    ids: Int64[Tensor, "B L"]
    """The last `rule.lookback` ids."""
    scores: Float[Tensor, "B L"] | None
    """Their scores; None for rules that read none."""
    documents: bool
    """Does a BOS begin a new document."""

    def select(self, rows: Sequence[int]) -> "Stream":
        """These rows in this order."""
        at = torch.tensor(rows, device=self.position.device)
        scores = None if self.scores is None else self.scores[at]
        return Stream(self.position[at], self.open_bytes[at], self.ids[at], scores, self.documents)

    @classmethod
    def join(cls, streams: Sequence["Stream"]) -> "Stream":
        """The rows of all streams, of one rule, under one another."""
        scores = [stream.scores for stream in streams if stream.scores is not None]
        return cls(
            torch.cat([stream.position for stream in streams]),
            torch.cat([stream.open_bytes for stream in streams]),
            torch.cat([stream.ids for stream in streams]),
            torch.cat(scores) if scores else None,
            streams[0].documents,
        )


@dataclass(frozen=True, eq=False)
class Answers:
    """A rule's answers to S further ids of every row, of which any number may be kept."""

    opens: Bool[Tensor, "B S"]
    """Does the byte behind the id open a patch. On the device, where nobody has looked yet whether the scores are
    finite: `read` does."""
    rule: PatchingRule
    stream: Stream
    """Before the ids."""
    position: Int64[Tensor, "B S"]
    open_bytes: Int64[Tensor, "B S"] | None
    """As in the stream, after each id; None without a limit."""
    ids: Int64[Tensor, "B W"]
    """With `lookback` columns in front."""
    scores: Float[Tensor, "B W"] | None

    def read(self, counts: Sequence[int] | None = None) -> list[list[bool]]:
        """`opens` of the first counts[b] ids of each row (default: all), on the host: the one wait for the device.

        Raises ValueError where one of their scores is not finite.
        """
        counts = [self.opens.shape[1]] * len(self.opens) if counts is None else counts
        if self.scores is None:
            return [row[:count] for row, count in zip(self.opens.tolist(), counts, strict=True)]
        new_scores = self.scores[:, self.rule.lookback :]
        opens, sound = torch.stack((self.opens, finite(new_scores))).tolist()
        rows = [row[:count] for row, count in zip(opens, counts, strict=True)]
        for row, count in enumerate(counts):
            if False in sound[row][:count]:
                at = sound[row].index(False)
                place = int(self.stream.position[row]) + at
                raise not_finite(self.rule.scores, place_of(float(new_scores[row, at]), row, len(rows), place))
        return rows

    def keep(self, num_bytes: Int64[Tensor, " B"] | None = None) -> Stream:
        """The stream after the first num_bytes[b] of the ids; after all of them when None."""
        after = replace(self.stream, position=_after(self.stream.position, self.position + 1, num_bytes))
        if self.open_bytes is not None:
            after = replace(after, open_bytes=_after(self.stream.open_bytes, self.open_bytes, num_bytes))
        if self.rule.lookback:
            after = replace(after, ids=_tail(self.ids, self.rule.lookback, num_bytes))
            if self.scores is not None:
                after = replace(after, scores=_tail(self.scores, self.rule.lookback, num_bytes))
        return after


def start_stream(
    rule: PatchingRule,
    batch: int = 1,
    device: torch.device | str | None = None,
    *,
    documents: bool = True,
) -> Stream:
    """The state before the first byte of `batch` rows. Raises ValueError for a rule that cannot stream."""
    _check_streams(rule)
    return empty_stream(rule, batch, device, documents)


def extend(
    rule: PatchingRule,
    stream: Stream,
    ids: Int64[Tensor, "B S"],
    scores: Float[Tensor, "B S"] | None = None,
    num_bytes: Int64[Tensor, " B"] | None = None,
) -> tuple[Bool[Tensor, "B S"], Stream]:
    """Append S ids to every row: the answers, and the stream after them. The given stream stays as it was.

    opens[b, i] answers "does the byte after ids[b, i] open a patch?". The first byte of a row always opens
    one. A BOS that arrives later opens one whatever was answered before it, since the answer could not know
    it (`documents`), so starts[t+1] = opens[t] or ids[t+1] == BOS.

    num_bytes: [B] ids that count in each row, 0..S (default: S), for rows that grow by different amounts;
        answers behind them are False.

    Raises ValueError as `patch` does, and for a rule that cannot stream.
    """
    answers = ask(rule, stream, ids, scores)
    if answers.scores is not None:  # without scores there is nothing to wait for
        answers.read(None if num_bytes is None else num_bytes.tolist())
    opens = answers.opens
    if num_bytes is not None:
        opens = opens & (torch.arange(ids.shape[1], device=ids.device) < num_bytes[:, None])
    return opens, answers.keep(num_bytes)


def ask(
    rule: PatchingRule,
    stream: Stream,
    ids: Int64[Tensor, "B S"],
    scores: Float[Tensor, "B S"] | None = None,
) -> Answers:
    """`extend` for a caller who decides only afterwards how many of the ids it keeps.

    Does not wait for the device: `Answers.read` does, and refuses scores that are not finite.
    """
    _check_streams(rule)
    return advance(rule, stream, ids, checked_scores(rule, ids, scores))


def advance(
    rule: PatchingRule, stream: Stream, ids: Int64[Tensor, "B S"], scores: Float[Tensor, "B S"] | None
) -> Answers:
    """The one place where a rule is asked."""
    begins = ids == BOS if stream.documents else torch.zeros_like(ids, dtype=torch.bool)
    position = _columns_since(begins, stream.position)
    if rule.lookback:
        ids = torch.cat([stream.ids, ids], 1)
        if scores is not None:
            assert stream.scores is not None
            scores = torch.cat([stream.scores, scores], 1)
    natural = rule.opens(ids, scores, position) | (position == 0)
    if rule.max_patch_bytes is None:
        return Answers(natural, rule, stream, position, None, ids, scores)
    # Cuts count from the rule's own starts (docs/model.md 4.3): a cut never moves a later start. A BOS is not marked:
    # it answers that the byte after it starts, and the count begins anew there.
    starts = F.pad(natural, (1, 0))[:, :-1]
    length = _columns_since(starts, stream.open_bytes) + 1
    cut = length % rule.max_patch_bytes == 0
    return Answers(natural | cut, rule, stream, position, length.masked_fill(natural, 0), ids, scores)


def place_of(value: float, row: int, rows: int, position: int) -> str:
    """Position p holds the score of the prediction made from BOS and p bytes."""
    return f"{value} after {position} bytes" + (f" of row {row}" if rows > 1 else "")


def _columns_since(marks: Bool[Tensor, "B S"], first: Int64[Tensor, " B"]) -> Int64[Tensor, "B S"]:
    """Columns since the latest mark, 0 at a mark; before any mark the count goes on from `first`."""
    columns = torch.arange(marks.shape[1], device=marks.device)
    latest: Tensor = torch.where(marks, columns, -first[:, None]).cummax(1).values
    return columns - latest


def _after(
    before: Int64[Tensor, " B"], columns: Int64[Tensor, "B S"], num_bytes: Int64[Tensor, " B"] | None
) -> Int64[Tensor, " B"]:
    """The state after num_bytes columns, of the state before and the states after each column."""
    if num_bytes is None and columns.shape[1]:
        last = columns[:, -1]
        return last if columns.shape[1] == 1 else last.clone()  # not to keep a long prompt's columns alive
    states = torch.cat([before[:, None], columns], 1)
    return states[:, -1] if num_bytes is None else states.gather(1, num_bytes[:, None])[:, 0]


def _tail(window: Tensor, lookback: int, num_bytes: Int64[Tensor, " B"] | None) -> Tensor:
    """The last `lookback` columns up to num_bytes; `window` has `lookback` columns in front."""
    if num_bytes is None:
        return window[:, window.shape[1] - lookback :]
    return window.gather(1, num_bytes[:, None] + torch.arange(lookback, device=window.device))


def empty_stream(rule: PatchingRule, batch: int, device: torch.device | str | None, documents: bool) -> Stream:
    zeros = torch.zeros(batch, dtype=torch.long, device=device)
    ids = torch.full((batch, rule.lookback), PAD, dtype=torch.long, device=device)
    scores = None if rule.scores is None else torch.zeros(batch, rule.lookback, device=device)
    return Stream(zeros, zeros, ids, scores, documents)


def _check_streams(rule: PatchingRule) -> None:
    if not rule.streams:
        raise ValueError(
            f"rule {rule.kind!r} cannot stream: whether the next byte opens a token depends on that byte "
            "and those after it; train and generate with rule 'bpe' and a boundary model"
        )


def checked_scores(rule: PatchingRule, ids: Int64[Tensor, "B S"], scores: Tensor | None) -> Float[Tensor, "B S"] | None:
    if rule.scores is None:
        return None
    if scores is None:
        raise ValueError(
            f"rule {rule.kind!r} reads the {rule.scores} score of every byte, but scores is None; pass "
            "those of a scorer model, or use a rule that reads none, such as 'space' or 'stride:k=4.5'"
        )
    if scores.shape != ids.shape:
        raise ValueError(f"scores are {list(scores.shape)}, ids {list(ids.shape)}; there must be one score per id")
    return scores.float()
