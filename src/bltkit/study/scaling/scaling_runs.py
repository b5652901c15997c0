"""Trainings of the study `scaling`: a trunk, a decay branch for each budget, and a row for each branch. Resumable.

Nothing is decided twice: the begin and end of a branch are written down before it is trained, and an interrupted
training resumes from its own checkpoint. The batches ahead of the branch are counted, which is exact, so a run ends at
the step whose cost is nearest to the budget. A row holds the config of one whole run: `blt train` of it gives the row's
bits per byte again, without trunk or branch.
"""

import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bltkit.checkpoint import load_bundle, resolve_model, write_atomic
from bltkit.config import parse
from bltkit.files import read_json_object
from bltkit.model import CnnConfig, EntropyConfig
from bltkit.study.scaling import scaling_batches as batches
from bltkit.study.scaling.entropy_thresholds import CORPUS, Prepared
from bltkit.study.scaling.family_configs import ForwardCost, parameters
from bltkit.study.scaling.scaling_analysis import RATE
from bltkit.study.scaling.scaling_batches import Seen
from bltkit.study.scaling.scaling_plan import ScalingPlan, Trunk, digest
from bltkit.study.study import Row, StudyRun
from bltkit.train import Result, TrainConfig, build_model
from bltkit.train.run_directory import RunDirectory

RUNS = "runs"
PROBE = 48
"""Batches that are counted to see how many steps a budget takes."""
RATE_STEPS = 24
_POINTS, _RATES = "points.json", "rates"


@dataclass(frozen=True)
class Branch:
    """A budget's run: `steps` steps, of which those after step `begin` decay."""

    begin: int
    steps: int


def branch_begin(budget: float, flops_per_step: float, plan: ScalingPlan) -> int:
    """Step at which a budget's branch leaves the trunk. Raises ValueError for a budget too small for the warm-up."""
    steps = budget / flops_per_step
    begin = round((1 - plan.decay_share) * steps)
    if begin < max(2, plan.warmup_steps):
        raise ValueError(
            f"{budget:.3g} FLOPs are {steps:.0f} steps, too few for {plan.warmup_steps} steps of warm-up and a decay; "
            "raise the budget, or lower warmup_steps or batch_rows"
        )
    return begin


def nearest_step(budget: float, seen: Iterator[Seen], cost_of: Callable[[Seen], float]) -> Seen:
    """The step whose cost is nearest to the budget, of an endless sequence of steps."""
    last = step = next(seen)
    while cost_of(step) < budget:
        last, step = step, next(seen)
    return last if abs(budget - cost_of(last)) < cost_of(step) - budget else step


def config_hash(config: Mapping[str, Any], scorer: str | None) -> str:
    """Hash of what decides a run's numbers: without the places of files, and with the entropy model's weights."""
    sections = {name: dict(section) if isinstance(section, dict) else section for name, section in config.items()}
    if "model" in sections.get("patching", {}):
        sections["patching"]["model"] = scorer
    sections.get("data", {}).pop("cache", None)
    return digest(sections)


def _name(budget: float) -> str:
    """Directory of a budget, and its key in points.json."""
    return f"{budget:.6g}"


@dataclass(frozen=True)
class TrunkRun:
    """The trainings of one trunk."""

    plan: ScalingPlan
    trunk: Trunk
    prepared: Prepared
    run: StudyRun

    @property
    def directory(self) -> Path:
        """Directory of the trunk and its branches."""
        return self.run.out / RUNS / self.trunk.directory

    def config(self, steps: int, decay_steps: int = 0) -> TrainConfig:
        """Config of a run of `steps` steps, the last `decay_steps` of which decay: a budget's run as a whole.

        Without decay it is the trunk at the full rate, which is validated on one batch: nobody reads its loss.
        """
        plan, family = self.plan, self.trunk.family
        patch = getattr(family, "patch_bytes", None) if family.needs_scorer else None
        fields = family.sections(self.trunk.size, self.prepared.rule(patch), self.prepared.scorer) | {
            "data": plan.data(self.run.out / CORPUS),
            "optim": {
                "lr": self.trunk.size.lr,
                "warmup_steps": plan.warmup_steps,
                "min_lr_ratio": plan.min_lr_ratio,
                "schedule": {"kind": "wsd", "decay_steps": decay_steps, "shape": plan.decay_shape},
                "schedule_steps": steps,
            },
            "trainer": {
                "max_steps": steps,
                "seed": self.trunk.seed,
                "threads": plan.threads,
                "device": plan.device,
                "precision": plan.precision,
                "log_every": 20,
                "validation_batches": plan.validation_batches if decay_steps else 1,
            },
            "checkpoint": {"export": "end", "every_seconds": 120},
        }
        config: TrainConfig = parse(TrainConfig, fields, self.trunk.key)
        return config

    def row(self, budget: float) -> Row:
        """Train the branch of a budget and evaluate it."""
        branch = self._branch(budget)
        whole = self.config(branch.steps, branch.steps - branch.begin)
        directory = self.directory / _name(budget)
        # A branch with a checkpoint of its own no longer needs the trunk, but resumes under the same config only.
        trunk = self._trunk_step(branch.begin) if RunDirectory(directory).latest() else self._trunk(branch.begin)
        result = self._train(whole.replace(trainer=whole.trainer.replace(branch=str(trunk))), directory)
        checkpoint = _latest(directory)
        seen = batches.seen_by(checkpoint)
        plan, family, cost = self.plan, self.trunk.family, self._cost(seen)
        params, multiplied = _parameters_of(whole)
        config = whole.model_dump(mode="json", exclude_none=True)
        return {
            "plan": plan.name,
            "family": family.name,
            "size": self.trunk.size.name,
            "seed": self.trunk.seed,
            "budget": budget,
            "bits_per_byte": result.bits_per_byte,
            "by_source": {label: asdict(value) for label, value in batches.heldout(whole, checkpoint).items()},
            "flops": cost.training(seen.num_bytes, plan.include_scorer),
            "flops_without_scorer": cost.training(seen.num_bytes, False),
            "flops_of_scorer": cost.scorer * seen.num_bytes,
            "flops_of_scorer_training": self.prepared.train_flops if family.needs_scorer else None,
            "flops_paper": 3 * cost.paper * seen.num_bytes,
            "forward_flops_per_byte": cost.exact,
            "bytes_seen": seen.num_bytes,
            "seconds": batches.seconds_of(checkpoint),
            "params": params,
            "params_multiplied": multiplied,
            "unit": family.unit,
            "unit_bytes": seen.unit_bytes,
            "steps": seen.step,
            "decay_begins": branch.begin,
            "threads": plan.threads,
            "precision": plan.precision,
            "basis": plan.basis(self.trunk),
            "config_hash": config_hash(config, self.prepared.fingerprint),
            "config": config,
            "scorer": self.prepared.fingerprint if family.needs_scorer else None,
        }

    def tidy(self, budget: float, *, last: bool) -> None:
        """Remove the checkpoints of a branch that has its row; with the last branch, those of the trunk."""
        if self.plan.keep_models:
            return
        directory = self.directory / _name(budget)
        for link in directory.iterdir():
            if link.is_symlink():
                link.unlink()
        for step in RunDirectory(directory).steps():
            shutil.rmtree(step)
        if last:
            shutil.rmtree(self.directory / "trunk", ignore_errors=True)

    def rate_row(self, seconds: Sequence[float]) -> Row:
        """Time a few steps from scratch: seconds per byte as a median with those of earlier rounds."""
        place = self.run.out / _RATES / self.trunk.directory
        shutil.rmtree(place, ignore_errors=True)
        self._train(self.config(RATE_STEPS), place)
        checkpoint = _latest(place)
        rounds = [*seconds, batches.seconds_of(checkpoint) / batches.seen_by(checkpoint).num_bytes]
        shutil.rmtree(place.parent)
        return {
            "what": RATE,
            "family": self.trunk.family.name,
            "size": self.trunk.size.name,
            "seconds_per_byte": statistics.median(rounds),
            "all": rounds,
            "steps": RATE_STEPS,
            "threads": self.plan.threads,
        }

    def _branch(self, budget: float) -> Branch:
        """Begin and end of the budget's run: as written down, or computed and written down."""
        path = self.directory / _POINTS
        points = read_json_object(path) if path.exists() else {}
        if _name(budget) in points:
            try:
                return Branch(**points[_name(budget)])
            except TypeError:
                raise ValueError(f"{path}: {_name(budget)} is no branch; remove the file") from None
        if "probe" not in points:
            *_, seen = islice(batches.steps_ahead(self.config(1), self._trunk(1)), PROBE)
            points["probe"] = self._spent(seen) / seen.step
        try:
            begin = branch_begin(budget, points["probe"], self.plan)
        except ValueError as error:
            raise ValueError(f"{self.trunk.key}: {error}") from None
        ahead = batches.steps_ahead(self.config(begin), self._trunk(begin))
        branch = Branch(begin, nearest_step(budget, ahead, self._spent).step)
        write_atomic(path, json.dumps(points | {_name(budget): asdict(branch)}, indent=1).encode())
        return branch

    def _trunk_step(self, step: int) -> Path:
        return self.directory / "trunk" / f"step-{step:08d}"

    def _trunk(self, step: int) -> Path:
        """The trunk's checkpoint of a step, trained where it is missing."""
        directory, checkpoint = self.directory / "trunk", self._trunk_step(step)
        run = RunDirectory(directory)
        if checkpoint not in run.steps():
            latest = run.latest()
            if latest is not None and batches.seen_by(latest).step > step:
                shutil.rmtree(directory)  # a budget was added below others that are done
            self._train(self.config(step), directory)
        return checkpoint

    def _train(self, config: TrainConfig, directory: Path) -> Result:
        result = self.run.train(config, directory, resume=True, say=lambda line: None)
        if result.interrupted:
            raise KeyboardInterrupt
        return result

    def _spent(self, seen: Seen) -> float:
        """Training FLOPs that count towards a budget."""
        return self._cost(seen).training(seen.num_bytes, self.plan.include_scorer)

    def _cost(self, seen: Seen) -> ForwardCost:
        """Cost of a byte, at the mean patch that a run has seen."""
        return self.trunk.family.cost(self.trunk.size, seen.unit_bytes, self.plan.row_bytes, self._scorer)

    @cached_property
    def _scorer(self) -> EntropyConfig | CnnConfig | None:
        if not self.trunk.family.needs_scorer:
            return None
        assert self.prepared.scorer is not None
        config = getattr(load_bundle(resolve_model(self.prepared.scorer), device="meta").scorer, "config", None)
        assert isinstance(config, EntropyConfig | CnnConfig)
        return config


def _latest(directory: Path) -> Path:
    checkpoint = RunDirectory(directory).latest()
    assert checkpoint is not None, directory
    return checkpoint


def _parameters_of(config: TrainConfig) -> tuple[int, int]:
    """Parameters of a run's model: all, and those without tables that are only looked up."""
    with torch.device("meta"):
        model = build_model(config.model)
    return parameters({name: weight.numel() for name, weight in model.named_parameters()})
