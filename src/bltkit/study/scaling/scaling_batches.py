"""Text of a run: bytes and patches (or tokens) of the steps ahead, and bits per byte of held-out text by source.

Corpus, loader and patcher are built from the run's own config, so the counts here are those of its training. Nothing is
trained.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bltkit.data import Batch, Corpus, Loader, TokenBatch, validation_batches
from bltkit.train import TrainConfig
from bltkit.train.learner import Counts, Learner
from bltkit.train.parallel import World, world_of
from bltkit.train.patcher import Patcher, count_text_patches, load_patcher
from bltkit.train.process import numerics
from bltkit.train.state import read_position
from bltkit.train.token_vocabulary import known_vocabulary

Prepare = Callable[[Batch], TokenBatch]


@dataclass(frozen=True)
class Seen:
    """Text that a run has seen by the end of a step. units: patches, or tokens."""

    step: int
    num_bytes: int
    units: int

    @property
    def unit_bytes(self) -> float:
        """Mean bytes of a patch or token."""
        return self.num_bytes / max(1, self.units)


@dataclass(frozen=True)
class Heldout:
    """Bits per byte of held-out text, and its length."""

    bits_per_byte: float
    num_bytes: int


def seen_by(checkpoint: Path) -> Seen:
    """Text that a run has seen by a checkpoint."""
    position = read_position(checkpoint)
    return Seen(position.step, position.text_bytes, position.num_patches)


def seconds_of(checkpoint: Path) -> float:
    """Seconds of training by a checkpoint, its trunk's included."""
    return read_position(checkpoint).seconds


def steps_ahead(config: TrainConfig, checkpoint: Path) -> Iterator[Seen]:
    """Text seen after each step that follows a checkpoint, endlessly, counted as training counts it."""
    with _world(config) as (world, patcher):
        position = read_position(checkpoint)
        prepare = _prepare(config, checkpoint)
        loader = Loader(_corpus(config), config.data.row_bytes, config.data.batch_rows, config.trainer.seed)
        loader.restore(position.loader)
        seen = seen_by(checkpoint)
        while True:
            num_bytes, units = seen.num_bytes, seen.units
            for _ in range(config.trainer.accumulate):
                batch = next(loader)
                num_bytes += Counts.of([batch]).seen_bytes
                units += _units(batch, patcher, prepare, world)
            seen = Seen(seen.step + 1, num_bytes, units)
            yield seen


@torch.no_grad()
def heldout(config: TrainConfig, checkpoint: Path) -> dict[str, Heldout]:
    """Bits per byte of each source's held-out documents under a finished run's model, by the source's label.

    Each is measured on `trainer.validation_batches` batches, the same for every model. Sources without held-out
    documents are left out; ValueError where all of them are.
    """
    trainer = config.trainer.replace(init=str(checkpoint), branch=None)
    with _world(config) as (world, patcher):
        prepare = _prepare(config, checkpoint)
        learner = Learner(config.replace(trainer=trainer), world, patcher)
        by_label: dict[str, Heldout] = {}
        corpus = _corpus(config)
        for number, source in enumerate(config.data.sources):
            batches = validation_batches(
                corpus.held_out_of(number), config.data.row_bytes, config.data.batch_rows, trainer.validation_batches
            )
            totals = learner.evaluate(batches if prepare is None else map(prepare, batches))
            label = source.label if source.label not in by_label else f"{source.label} ({number})"
            if totals.num_bytes:
                by_label[label] = Heldout(totals.nats / math.log(2) / totals.num_bytes, totals.num_bytes)
        if not by_label:
            raise ValueError(
                f"validation_fraction = {config.data.validation_fraction}: no document is held back, so nothing can be "
                "measured; raise it, or name more documents"
            )
        return by_label


@contextmanager
def _world(config: TrainConfig) -> Iterator[tuple[World, Patcher]]:
    """Device and numerics of the run, and its patcher there."""
    trainer = config.trainer
    with (
        world_of(trainer.device, trainer.shard) as world,
        numerics(trainer.threads, trainer.deterministic, world.device),
    ):
        yield world, load_patcher(config).on(world.device)


def _corpus(config: TrainConfig) -> Corpus:
    data = config.data
    cache = None if data.cache is None else Path(data.cache)
    return Corpus.from_sources(list(data.sources), data.validation_fraction, directory=cache)


def _prepare(config: TrainConfig, checkpoint: Path) -> Prepare | None:
    """Function from byte batches to a token model's, by the vocabulary of its checkpoint; None for byte models."""
    vocabulary = known_vocabulary(config, checkpoint)
    return None if vocabulary is None else partial(TokenBatch.of, vocabulary=vocabulary)


def _units(batch: Batch, patcher: Patcher, prepare: Prepare | None, world: World) -> int:
    """Patches or tokens of text in a batch, counted as a step of training counts them."""
    if prepare is not None:
        return int(prepare(batch).text_tokens)
    if patcher.rule is None:
        return 0
    return int(count_text_patches(batch.ids.to(world.device), patcher.patches(batch, world.device)))
