"""The training loop, one process: batches in, checkpoints and metrics out. Resumes bit for bit.

Every random choice is a function of the seed and the step, so weights, the optimizer's moments and a position are
all the state there is.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bltkit.checkpoint import Bundle, load_bundle, resolve_model, write_atomic
from bltkit.config import dump_toml
from bltkit.data import Batch, Corpus, Loader, validation_batches
from bltkit.model import Blt, BoundaryModel, CnnEntropy, EntropyModel
from bltkit.model.flops import forward_flops
from bltkit.patches import Patches
from bltkit.patching import patch
from bltkit.train.config import ModelConfig, TrainConfig
from bltkit.train.metrics import Reporter, Tally, bits_per_byte, forget_after
from bltkit.train.optim import apply_update, build_optimizer
from bltkit.train.patcher import count_text_patches, load_patcher
from bltkit.train.run import Position, RunDirectory

TrainedModel = Blt | EntropyModel | BoundaryModel | CnnEntropy


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
    """Train as `config` says and keep checkpoints in `out`.

    resume: go on from the newest complete checkpoint in `out`. Ctrl-C and SIGTERM save and return.
    say: told about what a user should know, a line at a time.
    Raises ValueError for an existing `out` without `resume`, and for data or models that do not fit.
    """
    run = RunDirectory(Path(out))
    start = _starting_point(run, resume, say)
    return _Trainer(config, run, say).run(start)


def _starting_point(run: RunDirectory, resume: bool, say: Callable[[str], None]) -> Path | None:
    if not resume:
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise ValueError(f"{run.path} exists; add --resume to go on with it, or name another --out")
        return None
    latest = run.latest()
    if latest is None:
        say(f"no complete checkpoint in {run.path}: starting over")
    return latest


def build_model(config: ModelConfig) -> TrainedModel:
    """The uninitialised module that a `[model]` section describes."""
    builders: dict[str, Callable[[Any], TrainedModel]] = {
        "blt": Blt,
        "entropy": EntropyModel,
        "boundary": BoundaryModel,
        "cnn": CnnEntropy,
    }
    return builders[config.kind](config)


class _Trainer:
    def __init__(self, config: TrainConfig, run: RunDirectory, say: Callable[[str], None]) -> None:
        self.config, self.run_directory, self.say = config, run, say
        self.device = _device(config.trainer.device)
        self.autocast = _autocast(config.trainer.precision, self.device)
        config.objective.check()
        self.patcher = load_patcher(config)
        if self.patcher.scorer is not None:
            cast(nn.Module, self.patcher.scorer).to(self.device).eval()
        self.corpus = Corpus.from_sources(config.data.sources, config.data.validation_fraction)
        self.loader = Loader(self.corpus, config.data.row_bytes, config.data.batch_rows, config.trainer.seed)
        generator = torch.Generator().manual_seed(config.trainer.seed)
        self.model = build_model(config.model).reset_parameters(generator).to(self.device)
        self.optimizer = build_optimizer(config.optim, self.model)
        self.stop = False

    def run(self, start: Path | None) -> Result:
        config, out = self.config.trainer, self.run_directory.path
        schedule = self.config.optim.schedule_steps or config.max_steps
        position = Position(0, schedule, self.loader.state, 0, 0, 0.0)
        if start is not None:
            position = self._restore(start)
        else:
            if config.init is not None:
                self._take_weights(resolve_model(config.init), "trainer.init must name a model of the config's shape")
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "config.toml", dump_toml(self.config.model_dump(mode="json")).encode())
        self.run_directory.clean()
        forget_after(out, position.step)
        first = position.step
        with self._signals(), Reporter(out, config.max_steps, first) as reporter:
            position = self._steps(position, reporter, saved=start is not None)
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
        config = self.config
        tally, last_save, began = Tally(), time.monotonic(), time.monotonic()
        base_seconds = position.seconds
        while position.step < config.trainer.max_steps and not self.stop:
            nats, text_nats, counts = self._step(position)
            position = dataclasses.replace(
                position,
                step=position.step + 1,
                loader=self.loader.state,
                text_bytes=position.text_bytes + counts.text_bytes,
                num_patches=position.num_patches + counts.patches,
                seconds=base_seconds + time.monotonic() - began,
            )
            saved = False
            tally.nats += nats
            tally.text_nats += text_nats
            tally.targets += counts.targets
            tally.text_bytes += counts.text_bytes
            tally.patches += counts.patches
            reporter.advance(position.step)
            if position.step % config.trainer.log_every == 0 or position.step == config.trainer.max_steps:
                row = {"step": position.step, **tally.report(), "bytes_seen": position.text_bytes}
                reporter.write(row | {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": counts.grad_norm})
                tally = Tally()
            every = config.trainer.validate_every
            if every and position.step % every == 0 and position.step < config.trainer.max_steps:
                reporter.write({"step": position.step, "validation_bits_per_byte": self._validate()})
            due = config.checkpoint.every_steps and position.step % config.checkpoint.every_steps == 0
            if due or time.monotonic() - last_save > config.checkpoint.every_seconds:
                self._save(position)
                saved, last_save = True, time.monotonic()
        if not saved:
            self._save(position)
        return position

    def _step(self, position: Position) -> "tuple[float, float, _Counts]":
        batches = [next(self.loader) for _ in range(self.config.trainer.accumulate)]
        targets = sum(batch.num_targets for batch in batches)
        sums = torch.zeros(3, device=self.device)
        self.model.train()
        for batch in batches:
            loss, text_loss, count = self._loss(batch)
            (loss / max(1, targets)).backward()
            sums += torch.stack([loss.detach(), text_loss, count])
        gradient = apply_update(self.optimizer, self.config.optim, position.step, position.schedule_steps)
        # All of a step's figures at once: each look at the device waits for it.
        total, text, patches, norm = torch.cat([sums, gradient[None]]).tolist()
        if not norm < float("inf"):
            raise FloatingPointError(
                f"the gradient of step {position.step + 1} is not finite; lower optim.lr (now {self.config.optim.lr}) "
                f"and --resume from the last checkpoint"
            )
        return total, text, _Counts(sum(batch.text_bytes for batch in batches), targets, int(patches), norm)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss sums of one batch, and the patches that hold its text (BOS's and EOS's own not counted)."""
        batch = batch.to(self.device)
        patches = self._patches(batch)
        with self.autocast():
            loss, text = self.config.objective.loss(self.model, batch, patches)
        return loss, text, count_text_patches(batch.ids, patches)

    def _patches(self, batch: Batch) -> Patches | None:
        if not isinstance(self.model, Blt):
            return None
        rule = self.patcher.rule
        assert rule is not None
        scores = None if rule.scores is None else cast(EntropyModel, self.patcher.scorer).scores(batch.ids)
        return patch(rule, batch.ids, scores, batch.num_bytes, documents=self.model.config.document_masks)

    @torch.no_grad()
    def _validate(self) -> float | None:
        self.model.eval()
        nats, count = 0.0, 0
        data = self.config.data
        batches = validation_batches(
            self.corpus, data.row_bytes, data.batch_rows, self.config.trainer.validation_batches
        )
        for batch in batches:
            nats += float(self._loss(batch)[1])
            count += batch.text_bytes
        return bits_per_byte(nats, count) if count else None

    def _save(self, position: Position) -> None:
        dtype = torch.bfloat16 if self.config.checkpoint.dtype == "bf16" else None
        self.run_directory.save(
            self._bundle(position), self.model, self.optimizer, position, self.config.checkpoint.keep, dtype
        )

    def _bundle(self, position: Position) -> Bundle:
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
        if isinstance(self.model, Blt):
            record |= {key: self.patcher.record[key] for key in ("calibrated",) if key in self.patcher.record}
            record["mean_patch_bytes"] = position.text_bytes / max(1, position.num_patches)
            return Bundle(self.model, self.patcher.scorer, self.patcher.rule, record)
        return Bundle(None, self.model, None, record)

    def _restore(self, step: Path) -> Position:
        self._take_weights(step, "resume with the run's own config.toml")
        position = self.run_directory.restore(step, self.model, self.optimizer)
        self.loader.restore(position.loader)
        self.run_directory.publish(step)  # a kill may have come between writing it and this
        if self.config.optim.schedule_steps is not None:
            position = dataclasses.replace(position, schedule_steps=self.config.optim.schedule_steps)
        return position

    def _take_weights(self, checkpoint: Path, remedy: str) -> None:
        bundle = load_bundle(checkpoint)
        saved = bundle.model if isinstance(self.model, Blt) else bundle.scorer
        if saved is None or cast(Any, saved).config != self.model.config:
            raise ValueError(f"{checkpoint} holds a model of another shape than the config; {remedy}")
        source = cast(nn.Module, saved).state_dict()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(source[name])

    def _train_flops(self, position: Position) -> float:
        patch_bytes = position.text_bytes / position.num_patches if position.num_patches else 1.0
        return 3 * position.text_bytes * forward_flops(self.model.config, patch_bytes, self.config.data.row_bytes)

    def _result(self, position: Position, validation: float | None, interrupted: bool) -> Result:
        if validation is None:
            validation = self._validate_on_training_text()
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

    @torch.no_grad()
    def _validate_on_training_text(self) -> float:
        fresh = Loader(self.corpus, self.config.data.row_bytes, self.config.data.batch_rows, self.config.trainer.seed)
        batch = next(fresh)
        return bits_per_byte(float(self._loss(batch)[1]), batch.text_bytes)

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


@dataclasses.dataclass(frozen=True)
class _Counts:
    text_bytes: int
    targets: int
    patches: int
    grad_norm: float


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"trainer.device = {name!r} is no device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device = 'cuda', but torch sees no GPU; use trainer.device=cpu")
    return device


def _autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" or (precision == "auto" and capable):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext
