"""Held-out bits per byte of a finished run's model, text by text."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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


def heldout(
    config: TrainConfig, checkpoint: Path, texts: Sequence[str], rule: PatchingRule | None = None
) -> dict[str, dict[str, Any]]:
    """`bits_per_byte`, `num_bytes` and `unit_bytes` (mean patch or token) of each of the config's sources.

    Their names are `texts`; all together stand under ''. rule: in place of the one that the run was trained with.
    """
    trainer, data = config.trainer.replace(init=str(checkpoint)), config.data
    with world_of("cpu", None) as world, numerics(trainer.threads, False, world.device), torch.no_grad():
        patcher = load_patcher(config)
        if rule is not None:
            patcher = replace(patcher, rule=rule)
        learner = Learner(config.replace(trainer=trainer), world, patcher)
        learner.model.eval()
        vocabulary = known_vocabulary(config.replace(trainer=trainer), None)
        cache = None if data.cache is None else Path(data.cache)
        corpus = Corpus.from_sources(list(data.sources), data.validation_fraction, directory=cache)
        sums = {}
        for number, name in enumerate(texts):
            batches = validation_batches(
                corpus.held_out_of(number), data.row_bytes, data.batch_rows, trainer.validation_batches
            )
            sums[name] = np.zeros(4)
            for batch in batches:
                losses, units = learner.loss(
                    batch if vocabulary is None else TokenBatch.of(batch, vocabulary=vocabulary)
                )
                sums[name] += losses.text.item(), batch.text_bytes, int((batch.ids >= OFFSET).sum()), int(units)
        result = {name: _figures(values) for name, values in sums.items() if values[1]}
        return result | {"": _figures(np.sum(list(sums.values()), axis=0))}


def seconds_of(run: Path) -> float:
    """Seconds that a finished run has trained, interruptions left out."""
    checkpoint = RunDirectory(run).latest()
    assert checkpoint is not None
    return read_position(checkpoint).seconds


def _figures(sums: npt.NDArray[np.float64]) -> dict[str, Any]:
    nats, num_bytes, seen, units = sums.tolist()
    return {
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "num_bytes": int(num_bytes),
        "unit_bytes": seen / units if units else None,
    }
