"""What a run's model is shown: the bytes and patches (or tokens) of the steps ahead, and held-out text by source.

Beside training, and from the same values: corpus, loader and patcher are made of the run's own config, so that what is
counted here is what the run will count. Nothing is trained.
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
    """Of held-out text."""

    bits_per_byte: float
    num_bytes: int


def seen_by(checkpoint: Path) -> Seen:
    """What a run has seen that wrote this checkpoint."""
    position = read_position(checkpoint)
    return Seen(position.step, position.text_bytes, position.num_patches)


def seconds_of(checkpoint: Path) -> float:
    """That a run has trained for by then, its trunk's part among them."""
    return read_position(checkpoint).seconds


def steps_ahead(config: TrainConfig, checkpoint: Path) -> Iterator[Seen]:
    """What the run will have seen after each step behind the checkpoint, for ever: exactly what training will count."""
    with _place(config) as (world, patcher):
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

    Of `trainer.validation_batches` each, the same for every model. Sources that hold nothing back are left out.
    """
    trainer = config.trainer.replace(init=str(checkpoint), branch=None)
    with _place(config) as (world, patcher):
        prepare = _prepare(config, checkpoint)
        learner = Learner(config.replace(trainer=trainer), world, patcher)
        found: dict[str, Heldout] = {}
        corpus = _corpus(config)
        for number, source in enumerate(config.data.sources):
            batches = validation_batches(
                corpus.held_out_of(number), config.data.row_bytes, config.data.batch_rows, trainer.validation_batches
            )
            one = learner.evaluate(batches if prepare is None else map(prepare, batches))
            label = source.label if source.label not in found else f"{source.label} ({number})"
            if one.num_bytes:
                found[label] = Heldout(one.nats / math.log(2) / one.num_bytes, one.num_bytes)
        if not found:
            raise ValueError(
                f"validation_fraction = {config.data.validation_fraction}: no document is held back, so nothing can be "
                "measured; raise it, or name more documents"
            )
        return found


@contextmanager
def _place(config: TrainConfig) -> Iterator[tuple[World, Patcher]]:
    """Where the run computes, and its patcher there."""
    trainer = config.trainer
    with (
        world_of(trainer.device, trainer.shard) as world,
        numerics(trainer.threads, trainer.deterministic, world.device),
    ):
        yield world, load_patcher(config).on(world.device)


def _corpus(config: TrainConfig) -> Corpus:
    data = config.data
    return Corpus.from_sources(list(data.sources), data.validation_fraction, directory=_cache(config))


def _cache(config: TrainConfig) -> Path | None:
    return None if config.data.cache is None else Path(config.data.cache)


def _prepare(config: TrainConfig, checkpoint: Path) -> Prepare | None:
    """What makes a token model's batches of those of bytes, by the vocabulary that its checkpoint holds."""
    vocabulary = known_vocabulary(config, checkpoint)
    return None if vocabulary is None else partial(TokenBatch.of, vocabulary=vocabulary)


def _units(batch: Batch, patcher: Patcher, prepare: Prepare | None, world: World) -> int:
    """Patches or tokens of text in a batch, counted as a step of training counts them."""
    if prepare is not None:
        return int(prepare(batch).text_tokens)
    if patcher.rule is None:
        return 0
    return int(count_text_patches(batch.ids.to(world.device), patcher.patches(batch, world.device)))
