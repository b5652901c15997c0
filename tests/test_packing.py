"""Packing: documents become pieces that fit, pieces become rows that hold them, orders are functions of a key."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data import Corpus, Document, Loader
from bltkit.data.order import Visits, scatter, shuffle, shuffled
from bltkit.data.packing import cut, cut_patches, pack, pack_pieces
from tests.tiny_corpus import (
    documents,
    epoch_rows,
    everything,
    marked_documents,
    obvious_pieces,
    patch_budgets,
    pieces_of,
    row_sizes,
    seeds,
    text_of,
)

# --- cutting ---


@given(documents, row_sizes)
def test_cutting_joins_to_the_document(texts: list[bytes], row_bytes: int) -> None:
    corpus = everything(texts)
    pieces = cut(corpus.offsets[:-1], corpus.offsets[1:], row_bytes)
    assert pieces.size.max() <= row_bytes and pieces.length.min() >= 1
    joined: list[bytes] = [b""]
    for index, end in enumerate(pieces.ends):
        joined[-1] += text_of(corpus, pieces, index)
        if end:
            joined.append(b"")
    assert joined == [*texts, b""]


@given(marked_documents(), row_sizes, patch_budgets)
def test_cutting_by_both_budgets_is_filling_id_by_id(texts: list[Document], row_bytes: int, row_patches: int) -> None:
    corpus = everything(texts)
    assert corpus.opens is not None and corpus.num_opens is not None
    pieces = cut_patches(
        corpus.offsets[:-1], corpus.offsets[1:], row_bytes, row_patches, corpus.opens, corpus.num_opens
    )
    wanted = [piece for one in texts for piece in obvious_pieces(one.data, row_bytes, one.opens, row_patches)]
    assert pieces.size.tolist() == [len(piece) for piece in wanted]
    assert pieces.ends.tolist() == [piece[-1] == 2 for piece in wanted]
    assert b"".join(text_of(corpus, pieces, i) for i in range(len(pieces))) == b"".join(one.data for one in texts)
    assert pieces.patches is not None and pieces.patches.max() <= row_patches
    for start, length, ends, patches in zip(pieces.start, pieces.length, pieces.ends, pieces.patches, strict=True):
        inside = corpus.opens[start : start + length - 1].sum() + (ends and corpus.opens[start + length - 1])
        assert patches == 2 + inside


def test_cutting_by_patches_written_out() -> None:
    opens = np.array([True, True, False, True, True, False])
    corpus = everything([Document("x", b"abcdef", opens=opens)])
    assert corpus.opens is not None and corpus.num_opens is not None
    pieces = cut_patches(corpus.offsets[:-1], corpus.offsets[1:], 64, 4, corpus.opens, corpus.num_opens)
    # BOS | a | b | cd ... e would be the fifth; BOS | e | f EOS
    assert [text_of(corpus, pieces, i) for i in range(2)] == [b"abcd", b"ef"]
    assert pieces.patches is not None and pieces.patches.tolist() == [4, 3]


# --- rows ---


@given(st.lists(st.integers(3, 20), max_size=80))
def test_packing_is_a_partition_into_rows_that_fit(sizes: list[int]) -> None:
    array = np.array(sizes, dtype=np.int64)
    rows = pack(array, 20)
    assert sorted(rows.pieces.tolist()) == list(range(len(sizes)))
    used = [int(array[rows.row(index)].sum()) for index in range(len(rows))]
    assert all(0 < total <= 20 for total in used)
    # Best fit with all rows open: no two rows could have been one.
    assert sum(total <= 10 for total in used) <= 1


def obvious_packing(sizes: list[int], patches: list[int], row_bytes: int, row_patches: int) -> list[list[int]]:
    """Best fit without a window: of all rows that have room the one with the least, the first opened of equals."""
    rows: list[list[int]] = []
    for piece in range(len(sizes)):
        fitting = []
        for number, row in enumerate([*rows, []]):
            ids = row_bytes - sum(sizes[i] for i in row)
            slots = row_patches - sum(patches[i] for i in row)
            if (not row or (ids >= 3 and slots >= 2)) and ids >= sizes[piece] and slots >= patches[piece]:
                fitting.append((min(ids * row_patches, slots * row_bytes), ids, slots, number))
        number = min([one for one in fitting if one[3] < len(rows)] or fitting)[3]
        if number == len(rows):
            rows.append([])
        rows[number].append(piece)
    return rows


@given(st.lists(st.tuples(st.integers(3, 20), st.integers(2, 9)), max_size=60))
def test_packing_with_two_budgets_is_best_fit(pieces: list[tuple[int, int]]) -> None:
    sizes, patches = [size for size, _ in pieces], [opened for _, opened in pieces]
    rows = pack(np.array(sizes, dtype=np.int64), 20, np.array(patches, dtype=np.int64), 9)
    assert [rows.row(index).tolist() for index in range(len(rows))] == obvious_packing(sizes, patches, 20, 9)


def test_packing_closes_the_fullest_row_beyond_the_window() -> None:
    # 600 pieces that cannot share a row, then 600 that fit beside them: only the open rows can take one.
    sizes = np.array([60] * 600 + [40] * 600, dtype=np.int64)
    rows = pack(sizes, 100)
    shared = sum(len(rows.row(index)) == 2 and rows.row(index)[0] < 600 for index in range(len(rows)))
    assert shared == 256 and len(rows) == 600 + (600 - 256) // 2
    assert sorted(rows.pieces.tolist()) == list(range(1200))
    # The row of 70 is the fullest of 257, so the last piece finds it closed, though it would fit best there.
    sizes = np.array([70] + [60] * 256 + [30], dtype=np.int64)
    rows = pack(sizes, 100)
    assert rows.row(0).tolist() == [0] and len(rows) == 257


@given(marked_documents(), row_sizes, patch_budgets)
def test_full_pieces_stay_alone_and_no_row_exceeds_a_budget(
    texts: list[Document], row_bytes: int, row_patches: int
) -> None:
    corpus = everything(texts)
    assert corpus.opens is not None and corpus.num_opens is not None
    pieces = cut_patches(
        corpus.offsets[:-1], corpus.offsets[1:], row_bytes, row_patches, corpus.opens, corpus.num_opens
    )
    rows = pack_pieces(pieces, row_bytes, row_patches)
    assert sorted(rows.pieces.tolist()) == list(range(len(pieces)))
    assert pieces.patches is not None
    for index in range(len(rows)):
        members = rows.row(index)
        assert 0 < pieces.size[members].sum() <= row_bytes and pieces.patches[members].sum() <= row_patches


def test_packing_wastes_little() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(int(size)) for size in rng.lognormal(6, 1.5, 400).clip(1, 20_000)]
    rows = epoch_rows(Loader(everything(texts), 1024, 1, 0))
    used = sum(1 for row in rows for value in row if value != 0)
    assert used / (len(rows) * 1024) > 0.99


@given(documents, row_sizes, seeds, st.integers(0, 3))
def test_an_epoch_holds_every_piece_exactly_once(texts: list[bytes], row_bytes: int, seed: int, epoch: int) -> None:
    rows = epoch_rows(Loader(everything(texts), row_bytes, 1, seed), epoch)
    found = Counter(tuple(piece) for row in rows for piece in pieces_of(row))
    wanted = Counter(tuple(piece) for text in texts for piece in obvious_pieces(text, row_bytes))
    assert found == wanted


def test_full_rows_and_shared_rows_are_mixed() -> None:
    corpus = everything([b"x" * 31 * 100, *(b"document %d" % i for i in range(200))])
    full = [2 not in row for row in epoch_rows(Loader(corpus, 32, 1, 0))]
    assert 30 < sum(full[: len(full) // 2]) < 70 and 99 <= sum(full) <= 100


# --- order ---


@given(st.integers(0, 50), seeds, seeds)
def test_shuffle_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffle(count, seed, epoch).tolist()) == list(range(count))


def test_shuffle_stays_the_same_for_ever() -> None:
    """A checkpoint's position means this very order, whatever the versions of numpy and of this package."""
    assert shuffle(8, 1, 2, 0).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]
    assert scatter(np.arange(8), 1000, 1, 2, 0).tolist() == [344, 529, 867, 661, 837, 612, 322, 573]


@given(st.integers(1, 3000), seeds, st.integers(0, 50))
def test_scatter_is_a_permutation_place_by_place(count: int, seed: int, first: int) -> None:
    whole = scatter(np.arange(count), count, seed)
    assert sorted(whole.tolist()) == list(range(count))
    first = min(first, count - 1)
    assert scatter(np.arange(first, count), count, seed).tolist() == whole[first:].tolist()


def test_scatter_looks_random() -> None:
    """Correlation with the place, and of neighbours, within four standard deviations; no place keeps its value."""
    count = 100_003
    orders = [scatter(np.arange(count), count, 7, epoch) for epoch in range(2)]
    for order in orders:
        places = np.arange(count)
        for one, other in ((order, places), (order[1:], order[:-1]), (orders[0], orders[1])):
            if one is not other:
                assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(count)
        assert (order == places).sum() < 10
    assert (orders[0] == orders[1]).sum() < 10


def test_large_orders_are_computed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bltkit.data.order._SORTED_UP_TO", 10)
    found = np.concatenate([shuffled(first, first + 25, 100, 1) for first in range(0, 100, 25)])
    assert sorted(found.tolist()) == list(range(100)) and found.tolist() == scatter(np.arange(100), 100, 1).tolist()


@given(st.lists(st.tuples(st.lists(st.integers(0, 99)), st.integers(1, 3)), min_size=1, max_size=5))
def test_visits_are_numbered_block_by_block(blocks: list[tuple[list[int], int]]) -> None:
    visits = Visits.of(tuple((np.array(documents, dtype=np.int64), times) for documents, times in blocks))
    wanted = [document for documents, times in blocks for document in documents for _ in range(times)]
    assert len(visits) == len(wanted)
    assert visits.documents(np.arange(len(wanted))).tolist() == wanted


@given(st.floats(0.01, 5.0), st.integers(0, 1000), st.integers(1, 12))
def test_weights_are_kept_over_epochs(weight: float, start: int, epochs: int) -> None:
    corpus = Corpus.from_documents([b"a", b"bb", b"ccc"], 0.0, weight)
    found: Counter[int] = Counter()
    for epoch in range(start, start + epochs):
        visits = corpus.visits(epoch)
        found.update(visits.documents(np.arange(len(visits))).tolist())
    for document in range(3):
        assert abs(found[document] - weight * epochs) < 1 + 1e-6
