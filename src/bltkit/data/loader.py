"""The loader: corpus -> batches of ids and targets, for ever, with a position that is a value.

The last station before the model. Notable: `batch_rows` counts the rows of all ranks, so the same rows make a batch
whatever the number of ranks; every worker walks the same sequence of rows and assembles only its own batches, so the
batches, their order and the position after each of them do not depend on the number of workers either.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bltkit.compute import check_threads
from bltkit.data.batch import Batch, Waste, assemble
from bltkit.data.corpus import Corpus
from bltkit.data.parts import PartSize, Position, RowPlan, Walk

Prepare = Callable[[Batch], Batch]


class Loader:
    """Batches of training rows, epoch after epoch. An iterator; `state` is the position of the next batch.

    Rows of successive epochs follow one another without a gap, so every batch has exactly `batch_rows` rows, of which
    each rank gets its consecutive share of batch_rows / num_ranks.
    """

    def __init__(
        self,
        corpus: Corpus,
        row_bytes: int = 2048,
        batch_rows: int = 8,
        seed: int = 0,
        *,
        row_patches: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        workers: int = 0,
        prepare: Prepare | None = None,
        part_size: PartSize | None = None,
    ) -> None:
        """row_patches: patches that a row holds at most, counted by the corpus' stored starts.
        batch_rows: rows of a batch over all ranks.
        workers: processes that assemble (and prepare) batches ahead; 0: in place, when a batch is asked for.
        prepare: applied to every batch where it is assembled, for example to compute its patches.
        part_size: how much is packed at once; part of what a position means.

        Raises `ValueError`, with the name of the setting, for what does not fit.
        """
        assert 0 <= rank < num_ranks, (rank, num_ranks)
        if batch_rows < 1:
            raise ValueError(f"data.batch_rows: {batch_rows}; use at least 1")
        if batch_rows % num_ranks:
            raise ValueError(
                f"data.batch_rows: {batch_rows} rows cannot be shared evenly by {num_ranks} ranks; "
                f"use a multiple of {num_ranks}"
            )
        if seed < 0:
            raise ValueError(f"trainer.seed: {seed} is negative; use 0 or more")
        check_threads(workers, "data.workers", least=0)
        self.corpus, self.row_bytes, self.row_patches = corpus, row_bytes, row_patches
        self.batch_rows, self.seed, self.workers = batch_rows, seed, workers
        self.plan = RowPlan.training(corpus, row_bytes, row_patches, seed, part_size)
        if not len(corpus.train):
            raise ValueError("data: no training documents; lower data.validation_fraction or add documents")
        share = batch_rows // num_ranks
        self._maker = _Maker(self.plan, batch_rows, slice(rank * share, (rank + 1) * share), prepare)
        self._position = Position(0, 0, 0)
        self._stream: Iterator[_Made] | None = None
        self._waste = Waste()

    @property
    def epoch(self) -> int:
        """The epoch of the last row that was given; 0 before the first."""
        return self._position.epoch

    @property
    def waste(self) -> Waste:
        """Padding of the batches that this rank was given since the loader was made."""
        return self._waste

    @property
    def state(self) -> dict[str, Any]:
        """The position of the next batch; the same on every rank. Plain JSON values."""
        return {
            **self._position._asdict(),
            "seed": self.seed,
            "row_bytes": self.row_bytes,
            "row_patches": self.row_patches,
            "part_size": list(self.plan.size),
            "fingerprint": self.corpus.fingerprint,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Jumps to a position that `state` gave, of any number of ranks, workers and batch_rows.

        `ValueError` if it belongs to other data or another order (with workers, that a position does not exist in it
        shows at the next batch).
        """
        if state["fingerprint"] != self.corpus.fingerprint:
            single = len(self.corpus) == 2 and len(self.corpus.validation) == len(self.corpus.stats) == 1
            raise ValueError(
                f"data.sources: the saved position belongs to another corpus ({state['fingerprint'][:12]}, "
                f"this one is {self.corpus.fingerprint[:12]}): files, weights or validation_fraction "
                "changed; set them back, or start a new run"
                # Older versions held out nothing of a single document: the same text without validation.
                + ("; for a run of version 0.1.0 on a single document, data.validation_fraction = 0" if single else "")
            )
        if state["part_size"] != self.state["part_size"]:  # of this corpus: stages cut an epoch into more parts
            raise ValueError(
                "data.stages: the saved position was made by a run that had stages where this one has none, or none "
                f"where it has some (part_size {state['part_size']}, here {self.state['part_size']}); set them back, "
                "or start a new run"
            )
        for name, where in (
            ("row_bytes", "data.row_bytes"),
            ("row_patches", "data.row_patches"),
            ("seed", "trainer.seed"),
        ):
            if state[name] != self.state[name]:
                raise ValueError(
                    f"{where}: {self.state[name]}, but the saved position was made with {state[name]}; "
                    "set it back, or start a new run"
                )
        position = Position(*(int(state[name]) for name in Position._fields))
        for name, value in position._asdict().items():
            if value < 0:
                raise ValueError(f"loader state: {name} {value} is negative")
        stream = None if self.workers else self._maker.stream(position)
        self.close()
        self._position, self._stream = position, stream

    def follow(self, before: Loader) -> None:
        """Continue after `before`, a loader of the same corpus, seed and part size with rows of another size.

        What is left of the part that `before` is in is left out of this epoch: its rows are cut otherwise here.
        """
        assert (before.corpus, before.seed, before.plan.size) == (self.corpus, self.seed, self.plan.size)
        epoch, part, row = before._position
        if row:
            part += 1
            if part >= self.plan.num_parts(epoch):
                epoch, part = epoch + 1, 0
        self.close()
        self._position = Position(epoch, part, 0)

    def close(self) -> None:
        """Ends the workers; the next batch starts them anew."""
        self._stream = None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            self._stream = self._workers() if self.workers else self._maker.stream(self._position)
        try:
            made = next(self._stream)
            if made.error is not None:
                raise ValueError(made.error)
        except BaseException:
            self.close()  # a stream does not go on after an error; a new one begins with the same batch
            raise
        assert made.batch is not None
        self._position, self._waste = made.position, self._waste + made.waste
        return made.batch

    def _workers(self) -> Iterator[_Made]:
        with warnings.catch_warnings():
            # How many may be asked for is checked in front; that there are more than cores is the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            return iter(
                DataLoader(
                    _Share(self._maker, self._position),
                    batch_size=None,
                    num_workers=self.workers,
                    collate_fn=_unchanged,
                    worker_init_fn=_leave_signals_to_the_parent,
                    # Of its own: the default one would draw from torch's global one, only where there are workers.
                    generator=torch.Generator(),
                )
            )


@dataclass(frozen=True)
class _Made:
    """A batch, what it wastes, and the position behind it; or the message of a ValueError."""

    batch: Batch | None
    waste: Waste
    position: Position
    error: str | None = None


@dataclass(frozen=True, eq=False)
class _Maker:
    """Makes one rank's batches. Sent to the workers."""

    plan: RowPlan
    batch_rows: int
    mine: slice
    prepare: Prepare | None

    def stream(self, position: Position, first: int = 0, step: int = 1) -> Iterator[_Made]:
        """Every step-th batch from the first-th after `position` on. `ValueError` if there is no such position."""
        walk = Walk(self.plan, position)
        walk.skip(first * self.batch_rows)
        return self._made(walk, step)

    def _made(self, walk: Walk, step: int) -> Iterator[_Made]:
        for number in count():
            if number:
                walk.skip((step - 1) * self.batch_rows)
            rows = walk.take(self.batch_rows)[self.mine]
            batch = assemble(self.plan.corpus, rows, self.plan.row_bytes)
            if self.prepare is not None:
                batch = self.prepare(batch)
            yield _Made(batch, Waste.of(batch, self.plan.row_patches), walk.position)


class _Share(IterableDataset[_Made]):
    """In worker w of n: batches w, w + n, w + 2n ...; torch takes them from the workers in turn, so in order."""

    def __init__(self, maker: _Maker, position: Position) -> None:
        self._maker, self._position = maker, position

    def __iter__(self) -> Iterator[_Made]:
        worker = get_worker_info()
        assert worker is not None
        try:
            yield from self._maker.stream(self._position, worker.id, worker.num_workers)
        except (ValueError, OSError) as error:
            # As a value: torch would wrap it in a traceback of several lines.
            yield _Made(None, Waste(), self._position, str(error))
        except MemoryError:
            yield _Made(
                None, Waste(), self._position, f"data.workers: {worker.num_workers} processes ran out of memory"
            )


def _unchanged(made: Any) -> Any:
    return made


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM often reach all processes; the parent saves first, then ends its workers.

    So only the parent's SIGTERM ends a worker; one whose parent is gone ends by itself. Who sent a signal can be asked
    on Linux only: elsewhere any SIGTERM ends it, and the parent with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_parents_word, daemon=True).start()


def _await_the_parents_word() -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
    os._exit(0)
