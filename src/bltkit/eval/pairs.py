"""What noise from a real source costs: tasks on the same items clean and noisy, and bits per byte of the pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bltkit.eval.noise import Paired
from bltkit.eval.place import Place
from bltkit.eval.records import Journal
from bltkit.eval.runner import RECORDS, Evaluation, Progress, Settings, evaluate, file_name
from bltkit.eval.statistics import estimate
from bltkit.eval.subjects.subject import Subject
from bltkit.eval.tasks.paired import FILE, PairedTexts
from bltkit.eval.tasks.task import Metric, Numbers, Task


@dataclass(frozen=True)
class PairedEvaluation:
    """The pairs' own bits per byte, the tasks clean and noisy on the items that the pairs cover, and the gaps.

    gaps: by task, of its main metric: noisy less clean, an estimate over items whose two answers stay together.
    """

    texts: Evaluation
    clean: Evaluation | None
    noisy: Evaluation | None
    gaps: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `results` are the noisy ones and those of the pairs."""
        found = (self.noisy or self.texts).to_json()
        found["results"] = {**(self.noisy.results if self.noisy else {}), **self.texts.results}
        clean = self.clean.results if self.clean else {}
        return {**found, "clean": dict(clean), "gaps": dict(self.gaps)}


def evaluate_pairs(
    subject: Subject, tasks: Sequence[Task], place: Place, file: Path, out: Path, *, seed: int = 0, **options: Any
) -> PairedEvaluation:
    """Evaluate on the pairs of `file` (lines of `clean` and `noisy`); options as of `evaluate`.

    The three evaluations lie in `out`: texts, clean, noisy. Raises ValueError as `evaluate` does, and for a file that
    is malformed; a task none of whose items is in it is an error.
    """
    paired = Paired.load(file)
    limit = options.pop("limit", None)
    progress: Progress | None = options.pop("progress", None)

    def run(name: str, own: Sequence[Task], where: Place, settings: Settings) -> Evaluation:
        return evaluate(subject, own, where, settings=settings, out=out / name, progress=progress, **options)

    texts = run("texts", [PairedTexts()], replace(place, named={FILE: file}), Settings(limit, seed=seed))
    if not tasks:
        return PairedEvaluation(texts, None, None, {})
    clean = run("clean", tasks, place, Settings(limit, covered=paired, seed=seed))
    noisy = run("noisy", tasks, place, Settings(limit, noise=paired, seed=seed))
    gaps = {str(task): _gap(task, out, seed) for task in tasks}
    return PairedEvaluation(texts, clean, noisy, gaps)


def _gap(task: Task, out: Path, seed: int) -> dict[str, Any]:
    name, metric = next(iter(task.metrics.items()))
    clean, noisy = (_contributions(out / side, task, name) for side in ("clean", "noisy"))
    items = [noisy[item] + own for item, own in clean.items() if item in noisy]
    width = len(items[0]) // 2

    def difference(sums: Sequence[float]) -> float:
        return metric.of(sums[:width]) - metric.of(sums[width:])

    return {"metric": name, **estimate(Metric(of=difference), items, (seed,)).estimate.to_json()}


def _contributions(out: Path, task: Task, metric: str) -> dict[str, Numbers]:
    records = Journal(out / RECORDS / f"{file_name(str(task))}.jsonl").known().values()
    return {one.id: one.contributions[metric] for one in records if metric in one.metrics}
