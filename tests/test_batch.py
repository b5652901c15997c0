"""Several rows side by side: each is what it would be alone, whatever its neighbours, its padding and when it joined.

In float64. Alone means uncached and decoded byte by byte (`tests.rows.Uncached`), not another session.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.generate import (
    Autoregressive,
    Chunk,
    Parked,
    Request,
    Sampling,
    SequenceBatch,
    Session,
    Speculative,
    Strategy,
    Verified,
    generate_rows,
)
from tests import tiny
from tests.rows import (
    GREEDY,
    Decoded,
    Uncached,
    by,
    cuts,
    draw_request,
    example,
    one_pass,
    start,
    storage_bytes,
    tempered,
)
from tests.tiny import Case

STRATEGIES: list[Strategy] = [
    Autoregressive(),
    Speculative(draft=1),
    Speculative(draft=3),
    Speculative(),
    Verified(draft=4),
    Verified(draft=6, alpha=0.05, align_border=True),
]
some_strategies = st.lists(st.sampled_from(STRATEGIES), min_size=1, max_size=3)


@settings(max_examples=5)
@given(tiny.cases(), st.data())
def test_rows_grow_by_uneven_amounts(case: Case, data: st.DataObject) -> None:
    """Also by nothing at all, and each in pieces of its own."""
    rows = [case.ids, *data.draw(st.lists(tiny.rows(16), min_size=1, max_size=3))]
    session, uncached = start(case, len(rows)), Uncached(case)
    pieces = [data.draw(cuts(len(row))) for row in rows]
    at = [0] * len(rows)
    while any(pieces):
        moving = [bool(own) and not data.draw(st.booleans()) for own in pieces]
        steps = [own.pop(0) if move else slice(0, 0) for own, move in zip(pieces, moving, strict=True)]
        session = session.extend([row[step] for row, step in zip(rows, steps, strict=True)])
        at = [max(old, step.stop) for old, step in zip(at, steps, strict=True)]
        uncached.assert_rows(session, [row[:n] for row, n in zip(rows, at, strict=True)])


class Histories:
    """A session beside the rows that it should hold, and what may be done to both."""

    def __init__(self, case: Case, data: st.DataObject) -> None:
        self.case, self.data, self.uncached = case, data, Uncached(case)
        self.session, self.rows = start(case).extend(case.ids[:8]), [case.ids[:8]]

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def extend(self) -> None:
        new = [self.draw(tiny.rows(5))[1:] for _ in self.rows]
        self.session = self.session.extend(new)
        self.rows = [[*row, *own] for row, own in zip(self.rows, new, strict=True)]

    def keep_a_part(self) -> None:
        new = [one_pass(self.case, self.draw(tiny.rows(5))[1:]) for _ in self.rows]
        if not any(new):
            return
        counts = [self.draw(st.integers(0, len(own))) for own in new]
        self.session = self.session.read(new).keep(counts)
        self.rows = [[*row, *own[:n]] for row, own, n in zip(self.rows, new, counts, strict=True)]

    def rollback(self) -> None:
        counts = [self.draw(st.integers(0, min(3, len(row) - 1))) for row in self.rows]
        self.session = self.session.rollback(counts)
        self.rows = [row[: len(row) - n] for row, n in zip(self.rows, counts, strict=True)]

    def select(self) -> None:
        """Any rows in any order, some of them several times."""
        order = self.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, max_size=4))
        self.session, self.rows = self.session.select(order), [self.rows[row] for row in order]

    def close_up(self) -> None:
        """Some rows stay; what was there before is stale, and restored."""
        stay = self.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, unique=True))
        self.session, order = self.session.closed_up(stay)
        assert sorted(order) == sorted(stay)
        self.rows = [self.rows[row] for row in order]

    def enter(self) -> None:
        rows = self.draw(st.lists(tiny.rows(10), min_size=1, max_size=2))
        other = start(self.case, len(rows)).extend(rows)
        self.session, self.rows = self.session.entered(other), [*self.rows, *rows]
        self.uncached.assert_rows(other, rows)

    def slide(self) -> None:
        self.session = self.session.with_room(self.draw(st.sampled_from([1, 64, 200])))

    def join(self) -> None:
        """Another row comes in, in front or behind."""
        ids = self.draw(tiny.rows(10))
        other = start(self.case).extend(ids)
        if self.draw(st.booleans()):
            self.session, self.rows = Session.join([self.session, other]), [*self.rows, ids]
        else:
            self.session, self.rows = Session.join([other, self.session]), [ids, *self.rows]


@settings(max_examples=8)
@given(tiny.cases(), st.data())
def test_any_history_of_a_batch(case: Case, data: st.DataObject) -> None:
    live_through(case, data)


@pytest.mark.slow
@settings(max_examples=300)
@given(tiny.cases(), st.data())
def test_many_histories_of_a_batch(case: Case, data: st.DataObject) -> None:
    live_through(case, data)


def live_through(case: Case, data: st.DataObject) -> None:
    found = Histories(case, data)
    for _ in range(8):
        before, rows = found.session, found.rows
        moves = [found.select, found.join, found.close_up, found.enter, found.slide]
        data.draw(st.sampled_from([found.extend, found.keep_a_part, found.rollback, *moves]))()
        found.uncached.assert_rows(found.session, found.rows)
        if data.draw(st.integers(0, 3)) == 0:  # what it came from is what it was
            found.uncached.assert_rows(before, rows)
            found.uncached.assert_rows(before.extend([[10]] * len(rows)), [[*row, 10] for row in rows])


@settings(max_examples=8)
@given(tiny.cases(), some_strategies, st.data())
def test_a_row_is_decoded_as_if_alone(case: Case, strategies: list[Strategy], data: st.DataObject) -> None:
    """Requests of every kind and strategy come in while others run, some are called off, some pause, and none of the
    others sees it."""
    decode_side_by_side(case, strategies, data)


@pytest.mark.slow
@settings(max_examples=300)
@given(tiny.cases(), some_strategies, st.data())
def test_many_rows_are_decoded_as_if_alone(case: Case, strategies: list[Strategy], data: st.DataObject) -> None:
    decode_side_by_side(case, strategies, data)


def decode_side_by_side(case: Case, strategies: list[Strategy], data: st.DataObject) -> None:
    case = tempered(case, data.draw(st.sampled_from([0.0, 0.3, 1.0])), data.draw(st.sampled_from([1.0, 3.0])))
    uncached, batch = Uncached(case), SequenceBatch()
    asked: list[tuple[list[int], Request]] = []
    chunks: dict[int, list[Chunk]] = {}
    cancelled: set[int] = set()
    parked: list[Parked] = []
    kept: tuple[SequenceBatch, dict[int, list[Chunk]]] | None = None
    for turn in range(90):
        if turn == 0 or (len(asked) < 5 and data.draw(st.integers(0, 2)) == 0):
            prompts = data.draw(st.lists(tiny.rows(12), min_size=1, max_size=2))
            new = [by(data.draw(st.sampled_from(strategies)), draw_request(data, prompt)) for prompt in prompts]
            session = start(case, len(prompts)).extend(prompts)
            for _ in range(data.draw(st.integers(1, 2))):  # a session that rows have come from may serve again
                batch = batch.admit(session, new)
                asked += zip(prompts, new, strict=True)
        if len(batch.rows) > 1 and data.draw(st.integers(0, 9)) == 0:
            key = data.draw(st.sampled_from([row.key for row in batch.rows]))
            cancelled.add(key)
            before, batch = batch, batch.cancel([key])
            assert key not in {row.key for row in batch.rows} and key in {row.key for row in before.rows}
        if batch.rows and data.draw(st.integers(0, 4)) == 0:
            batch, some = batch.park([data.draw(st.sampled_from([row.key for row in batch.rows]))])
            parked += some
        if parked and (not batch.rows or data.draw(st.integers(0, 2)) == 0):
            batch = batch.resume([parked.pop(data.draw(st.integers(0, len(parked) - 1)))])
        if batch.rows and data.draw(st.integers(0, 5)) == 0:
            kept = batch, {key: list(own) for key, own in chunks.items()}
        batch, made = batch.step()
        for key, chunk in made:
            chunks.setdefault(key, []).append(chunk)
        if not batch.rows and not parked:
            break
    assert not batch.rows and not parked and batch.cache_bytes == 0
    for key, (prompt, request) in enumerate(asked):
        if key in cancelled:
            wanted = uncached.decode(prompt, request).data
            assert wanted.startswith(b"".join(chunk.data for chunk in chunks.get(key, [])))
        else:
            Decoded.of(chunks[key]).assert_equals(uncached.decode(prompt, request), request)
    if kept is not None:  # what somebody kept goes on from where it was, whatever became of its storage
        batch, chunks = kept
        keys = [row.key for row in batch.rows]
        while batch.rows:
            batch, made = batch.step()
            for key, chunk in made:
                chunks.setdefault(key, []).append(chunk)
        for key in keys:
            Decoded.of(chunks[key]).assert_equals(uncached.decode(*asked[key]), asked[key][1])


def test_a_batch_is_a_value() -> None:
    """Two ways on from one batch, in turns, do not meet."""
    case = example("stride:k=3")
    session = start(case, 2).extend([vocab.encode(b"one").tolist(), vocab.encode(b"another").tolist()])
    asked = [Request(GREEDY, 9, logprobs=True), Request(max_bytes=7, logprobs=True)]
    asked = [by(Speculative(draft=2), request) for request in asked]
    base, _ = SequenceBatch().admit(session, asked).step()
    one, other = base, base
    found: list[list[Chunk]] = [[] for _ in range(4)]
    while one.rows or other.rows:
        one, left = one.step()
        other, right = other.step()
        for branch, chunks in enumerate((left, right)):
            for key, chunk in chunks:
                found[2 * branch + key].append(chunk)
    assert [[c.data for c in own] for own in found[:2]] == [[c.data for c in own] for own in found[2:]]
    uncached = Uncached(case)
    for row in range(2):
        ids = session.texts[row].tail(session.positions[row])
        wanted = uncached.decode(ids, asked[row])
        assert b"".join(c.data for c in found[row]) == wanted.data[1:]  # the first came out before they parted


def test_strategies_run_side_by_side() -> None:
    """A round of every strategy in each step; what a row's stats count is what its own group did."""
    case = example("stride:k=3")
    session = start(case).extend(vocab.encode(b"one"))
    strategies = [Autoregressive(), Speculative(draft=3), Autoregressive()]
    requests = [by(strategy, Request(Sampling(seed=at), 12)) for at, strategy in enumerate(strategies)]
    batch, found, stats = SequenceBatch().admit(session.select([0] * 3), requests), [b""] * 3, {}
    assert [[row.key for row in group.rows] for group in batch.groups] == [[0, 2], [1]]
    while batch.rows:
        batch, chunks = batch.step()
        for key, chunk in chunks:
            found[key] += chunk.data
            stats[key] = chunk.stats
    for key, request in enumerate(requests):
        alone = list(generate_rows(session, [request]))
        assert found[key] == b"".join(chunk.data for _, chunk in alone)
        own, by_itself = stats[key], alone[-1][1].stats
        assert own is not None and by_itself is not None
        assert (own.decoder_passes, own.drafted) == (by_itself.decoder_passes, by_itself.drafted)
    assert batch.passes.decoder > max(own.decoder_passes for own in stats.values() if own is not None)


def test_a_parked_row_comes_back_once() -> None:
    case = example("stride:k=3")
    request, session = Request(Sampling(seed=3), 9, stop=(b"zq",)), start(case).extend(vocab.encode(b"one"))
    batch, chunks = SequenceBatch().admit(session.select([0, 0]), [request] * 2).step()
    batch, (first,) = batch.park([0])
    passes = batch.passes
    assert [row.key for row in batch.rows] == [1] and first.key == 0
    for _ in range(3):
        batch, _ = batch.step()
    with pytest.raises(ValueError, match=r"keys = \[0\]: no row has key 0"):
        batch.park([0])
    with pytest.raises(ValueError, match="no row has key 7"):
        batch.row_session(7)
    torch.testing.assert_close(batch.row_session(1).logits[0], batch.groups[0].session.logits[0])
    batch = batch.cancel([1]).resume([first])
    with pytest.raises(ValueError, match="key 0: the row is in the batch already"):
        batch.resume([first])
    data, last = b"".join(chunk.data for key, chunk in chunks if key == 0), None
    while batch.rows:
        batch, chunks = batch.step()
        data, last = data + b"".join(chunk.data for _, chunk in chunks), chunks[-1][1] if chunks else None
    alone = [chunk for _, chunk in generate_rows(session, [request])]
    assert data == b"".join(chunk.data for chunk in alone)
    assert last is not None and last.stats is not None and alone[-1].stats is not None
    assert last.stats.decoder_passes == alone[-1].stats.decoder_passes  # not those made while it was away
    assert passes.decoder == 0


def test_empty_rows_begin_with_bos() -> None:
    case = example("byte")
    session = Session.start(case.model, None, case.rule, 2).extend([[], vocab.encode(b"ab").tolist()])
    request = Request(GREEDY, 5)
    found: list[list[Chunk]] = [[], []]
    for row, chunk in generate_rows(session, [request] * 2):
        found[row].append(chunk)
    uncached = Uncached(case)
    for row, ids in enumerate(([], vocab.encode(b"ab").tolist())):
        Decoded.of(found[row]).assert_equals(uncached.decode(ids, request), request)


def test_nothing_is_kept_of_rows_that_went() -> None:
    case = example("stride:k=3")
    alone = start(case).extend(vocab.encode(b"some text"))
    both = Session.join([alone, start(case).extend(vocab.encode(b"a longer text than that" * 5))])
    assert storage_bytes(both.select([0]), without=()) <= storage_bytes(alone.fork(), without=())


def test_a_batch_of_none_waits() -> None:
    batch, made = SequenceBatch().step()
    assert made == [] and batch.rows == ()
    case = example("byte")
    batch = batch.admit(start(case), [Request(GREEDY, 3)]).cancel([0])
    assert batch.rows == () and batch.step()[1] == []
    batch, _ = batch.admit(start(case), [Request(GREEDY, 3)]).step()
    assert [row.key for row in batch.rows] == [1]


def test_one_pass_for_all_rows() -> None:
    """The closing rows are gathered: a pass a byte whatever the number of rows, and one of the global transformer."""
    case = example("stride:k=2")
    rows = [vocab.encode(b"abcdefgh"[:n]).tolist() for n in (2, 5, 8)]
    session = start(case, 3).extend(rows)
    before = session.passes
    for value in (10, 11, 12, 13):
        session = session.extend([[value]] * 3)
    passes = session.passes - before
    assert (passes.encoder, passes.decoder, passes.ids) == (4, 4, 12)
    assert passes.latent == 4  # rows of odd and of even length close theirs in turns


def test_empty_rows_join_and_are_given_back() -> None:
    case = example("byte")
    ids = vocab.encode(b"abc").tolist()
    one = start(case).extend(ids)
    joined = Session.join([start(case), one]).extend([ids, ids])
    torch.testing.assert_close(joined.logits[0], one.logits[0], atol=1e-10, rtol=0)
    undone = start(case, 2).extend([[], ids]).read([[], [vocab.BOS]]).keep([0, 0])
    assert undone.positions == (0, 4)
    both = undone.extend([ids, [10]])
    torch.testing.assert_close(both.logits[1], one.extend([10]).logits[0], atol=1e-10, rtol=0)


def test_mistakes_are_named() -> None:
    case, other = example("byte"), example("byte")
    session = start(case).extend([vocab.BOS])
    with pytest.raises(ValueError, match="ids of 2 rows for a session of 1"):
        session.extend([[10], [11]])
    with pytest.raises(ValueError, match="at least one row"):
        session.select([])
    with pytest.raises(ValueError, match="cannot be joined"):
        Session.join([session, start(other).extend([vocab.BOS])])
    with pytest.raises(ValueError, match="empty row"):
        _ = Session.join([session, start(case)]).logits
    with pytest.raises(ValueError, match="1 requests for a session of 2 rows"):
        SequenceBatch().admit(session.select([0, 0]), [Request()])
    with pytest.raises(ValueError, match="rollback"):
        session.select([0, 0]).rollback([0, 2])
    with pytest.raises(ValueError, match="empty row"):
        _ = start(case, 2).extend([[vocab.BOS], []]).logits
    with torch.no_grad():
        assert start(case, 2).extend(torch.tensor([[1, 10], [1, 11]])).positions == (2, 2)
