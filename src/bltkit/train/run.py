"""The run directory: complete checkpoints `step-XXXXXXXX`, and `latest`, a link that moves in one rename.

The names of a checkpoint's files stand in the directory itself as links through `latest`, so that a run directory is
a checkpoint too. A step is written under a temporary name and renamed when all of it is on disk, and renamed again
before it is removed: what carries the name `step-...` is complete, whenever the process was killed.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bltkit.checkpoint import Bundle, atomic_directory, write_bundle

STATE_TENSORS = "optimizer.safetensors"
STATE_VALUES = "training.json"
EXACT = "weight"
"""Key of a weight as it was trained, where the checkpoint holds it rounded."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: everything besides weights and the optimizer's moments that the next step depends on."""

    step: int
    schedule_steps: int
    loader: dict[str, Any]
    text_bytes: int
    num_patches: int
    seconds: float


class RunDirectory:
    """The files of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [entry for entry in self.path.glob("step-*") if re.fullmatch(r"step-\d{8}", entry.name)]
        return sorted(found)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(
        self,
        bundle: Bundle,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        position: Position,
        keep: int,
        dtype: torch.dtype | None,
    ) -> Path:
        """Write a checkpoint, move `latest` to it, and remove all but the newest `keep`. Raises OSError (disk full).

        dtype: of the bundle's weights; the run itself goes on from exact ones, which then lie beside the moments.
        """
        target = self.path / f"step-{position.step:08d}"
        tensors = _optimizer_tensors(model, optimizer)
        if dtype is not None:
            tensors |= {f"{name}|{EXACT}": weight.detach().cpu() for name, weight in model.named_parameters()}
        with atomic_directory(target) as directory:
            write_bundle(directory, bundle, dtype=dtype)
            try:
                save_file(tensors, directory / STATE_TENSORS)
            except SafetensorError as error:
                raise OSError(f"{directory / STATE_TENSORS} could not be written: {error}") from error
            (directory / STATE_VALUES).write_text(json.dumps(position.__dict__, indent=1), encoding="utf-8")
        self.publish(target)
        for old in self.steps()[:-keep]:
            doomed = old.rename(self.path / f".{old.name}.old")
            shutil.rmtree(doomed)
        return target

    def publish(self, step: Path) -> None:
        """Make the run directory stand for the checkpoint `step`."""
        self._link("latest", step.name)
        for file in step.iterdir():
            if file.name not in (STATE_TENSORS, STATE_VALUES):
                self._link(file.name, f"latest/{file.name}")

    def clean(self) -> None:
        """Remove what a killed process left half-written or half-removed."""
        for rest in self.path.glob(".step-*"):
            shutil.rmtree(rest)

    def restore(self, step: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
        """Load the optimizer's moments, and exact weights if there are any, and return the position.

        Raises ValueError for damaged files.
        """
        try:
            position = Position(**json.loads((step / STATE_VALUES).read_text()))
            tensors = load_file(step / STATE_TENSORS)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"the training state in {step} is damaged ({error}); remove that folder to go on from an earlier step"
            ) from None
        names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
        for group in optimizer.param_groups:
            for weight in group["params"]:
                prefix = f"{names[weight]}|"
                state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                if (exact := state.pop(EXACT, None)) is not None:
                    weight.data.copy_(exact)
                optimizer.state[weight] = {key: value.to(weight.device) for key, value in state.items()}
        return position

    def _link(self, name: str, target: str) -> None:
        if (self.path / name).is_symlink() and str((self.path / name).readlink()) == target:
            return
        temporary = self.path / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.path / name)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    return {
        f"{names[weight]}|{key}": value.detach().cpu().contiguous()
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }
