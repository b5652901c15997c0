"""Corpus, packing and loader: every byte once an epoch, rows as promised, positions exact."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data import IGNORE, Batch, Corpus, Loader, validation_batches
from bltkit.data.packing import cut, pack, shuffle
from bltkit.vocab import BOS, EOS, OFFSET, PAD, encode

documents = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=25)
row_sizes = st.integers(8, 40)
seeds = st.integers(0, 3)


def everything(texts: list[bytes]) -> Corpus:
    """A corpus that trains on all of its documents."""
    return Corpus.from_documents(texts, validation_fraction=0.0)


def epoch_rows(loader: Loader, epoch: int = 0) -> list[list[int]]:
    """The ids of every row of one epoch."""
    loader.restore(loader.state | {"epoch": epoch, "row": 0})
    assert loader.batch_rows == 1
    return [next(loader).ids[0].tolist() for _ in range(loader.rows_in_epoch)]


def pieces_of(row: list[int]) -> list[list[int]]:
    """A row cut in front of each BOS, padding removed."""
    pieces: list[list[int]] = []
    for value in row:
        if value == BOS:
            pieces.append([])
        if value != PAD:
            pieces[-1].append(value)
    return pieces


def obvious_pieces(text: bytes, row_bytes: int) -> list[list[int]]:
    """The executable specification of cutting: fill rows one after another, and never leave EOS alone."""
    payload = [byte + OFFSET for byte in text] + [EOS]
    result = []
    while payload:
        take = row_bytes - 1
        if len(payload) == take + 1:
            take -= 1
        result.append([BOS, *payload[:take]])
        payload = payload[take:]
    return result


# --- packing ---


@given(documents, row_sizes, seeds, st.integers(0, 3))
def test_an_epoch_holds_every_piece_exactly_once(texts: list[bytes], row_bytes: int, seed: int, epoch: int) -> None:
    rows = epoch_rows(Loader(everything(texts), row_bytes, 1, seed), epoch)
    found = Counter(tuple(piece) for row in rows for piece in pieces_of(row))
    wanted = Counter(tuple(piece) for text in texts for piece in obvious_pieces(text, row_bytes))
    assert found == wanted


@given(documents, row_sizes, seeds)
def test_rows_begin_with_bos_and_pad_only_at_the_end(texts: list[bytes], row_bytes: int, seed: int) -> None:
    for row in epoch_rows(Loader(everything(texts), row_bytes, 1, seed)):
        assert len(row) == row_bytes and row[0] == BOS
        used = row_bytes - row.count(PAD)
        assert PAD not in row[:used]
        # After EOS comes another document or nothing; in front of BOS stands EOS or the row's beginning.
        for at in range(used - 1):
            assert (row[at] == EOS) == (row[at + 1] == BOS)


@given(documents, row_sizes)
def test_cutting_joins_to_the_document(texts: list[bytes], row_bytes: int) -> None:
    corpus = everything(texts)
    pieces = cut(corpus.offsets, row_bytes)
    assert pieces.size.max() <= row_bytes and pieces.length.min() >= 1
    for index, text in enumerate(texts):
        mine = range(pieces.first[index], pieces.first[index + 1])
        joined = b"".join(corpus.data[pieces.start[i] :][: pieces.length[i]].tobytes() for i in mine)
        assert joined == text
        assert [bool(pieces.ends[i]) for i in mine] == [False] * (len(mine) - 1) + [True]


@given(st.lists(st.integers(3, 20), max_size=80))
def test_packing_is_a_partition_into_rows_that_fit(sizes: list[int]) -> None:
    array = np.array(sizes, dtype=np.int64)
    rows = pack(np.arange(len(sizes), dtype=np.int64), array, 20)
    assert sorted(rows.pieces.tolist()) == list(range(len(sizes)))
    used = [int(array[rows.row(index)].sum()) for index in range(len(rows))]
    assert all(0 < total <= 20 for total in used)
    # Best fit with all rows open: no two rows could have been one.
    assert sum(total <= 10 for total in used) <= 1


def test_packing_wastes_little() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(int(size)) for size in rng.lognormal(6, 1.5, 400).clip(1, 20_000)]
    rows = epoch_rows(Loader(everything(texts), 1024, 1, 0))
    used = sum(1 for row in rows for value in row if value != PAD)
    assert used / (len(rows) * 1024) > 0.99


def test_packing_closes_the_fullest_row_beyond_the_window() -> None:
    # 600 pieces that cannot share a row, then 600 that fit beside them: only the open rows can take one.
    sizes = np.array([60] * 600 + [40] * 600, dtype=np.int64)
    rows = pack(np.arange(1200, dtype=np.int64), sizes, 100)
    shared = sum(len(rows.row(index)) == 2 and rows.row(index)[0] < 600 for index in range(len(rows)))
    assert shared == 256 and len(rows) == 600 + (600 - 256) // 2
    assert sorted(rows.pieces.tolist()) == list(range(1200))
    # The row of 70 is the fullest of 257, so the last piece finds it closed, though it would fit best there.
    sizes = np.array([70] + [60] * 256 + [30], dtype=np.int64)
    rows = pack(np.arange(258, dtype=np.int64), sizes, 100)
    assert rows.row(0).tolist() == [0] and len(rows) == 257


@given(st.integers(0, 50), seeds, seeds)
def test_shuffle_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffle(count, seed, epoch).tolist()) == list(range(count))


def test_shuffle_stays_the_same_for_ever() -> None:
    """A checkpoint's position means this very order, whatever the versions of numpy and of this package."""
    assert shuffle(8, 1, 2, 0).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]


# --- targets ---


@given(documents, row_sizes, st.integers(1, 4))
def test_targets_are_the_next_ids(texts: list[bytes], row_bytes: int, batch_rows: int) -> None:
    batch = next(Loader(everything(texts), row_bytes, batch_rows, 0))
    ids, targets = batch.ids.tolist(), batch.targets.tolist()
    text_bytes = num_targets = 0
    for b in range(batch_rows):
        for t in range(row_bytes):
            following = ids[b][t + 1] if t + 1 < row_bytes else PAD
            assert targets[b][t] == (IGNORE if following in (PAD, BOS) else following)
            text_bytes += following >= OFFSET
            num_targets += following not in (PAD, BOS)
        assert batch.num_bytes[b] == sum(value != PAD for value in ids[b])
    assert (batch.text_bytes, batch.num_targets) == (text_bytes, num_targets)
    assert batch.ids.dtype == batch.targets.dtype == batch.num_bytes.dtype == torch.int64


@given(documents, row_sizes, seeds)
def test_every_byte_and_every_end_is_a_target_once(texts: list[bytes], row_bytes: int, seed: int) -> None:
    loader = Loader(everything(texts), row_bytes, 1, seed)
    targets = torch.cat([next(loader).targets.flatten() for _ in range(loader.rows_in_epoch)])
    found = Counter(targets[targets != IGNORE].tolist())
    assert found == Counter(byte + OFFSET for text in texts for byte in text) + Counter({EOS: len(texts)})


def test_a_row_written_out() -> None:
    batch = next(Loader(everything([b"ab"]), 8, 1, 0))
    a, b = b"a"[0] + OFFSET, b"b"[0] + OFFSET
    assert batch.ids.tolist() == [[BOS, a, b, EOS, PAD, PAD, PAD, PAD]]
    assert batch.ids[0, :4].tolist() == encode(b"ab", eos=True).tolist()
    assert batch.targets.tolist() == [[a, b, EOS, *[IGNORE] * 5]]
    assert (batch.num_bytes.tolist(), batch.text_bytes, batch.num_targets) == ([4], 2, 3)
    moved = batch.to("cpu")
    assert torch.equal(moved.ids, batch.ids) and moved.text_bytes == 2


# --- position ---


def same(left: Batch, right: Batch) -> bool:
    return torch.equal(left.ids, right.ids) and torch.equal(left.targets, right.targets)


@given(documents, row_sizes, st.integers(1, 5), seeds, st.integers(0, 12))
def test_resuming_is_no_interruption(
    texts: list[bytes], row_bytes: int, batch_rows: int, seed: int, cut_at: int
) -> None:
    corpus = everything(texts)
    whole = list(islice(Loader(corpus, row_bytes, batch_rows, seed), cut_at + 6))
    first = Loader(corpus, row_bytes, batch_rows, seed)
    for _ in range(cut_at):
        next(first)
    state = json.loads(json.dumps(first.state))
    resumed = Loader(everything(texts), row_bytes, batch_rows, seed)
    resumed.restore(state)
    assert resumed.state == state
    assert all(same(a, b) for a, b in zip(whole[cut_at:], islice(resumed, 6), strict=True))


@given(documents, st.integers(1, 3), st.integers(1, 4), st.integers(0, 4))
def test_ranks_share_the_rows_and_may_change(texts: list[bytes], batch_rows: int, ranks: int, steps: int) -> None:
    corpus = everything(texts)
    loaders = [Loader(corpus, 16, batch_rows, 0, rank=r, num_ranks=ranks) for r in range(ranks)]
    found = [next(loader).ids for _ in range(steps) for loader in loaders]
    assert len({json.dumps(loader.state) for loader in loaders}) == 1
    # One rank with rows one by one sees the same rows, also after taking the run over.
    single = Loader(corpus, 16, 1, 0)
    wanted = [next(single).ids for _ in range(steps * ranks * batch_rows)]
    assert torch.equal(
        torch.cat([torch.empty(0, 16, dtype=torch.long), *found]).flatten(),
        torch.cat([torch.empty(0, 16, dtype=torch.long), *wanted]).flatten(),
    )
    successor = Loader(corpus, 16, 1, 0)
    successor.restore(loaders[0].state)
    assert torch.equal(next(successor).ids, next(single).ids)


def test_order_is_the_seeds_and_differs_between_epochs() -> None:
    corpus = everything([b"document %d" % i for i in range(200)])
    orders = {(seed, epoch): epoch_rows(Loader(corpus, 32, 1, seed), epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert orders[0, 0] == epoch_rows(Loader(corpus, 32, 1, 0), 0)
    assert len({json.dumps(rows) for rows in orders.values()}) == 4
    # Not only the rows' order: other documents share a row.
    assert len({json.dumps(sorted(rows)) for rows in orders.values()}) == 4


def test_full_rows_and_shared_rows_are_mixed() -> None:
    corpus = everything([b"x" * 31 * 100, *(b"document %d" % i for i in range(200))])
    full = [EOS not in row for row in epoch_rows(Loader(corpus, 32, 1, 0))]
    assert 30 < sum(full[: len(full) // 2]) < 70 and 99 <= sum(full) <= 100


def test_a_position_belongs_to_its_data() -> None:
    texts = [b"one", b"two", b"three"]
    loader = Loader(everything(texts), 16, 1, 0)
    state = loader.state
    with pytest.raises(ValueError, match="another corpus"):
        Loader(everything([*texts, b"four"]), 16, 1, 0).restore(state)
    with pytest.raises(ValueError, match="another corpus"):
        Loader(everything(texts[::-1]), 16, 1, 0).restore(state)
    with pytest.raises(ValueError, match="another corpus"):
        Loader(Corpus.from_documents(texts, 0.0, weight=2.0), 16, 1, 0).restore(state)
    with pytest.raises(ValueError, match="another corpus"):
        Loader(Corpus.from_documents(texts, 0.5), 16, 1, 0).restore(state)
    with pytest.raises(ValueError, match=r"data\.row_bytes"):
        Loader(everything(texts), 17, 1, 0).restore(state)
    with pytest.raises(ValueError, match=r"trainer\.seed"):
        Loader(everything(texts), 16, 1, 5).restore(state)
    with pytest.raises(ValueError, match="negative"):
        loader.restore(state | {"epoch": -1})
    with pytest.raises(ValueError, match="row 99"):
        loader.restore(state | {"row": 99})
    assert loader.state == state


# --- corpus ---


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=2, max_size=30), st.floats(0.01, 0.99), st.randoms())
def test_the_split_is_by_content(texts: list[bytes], fraction: float, random: object) -> None:
    corpus = Corpus.from_documents(texts, fraction)
    train = [corpus.document(i) for i in corpus.train]
    held = [corpus.document(i) for i in corpus.validation]
    assert train and held
    assert Counter(train) + Counter(held) == Counter(texts)
    if len(set(texts)) > 1:
        assert not set(train) & set(held)
        shuffled = list(texts)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        again = Corpus.from_documents(shuffled, fraction)
        assert {again.document(i) for i in again.validation} == set(held)
        assert (again.fingerprint == corpus.fingerprint) == (shuffled == texts)


def test_a_documents_side_does_not_depend_on_the_others() -> None:
    texts = [b"document %d" % i for i in range(3000)]
    few, many = Corpus.from_documents(texts[1000:2000], 0.1), Corpus.from_documents(texts, 0.1)
    held = {many.document(i) for i in many.validation}
    assert {few.document(i) for i in few.validation} == held & set(texts[1000:2000])
    assert 200 < len(held) < 400


def test_one_document_is_for_training() -> None:
    corpus = Corpus.from_documents([b"alone"], 0.5)
    assert (corpus.train.tolist(), corpus.validation.tolist()) == ([0], [])
    assert list(validation_batches(corpus, 16, 2)) == []


def test_a_small_corpus_holds_back_a_small_document() -> None:
    corpus = Corpus.from_documents([b"x" * 1000, b"y" * 20, b"z" * 5000], 1e-9)
    assert [corpus.document(i)[:1] for i in corpus.validation] == [b"y"]


def test_documents_of_no_bytes_are_left_out() -> None:
    corpus = everything([b"", b"a", b"", b"b"])
    assert [corpus.document(i) for i in range(len(corpus))] == [b"a", b"b"]
    with pytest.raises(ValueError, match="memory"):
        everything([b"", b""])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_is_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="validation_fraction"):
        Corpus.from_documents([b"a"], fraction)


def test_the_text_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        everything([b"abc"]).data[0] = 0


# --- weights ---


@given(st.floats(0.01, 5.0), st.integers(0, 1000), st.integers(1, 12))
def test_weights_are_kept_over_epochs(weight: float, start: int, epochs: int) -> None:
    corpus = Corpus.from_documents([b"a", b"bb", b"ccc"], 0.0, weight)
    visits = np.concatenate([corpus.visits(epoch) for epoch in range(start, start + epochs)])
    for times in np.bincount(visits, minlength=3):
        assert abs(times - weight * epochs) < 1 + 1e-6


@given(st.integers(1, 4), st.integers(0, 10_000))
def test_whole_weights_are_the_same_in_every_epoch(weight: int, epoch: int) -> None:
    corpus = Corpus.from_documents([b"a", b"bb", b"ccc"], 0.0, float(weight))
    assert np.bincount(corpus.visits(epoch)).tolist() == [weight] * 3


def test_fractional_weights_take_turns() -> None:
    corpus = Corpus.from_documents([b"document %d" % i for i in range(400)], 0.0, 0.5)
    first, second = set(corpus.visits(0).tolist()), set(corpus.visits(1).tolist())
    assert not first & second and first | second == set(range(400))
    assert 150 < len(first) < 250


def test_epochs_without_a_visit_are_passed_over() -> None:
    corpus = Corpus.from_documents([b"rare"], 0.0, weight=0.1)
    loader = Loader(corpus, 8, 1, 0)
    assert next(loader).text_bytes == 4
    state = loader.state
    assert next(loader).text_bytes == 4
    assert loader.epoch > state["epoch"]


# --- validation ---


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=30), row_sizes, st.integers(1, 4))
def test_validation_is_whole_finite_and_fixed(texts: list[bytes], row_bytes: int, batch_rows: int) -> None:
    corpus = Corpus.from_documents(texts, 0.3)
    batches = list(validation_batches(corpus, row_bytes, batch_rows))
    held = sum(len(corpus.document(i)) for i in corpus.validation)
    assert sum(batch.text_bytes for batch in batches) == held
    assert [len(batch.ids) for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
    for limit in (0, 1, 2):
        some = list(validation_batches(corpus, row_bytes, batch_rows, limit))
        assert len(some) == min(limit, len(batches))
        assert all(same(a, b) for a, b in zip(some, batches, strict=False))


def test_bad_shapes_are_named() -> None:
    corpus = everything([b"abc"])
    for row_bytes, batch_rows, name in ((4, 1, "row_bytes"), (16, 0, "batch_rows")):
        with pytest.raises(ValueError, match=name):
            Loader(corpus, row_bytes, batch_rows)
        with pytest.raises(ValueError, match=name):
            list(validation_batches(corpus, row_bytes, batch_rows))
    with pytest.raises(ValueError, match="seed"):
        Loader(corpus, 16, 1, -1)
