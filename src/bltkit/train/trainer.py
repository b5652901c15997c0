"""The training loop: batches in, checkpoints and metrics out. Resumes bit for bit, on any number of processes.

Every random choice is a function of the seed and the step, so weights, the optimizer's moments and a position are
all the state there is.
"""

import contextlib
import copy
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import resolve_model, write_atomic, write_bundle
from bltkit.checkpoint.atomic import sync_tree
from bltkit.config import dump_toml
from bltkit.data import Batch, Corpus, Loader, validation_batches
from bltkit.data.sources.chat import chat_template
from bltkit.data.template import RECORD_KEY
from bltkit.model import Blt
from bltkit.model.flops import forward_flops
from bltkit.train.config import TrainConfig
from bltkit.train.guard import GuardState
from bltkit.train.learner import Counts, Learner
from bltkit.train.metrics import Reporter, Tally, bits_per_byte, forget_after, reading
from bltkit.train.optim import learning_rate
from bltkit.train.parallel import World, world_of
from bltkit.train.patcher import load_patcher
from bltkit.train.run import RunDirectory
from bltkit.train.sinks import check_reports
from bltkit.train.state import Position, Saver, read_position, restore, training_state


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    bits_per_byte: on validation text; on the first batch of training text where there is none, or no time for it
        (`interrupted`).
    """

    out: str
    steps: int
    bits_per_byte: float
    bytes_seen: int
    train_flops: float
    mean_patch_bytes: float | None
    interrupted: bool


def train(config: TrainConfig, out: str | Path, *, resume: bool = False, say: Callable[[str], None] = print) -> Result:
    """Train as `config` says and keep checkpoints in `out`; under torchrun, with all of its processes.

    resume: go on from the newest complete checkpoint in `out`. Ctrl-C and SIGTERM save and return.
    say: told about what a user should know, a line at a time, by the main process.
    Raises ValueError for an existing `out` without `resume`, and for data or models that do not fit.
    """
    trainer = config.trainer
    with world_of(trainer.device, trainer.shard) as world, _numerics(trainer.threads, trainer.deterministic):
        tell = say if world.is_main else _silent
        run = RunDirectory(Path(out))
        start = _starting_point(config, run, resume, tell)
        world.barrier()  # nobody writes before all have looked
        return _Trainer(config, run, world, tell).run(start, resumed=resume and start is not None)


def _silent(line: str) -> None:
    """What all but the main process say."""


def _starting_point(config: TrainConfig, run: RunDirectory, resume: bool, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from."""
    if not resume and run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise ValueError(f"{run.path} exists; add --resume to go on with it, or name another --out")
    latest = run.latest() if resume else None
    if latest is None and resume:
        say(f"no complete checkpoint in {run.path}: starting over")
    if latest is None and config.trainer.branch is not None:
        branch = resolve_model(config.trainer.branch)
        return (branch / "latest").resolve() if (branch / "latest").exists() else branch
    return latest


class _Trainer:
    def __init__(self, config: TrainConfig, run: RunDirectory, world: World, say: Callable[[str], None]) -> None:
        self.config, self.run_directory, self.world, self.say = config, run, world, say
        config.objective.check()
        check_reports(config.trainer.report)
        self.template = chat_template(config.data.sources)
        self.patcher = load_patcher(config)
        self.corpus = self._read_corpus()
        data = config.data
        in_workers = config.patching.where == "workers" and data.workers and self.corpus.opens is None
        self.loader = Loader(
            self.corpus,
            data.row_bytes,
            data.batch_rows,
            config.trainer.seed,
            row_patches=data.row_patches,
            rank=world.rank,
            num_ranks=world.size,
            workers=data.workers,
            # Workers have no part of a GPU: they keep a scorer of their own.
            prepare=copy.deepcopy(self.patcher).opens if in_workers and config.model.kind == "blt" else None,
        )
        self.learner = Learner(config, world, self.patcher.on(world.device))
        self.saver = Saver(world, config.checkpoint.background)
        self.stop = False

    def _read_corpus(self) -> Corpus:
        """In memory, or as files that all processes share: then the first one lays them down and the others wait."""
        data = self.config.data
        sources = [self.patcher.source(source) for source in data.sources]
        directory = None if data.cache is None else Path(data.cache)
        if directory is None and self.world.size > 1:
            directory = self.run_directory.path / "corpus"
        with reading(self.world.is_main) as progress:
            corpus = Corpus.from_sources(sources, data.validation_fraction, directory=directory, progress=progress)
        for source, stats in zip(sources, corpus.stats, strict=True):
            for kind, count in stats.faults.items():
                if getattr(source, kind) == "skip":
                    self.say(f"{stats.label}: left out {count} that are {kind}, such as {stats.examples[kind][0]}")
        return corpus

    def run(self, start: Path | None, resumed: bool) -> Result:
        config, out, main = self.config.trainer, self.run_directory.path, self.world.is_main
        schedule = self.config.optim.schedule_steps or config.max_steps
        position = Position(0, schedule, self.loader.state, 0, 0, 0.0, self.learner.guard.to_json())
        if start is not None:
            position = self._restore(start, resumed)
        if main and not resumed:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "config.toml", dump_toml(self.config.model_dump(mode="json")).encode())
        if main:
            self.run_directory.clean()
            if resumed and start is not None:
                self.run_directory.publish(start)  # a kill may have come between writing it and this
            forget_after(out, position.step)
        first = position.step
        with self._signals(), Reporter(out if main else None, self.config, first) as reporter:
            try:
                position = self._steps(position, reporter, saved=resumed)
            except OSError:  # a full disk: half a checkpoint would only take more of it
                if main:
                    self.run_directory.clean()
                raise
            finally:
                self.loader.close()
            finished = position.step >= config.max_steps
            validation = self._validate() if finished else None
            if validation is not None and position.step > first:
                reporter.write({"step": position.step, "validation_bits_per_byte": validation})
        if not finished:
            self.say(f"interrupted: step {position.step} is saved in {out}; go on with --resume")
        elif position.step == first:
            self.say(f"{out} is at step {first} already; raise trainer.max_steps ({config.max_steps}) to go on")
        return self._result(position, validation, interrupted=not finished)

    def _steps(self, position: Position, reporter: Reporter, saved: bool) -> Position:
        """Train until the last step or a signal, and save. saved: is `position` on disk already."""
        config, learner = self.config, self.learner
        tally, last_save, began = Tally(), time.monotonic(), time.monotonic()
        base_seconds = position.seconds
        while position.step < config.trainer.max_steps:
            batches = [next(self.loader) for _ in range(config.trainer.accumulate)]
            late = self.world.is_main and time.monotonic() - last_save > config.checkpoint.every_seconds
            # One message a step: who wants to stop, and what the clock says, is the same everywhere from here on.
            *counted, stops, lates = self.world.sums([*Counts.of(batches), self.stop, late])
            if stops:
                break
            counts = Counts(*map(int, counted))
            figures = learner.step(batches, position.step, position.schedule_steps, counts)
            position = Position(
                step=position.step + 1,
                schedule_steps=position.schedule_steps,
                loader=self.loader.state,
                text_bytes=position.text_bytes + figures.seen_bytes,
                num_patches=position.num_patches + figures.patches,
                seconds=base_seconds + time.monotonic() - began,
                guard=learner.guard.to_json(),
            )
            saved = False
            tally.add(figures)
            reporter.advance(position.step)
            if position.step % config.trainer.log_every == 0 or position.step == config.trainer.max_steps:
                row = {"step": position.step, **tally.report(), "bytes_seen": position.text_bytes}
                rate = learning_rate(config.optim, position.step - 1, position.schedule_steps)
                row |= {"lr": rate, "grad_norm": figures.grad_norm, "epoch": self.loader.epoch}
                reporter.write(row | {"padding": self.loader.waste.bytes, "patch_padding": self.loader.waste.patches})
                tally = Tally()
            every = config.trainer.validate_every
            if every and position.step % every == 0 and position.step < config.trainer.max_steps:
                reporter.write({"step": position.step, "validation_bits_per_byte": self._validate()})
            due = config.checkpoint.every_steps and position.step % config.checkpoint.every_steps == 0
            if due or lates or self.saver.failed:
                self._save(position, last=False)
                saved, last_save = True, time.monotonic()
        if not saved:
            self._save(position, last=True)
        self.saver.wait()
        self.world.barrier()
        return position

    def _validate(self) -> float | None:
        data, world = self.config.data, self.world
        batches = validation_batches(
            self.corpus,
            data.row_bytes,
            data.batch_rows,
            self.config.trainer.validation_batches,
            row_patches=data.row_patches,
            rank=world.rank,
            num_ranks=world.size,
        )
        nats, count = self.learner.nats(batches)
        return bits_per_byte(nats, count) if count else None

    def _save(self, position: Position, last: bool) -> None:
        """Begin to write a checkpoint; it gets its name when all of it is on disk."""
        section, run, step = self.config.checkpoint, self.run_directory, position.step
        self.saver.wait()
        if self.world.is_main:
            run.begin(step)
        self.world.barrier()
        directory = run.unfinished(step)
        export = section.export == "always" or last
        weights = self.learner.weights() if export else {}
        record = self._record(position)
        dtype = torch.bfloat16 if section.dtype == "bf16" else None

        def beside() -> None:
            if export:
                write_bundle(directory, self.learner.bundle(weights, record), dtype=dtype)

        def done() -> None:
            if self.world.is_main:
                sync_tree(directory)
                run.complete(step, section.keep, section.keep_every)

        state = training_state(self.learner.model, self.learner.optimizer, self.world)
        self.saver.save(directory, state, position, beside, done)

    def _record(self, position: Position) -> dict[str, Any]:
        record = {
            "config": self.config.model_dump(mode="json", exclude_none=True),
            "row_bytes": self.config.data.row_bytes,
            "steps": position.step,
            "bytes_seen": position.text_bytes,
            "train_flops": self._train_flops(position),
            "corpus": self.corpus.fingerprint,
            "sources": [dataclasses.asdict(stats) for stats in self.corpus.stats],
            "seed": self.config.trainer.seed,
            "torch": torch.__version__,
        }
        if self.template is not None:
            record[RECORD_KEY] = self.template.model_dump()
        if isinstance(self.learner.model, Blt):
            record |= {key: self.patcher.record[key] for key in ("calibrated",) if key in self.patcher.record}
            record["mean_patch_bytes"] = position.text_bytes / max(1, position.num_patches)
        return record

    def _restore(self, step: Path, resumed: bool) -> Position:
        if read_position(step).step >= self.config.trainer.max_steps and not resumed:
            raise ValueError(
                f"trainer.branch is at step {read_position(step).step} already; raise trainer.max_steps "
                f"({self.config.trainer.max_steps}), which counts from the run's beginning"
            )
        position = restore(step, self.learner.model, self.learner.optimizer, self.world)
        self.loader.restore(position.loader)
        if resumed:
            self.learner.guard = GuardState.from_json(position.guard)
        if self.config.optim.schedule_steps is not None or not resumed:
            schedule = self.config.optim.schedule_steps or self.config.trainer.max_steps
            position = dataclasses.replace(position, schedule_steps=schedule)
        return position

    def _train_flops(self, position: Position) -> float:
        patch_bytes = position.text_bytes / position.num_patches if position.num_patches else 1.0
        return 3 * position.text_bytes * forward_flops(self.config.model, patch_bytes, self.config.data.row_bytes)

    def _result(self, position: Position, validation: float | None, interrupted: bool) -> Result:
        if validation is None:
            nats, count = self.learner.nats([self._first_batch()])
            validation = bits_per_byte(nats, count)
        patch_bytes = position.text_bytes / position.num_patches if position.num_patches else None
        return Result(
            out=str(self.run_directory.path),
            steps=position.step,
            bits_per_byte=validation,
            bytes_seen=position.text_bytes,
            train_flops=self._train_flops(position),
            mean_patch_bytes=patch_bytes,
            interrupted=interrupted,
        )

    def _first_batch(self) -> Batch:
        data, world = self.config.data, self.world
        fresh = Loader(
            self.corpus,
            data.row_bytes,
            data.batch_rows,
            self.config.trainer.seed,
            row_patches=data.row_patches,
            rank=world.rank,
            num_ranks=world.size,
        )
        return next(fresh)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the loop to stop after the step; a second Ctrl-C stops at once."""

        def ask(number: int, frame: Any) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: nobody can press Ctrl-C here
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _numerics(threads: int | None, deterministic: bool) -> Iterator[None]:
    """Threads and determinism as the run wants them, and afterwards as they were."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(deterministic or before[1])
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
