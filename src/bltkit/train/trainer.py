"""The training loop: batches in, checkpoints and metrics out. Resumes bit for bit, on any number of processes.

Every random choice is a function of the seed and the step, so weights, the optimizer's moments and a position are
all the state there is.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bltkit.data import Batch, Corpus, Loader, TokenBatch, validation_batches
from bltkit.data.corpus import RowShape
from bltkit.data.loader import Prepare
from bltkit.data.sources.chat import chat_template
from bltkit.files import writer_lock
from bltkit.model import Blt, BltConfig
from bltkit.train.changes import CONFIG_TOML, write_changes
from bltkit.train.checkpoint_writer import CheckpointWriter
from bltkit.train.config import TrainConfig, read_config
from bltkit.train.failures import check_room, explained, is_lost_worker
from bltkit.train.learner import Counts, Learner, StepFigures
from bltkit.train.loggers import check_reports
from bltkit.train.loop_state import LoopState, Votes
from bltkit.train.loss_guard import GuardState
from bltkit.train.metrics import Reporter, Tally, bits_per_byte, forget_after, reading, validated
from bltkit.train.optim import learning_rate
from bltkit.train.parallel import World, check_rows, world_of
from bltkit.train.patcher import Patcher, check_inputs, input_digests, load_patcher
from bltkit.train.process import numerics, stop_requests
from bltkit.train.result import Result
from bltkit.train.resume import Start, refuse_existing, starting_point
from bltkit.train.run_directory import CORPUS, RunDirectory
from bltkit.train.stages import StagedLoader, part_size
from bltkit.train.state import RunPosition, restore
from bltkit.train.token_vocabulary import known_vocabulary, trained_vocabulary
from bltkit.train.training_record import train_flops, training_record, write_run_card


def train(
    config: TrainConfig | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
    threads: int | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train as `config` says and keep checkpoints in `out`; under torchrun, with all of its processes. `blt train` is
    this function.

    config: a value or a TOML file. out: the run's directory; of a file NAME.toml, runs/out/NAME by default.
    overrides: `section.key=value`, on top of the config. device, threads: in place of `trainer.device` and `.threads`.
    resume: go on from the newest complete checkpoint in `out` whose files have their checksums; the config may differ
        from the run's own in what `changes.CHANGEABLE` lists. Ctrl-C and SIGTERM save and return.
    say: told about what a user should know, a line at a time, by the main process.
    Raises ValueError for an existing `out` without `resume`, one that another process trains in, and for data, models
    or changes that do not fit; OSError where there is no room for a checkpoint; FloatingPointError where the guard ends
    the run.
    """
    if out is None:
        if isinstance(config, TrainConfig):
            raise ValueError("out is missing; name the run's directory, such as out='runs/out/first'")
        out = Path("runs/out") / Path(config).stem
    config = read_config(config, overrides, device, threads)
    trainer = config.trainer
    with (
        world_of(trainer.device, trainer.shard) as world,
        numerics(trainer.threads, trainer.deterministic, world.device),
    ):
        tell = say if world.is_main else _silent
        run = RunDirectory(Path(out))
        with contextlib.ExitStack() as stack:
            with world.together():
                refuse_existing(run, resume)  # before a lock is written beside somebody's files
                if world.is_main:
                    stack.enter_context(writer_lock(run.path, tell))
            with world.together():  # nobody writes before all have looked
                start = starting_point(config, run, resume, tell, verified=world.is_main)
            return _Trainer(config, run, world, tell, world.of_main(start)).run()


def _silent(line: str) -> None:
    """What all but the main process say."""


class _Trainer:
    def __init__(
        self, config: TrainConfig, run: RunDirectory, world: World, say: Callable[[str], None], start: Start
    ) -> None:
        self.config, self.run_directory, self.world, self.say, self.start = config, run, world, say, start
        with world.together():
            for shape in config.data.shapes:
                check_rows(shape.batch_rows, world.size)  # before a large corpus is read
            config.objective.check()
            check_reports(config.trainer.report)
            chat_template(config.data.sources)  # raises where two sources have different ones
            self.patcher = load_patcher(config)
            known = known_vocabulary(config, start.checkpoint)
            self.corpus = self._read_corpus()
            self.vocabulary = known or trained_vocabulary(config.model, self.corpus)
            self.tokenize = None if self.vocabulary is None else partial(TokenBatch.of, vocabulary=self.vocabulary)
            self.loader = StagedLoader(config.data, partial(self._loader, config.data.workers))
            goes_on = start.checkpoint is not None
            self.inputs = input_digests(config, self.patcher)
            self.learner = Learner(config, world, self.patcher.on(world.device), goes_on=goes_on)
        self.checkpoints = CheckpointWriter(config, world, run, self.learner, self.vocabulary, self._record, start.run)
        self.stop: Callable[[], bool] = lambda: False

    def _read_corpus(self) -> Corpus:
        """In memory, or as files that all processes share: then the first one lays them down and the others wait."""
        data = self.config.data
        sources = [self.patcher.source(source) for source in data.sources]
        directory = None if data.cache is None else Path(data.cache)
        if directory is None and self.world.size > 1:
            directory = self.run_directory.path / CORPUS
        with reading(self.world.is_main) as progress:
            corpus = Corpus.from_sources(sources, data.validation_fraction, directory=directory, progress=progress)
        for source, stats in zip(sources, corpus.stats, strict=True):
            for line in stats.remarks(source):
                self.say(line)
        return corpus

    def run(self) -> Result:
        config, out, main, start = self.config.trainer, self.run_directory.path, self.world.is_main, self.start
        schedule = self.config.optim.schedule_steps or config.max_steps
        guard, tally = self.learner.guard.to_json(), Tally().to_json()
        self.loader.move_to(0, schedule)
        position = RunPosition(0, schedule, self.loader.state, 0, 0, 0.0, guard, tally, self.inputs)
        if start.checkpoint is not None:
            position = self._restore(start.checkpoint)
        first = position.step
        total_bytes, process_bytes = self.checkpoints.sizes()
        with self.world.together():
            if main:
                self.run_directory.clean()  # what a full disk was left with takes room
        with self.world.together():
            if first < config.max_steps:
                check_room(out, total_bytes, process_bytes)
        with self.world.together():
            if main:
                self._lay_out(first)
            reporter = Reporter(out if main else None, self.config, first)
        if first < config.max_steps and (reason := self.learner.unreadable()):
            self.say(f"transformers will not load this run's checkpoints: {reason} has no place in its format")
        with stop_requests() as self.stop, reporter:
            try:
                with self._explained(total_bytes):
                    position = self._steps(position, reporter)
            finally:
                self.loader.close()
                self.checkpoints.close()  # also of a run that the guard ends: what it has begun to write is from before
            finished = position.step >= config.max_steps
            if finished and position.step == first:
                assert start.checkpoint is not None
                self.checkpoints.export(start.checkpoint, position)
            row = self._validate() if finished else {}
            if row and (position.step > first or (main and not validated(out, first))):
                reporter.write({"step": position.step, **row})
        if finished and main:
            write_run_card(out, row)
        if not finished:
            self.say(f"interrupted: step {position.step} is saved in {out}; go on with --resume")
        elif position.step == first:
            self.say(f"{out} is at step {first} already; raise trainer.max_steps ({config.max_steps}) to go on")
        return self._result(position, row.get("validation_bits_per_byte"), interrupted=not finished)

    @contextlib.contextmanager
    def _explained(self, checkpoint_bytes: int) -> Iterator[None]:
        """Of what ends a run early, leave nothing half-written, and say how to go on."""
        try:
            yield
        except (OSError, RuntimeError, FloatingPointError) as error:
            if isinstance(error, RuntimeError) and not is_lost_worker(error):
                raise
            self.checkpoints.close()
            if isinstance(error, OSError) and self.world.is_main:
                self.run_directory.clean()  # half a checkpoint would only take more of a full disk
            raise explained(error, self.run_directory, checkpoint_bytes) from None

    def _lay_out(self, step: int) -> None:
        """Make the run's directory what it is at `step`."""
        run, start = self.run_directory, self.start
        if not start.own:
            (run.path / CONFIG_TOML).unlink(missing_ok=True)  # of a run that never came to a checkpoint
        if not start.own or step < self.config.trainer.max_steps:
            run.identify(start.run)
            write_changes(run.path, step, start.changes, self.config)
        for damaged in start.damaged:
            run.set_aside(damaged)
        if start.own and start.checkpoint is not None:
            run.publish(start.checkpoint)  # a kill may have come between writing it and this
        forget_after(run.path, step, self.say)

    def _steps(self, position: RunPosition, reporter: Reporter) -> RunPosition:
        """Train until the last step or a signal, and save."""
        loop = LoopState.at(position, on_disk=self.start.own)
        while loop.position.step < self.config.trainer.max_steps:
            batches = [next(self.loader) for _ in range(self.config.trainer.accumulate)]
            counts, votes = self._agree(batches, loop)
            if votes.failed:
                self.checkpoints.wait()  # raises
            if votes.stop:
                break
            loop, figures = self._train_step(batches, counts, loop)
            reporter.advance(loop.position.step)
            loop = self._report(figures, loop, reporter)
            if self._should_save(loop, votes):
                self.checkpoints.save(loop.position)
                loop = loop.saved()
        if not loop.on_disk:
            self.checkpoints.save(loop.position)
        self.checkpoints.wait()
        self.world.barrier()
        return loop.position

    def _agree(self, batches: Sequence[Batch], loop: LoopState) -> tuple[Counts, Votes]:
        """Counts of the step's rows and votes of the processes: one message, after which all decide alike."""
        save_now = self.world.is_main and loop.since_save() > self.config.checkpoint.every_seconds
        votes = Votes(self.stop(), save_now, self.checkpoints.failed)
        *counts, stop, save, failed = self.world.sums([*Counts.of(batches), *votes])
        return Counts(*map(int, counts)), Votes(bool(stop), bool(save), bool(failed))

    def _train_step(self, batches: Sequence[Batch], counts: Counts, loop: LoopState) -> tuple[LoopState, StepFigures]:
        """One update of the weights; the state after it, and its figures."""
        position = loop.position
        figures = self.learner.step(batches, position.step, position.schedule_steps, counts)
        self.loader.move_to(position.step + 1, position.schedule_steps)
        tally = loop.tally.plus(figures, self.config.objective.parts)
        reported = self._should_report(position.step + 1)
        position = RunPosition(
            step=position.step + 1,
            schedule_steps=position.schedule_steps,
            loader=self.loader.state,
            text_bytes=position.text_bytes + figures.seen_bytes,
            num_patches=position.num_patches + figures.patches,
            seconds=loop.seconds(),
            guard=self.learner.guard.to_json(),
            tally=(Tally() if reported else tally).to_json(),
            inputs=self.inputs,
        )
        return dataclasses.replace(loop, position=position, tally=tally, on_disk=False), figures

    def _should_report(self, step: int) -> bool:
        trainer = self.config.trainer
        return step % trainer.log_every == 0 or step == trainer.max_steps

    def _should_save(self, loop: LoopState, votes: Votes) -> bool:
        every = self.config.checkpoint.every_steps
        return votes.save or (every is not None and loop.position.step % every == 0)

    def _report(self, figures: StepFigures, loop: LoopState, reporter: Reporter) -> LoopState:
        """Write the rows of metrics that are due at this step; the state with its sums begun again after a report."""
        trainer, position = self.config.trainer, loop.position
        if self._should_report(position.step):
            row = {"step": position.step, **loop.tally.report(), "bytes_seen": position.text_bytes}
            rate = learning_rate(self.config.optim, position.step - 1, position.schedule_steps)
            row |= {"lr": rate, "grad_norm": figures.grad_norm, "epoch": self.loader.epoch}
            reporter.write(row | {"padding": self.loader.waste.bytes, "patch_padding": self.loader.waste.patches})
            loop = dataclasses.replace(loop, tally=Tally())
        every = trainer.validate_every
        if every and position.step % every == 0 and position.step < trainer.max_steps:
            reporter.write({"step": position.step, **self._validate()})
        return loop

    def _validate(self) -> dict[str, float]:
        """The row of metrics, of the weights that are exported; empty where there is nothing to validate on.

        Where these are an average, `validation_raw_bits_per_byte` is that of the weights that are trained on.
        """
        with self.learner.exported():
            row = self._measure()
        if self.learner.average is not None and row:
            row["validation_raw_bits_per_byte"] = self._measure()["validation_bits_per_byte"]
        return row

    def _measure(self) -> dict[str, float]:
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
        batches = batches if self.tokenize is None else map(self.tokenize, batches)
        found, row = self.learner.evaluate(batches), {}
        if found.num_bytes:
            row["validation_bits_per_byte"] = bits_per_byte(found.nats, found.num_bytes)
            for name, (nats, count) in zip(self.config.objective.parts, found.parts, strict=True):
                row[f"validation_{name}_bits_per_byte"] = bits_per_byte(nats, round(count))
        return row

    def _record(self, position: RunPosition) -> dict[str, Any]:
        """The training record of a checkpoint."""
        patcher = self.patcher if isinstance(self.learner.model, Blt) else Patcher()
        return training_record(self.config, position, self.corpus, patcher, self.vocabulary)

    def _restore(self, step: Path) -> RunPosition:
        learner = self.learner
        position = restore(step, learner.model, learner.optimizer, self.world, learner.average)
        if self.start.own:
            check_inputs(position.inputs, self.inputs)
        self.loader.restore(position.loader)
        position = dataclasses.replace(position, inputs=self.inputs)
        self.learner.guard = GuardState.from_json(position.guard)
        if self.config.optim.schedule_steps is not None or not self.start.own:
            schedule = self.config.optim.schedule_steps or self.config.trainer.max_steps
            position = dataclasses.replace(position, schedule_steps=schedule)
        self.loader.move_to(position.step, position.schedule_steps)
        return dataclasses.replace(position, loader=self.loader.state)

    def _result(self, position: RunPosition, validation: float | None, interrupted: bool) -> Result:
        held_out = validation is not None
        if validation is None:
            with self.learner.exported():
                found = self.learner.evaluate([self._first_batch()])
            validation = bits_per_byte(found.nats, found.num_bytes)
        patch_bytes = position.text_bytes / position.num_patches if position.num_patches else None
        return Result(
            out=str(self.run_directory.path),
            steps=position.step,
            bits_per_byte=validation,
            bytes_seen=position.text_bytes,
            train_flops=train_flops(self.config, position),
            mean_patch_bytes=patch_bytes,
            interrupted=interrupted,
            measured_on="held-out" if held_out else "training",
        )

    def _first_batch(self) -> Batch:
        return next(self._loader(0, self.config.data.last_shape))

    def _loader(self, workers: int, shape: RowShape) -> Loader:
        """Of this process's rows, from the beginning."""
        prepare: Prepare | None = self.tokenize
        if isinstance(self.config.model, BltConfig) and self.config.patching.where == "workers":
            # Workers have no part of a GPU: they keep a scorer of their own.
            prepare = copy.deepcopy(self.patcher).opens if workers and self.corpus.opens is None else None
        return Loader(
            self.corpus,
            shape.row_bytes,
            shape.batch_rows,
            self.config.trainer.seed,
            row_patches=shape.row_patches,
            rank=self.world.rank,
            num_ranks=self.world.size,
            workers=workers,
            prepare=prepare,
            part_size=part_size(self.corpus, self.config.data),
        )
