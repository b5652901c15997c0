"""Batches: ids and targets in their places, marks beside them, what is wasted; validation shared by ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit.data import IGNORE, Batch, Corpus, Document, Loader, Waste, validation_batches
from bltkit.patches import Patches
from bltkit.patching import parse_rule, patch
from bltkit.vocab import BOS, EOS, OFFSET, PAD, encode
from tests.tiny_corpus import (
    documents,
    epoch_rows,
    everything,
    marked_documents,
    obvious_pieces,
    part_sizes,
    patch_budgets,
    row_sizes,
    same,
    seeds,
)


@given(documents, row_sizes, seeds)
def test_rows_begin_with_bos_and_pad_only_at_the_end(texts: list[bytes], row_bytes: int, seed: int) -> None:
    for row in epoch_rows(Loader(everything(texts), row_bytes, 1, seed)):
        assert len(row) == row_bytes and row[0] == BOS
        used = row_bytes - row.count(PAD)
        assert PAD not in row[:used]
        # After EOS comes another document or nothing; in front of BOS stands EOS or the row's beginning.
        for at in range(used - 1):
            assert (row[at] == EOS) == (row[at + 1] == BOS)


@given(documents, row_sizes, st.integers(1, 4))
def test_targets_are_the_next_ids(texts: list[bytes], row_bytes: int, batch_rows: int) -> None:
    batch = next(Loader(everything(texts), row_bytes, batch_rows, 0))
    ids, targets = batch.ids.tolist(), batch.targets.tolist()
    text_bytes = num_targets = padding = 0
    for b in range(batch_rows):
        for t in range(row_bytes):
            following = ids[b][t + 1] if t + 1 < row_bytes else PAD
            assert targets[b][t] == (IGNORE if following in (PAD, BOS) else following)
            text_bytes += following >= OFFSET
            num_targets += following not in (PAD, BOS)
            padding += ids[b][t] == PAD
        assert batch.num_bytes[b] == sum(value != PAD for value in ids[b])
    assert (batch.text_bytes, batch.num_targets, batch.padding) == (text_bytes, num_targets, padding)
    assert batch.ids.dtype == batch.targets.dtype == batch.num_bytes.dtype == torch.int64
    assert batch.opens is None and batch.starts is None and batch.num_patches is None


def rows_of_an_epoch(corpus: Corpus, row_bytes: int, row_patches: int | None, seed: int) -> Batch:
    """All rows of epoch 0 in one batch."""
    part = Loader(corpus, row_bytes, 1, seed, row_patches=row_patches).plan.part(0, 0)
    assert part is not None
    return next(Loader(corpus, row_bytes, len(part), seed, row_patches=row_patches))


@given(documents, row_sizes, seeds)
def test_every_byte_and_every_end_is_a_target_once(texts: list[bytes], row_bytes: int, seed: int) -> None:
    targets = rows_of_an_epoch(everything(texts), row_bytes, None, seed).targets
    found = Counter(targets[targets != IGNORE].tolist())
    assert found == Counter(byte + OFFSET for text in texts for byte in text) + Counter({EOS: len(texts)})


@given(marked_documents(), row_sizes, patch_budgets, seeds)
def test_marks_follow_their_bytes_and_budgets_hold(
    texts: list[Document], row_bytes: int, row_patches: int, seed: int
) -> None:
    """Each piece, as ids with the bits beside them, is there once; and so is each learned byte as a target."""
    batch = rows_of_an_epoch(everything(texts), row_bytes, row_patches, seed)
    assert batch.opens is not None and batch.num_patches is not None
    assert batch.num_patches.max() <= row_patches
    wanted: Counter[tuple[tuple[int, bool, bool], ...]] = Counter()
    for one in texts:
        learned = np.ones(len(one.data), np.bool_) if one.learned is None else one.learned
        at = 0
        assert one.opens is not None
        for piece in obvious_pieces(one.data, row_bytes, one.opens, row_patches):
            marks = [(BOS, True, False)]
            for value in piece[1:]:
                opens = value != EOS and bool(one.opens[at])
                marks.append((value, opens, bool(learned[min(at, len(learned) - 1)])))
                at += 1
            wanted[tuple(marks)] += 1
        assert at == len(one.data) + 1
    found: Counter[tuple[tuple[int, bool, bool], ...]] = Counter()
    for ids, targets, opens in zip(batch.ids.tolist(), batch.targets.tolist(), batch.opens.tolist(), strict=True):
        piece: list[tuple[int, bool, bool]] = []
        for t, value in enumerate([*ids, BOS]):
            if value in (BOS, PAD) and piece:
                found[tuple(piece)] += 1
                piece = []
            if t < len(ids) and value != PAD:
                is_target = t > 0 and targets[t - 1] != IGNORE
                assert not is_target or targets[t - 1] == value
                piece.append((value, opens[t], is_target))
            elif t < len(ids):
                assert not opens[t] and targets[t] == IGNORE
    assert found == wanted


@given(marked_documents(), row_sizes, patch_budgets)
def test_starts_make_patches_within_the_budget(texts: list[Document], row_bytes: int, row_patches: int) -> None:
    batch = next(Loader(everything(texts), row_bytes, 3, 0, row_patches=row_patches))
    assert batch.starts is not None and batch.num_patches is not None
    patches = Patches.from_starts(batch.starts, batch.num_bytes)
    assert torch.equal(patches.num_patches, batch.num_patches) and patches.max_patches <= row_patches


def test_stored_starts_are_those_of_the_rule() -> None:
    """A rule that looks at nothing but the bytes before: stored for whole documents, it gives the same patches."""
    rule = parse_rule("space")
    texts = [b"one two  three, four", b"a b c d e f", b"nothing", "äöü x".encode()]
    marked = []
    for number, text in enumerate(texts):
        starts = patch(rule, encode(text)[None]).starts[0]
        marked.append(Document(str(number), text, opens=starts[2:].numpy()))
    batch = next(Loader(everything(marked), 64, 2, 0, row_patches=40))
    online = patch(rule, batch.ids, None, batch.num_bytes)
    assert batch.starts is not None
    stored = Patches.from_starts(batch.starts, batch.num_bytes)
    assert torch.equal(stored.own_starts, online.own_starts)


def test_a_row_written_out() -> None:
    batch = next(Loader(everything([b"ab"]), 8, 1, 0))
    a, b = b"a"[0] + OFFSET, b"b"[0] + OFFSET
    assert batch.ids.tolist() == [[BOS, a, b, EOS, PAD, PAD, PAD, PAD]]
    assert batch.ids[0, :4].tolist() == encode(b"ab", eos=True).tolist()
    assert batch.targets.tolist() == [[a, b, EOS, *[IGNORE] * 5]]
    assert (batch.num_bytes.tolist(), batch.text_bytes, batch.num_targets, batch.padding) == ([4], 2, 3, 4)
    marked = Document("ab", b"ab", learned=np.array([False, True]), opens=np.array([False, True]))
    batch = next(Loader(everything([marked]), 8, 1, 0, row_patches=5))
    assert batch.targets.tolist() == [[IGNORE, b, EOS, *[IGNORE] * 5]]
    assert (batch.text_bytes, batch.num_targets) == (1, 2)
    assert batch.opens is not None and batch.opens.tolist() == [[True, False, True, *[False] * 5]]
    moved = batch.to("cpu")
    assert same(moved, batch) and moved.opens is not None


# --- waste ---


def test_waste_counts_positions_and_patch_slots() -> None:
    opens = np.array([True, False, False])
    corpus = everything([Document("x", b"abc", opens=opens)])
    loader = Loader(corpus, 8, 2, 0, row_patches=6)
    assert loader.waste == Waste()
    next(loader)
    # Two rows of 8 with BOS a b c EOS; patches BOS | a | bc EOS of 6.
    assert loader.waste == Waste(positions=16, padding=6, patch_slots=12, patch_padding=6)
    next(loader)
    assert loader.waste == Waste(32, 12, 24, 12)
    assert (loader.waste.bytes, loader.waste.patches) == (0.375, 0.5)
    free = Loader(corpus, 8, 2, 0)
    next(free)
    assert free.waste == Waste(16, 6, 6, 0)
    plain = Loader(everything([b"abc"]), 8, 2, 0)
    next(plain)
    assert plain.waste == Waste(16, 6, 0, 0) and plain.waste.patches is None


# --- validation ---


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=30), row_sizes, st.integers(1, 4), part_sizes)
def test_validation_is_whole_finite_and_fixed(
    texts: list[bytes], row_bytes: int, batch_rows: int, part_size: tuple[int, int]
) -> None:
    corpus = Corpus.from_documents(texts, 0.3)
    batches = list(validation_batches(corpus, row_bytes, batch_rows, part_size=part_size))
    held = sum(len(corpus.document(i)) for i in corpus.validation)
    assert sum(batch.text_bytes for batch in batches) == held
    assert [len(batch.ids) for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
    for limit in (0, 1, 2):
        some = list(validation_batches(corpus, row_bytes, batch_rows, limit, part_size=part_size))
        assert len(some) == min(limit, len(batches))
        assert all(same(a, b) for a, b in zip(some, batches, strict=False))


def check_shares(corpus: Corpus, batch_rows: int, ranks: int, row_patches: int | None = None) -> None:
    """Every target of the one-process batch is on exactly one rank, in batches of equal shape."""
    whole = list(validation_batches(corpus, 16, batch_rows, row_patches=row_patches))
    shares = [
        list(validation_batches(corpus, 16, batch_rows, None, rank, ranks, row_patches=row_patches))
        for rank in range(ranks)
    ]
    assert {len(share) for share in shares} == {len(whole)} and whole
    for batch, *parts in zip(whole, *shares, strict=True):
        assert len({part.ids.shape for part in parts}) == 1
        assert len(parts[0].ids) == -(-len(batch.ids) // ranks)
        joined = torch.cat([part.ids for part in parts])[: len(batch.ids)]
        targets = torch.cat([part.targets for part in parts])
        assert torch.equal(joined, batch.ids) and torch.equal(targets[: len(batch.ids)], batch.targets)
        assert (targets[len(batch.ids) :] == IGNORE).all()
        for name in ("text_bytes", "num_targets"):
            assert sum(getattr(part, name) for part in parts) == getattr(batch, name)


@given(marked_documents().filter(lambda texts: len(texts) > 1), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_share_validation(texts: list[Document], batch_rows: int, ranks: int, budget: bool) -> None:
    check_shares(Corpus.from_documents(texts, 0.5), batch_rows, ranks, 9 if budget else None)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 9])
def test_ranks_share_validation_that_does_not_come_out_even(ranks: int) -> None:
    corpus = Corpus.from_documents([b"document %03d" % i for i in range(41)], 0.5)
    assert len(corpus.validation) % 7 > 1
    check_shares(corpus, 7, ranks)


def test_bad_shapes_are_named() -> None:
    corpus = everything([b"abc"])
    for row_bytes, batch_rows, name in ((4, 1, "row_bytes"), (16, 0, "batch_rows")):
        with pytest.raises(ValueError, match=name):
            Loader(corpus, row_bytes, batch_rows)
        with pytest.raises(ValueError, match=name):
            list(validation_batches(corpus, row_bytes, batch_rows))
    with pytest.raises(ValueError, match="seed"):
        Loader(corpus, 16, 1, -1)
    with pytest.raises(ValueError, match=r"data\.workers"):
        Loader(corpus, 16, 1, 0, workers=-1)
    with pytest.raises(ValueError, match=r"data\.batch_rows: 4 rows.*multiple of 3"):
        Loader(corpus, 16, 4, 0, rank=1, num_ranks=3)
    with pytest.raises(ValueError, match=r"data\.row_patches: 9, but .*annotate"):
        Loader(corpus, 16, 1, 0, row_patches=9)
    marked = everything([Document("x", b"abc", opens=np.zeros(3, np.bool_))])
    with pytest.raises(ValueError, match=r"data\.row_patches: 2 is too few"):
        Loader(marked, 16, 1, 0, row_patches=2)
    with pytest.raises(ValueError, match="no training documents"):
        Loader(corpus.__class__(**{**vars(corpus), "train": corpus.validation}), 16, 1)
