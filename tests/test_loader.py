"""The loader: one sequence of rows whatever the ranks, workers and batch sizes, and positions that are exact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.data import Batch, Corpus, Document, Loader
from bltkit.data.parts import PartSize, RowPlan
from bltkit.vocab import OFFSET
from tests.tiny_corpus import documents, epoch_rows, everything, marked_documents, part_sizes, row_sizes, same, seeds


def rows_of(batches: list[Batch]) -> list[list[int]]:
    return [row for batch in batches for row in batch.ids.tolist()]


# --- parts ---


@given(documents, row_sizes, seeds, st.integers(0, 3), part_sizes)
def test_parts_lose_nothing(texts: list[bytes], row_bytes: int, seed: int, epoch: int, size: PartSize) -> None:
    loader = Loader(everything(texts), row_bytes, 1, seed, part_size=size)
    found = Counter(value for row in epoch_rows(loader, epoch) for value in row if value >= OFFSET)
    assert found == Counter(byte + OFFSET for text in texts for byte in text)
    wanted = max(-(-len(texts) // size.documents), -(-sum(map(len, texts)) // size.text_bytes))
    assert loader.plan.num_parts(epoch) == min(len(texts), wanted)


def test_a_part_holds_no_more_than_it_may() -> None:
    corpus = everything([b"document %03d" % i for i in range(100)])
    plan = Loader(corpus, 16, 1, 0, part_size=PartSize(8, 1000)).plan
    sizes = [len(plan.part(0, number).pieces) for number in range(plan.num_parts(0))]  # type: ignore[union-attr]
    assert sum(sizes) == 100 and max(sizes) <= 8 and len(sizes) == 13
    plan = Loader(corpus, 16, 1, 0, part_size=PartSize(1000, 120)).plan
    assert plan.num_parts(0) == 10
    assert plan.part(0, 10) is None


def test_order_is_the_seeds_and_differs_between_epochs() -> None:
    corpus = everything([b"document %d" % i for i in range(200)])
    orders = {(seed, epoch): epoch_rows(Loader(corpus, 32, 1, seed), epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert orders[0, 0] == epoch_rows(Loader(corpus, 32, 1, 0), 0)
    assert len({json.dumps(rows) for rows in orders.values()}) == 4
    # Not only the rows' order: other documents share a row.
    assert len({json.dumps(sorted(rows)) for rows in orders.values()}) == 4


def test_packing_ahead_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, size = everything([b"document %d" % i for i in range(200)]), PartSize(33, 1 << 30)
    plain = rows_of(list(islice(Loader(corpus, 32, 3, 0, part_size=size), 100)))
    monkeypatch.setattr("bltkit.data.parts._PREPARED_FROM", 0)
    packed_in: set[str] = set()
    loader = Loader(corpus, 32, 3, 0, part_size=size)
    after = RowPlan.after
    monkeypatch.setattr(RowPlan, "after", lambda *args: packed_in.add(threading.current_thread().name) or after(*args))
    assert rows_of(list(islice(loader, 100))) == plain and loader.epoch > 0
    assert packed_in == {"packing_0"}


def test_documents_are_shuffled_over_all_parts() -> None:
    """The first part of an epoch is a sample of all documents, and the next epoch's is another."""
    corpus = everything([b"%04d" % i for i in range(1000)])
    plan = Loader(corpus, 8, 1, 0, part_size=PartSize(100, 1 << 30)).plan
    firsts = [plan.part(epoch, 0).pieces.start // 4 for epoch in range(2)]  # type: ignore[union-attr]
    for first in firsts:
        assert len(first) == 100 and 350 < first.mean() < 650 and first.max() > 900
    assert len(np.intersect1d(*firsts)) < 30


def test_epochs_without_a_visit_are_passed_over() -> None:
    corpus = Corpus.from_documents([b"rare"], 0.0, weight=0.1)
    loader = Loader(corpus, 8, 1, 0)
    assert next(loader).text_bytes == 4
    state = loader.state
    assert next(loader).text_bytes == 4
    assert loader.epoch > state["epoch"]
    # A position at the beginning of an epoch without rows is one, too.
    loader.restore(state | {"epoch": state["epoch"] + 1, "row": 0})
    assert next(loader).text_bytes == 4


# --- ranks ---


@settings(max_examples=50)
@given(
    marked_documents(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 4), part_sizes, st.sampled_from([None, 9])
)
def test_ranks_share_the_rows_and_may_change(
    texts: list[Document], share: int, ranks: int, steps: int, size: PartSize, row_patches: int | None
) -> None:
    corpus = everything(texts)

    def loader(batch_rows: int, rank: int = 0, num_ranks: int = 1) -> Loader:
        return Loader(
            corpus, 16, batch_rows, 0, rank=rank, num_ranks=num_ranks, part_size=size, row_patches=row_patches
        )

    loaders = [loader(share * ranks, rank, ranks) for rank in range(ranks)]
    found = [next(one) for _ in range(steps) for one in loaders]
    assert len({json.dumps(one.state) for one in loaders}) == 1
    # One rank with rows one by one sees the same rows, also after taking the run over.
    single = loader(1)
    assert rows_of(found) == rows_of([next(single) for _ in range(steps * ranks * share)])
    assert single.state == loaders[0].state
    successor = loader(1)
    successor.restore(json.loads(json.dumps(loaders[0].state)))
    assert same(next(successor), next(single))


@pytest.mark.parametrize(("ranks", "batch_rows"), [(1, 3), (2, 4), (4, 4)])
def test_ranks_and_workers_share_an_epoch_without_overlap_or_loss(ranks: int, batch_rows: int) -> None:
    texts = [b"document %03d" % i * (1 + i % 3) for i in range(60)]
    corpus, size = everything(texts), PartSize(25, 1 << 30)
    wanted = epoch_rows(Loader(corpus, 32, 1, 0, part_size=size))
    steps = len(wanted) // batch_rows
    for workers in (0, 1, 3):
        loaders = [
            Loader(corpus, 32, batch_rows, 0, rank=rank, num_ranks=ranks, workers=workers, part_size=size)
            for rank in range(ranks)
        ]
        found = rows_of([next(one) for _ in range(steps) for one in loaders])
        found += rows_of([next(one) for one in loaders])
        assert found[: len(wanted)] == wanted
        seen = b"".join(bytes(v - OFFSET for v in row if v >= OFFSET) for row in found[: len(wanted)])
        assert Counter(seen) == Counter(b"".join(texts))
        for one in loaders:
            one.close()


# --- position ---


@given(documents, row_sizes, st.integers(1, 5), seeds, st.integers(0, 12), part_sizes)
def test_resuming_is_no_interruption(
    texts: list[bytes], row_bytes: int, batch_rows: int, seed: int, cut_at: int, size: PartSize
) -> None:
    corpus = everything(texts)
    whole = list(islice(Loader(corpus, row_bytes, batch_rows, seed, part_size=size), cut_at + 6))
    first = Loader(corpus, row_bytes, batch_rows, seed, part_size=size)
    for _ in range(cut_at):
        next(first)
    state = json.loads(json.dumps(first.state))
    resumed = Loader(everything(texts), row_bytes, batch_rows, seed, part_size=size)
    resumed.restore(state)
    assert resumed.state == state
    assert all(same(a, b) for a, b in zip(whole[cut_at:], islice(resumed, 6), strict=True))


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
    with pytest.raises(ValueError, match="part_size"):
        Loader(everything(texts), 16, 1, 0, part_size=PartSize(5, 5)).restore(state)
    with pytest.raises(ValueError, match="epoch -1 is negative"):
        loader.restore(state | {"epoch": -1})
    with pytest.raises(ValueError, match="row 99"):
        loader.restore(state | {"row": 99})
    with pytest.raises(ValueError, match="part 1"):
        loader.restore(state | {"part": 1})
    assert loader.state == state
    marked = everything([Document("x", b"abc", opens=np.zeros(3, np.bool_))])
    with pytest.raises(ValueError, match=r"data\.row_patches: 9, but .* None"):
        Loader(marked, 16, 1, 0, row_patches=9).restore(Loader(marked, 16, 1, 0).state)


# --- workers ---


def marked_by(batch: Batch) -> Batch:
    """A stand-in for patching on the fly; a function of the batch that shows that it ran."""
    return replace(batch, opens=batch.ids % 3 == 0)


def test_workers_change_nothing() -> None:
    """Batches, marks, waste and the position after each batch, across parts and epochs and a restart."""
    corpus = everything([b"document %03d" % i for i in range(40)])

    def loader(workers: int) -> Loader:
        return Loader(corpus, 32, 4, 3, workers=workers, prepare=marked_by, part_size=PartSize(11, 1 << 30))

    plain = loader(0)
    wanted = [(next(plain), plain.state, plain.waste) for _ in range(30)]
    assert wanted[-1][1]["epoch"] > 0 and bool(wanted[0][0].opens.any())  # type: ignore[union-attr]
    torch.manual_seed(5)
    for workers in (1, 2, 3):
        busy = loader(workers)
        for batch, state, waste in wanted[:17]:
            assert same(next(busy), batch) and busy.state == state and busy.waste == waste
        again = loader(3 - workers if workers < 3 else 2)
        again.restore(wanted[8][1])
        busy.restore(wanted[8][1])
        for batch, state, _ in wanted[9:14]:
            assert same(next(again), batch) and again.state == state
            assert same(next(busy), batch) and busy.state == state
        again.close()
        busy.close()
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3)), "torch's own random numbers are left alone"


def fails_at_rows_of_z(batch: Batch) -> Batch:
    if bool((batch.ids == ord("z") + OFFSET).any()):
        raise ValueError("prepare: row of z; remove it")
    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_the_same_error(workers: int) -> None:
    corpus = everything([b"z" * 14, *[b"%014d" % i for i in range(9)]])
    loader = Loader(corpus, 16, 1, 0, workers=workers, prepare=fails_at_rows_of_z)
    given_before = 0
    with pytest.raises(ValueError) as error:
        for _ in range(10):
            next(loader)
            given_before += 1
    assert str(error.value) == "prepare: row of z; remove it"
    assert given_before < 10 and loader.state["row"] == given_before
    with pytest.raises(ValueError, match="row of z"):  # it does not go on behind the batch that is missing
        next(loader)
    loader.close()


PROGRAM = """
import os, sys, time
from bltkit.data import Corpus, Loader
loader = Loader(Corpus.from_documents([b"document %03d" % i for i in range(400)], 0.0), 32, 2, 0, workers=2)
next(loader), next(loader)  # one of each worker: both have begun
print("ready", flush=True)
for line in sys.stdin:
    print(next(loader).text_bytes > 0 and "batch", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="who sent a signal can be asked on Linux only")
def test_signals_to_all_processes_leave_the_workers_to_the_parent() -> None:
    """A scheduler's SIGTERM to every process must not take the workers away while the parent saves."""
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True, start_new_session=True)
    assert parent.stdin is not None and parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    workers = children(parent.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
    for _ in range(20):  # more than was prepared ahead
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "batch\n"
    assert children(parent.pid) == workers
    # The end of the parent is theirs, without its closing the loader.
    parent.stdin.close()
    assert parent.wait(timeout=60) == 0
    parent.stdout.close()
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow  # a worker looks for its parent every five seconds
def test_workers_do_not_outlive_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True, start_new_session=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
