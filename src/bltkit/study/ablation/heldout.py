"""What a finished run's model makes of held-out text, text by text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bltkit.data import Corpus, TokenBatch, validation_batches
from bltkit.patching import PatchingRule
from bltkit.train import TrainConfig
from bltkit.train.learner import Learner
from bltkit.train.parallel import world_of
from bltkit.train.patcher import load_patcher
from bltkit.train.process import numerics
from bltkit.train.run_directory import RunDirectory
from bltkit.train.state import read_position
from bltkit.train.token_vocabulary import known_vocabulary
from bltkit.vocab import OFFSET


@dataclass(frozen=True)
class HeldoutText:
    """Of one text's held-out documents; unit_bytes: of a patch or token."""

    bits_per_byte: float
    num_bytes: int
    unit_bytes: float | None


def heldout(
    config: TrainConfig, checkpoint: Path, texts: Sequence[str], rule: PatchingRule | None = None
) -> dict[str, HeldoutText]:
    """Of each of the config's sources, under the names of `texts`; of all together under ''.

    rule: in place of the one that the run was trained with.
    """
    trainer, data = config.trainer.replace(init=str(checkpoint)), config.data
    with world_of("cpu", None) as world, numerics(trainer.threads, False, world.device), torch.no_grad():
        patcher = load_patcher(config)
        if rule is not None:
            patcher = replace(patcher, rule=rule)
        learner = Learner(config.replace(trainer=trainer), world, patcher)
        learner.model.eval()
        vocabulary = known_vocabulary(config.replace(trainer=trainer), None)
        found, sums = {}, [0.0, 0, 0, 0]
        corpus = Corpus.from_sources(list(data.sources), data.validation_fraction, directory=_cache(config))
        for number, name in enumerate(texts):
            own = [0.0, 0, 0, 0]
            for batch in validation_batches(
                corpus.held_out_of(number), data.row_bytes, data.batch_rows, trainer.validation_batches
            ):
                losses, units = learner.loss(
                    batch if vocabulary is None else TokenBatch.of(batch, vocabulary=vocabulary)
                )
                seen = int((batch.ids >= OFFSET).sum())
                own = [
                    a + b for a, b in zip(own, (losses.text.item(), batch.text_bytes, seen, int(units)), strict=True)
                ]
            if own[1]:
                found[name] = _heldout(own)
            sums = [a + b for a, b in zip(sums, own, strict=True)]
        return found | {"": _heldout(sums)}


def seconds_of(run: Path) -> float:
    """That a finished run has trained, whatever broke it off in between."""
    checkpoint = RunDirectory(run).latest()
    assert checkpoint is not None
    return read_position(checkpoint).seconds


def _heldout(sums: Sequence[float]) -> HeldoutText:
    nats, num_bytes, seen, units = sums
    return HeldoutText(nats / math.log(2) / num_bytes, int(num_bytes), seen / units if units else None)


def _cache(config: TrainConfig) -> Path | None:
    return None if config.data.cache is None else Path(config.data.cache)
