"""Checkpoints of a run: the state to resume from, and the model as others read it, in the run's directory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bltkit.checkpoint import write_vocabulary
from bltkit.checkpoint.atomic import sync_tree
from bltkit.checkpoint.checksums import read_checksums
from bltkit.tokens import Vocabulary
from bltkit.train.config import TrainConfig
from bltkit.train.failures import state_bytes
from bltkit.train.learner import Learner
from bltkit.train.parallel import World
from bltkit.train.run_directory import CONFIG, RunDirectory
from bltkit.train.state import WEIGHT, RunPosition, Saver, training_state


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, beside the training where the config says so."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        run: RunDirectory,
        learner: Learner,
        vocabulary: Vocabulary | None,
        record: Callable[[RunPosition], dict[str, Any]],
        identity: str | None,
    ) -> None:
        """record: the training record at a position. identity: the run's number (`RunDirectory.identity`)."""
        self._config, self._world, self._run, self._learner = config, world, run, learner
        self._vocabulary, self._record = vocabulary, record
        self._saver = Saver(world, config.checkpoint.background, identity)

    def sizes(self) -> tuple[int, int]:
        """Bytes of a checkpoint's tensors in all processes' files, and of those in this one's largest."""
        state = self._state()
        whole, largest = state_bytes(state)
        if self._config.checkpoint.export == "always":
            width = 2 if self._config.checkpoint.dtype == "bf16" else 4
            whole += width * sum(weight.numel() for name, weight in state.items() if name.startswith(WEIGHT))
        return whole, largest

    def save(self, position: RunPosition) -> None:
        """Begin to write a checkpoint; it gets its name when all of it is on disk.

        Waits for the one before it; raises what that raised (OSError: disk full), in every process.
        """
        section, run, step = self._config.checkpoint, self._run, position.step
        self._saver.wait()
        with self._world.together():
            if self._world.is_main:
                run.begin(step)
        directory = run.unfinished(step)
        export = section.export == "always" or step >= self._config.trainer.max_steps
        weights = self._learner.weights() if export else {}

        def beside() -> None:
            if self._vocabulary is not None:
                write_vocabulary(directory, self._vocabulary)
            if export:
                self._write_model(directory, weights, position)

        def done() -> None:
            if self._world.is_main:
                sync_tree(directory)
                run.complete(step, section.keep, section.keep_every)

        self._saver.save(directory, self._state(), position, beside, done)

    def export(self, checkpoint: Path, position: RunPosition) -> None:
        """Add the model to a complete checkpoint that was written without it, as that of a run that is over."""
        checksums = read_checksums(checkpoint)
        if (checkpoint / CONFIG).exists() and (checksums is None or CONFIG in checksums["files"]):
            return
        run, step = self._run, position.step
        self._world.barrier()  # all have looked
        weights = self._learner.weights()
        with self._world.together():
            if self._world.is_main:
                run.begin(step)
                self._write_model(run.unfinished(step), weights, position)
                sync_tree(run.unfinished(step))
                run.add(step)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raise what it raised."""
        self._saver.wait()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, whatever comes of it; nothing more can be saved."""
        self._saver.close()

    @property
    def failed(self) -> bool:
        """True after a write in the background that came to nothing; `wait` raises the reason."""
        return self._saver.failed

    def _state(self) -> dict[str, Tensor]:
        learner = self._learner
        return training_state(learner.model, learner.optimizer, self._world, learner.average)

    def _write_model(self, directory: Path, weights: Mapping[str, Tensor], position: RunPosition) -> None:
        dtype = torch.bfloat16 if self._config.checkpoint.dtype == "bf16" else None
        self._learner.write(directory, dict(weights), self._vocabulary, self._record(position), dtype)
