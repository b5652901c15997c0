"""What a run goes on from, on disk: weights, the optimizer's moments and the position.

`torch.distributed.checkpoint` holds the tensors under the names that they have in a model to which nothing was done,
each process writing its own part, so that a run can go on with any number of processes. The position is a line of
JSON. What is written is a copy, made while the loop waits; the writing itself happens beside the next steps, and so do
the digests of all of it (`checksums.py`), which whoever goes on from a checkpoint compares first.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bltkit.checkpoint import write_atomic
from bltkit.checkpoint.checksums import (
    POSITION,
    DamagedCheckpointError,
    read_checksums,
    step_of,
    verify_file,
    verify_files,
    write_checksums,
)
from bltkit.files import parse_json, require_regular
from bltkit.train.ema import WeightAverage
from bltkit.train.optim import Optimizer
from bltkit.train.parallel import World, globally, named_weights
from bltkit.train.tensor_reader import TensorReader

STATE = "state"
"""The directory of the tensors, in a checkpoint's."""
FORMAT = 2
"""Of the position. From 2 on a checkpoint has checksums; 1, of version 0.1.0, says no number."""

WEIGHT, _MOMENT, _AVERAGE = "model.", "optim.", "ema."
"""What the names of weights, of the optimizer's tensors and of averaged weights begin with."""


@dataclass(frozen=True)
class RunPosition:
    """Where a run stands: everything besides weights and the optimizer's moments that the next step depends on."""

    step: int
    schedule_steps: int
    loader: dict[str, Any]
    text_bytes: int
    num_patches: int
    seconds: float
    guard: dict[str, Any]
    """What the guard remembers of past losses."""
    tally: dict[str, Any]
    """Sums since the last line of metrics."""
    inputs: dict[str, str] = field(default_factory=dict)
    """What the config names by path and the steps depend on, by key: digests of it. Empty in version 0.1.0."""


def training_state(
    model: nn.Module, optimizer: Optimizer, world: World, average: WeightAverage | None = None
) -> dict[str, Tensor]:
    """Every tensor that the next step depends on, by its name in the checkpoint."""
    state = {WEIGHT + name: globally(name, weight.detach(), model, world) for name, weight in weights_of(model)}
    for key, value in optimizer.tensors().items():
        state[_MOMENT + key] = globally(key.partition("|")[0], value, model, world)
    for name, value in {} if average is None else average.tensors().items():
        state[_AVERAGE + name] = globally(name, value, model, world)
    return state


def weights_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters."""
    return list(named_weights(model).items())


class Saver:
    """Writes one checkpoint at a time, beside the training."""

    def __init__(self, world: World, background: bool, run: str | None = None) -> None:
        """run: the number of the run whose checkpoints these are (`RunDirectory.identity`)."""
        self._world, self._background, self._run = world, background, run
        _expect_one_process(world)
        self._threads = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(
        self,
        directory: Path,
        state: Mapping[str, Tensor],
        position: RunPosition,
        beside: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        """Write `state` and `position` into `directory`, which is there.

        beside: writes whatever else belongs to the checkpoint, in the main process. done: called by every process when
            all of it is on disk.
        Waits for the checkpoint before this one; raises what it raised (OSError: disk full), in every process.
        """
        self.wait()
        copied = {name: _copied(tensor) for name, tensor in state.items()}

        def write() -> None:
            with self._world.together(self._world.writers):
                if self._world.is_main:
                    beside()
                    content = {"format": FORMAT} | asdict(position)
                    write_atomic(directory / POSITION, json.dumps(content, indent=1).encode())
            alone = self._world.size == 1
            try:
                save(copied, checkpoint_id=directory / STATE, process_group=self._world.writers, no_dist=alone)
            except CheckpointException as error:  # a BaseException: nobody above expects one
                raise _first(error) from None
            with self._world.together(self._world.writers):
                if self._world.is_main:  # all have written
                    write_checksums(directory, position.step, self._run)
                done()

        if self._background:
            self._pending = self._threads.submit(write)
        else:
            write()

    def wait(self) -> None:
        """For what is being written; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for what is being written, whatever comes of it; nothing more can be saved."""
        self._threads.shutdown(wait=True)

    @property
    def failed(self) -> bool:
        """Has a write in the background come to nothing? `wait` says why."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, and untouched by further steps."""
    # Of a DTensor, this process's part; no operation that needs the other processes.
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()


def read_position(checkpoint: Path) -> RunPosition:
    """The position of a checkpoint, compared with its checksum where it has one.

    Raises ValueError for one that is damaged, or that this version cannot read.
    """
    checksums = read_checksums(checkpoint)
    try:
        require_regular(checkpoint / POSITION)
        data = (checkpoint / POSITION).read_bytes()
        if checksums is not None:
            verify_file(checkpoint, POSITION, data, checksums)
        content = parse_json(data, POSITION)
        version = content.pop("format", 1)
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(f"{POSITION} has format {version}, this version reads up to {FORMAT}: update bltkit")
        position = RunPosition(**content)
        if type(position.step) is not int:
            raise TypeError(f"{POSITION}: step = {position.step!r}")
    except (DamagedCheckpointError, PermissionError):
        raise
    except FileNotFoundError:
        raise DamagedCheckpointError(checkpoint, f"{POSITION} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise damaged(checkpoint, error) from None
    if checksums is None and version > 1:
        raise DamagedCheckpointError(checkpoint, "checksums.json is missing")
    for told in (step_of(checkpoint), None if checksums is None else checksums["step"]):
        if told is not None and told != position.step:
            raise DamagedCheckpointError(checkpoint, f"{POSITION} is of step {position.step}")
    return position


def verify(checkpoint: Path, run: str | None = None) -> bool:
    """Read everything that a checkpoint holds; True where it has checksums, which all files then have.

    run: the number of the run that a checkpoint which has one has to be of.
    One of version 0.1.0 has none: of it the step, the description of the tensors and the files' lengths are compared.
    Raises DamagedCheckpointError for a checkpoint that no run can go on from; nothing of it is unpickled.
    """
    checksums = read_checksums(checkpoint)
    read_position(checkpoint)
    if checksums is not None:
        if run is not None and checksums["run"] not in (None, run):
            raise DamagedCheckpointError(checkpoint, "it is of another run")
        verify_files(checkpoint, checksums)
        return True
    try:
        TensorReader(checkpoint / STATE).verify_sizes()
    except (OSError, ValueError) as error:
        raise damaged(checkpoint, error) from None
    return False


def restore(
    checkpoint: Path, model: nn.Module, optimizer: Optimizer, world: World, average: WeightAverage | None = None
) -> RunPosition:
    """Load weights, moments and their average, whatever number of processes wrote them, and return the position.

    Averages that the checkpoint does not hold begin with its weights.
    The files are taken to be sound (see `verify`). Raises ValueError for damaged ones and for a model of another shape.
    """
    position = read_position(checkpoint)
    _expect_one_process(world)
    reader = TensorReader(checkpoint / STATE)
    try:
        sizes = reader.shapes()
    except (OSError, ValueError) as error:
        raise damaged(checkpoint, error) from None
    weights = dict(weights_of(model))
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensor = globally(name, weight.detach(), model, world)
        if sizes.get(WEIGHT + name) != tuple(tensor.shape):
            raise ValueError(f"{checkpoint} holds a model of another shape than the config; resume with the run's own")
        state[WEIGHT + name] = tensor
    moments = {}
    for key, size in sizes.items():
        if key.startswith(_MOMENT):
            name = key.removeprefix(_MOMENT).partition("|")[0]
            if name not in weights:
                raise ValueError(f"{checkpoint} has moments of {name}, which is no weight of the config's model")
            own = optimizer.tensors().get(key.removeprefix(_MOMENT))  # not where a part was frozen since
            if own is None:
                continue
            moments[key] = own
            state[key] = globally(name, own, model, world)
            if tuple(state[key].shape) != size:
                raise ValueError(
                    f"{checkpoint} has moments of another shape for {name}; resume with the run's own config"
                )
    averages = {} if average is None else average.tensors()
    kept = {name: value for name, value in averages.items() if _AVERAGE + name in sizes}
    state |= {_AVERAGE + name: globally(name, value, model, world) for name, value in kept.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch guesses at what a file is that it then refuses
            load(state, storage_reader=reader, no_dist=world.size == 1)
    except CheckpointException as error:
        raise damaged(checkpoint, _first(error)) from None
    except Exception as error:  # of one process, whatever it ran into
        raise damaged(checkpoint, error) from None
    optimizer.load({key.removeprefix(_MOMENT): moments[key] for key in moments})
    if average is not None:
        average.begin(averages.keys() - kept.keys())
    return position


def _expect_one_process(world: World) -> None:
    """torch warns of one process writing alone, at every checkpoint."""
    if world.size == 1:
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning, "torch.distributed.checkpoint")


def _first(error: CheckpointException) -> Exception:
    """What the first process that failed ran into.

    Torch's writer of archives hides what the system says of a full disk behind words about its own positions.
    """
    failure, _ = next(iter(error.failures.values()))
    if not isinstance(failure, Exception):
        return RuntimeError(str(failure))
    if isinstance(failure.__context__, OSError):
        return failure.__context__
    if "inline_container" in str(failure):  # of another process, whose context did not come along
        return OSError(f"the tensors could not be written: {failure}")
    return failure


def damaged(checkpoint: Path, error: Exception) -> DamagedCheckpointError:
    """What to say of files that cannot be read."""
    if isinstance(error, DamagedCheckpointError):
        return error
    # Torch's second sentence advises to load what may run commands.
    reason = str(error).strip().partition("\n")[0].partition(". ")[0]
    return DamagedCheckpointError(checkpoint, f"{type(error).__name__}: {reason or 'empty'}")
