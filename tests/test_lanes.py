"""Rows that come, go and slide in place: what moves, what it costs, and what becomes of sessions from before.

That every row stays what it would be alone is tested with random histories in `test_batch.py`.
"""

import pytest
import torch

from bltkit import vocab
from bltkit.generate import Request, Sampling, SequenceBatch, Session
from bltkit.model.cache import MIN_LANES, MOST_GROWN
from tests.rows import GREEDY, TOLERANCE, Uncached, example, start
from tests.tiny import Case


def rows_of(case: Case, count: int, size: int = 20) -> tuple[Session, list[list[int]]]:
    """Rows in storage in which they may move."""
    rows = [vocab.encode(bytes([97 + at]) * (size + at % 3)).tolist() for at in range(count)]
    session = start(case).extend(rows[0])
    for row in rows[1:]:
        session = session.entered(start(case).extend(row))
    return session, rows


def blocks(session: Session) -> list[int]:
    """Where the keys and values that all rows share lie."""
    storages = [cache._storage for cache in (session.encoder, session.decoder)]
    return [storage.block.data_ptr() for storage in storages if storage is not None]


def test_rows_move_in_place() -> None:
    case = example("stride:k=3")
    session, rows = rows_of(case, 6)
    before = blocks(session)
    left, order = session.closed_up([0, 5, 2, 3])
    assert order == [0, 5, 2, 3] and blocks(left) == before  # the last one took the hole, nobody else moved
    back = left.entered(start(case).extend(rows[1]))
    assert blocks(back) == before and back.positions == tuple(len(rows[at]) for at in (0, 5, 2, 3, 1))
    Uncached(case).assert_rows(back, [rows[at] for at in (0, 5, 2, 3, 1)])
    for value in range(70, 140):
        back = back.with_room(64).extend([[value]] * 5)
    assert blocks(back) == before  # a window slides in its own storage
    Uncached(case).assert_rows(back, [[*rows[at], *range(70, 140)] for at in (0, 5, 2, 3, 1)])


def test_rows_of_uneven_ends_move_too() -> None:
    """As drafts leave them: each row has kept another part of every pass."""
    case, drafts = example("stride:k=3"), [30, 31, 32, 33, 34]
    session, rows = rows_of(case, 4)
    before = blocks(session)
    for turn in range(40):
        session = session.with_room(64)
        counts = [1 + (turn * at) % 4 for at in range(session.rows)]
        session = session.read([drafts] * session.rows).keep(counts)
        rows = [[*row, *drafts[:n]] for row, n in zip(rows, counts, strict=True)]
        if turn % 7 == 3:
            session, order = session.closed_up([at for at in range(session.rows) if at != turn % 3])
            rows = [rows[at] for at in order]
        if turn % 7 == 5:
            rows.append(vocab.encode(b"x" * turn).tolist())
            session = session.entered(start(case).extend(rows[-1]))
    assert blocks(session) == before
    Uncached(case).assert_rows(session, rows)


def test_what_somebody_else_holds_stays_where_it_is() -> None:
    """Only storage that `entered` or `closed_up` has made may be moved in."""
    case = example("stride:k=3")
    session = start(case, 3).extend([[vocab.BOS, value] for value in (10, 11, 12)])
    left, order = session.closed_up([1, 2])
    assert order == [2, 1] and not any(cache.stale for cache in session.caches)
    assert set(blocks(left)).isdisjoint(blocks(session))
    more = left.entered(session)
    assert not any(cache.stale for cache in session.caches)
    chosen = more.select([4, 0])
    more = more.entered(session)
    assert not any(cache.stale for cache in chosen.caches) and more.rows == 8
    assert chosen.current() is chosen


def test_a_session_from_before_is_restored() -> None:
    case = example("stride:k=3")
    session, rows = rows_of(case, 5)
    session.closed_up([0, 1])
    assert any(cache.stale for cache in session.caches)
    assert (session.rows, session.positions) == (5, tuple(map(len, rows)))
    with pytest.raises(RuntimeError, match="rows of this cache have moved since"):
        session.decoder.slot(1, 2, 8, session.logits)
    with pytest.raises(RuntimeError, match="rows of this cache have moved since"):
        session.decoder.select([0])
    uncached = Uncached(case)
    uncached.assert_rows(session.extend([[70]] * 5), [[*row, 70] for row in rows])
    uncached.assert_rows(session.select([3, 3]), [rows[3]] * 2)
    uncached.assert_rows(session.rollback(2), [row[:-2] for row in rows])
    uncached.assert_rows(Session.join([session, session]), rows * 2)
    left, order = session.closed_up([4, 2])
    uncached.assert_rows(left, [rows[at] for at in order])
    uncached.assert_rows(left.entered(session), [*(rows[at] for at in order), *rows])


def test_a_pass_from_before_is_not_kept_any_more() -> None:
    """What it wrote is overwritten: asking for more of it than was kept is a mistake."""
    session, _ = rows_of(example("stride:k=3"), 3)
    reading = session.read([[10, 11]] * 3)
    kept = reading.keep([1, 1, 1])
    kept.closed_up([0, 1])
    with pytest.raises(AssertionError, match="another pass wrote over these"):
        reading.keep([2, 2, 2])
    assert any(cache.stale for cache in reading.keep([1, 1, 1]).caches)


@torch.inference_mode()
def break_lane(session: Session, lane: int) -> None:
    """Numbers that are not finite wherever the lane may have been written to."""
    for cache in (session.encoder, session.decoder):
        storage = cache._storage
        assert storage is not None
        storage.block[:, lane].fill_(torch.nan)
        storage.written, storage.touched = storage.columns, max(storage.touched, lane + 1)


def test_a_broken_row_leaves_nothing_behind() -> None:
    """They would spoil whoever sees its columns, also masked."""
    case = example("stride:k=3")
    session, rows = rows_of(case, 4)
    break_lane(session, 1)
    left, order = session.closed_up([0, 2, 3])
    Uncached(case).assert_rows(left.extend([[70]] * 3), [[*rows[at], 70] for at in order])
    break_lane(left, 3)
    for row in (rows[1][:2], vocab.encode(b"longer than all of them are by now").tolist()):
        more = left.entered(start(case).extend(row))
        Uncached(case).assert_rows(more.extend([[70]] * 4), [*([*rows[at], 70] for at in order), [*row, 70]])
        left, _ = more.closed_up([0, 1, 2])


def test_spare_lanes_are_given_back() -> None:
    case = example("stride:k=3")
    session, rows = rows_of(case, 40)
    most = session.cache_bytes
    for count in range(39, 0, -1):
        session, order = session.closed_up(range(count))
        assert order == list(range(count))
    assert session.encoder._storage is not None and session.encoder._storage.lanes == MIN_LANES
    assert session.cache_bytes < most / 4
    Uncached(case).assert_rows(session, rows[:1])


@pytest.mark.gpu
def test_lanes_on_a_gpu() -> None:
    """Rows come and go there too, each with the bytes that it has on the CPU."""
    case = example("stride:k=3")
    prompts = [vocab.encode(b"prompt %d" % at).tolist() for at in range(6)]
    uncached = Uncached(case)
    wanted = [uncached.decode(row, Request(Sampling(seed=at), 9 + at)).data for at, row in enumerate(prompts)]
    model = case.model.cuda()
    try:
        batch, found = SequenceBatch(), dict[int, bytes]()
        for turn in range(40):
            if turn < len(prompts):
                session = Session.start(model, None, case.rule).extend(prompts[turn])
                batch = batch.admit(session, [Request(Sampling(seed=turn), 9 + turn)])
            batch, chunks = batch.step()
            for key, chunk in chunks:
                found[key] = found.get(key, b"") + chunk.data
        assert [found[key] for key in sorted(found)] == wanted and batch.cache_bytes == 0
    finally:
        case.model.cpu()


def test_a_batch_of_many_costs_no_copy_of_all() -> None:
    """Entering and leaving touch the row's own keys: the storage of the others stays."""
    case = example("stride:k=3")
    session, _ = rows_of(case, 9)
    batch = SequenceBatch().admit(session, [Request(GREEDY, 30)] * 9)
    batch, _ = batch.step()
    batch, _ = batch.step()
    before = blocks(batch.groups[0].session)
    batch, parked = batch.park([4])
    batch = batch.cancel([0]).resume(parked)
    batch, _ = batch.step()
    assert blocks(batch.groups[0].session) == before
    assert sorted(row.key for row in batch.rows) == [1, 2, 3, 4, 5, 6, 7, 8]
    logits = batch.groups[0].session.logits
    for row, text in enumerate(batch.groups[0].session.texts):
        alone = start(case).extend(text.tail(text.length))
        torch.testing.assert_close(logits[row], alone.logits[0], atol=TOLERANCE, rtol=0)


def test_rows_that_come_from_one_session_part() -> None:
    """Their texts and global caches are shared until they differ, also where patches of both close in one pass."""
    case = example("stride:k=2")
    prompt = start(case).extend(vocab.encode(b"a prompt"))
    batch = SequenceBatch()
    for seed in range(3):
        batch = batch.admit(prompt, [Request(Sampling(seed=seed, temperature=2.0), 12)])
    found = [b""] * 3
    while batch.rows:
        batch, chunks = batch.step()
        for key, chunk in chunks:
            found[key] += chunk.data
    uncached, ids = Uncached(case), vocab.encode(b"a prompt").tolist()
    wanted = [uncached.decode(ids, Request(Sampling(seed=seed, temperature=2.0), 12)).data for seed in range(3)]
    assert found == wanted and len(set(found)) == 3
    uncached.assert_row(prompt.extend([70]), [*ids, 70])


def test_storage_that_is_large_enough_never_grows_or_shrinks() -> None:
    case = example("stride:k=3")
    prompt, request = start(case).extend(vocab.encode(b"a prompt")), Request(GREEDY, 100)
    batch = SequenceBatch(lanes=40).admit(prompt, [request]).admit(prompt, [request])
    before = blocks(batch.groups[0].session)
    for _ in range(38):
        batch = batch.admit(prompt, [request])
    assert blocks(batch.groups[0].session) == before
    batch = batch.cancel([row.key for row in batch.rows[3:]])
    assert blocks(batch.groups[0].session) == before and len(batch.rows) == 3
    for _ in range(38):
        batch = batch.admit(prompt, [request])
    assert blocks(batch.groups[0].session) != before and len(batch.rows) == 41


def test_global_caches_of_rows_that_began_together_grow_apart() -> None:
    """Each is copied once for every so many patches, a few of them in a round."""
    case = example("stride:k=1")
    rows = [vocab.encode(bytes([97 + at]) * 10).tolist() for at in range(12)]
    session = start(case, 12).extend(rows)
    most = 0
    for value in range(70, 170):
        before = [cache._storage for cache in session.latents]
        session = session.with_room(1).extend([[value]] * 12)
        most = max(most, sum(cache._storage is not old for cache, old in zip(session.latents, before, strict=True)))
    assert most == MOST_GROWN
    Uncached(case).assert_rows(session, [[*row, *range(70, 170)] for row in rows])
