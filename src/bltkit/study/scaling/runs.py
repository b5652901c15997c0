"""Runs of the study `scaling`: a unit's trunk, a branch off it for each budget, a row for each branch. Resumable.

A unit belongs to whoever holds its lock, so several processes share a directory. Nothing is decided twice: where a
branch begins and ends is written down before it is trained, a row that is there is not made again, and a training that
was broken off goes on from its own checkpoint. A budget is met by counting the batches ahead of the branch, which is
exact: a run ends at the step whose cost comes nearest to the budget.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bltkit.checkpoint import load_bundle, resolve_model, write_atomic
from bltkit.config import parse
from bltkit.files import read_json_object
from bltkit.model import CnnConfig, EntropyConfig
from bltkit.study.row_file import RowFile
from bltkit.study.scaling import batches
from bltkit.study.scaling.batches import Heldout, Seen
from bltkit.study.scaling.family_configs import ForwardCost
from bltkit.study.scaling.plan import ScalingPlan, Unit
from bltkit.study.scaling.prepare import CORPUS, Prepared, prepare
from bltkit.study.scaling.rows import WHAT, Row, known_rows, make_row
from bltkit.train import Result, TrainConfig
from bltkit.train import train as train_run
from bltkit.train.run_directory import RunDirectory

RUNS = "runs"
PROBE = 48
"""Batches that are counted to see how far a budget reaches."""
_POINTS = "points.json"


@dataclass(frozen=True)
class ScalingTools:
    """What trains and counts; tests put something quick in its place."""

    train: Callable[..., Result] = train_run
    seen_by: Callable[[Path], Seen] = batches.seen_by
    ahead: Callable[[TrainConfig, Path], Iterator[Seen]] = batches.steps_ahead
    heldout: Callable[[TrainConfig, Path], Mapping[str, Heldout]] = batches.heldout
    seconds: Callable[[Path], float] = batches.seconds_of
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Branch:
    """A budget's run: its decay begins behind step `begin`, `steps` are all of its steps."""

    begin: int
    steps: int


class Stopped(Exception):
    """Somebody asked to stop, or the time is over; what was done is saved."""


def run(
    plan: ScalingPlan,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    tools: ScalingTools = ScalingTools(),
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Make the rows of a plan that `out` does not hold yet; returns all that it holds.

    only: units, see `ScalingPlan.chosen`. minutes: begin nothing further after them. circumstances: kept in each row.
    Units that another process works on are left to it. Raises ValueError for what does not fit, KeyboardInterrupt
    after a signal, when what was being trained is saved.
    """
    if plan.processes > 1:
        raise ValueError(
            f"plan {plan.name!r} trains on {plan.processes} processes, which the study does not start: "
            "--dry-run tells its cost; say --set processes=1 to run it on one"
        )
    if minutes is not None and not 0 <= minutes < math.inf:
        raise ValueError(f"minutes = {minutes}: must be 0 or more and finite; leave it out for no limit")
    units, deadline = plan.chosen(only), None if minutes is None else tools.clock() + 60 * minutes
    rows = RowFile(out, WHAT)
    out.mkdir(parents=True, exist_ok=True)
    known_rows(rows, plan, units)
    prepared = prepare(plan, units, out, tools.train, say)
    study = _ScalingStudy(plan, out, prepared, rows, circumstances, tools, deadline, say)
    total = len(units) * len(plan.budgets)
    try:
        for unit in units:
            progress(_done(study, plan, units), total)
            if study.missing(unit):
                study.unit(unit)
        progress(_done(study, plan, units), total)
    except Stopped as stopped:
        say(str(stopped))
    return rows.read()


def unit_config(
    plan: ScalingPlan, unit: Unit, prepared: Prepared, out: Path, steps: int, decay_steps: int = 0
) -> TrainConfig:
    """The config of a unit's run of `steps` steps, whose last `decay_steps` decay: a budget's run as one.

    Without decay it is a trunk at the full rate, which is not validated at length: nobody reads its loss.
    """
    patch = getattr(unit.family, "patch_bytes", None) if unit.family.needs_scorer else None
    fields = unit.family.sections(unit.size, prepared.rule(patch), prepared.scorer) | {
        "data": plan.data(out / CORPUS),
        "optim": {
            "lr": unit.size.lr,
            "warmup_steps": plan.warmup_steps,
            "min_lr_ratio": plan.min_lr_ratio,
            "schedule": {
                "kind": "wsd",
                "decay_steps": decay_steps,
                "shape": plan.decay_shape,
            },
            "schedule_steps": steps,
        },
        "trainer": {
            "max_steps": steps,
            "seed": unit.seed,
            "threads": plan.threads,
            "device": plan.device,
            "precision": plan.precision,
            "log_every": 20,
            "validation_batches": plan.validation_batches if decay_steps else 1,
        },
        "checkpoint": {"export": "end", "every_seconds": 120},
    }
    found: TrainConfig = parse(TrainConfig, fields, unit.key)
    return found


def nearest_step(budget: float, seen: Iterator[Seen], cost_of: Callable[[Seen], float]) -> Seen:
    """The step whose cost is nearest to the budget, of steps without end."""
    last = one = next(seen)
    while cost_of(one) < budget:
        last, one = one, next(seen)
    return last if abs(budget - cost_of(last)) < cost_of(one) - budget else one


def _done(study: "_ScalingStudy", plan: ScalingPlan, units: Sequence[Unit]) -> int:
    known = known_rows(study.rows, plan, units)
    return sum((*unit.name, budget) in known for unit in units for budget in plan.budgets)


@dataclass(frozen=True)
class _ScalingStudy:
    plan: ScalingPlan
    out: Path
    prepared: Prepared
    rows: RowFile
    circumstances: Mapping[str, Any]
    tools: ScalingTools
    deadline: float | None
    say: Callable[[str], None]

    def missing(self, unit: Unit) -> list[float]:
        """Budgets without a row."""
        known = known_rows(self.rows, self.plan, [unit])
        return [budget for budget in self.plan.budgets if (*unit.name, budget) not in known]

    def unit(self, unit: Unit) -> None:
        """All rows of a unit that are missing, unless another process is at it. Raises Stopped."""
        place = self.out / RUNS / unit.directory
        place.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(place / ".lock", timeout=0):
                for budget in self.missing(unit):
                    self._check_time(unit)
                    self.rows.add(self._row(unit, budget, place))
                    self.say(f"{unit.key}: {budget:.3g} FLOPs done")
                    self._tidy(place / _name(budget))
                if not self.plan.keep_models:
                    shutil.rmtree(place / "trunk", ignore_errors=True)
        except Timeout:
            self.say(f"{unit.key}: another process is at it")

    def cost(self, unit: Unit, seen: Seen) -> ForwardCost:
        """Of a byte, at the mean patch that a run has seen."""
        return unit.family.cost(unit.size, seen.unit_bytes, self.plan.row_bytes, self._scorer(unit))

    def _scorer(self, unit: Unit) -> EntropyConfig | CnnConfig | None:
        if not unit.family.needs_scorer:
            return None
        assert self.prepared.scorer is not None
        found = getattr(load_bundle(resolve_model(self.prepared.scorer), device="meta").scorer, "config", None)
        assert isinstance(found, EntropyConfig | CnnConfig)
        return found

    def _config(self, unit: Unit, steps: int, decay_steps: int = 0) -> TrainConfig:
        return unit_config(self.plan, unit, self.prepared, self.out, steps, decay_steps)

    def _row(self, unit: Unit, budget: float, place: Path) -> Row:
        branch = self._branch(unit, budget, place)
        whole = self._config(unit, branch.steps, branch.steps - branch.begin)
        directory = place / _name(budget)
        # A branch that has a checkpoint of its own needs the trunk no more.
        trunk = place / "trunk" if RunDirectory(directory).latest() else self._trunk(unit, place, branch.begin)
        result = self._train(whole.replace(trainer=whole.trainer.replace(branch=str(trunk))), directory)
        checkpoint = RunDirectory(directory).latest()
        assert checkpoint is not None
        seen = self.tools.seen_by(checkpoint)
        return make_row(
            self.plan,
            unit,
            budget,
            whole=whole,
            begin=branch.begin,
            seen=seen,
            cost=self.cost(unit, seen),
            bits_per_byte=result.bits_per_byte,
            by_source=self.tools.heldout(whole, checkpoint),
            seconds=self.tools.seconds(checkpoint),
            prepared=self.prepared,
            circumstances=self.circumstances,
        )

    def _branch(self, unit: Unit, budget: float, place: Path) -> Branch:
        """Where the budget's run begins to decay and ends: as written down, or found and written down."""
        path = place / _POINTS
        points = read_json_object(path) if path.exists() else {}
        if _name(budget) in points:
            try:
                return Branch(**points[_name(budget)])
            except TypeError:
                raise ValueError(f"{path}: {_name(budget)} is no branch; remove the file") from None

        def spent(seen: Seen) -> float:
            return self.cost(unit, seen).training(seen.num_bytes, self.plan.include_scorer)

        if "probe" not in points:
            first = self._trunk(unit, place, 1)
            ahead = self.tools.ahead(self._config(unit, 1), first)
            for seen in (next(ahead) for _ in range(PROBE)):
                points["probe"] = spent(seen) / seen.step
        steps = budget / points["probe"]
        begin = round((1 - self.plan.decay_share) * steps)
        if begin < max(2, self.plan.warmup_steps):
            raise ValueError(
                f"{unit.key}: {budget:.3g} FLOPs are {steps:.0f} steps, too few for {self.plan.warmup_steps} steps of "
                "warm-up and a decay; raise the budget, or lower warmup_steps or batch_rows"
            )
        trunk = self._trunk(unit, place, begin)
        last = nearest_step(budget, self.tools.ahead(self._config(unit, begin), trunk), spent)
        points[_name(budget)] = {"begin": begin, "steps": last.step}
        write_atomic(path, json.dumps(points, indent=1).encode())
        return Branch(begin, last.step)

    def _trunk(self, unit: Unit, place: Path, step: int) -> Path:
        """The trunk's checkpoint of a step, trained where it is not there."""
        directory = place / "trunk"
        run = RunDirectory(directory)
        found = next((one for one in run.steps() if one.name == f"step-{step:08d}"), None)
        if found is not None:
            return found
        latest = run.latest()
        if latest is not None and self.tools.seen_by(latest).step > step:
            shutil.rmtree(directory)  # a budget was added below others that are done
        self._train(self._config(unit, step), directory)
        return directory / f"step-{step:08d}"

    def _train(self, config: TrainConfig, directory: Path) -> Result:
        result = self.tools.train(config, directory, resume=True, say=lambda line: None)
        if result.interrupted:
            raise KeyboardInterrupt
        return result

    def _check_time(self, unit: Unit) -> None:
        if self.deadline is not None and self.tools.clock() >= self.deadline:
            raise Stopped(f"the time is over; the same command goes on at {unit.key}")

    def _tidy(self, directory: Path) -> None:
        """Remove the checkpoints of a branch that has its row."""
        if not self.plan.keep_models:
            for link in directory.iterdir():
                if link.is_symlink():
                    link.unlink()
            for step in RunDirectory(directory).steps():
                shutil.rmtree(step)


def _name(budget: float) -> str:
    return f"{budget:.6g}"
