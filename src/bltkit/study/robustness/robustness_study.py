"""The study `robustness`: scores of models under noise of rising intensity, side by side.

A unit is one model on one task, clean or under one noise at one intensity. Within a unit the evaluation's own journal
resumes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt

from bltkit.study.store import refuse_other_settings
from bltkit.study.study import Row, Study, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd

    from bltkit.eval.dataset_source import Place
    from bltkit.eval.noise import Noise
    from bltkit.eval.runner import Settings
    from bltkit.eval.subjects import Subject
    from bltkit.eval.tasks import Task
    from bltkit.study.report import Section
    from bltkit.views.figures import Figure

RUNS = "runs"
"""Folder of the evaluations, each with its items' records."""
NOISES = ("antspeak", "drop", "randomcase", "repeat", "uppercase")
"""Noises of the paper."""


class RobustnessStudy(Study):
    """What noise in the text costs models: scores over its intensity, and the share of them that is kept above chance.

    Every model answers every task as it is and under each noise at each intensity.
    """

    what: ClassVar[str] = "robustness"
    title: ClassVar[str] = "Robustness"

    models: dict[str, str] = Field(
        min_length=1,
        description="NAME=MODEL, such as blt=bltkit:tiny or llama=token:DIR (repeatable).",
        examples=["blt=bltkit:tiny"],
        json_schema_extra={"option": "--model", "metavar": "NAME=MODEL"},
    )
    tasks: tuple[str, ...] = Field(
        min_length=1,
        description="As `blt eval --tasks` has them (repeatable); `list` shows them.",
        examples=["hellaswag"],
        json_schema_extra={"option": "--task", "aliases": ["--tasks"], "metavar": "NAME", "lists": "tasks"},
    )
    noises: tuple[str, ...] = Field(
        default=(),
        description="Such as drop or ocr:0.2+uppercase:1 (repeatable), each also at the intensity it is named with; "
        f"default: {', '.join(NOISES)}, without --paired. `list` shows them.",
        json_schema_extra={"option": "--noise", "lists": "noises"},
    )
    paired: tuple[str, ...] = Field(default=(), description="A .jsonl of clean and noisy texts (repeatable).")
    intensities: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.1, 0.3, 0.6, 1.0),
        description="Beside each noise's own one (repeatable), of composed noises the share of every part's.",
        json_schema_extra={"option": "--intensity"},
    )
    data: tuple[str, ...] = Field(default=(), description="Directory of task files (repeatable); default: hub.")
    limit: PositiveInt | None = Field(default=None, description="Maximum number of items of a group; default: all.")
    seed: int = Field(default=0, description="Seed of the bootstrap; a noise has its own, drop:0.1,seed=3.")
    allow_code_execution: bool = Field(default=False, description="Run programs that models write, in a sandbox.")

    @classmethod
    def smoke(cls) -> Self:
        """See `Study`: one item of UTF-8 validity, clean and under two noises."""
        return cls(models={"tiny": "bltkit:tiny"}, tasks=("utf8",), noises=("drop:0.3",), intensities=(1.0,), limit=1)

    @cached_property
    def conditions(self) -> "tuple[Condition, ...]":
        """All conditions, clean ones first. Raises ValueError for a noise that cannot be read."""
        from bltkit.eval.noise import Damage, Paired, parse_noise
        from bltkit.eval.runner import Settings

        clean = [Condition(None, 0.0, True, Settings(self.limit, None, None, self.seed))]
        noisy: dict[tuple[str, float], Condition] = {}
        named = self.noises or (() if self.paired else NOISES)
        noises = [parse_noise(text) for text in (*named, *(f"paired:{file}" for file in self.paired))]
        for noise in noises:
            pairs = isinstance(noise, Paired)
            if pairs:
                clean.append(Condition(str(noise), 0.0, True, Settings(self.limit, None, noise, self.seed)))
            usual = noise.intensity if isinstance(noise, Damage) else 1.0
            for intensity in (usual, *(() if pairs else self.intensities)):
                key = (_curve_name(noise), intensity)
                if intensity and (key not in noisy or intensity == usual):
                    settings = Settings(self.limit, noise.at(intensity), None, self.seed)
                    noisy[key] = Condition(*key, intensity == usual, settings)
        curves = list(dict.fromkeys(map(_curve_name, noises)))
        return (
            *clean,
            *sorted(noisy.values(), key=lambda noised: (curves.index(noised.curve or ""), noised.intensity)),
        )

    @cached_property
    def parts(self) -> "Mapping[str, tuple[str, Task, Condition]]":
        """Model, task and condition by the unit's name. Raises ValueError for a task that is unknown or named twice."""
        from bltkit.eval.tasks import parse_tasks

        tasks = parse_tasks(self.tasks)
        twice = next((task for at, task in enumerate(tasks) if task in tasks[:at]), None)
        if twice is not None:
            raise ValueError(f"task {twice} is given twice; leave one out")
        return {
            _unit_name(model, str(task), *condition.key): (model, task, condition)
            for model in self.models
            for task in tasks
            for condition in self.conditions
        }

    @cached_property
    def place(self) -> "Place":
        """Files of the tasks."""
        from bltkit.eval.dataset_source import Place

        return Place.of(self.data)

    @cached_property
    def subjects(self) -> "Mapping[str, Subject]":
        """The loaded models, by name."""
        from bltkit.eval.subjects import open_subject

        return {name: open_subject(source) for name, source in self.models.items()}

    @cached_property
    def uncovered(self) -> set[tuple[str, tuple[str | None, str | None]]]:
        """Tasks with the keys of conditions whose pairs cover none of their items."""
        tasks = {str(task): task for _, task, _ in self.parts.values()}
        return {
            (name, condition.key)
            for condition in self.conditions
            for name, task in tasks.items()
            if not _applies(condition, task, self.place)
        }

    def units(self) -> Sequence[Unit]:
        """See `Study`."""
        return [
            Unit(name, settings={"limit": self.limit, "seed": self.seed, "pairs": condition.pairs})
            for name, (_, _, condition) in self.parts.items()
        ]

    def unit_of(self, row: Row) -> str:
        """See `Study`."""
        return _unit_name(row["model"], row["task"], row["noise"], row["covered"])

    def prepare(self, run: StudyRun) -> None:
        """See `Study`. Raises ValueError for what cannot be loaded or read, a task that noise cannot touch or that
        needs consent, pairs that cover no item, and rows of the same names from other weights.
        """
        tasks = {str(task): task for _, task, _ in self.parts.values()}
        for name, task in tasks.items():
            if task.executes and not self.allow_code_execution:
                raise ValueError(f"task {name} runs programs that models write; say --allow-code-execution")
            if not task.damaged:
                raise ValueError(f"task {name} names no field that noise is applied to; leave it out")
        subjects = self.subjects
        for task in tasks.values():
            next(iter(task.items(self.place)), None)  # missing data are refused before anything is written
        for condition in self.conditions:
            without = [name for name in tasks if (name, condition.key) in self.uncovered]
            noise = condition.settings.noise
            if len(without) == len(tasks):
                raise ValueError(f"{condition.settings.covered or noise} covers no item of {', '.join(without)}")
            if without and noise is not None:
                run.say(f"{noise} covers no item of {', '.join(without)}, which go without it")
        for row in run.rows():
            if self.unit_of(row) in self.parts:
                settings = {"fingerprint": subjects[row["model"]].fingerprint}
                refuse_other_settings([row], settings, run.out, repr(row["model"]))

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        """See `Study`."""
        from bltkit.eval.aggregate import cut_warning
        from bltkit.eval.runner import evaluate, file_name

        model, task, condition = self.parts[unit.name]
        if (str(task), condition.key) in self.uncovered:
            return
        (run.out / RUNS / file_name(model)).mkdir(parents=True, exist_ok=True)
        evaluation = evaluate(
            self.subjects[model],
            [task],
            self.place,
            settings=condition.settings,
            out=run.out / RUNS / file_name(model) / condition.directory,
            resume=True,
            execute=self.allow_code_execution,
            command=str(run.stamp.get("command", "")),
            progress=lambda done, total: run.progress(done / total),
        )
        result = evaluation.results[str(task)]  # beside it are those of tasks measured before
        if (line := cut_warning(f"{task}, {condition.key[0] or 'clean'}", result)) is not None:
            run.say(line)
        noise, covered = condition.key
        about = {"model": model, "source": self.models[model], **{key: evaluation.model[key] for key in _OF_MODEL}}
        about |= {"task": str(task), "curve": condition.curve, "intensity": condition.intensity, "own": condition.own}
        about |= {"noise": noise, "covered": covered, "pairs": condition.pairs, "limit": self.limit, "seed": self.seed}
        # Open answers are right by chance about never.
        chance = (result["chance"] or 0.0) if result["better"] == "higher" and result["highest"] else None
        interval = None if result["interval"] is None else list(result["interval"])
        yield {**about, "chance": chance, **{key: result[key] for key in _OF_RESULT}, "interval": interval}

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        """See `Study`."""
        from bltkit.study.robustness.robustness_report import sections

        return sections(frame)

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        """See `Study`."""
        from bltkit.study.robustness.robustness_report import figures

        return figures(frame)

    def facts(self, frame: "pd.DataFrame") -> Mapping[str, Any]:
        """See `Study`: models with their weights, and the number of items."""
        last = frame.iloc[-1]
        pairs = {row.model: f"{row.source} ({row.kind}, {row.fingerprint[:12]})" for row in frame.itertuples()}
        pairs["items"] = (
            "all" if last.limit is None or last.limit != last.limit else f"the first {last.limit:.0f} of each group"
        )
        return {**pairs, "seed": last.seed, **super().facts(frame)}


_OF_MODEL = ("kind", "fingerprint")
_OF_RESULT = (
    *("metric", "better", "highest", "n", "value", "stderr", "interval_method"),
    *("left_out", "cut_contexts", "shots", "prompt_hash", "seconds"),
)


@dataclass(frozen=True)
class Condition:
    """A text as it is, or a noise at an intensity. own: is it the intensity that the noise was named with."""

    curve: str | None
    intensity: float
    own: bool
    settings: "Settings"

    @property
    def key(self) -> tuple[str | None, str | None]:
        """The noise, and the one that items have to be covered by."""
        settings = self.settings.to_json()
        return settings["noise"], settings["covered"]

    @property
    def pairs(self) -> str | None:
        """Fingerprint of the pairs, whatever their file is called; None without."""
        return self.settings.to_json().get("pairs")

    @property
    def directory(self) -> str:
        """Name of the folder of its evaluations: readable, and unique."""
        from bltkit.eval.runner import file_name

        noise, covered = self.key
        if (noise, covered) == (None, None):
            return "clean"
        name = file_name(noise or f"clean-{covered}")
        return f"{name[:60]}-{hashlib.sha256(repr(self.key).encode()).hexdigest()[:8]}"


def _unit_name(model: str, task: str, noise: str | None, covered: str | None) -> str:
    return f"{model}:{task}:{noise or 'clean'}" + (f" on {covered}" if covered else "")


def _curve_name(noise: "Noise") -> str:
    """A noise without its intensity."""
    from bltkit.eval.noise import Damage

    if not isinstance(noise, Damage):
        return str(noise)
    kind, _, rest = str(noise).partition(":")
    _, comma, fields = rest.partition(",")
    return f"{kind}:{fields}" if comma else kind


def _applies(condition: Condition, task: "Task", place: "Place") -> bool:
    from bltkit.eval.noise import Paired

    pairs = condition.settings.covered or condition.settings.noise
    if not isinstance(pairs, Paired):
        return True
    for item in task.items(place):
        values = (item[name] for name in task.damaged)
        texts = (text for value in values for text in ([value] if isinstance(value, str) else value))
        if all(map(pairs.covers, texts)):
            return True
    return False
