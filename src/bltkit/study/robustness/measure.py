"""The study `robustness`: what noise in the text costs models, at rising intensities, side by side.

Every model answers every task as it is and under each noise at each intensity. A row is kept as soon as its task is
over, and within a task the evaluation's own journal goes on; what is in the directory is not measured again.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field, PositiveInt

from bltkit.config import Config
from bltkit.eval.aggregate import cut_warning
from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import Composed, Damage, Noise, Paired, parse_noise
from bltkit.eval.runner import Evaluation, Settings, evaluate, file_name
from bltkit.eval.subjects import Subject, open_subject
from bltkit.eval.tasks import Task, parse_tasks
from bltkit.files.json_lines import append_lines, read_lines
from bltkit.study.row_file import ROWS

RUNS = "runs"
"""Below it the evaluations themselves, each with its items' records."""
_TICKS = 1000
"""Of progress, in a task."""

Row = dict[str, Any]
Intensity = Annotated[float, Field(gt=0, le=1)]


class RobustnessPlan(Config):
    """What is measured of each model."""

    tasks: tuple[str, ...] = Field(min_length=1)
    noises: tuple[str, ...] = Field(min_length=1)
    """As `parse_noise` reads them. Each is measured at its own intensity, too, which without one is its usual one."""
    intensities: tuple[Intensity, ...] = (0.1, 0.3, 0.6, 1.0)
    """Of each noise; of composed ones, the share of every part's intensity. Pairs have no intensity."""
    limit: PositiveInt | None = None
    seed: int = 0


class Evaluate(Protocol):
    """What measures a task: `runner.evaluate`, in tests something quick."""

    def __call__(
        self,
        subject: Subject,
        tasks: Sequence[Task],
        place: Place,
        *,
        settings: Settings,
        out: Path,
        resume: bool,
        execute: bool,
        command: str,
        progress: Callable[[int, int], None],
    ) -> Evaluation: ...


@dataclass(frozen=True)
class Condition:
    """A text as it is, or a noise at an intensity. own: is it the intensity that the noise was named with."""

    curve: str | None
    intensity: float
    own: bool
    settings: Settings

    @property
    def key(self) -> tuple[str | None, str | None]:
        """The noise, and the one that items have to be covered by."""
        found = self.settings.to_json()
        return found["noise"], found["covered"]

    @property
    def pairs(self) -> str | None:
        """What the pairs are, whatever their file is called; None without."""
        return self.settings.to_json().get("pairs")


def conditions(plan: RobustnessPlan) -> list[Condition]:
    """All of a plan, clean ones first; a curve's name is its noise without the intensity.

    Raises ValueError for a noise that cannot be read.
    """
    clean = [Condition(None, 0.0, True, Settings(plan.limit, None, None, plan.seed))]
    found: dict[tuple[str, float], Condition] = {}
    for text in plan.noises:
        noise = parse_noise(text)
        if isinstance(noise, Paired):
            clean.append(Condition(str(noise), 0.0, True, Settings(plan.limit, None, noise, plan.seed)))
        for intensity, own in _intensities(noise, plan.intensities):
            key = (_name(noise), intensity)
            if intensity and (key not in found or own):
                settings = Settings(plan.limit, noise.at(intensity), None, plan.seed)
                found[key] = Condition(key[0], intensity, own, settings)
    return [*clean, *sorted(found.values(), key=_order(found))]


def _intensities(noise: Noise, grid: Sequence[float]) -> Iterator[tuple[float, bool]]:
    own = noise.intensity if isinstance(noise, Damage) else 1.0
    yield from ((one, False) for one in grid if one != own and not isinstance(noise, Paired))
    yield own, True


def _name(noise: Noise) -> str:
    if isinstance(noise, Damage):
        kind, _, rest = str(noise).partition(":")
        _, comma, fields = rest.partition(",")
        return f"{kind}:{fields}" if comma else kind
    assert isinstance(noise, Composed | Paired), noise
    return str(noise)


def _order(found: Mapping[tuple[str, float], Condition]) -> Callable[[Condition], tuple[int, float]]:
    names = list(dict.fromkeys(name for name, _ in found))
    return lambda one: (names.index(one.curve or ""), one.intensity)


def run(
    plan: RobustnessPlan,
    models: Mapping[str, str],
    place: Place,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    execute: bool = False,
    measure: Evaluate = evaluate,
    load: Callable[[str], Subject] = open_subject,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure what `out` does not hold yet; returns all of its rows.

    models: name -> as `open_subject` reads it. circumstances: kept in each row (commit, machine, threads, command).
    execute: the user's consent that tasks run programs which the models wrote.

    Raises ValueError for what cannot be loaded or read, a task that noise cannot touch, and where `out` holds rows of
    the same names that were measured otherwise.
    """
    asked, tasks = conditions(plan), parse_tasks(plan.tasks)
    for at, task in enumerate(tasks):
        if task in tasks[:at]:
            raise ValueError(f"task {task} is given twice; leave one out")
        if task.executes and not execute:
            raise ValueError(f"task {task} runs programs that models write; say --allow-code-execution")
        if not task.damaged:
            raise ValueError(f"task {task} names no field that noise is applied to; leave it out")
    subjects = {name: load(source) for name, source in models.items()}
    for task in tasks:
        next(iter(task.items(place)), None)  # missing data are refused before anything is written
    rows = read_lines(out / ROWS)
    known = {_key(row): row for row in rows}
    fitting = _fitting(tasks, asked, place, say)
    work = [(name, task, condition) for name in models for task, condition in fitting]
    for name, task, condition in work:
        if (row := known.get((name, str(task), *condition.key))) is not None:
            _agree(row, subjects[name], condition, out)
    for at, (name, task, condition) in enumerate(work):
        progress(at * _TICKS, len(work) * _TICKS)
        if (name, str(task), *condition.key) in known:
            continue
        (out / RUNS / file_name(name)).mkdir(parents=True, exist_ok=True)
        found = measure(
            subjects[name],
            [task],
            place,
            settings=condition.settings,
            out=out / RUNS / file_name(name) / _directory(condition),
            resume=True,
            execute=execute,
            command=str(circumstances.get("command", "")),
            progress=_inside(progress, at, len(work)),
        )
        row = _row(name, models[name], str(task), condition, plan, found)
        if (line := cut_warning(f"{task}, {condition.key[0] or 'clean'}", found.results[str(task)])) is not None:
            say(line)
        rows.append(row | dict(circumstances))
        append_lines(out / ROWS, rows[-1:])
    progress(len(work) * _TICKS, len(work) * _TICKS)
    return rows


def _fitting(
    tasks: Sequence[Task], asked: Sequence[Condition], place: Place, say: Callable[[str], None]
) -> list[tuple[Task, Condition]]:
    """Tasks with their conditions, but for pairs that cover none of a task's items.

    Raises ValueError for pairs that cover no item of any task.
    """
    found = [(task, one) for task in tasks for one in asked if _applies(one, task, place)]
    for one in asked:
        without = [str(task) for task in tasks if (task, one) not in found]
        if len(without) == len(tasks):
            raise ValueError(f"{one.settings.covered or one.settings.noise} covers no item of {', '.join(without)}")
        if without and one.settings.noise is not None:
            say(f"{one.settings.noise} covers no item of {', '.join(without)}, which go without it")
    return found


def _applies(condition: Condition, task: Task, place: Place) -> bool:
    pairs = condition.settings.covered or condition.settings.noise
    if not isinstance(pairs, Paired):
        return True
    for item in task.items(place):
        values = (item[name] for name in task.damaged)
        texts = (text for value in values for text in ([value] if isinstance(value, str) else value))
        if all(map(pairs.covers, texts)):
            return True
    return False


def _inside(progress: Callable[[int, int], None], at: int, count: int) -> Callable[[int, int], None]:
    """Progress of one evaluation as that of the whole study."""
    return lambda done, total: progress(at * _TICKS + done * _TICKS // total, count * _TICKS)


def _directory(condition: Condition) -> str:
    """Of a condition's evaluations: readable, and another for each."""
    if condition.key == (None, None):
        return "clean"
    noise, covered = condition.key
    name = file_name(noise or f"clean-{covered}")
    return f"{name[:60]}-{hashlib.sha256(repr(condition.key).encode()).hexdigest()[:8]}"


def _key(row: Row) -> tuple[Any, ...]:
    return row["model"], row["task"], row["noise"], row["covered"]


def _agree(row: Row, subject: Subject, condition: Condition, out: Path) -> None:
    """Raises ValueError where a row is of other weights, settings or pairs."""
    settings = condition.settings
    asked = {
        "fingerprint": subject.fingerprint,
        "limit": settings.limit,
        "seed": settings.seed,
        "pairs": condition.pairs,
    }
    for name, value in asked.items():
        if row[name] != value:
            raise ValueError(
                f"--out {out} holds {row['model']!r} measured otherwise: {name} was {row[name]}, and is {value} now; "
                "take another directory, or another name"
            )


def _row(name: str, source: str, task: str, condition: Condition, plan: RobustnessPlan, found: Evaluation) -> Row:
    result = found.results[task]  # beside it are those of tasks measured before
    noise, covered = condition.key
    return {
        "what": "robustness",
        "model": name,
        "source": source,
        "kind": found.model["kind"],
        "fingerprint": found.model["fingerprint"],
        "task": task,
        "curve": condition.curve,
        "intensity": condition.intensity,
        "own": condition.own,
        "noise": noise,
        "covered": covered,
        "pairs": condition.pairs,
        "limit": plan.limit,
        "seed": plan.seed,
        # Open answers are right by chance about never.
        "chance": (result["chance"] or 0.0) if result["better"] == "higher" and result["highest"] else None,
        **{key: result[key] for key in ("metric", "better", "highest", "n", "value", "stderr", "interval_method")},
        "interval": None if result["interval"] is None else list(result["interval"]),
        **{key: result[key] for key in ("left_out", "cut_contexts", "shots", "prompt_hash", "seconds")},
    }
