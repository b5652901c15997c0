"""What noise from a real source costs: tasks on the same items clean and noisy, and bits per byte of the pairs."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bltkit.eval.dataset_source import Place
from bltkit.eval.item_log import Journal, Record
from bltkit.eval.noise import Paired
from bltkit.eval.runner import RECORDS, Evaluation, Progress, Settings, evaluate, file_name
from bltkit.eval.statistics import NO_ITEMS, estimate_difference, mean_of
from bltkit.eval.subjects.subject import Subject
from bltkit.eval.tasks.paired import FILE, PairedTexts
from bltkit.eval.tasks.task import Numbers, Task

SIDES = ("texts", "clean", "noisy")
"""Directories of the three evaluations."""


@dataclass(frozen=True, kw_only=True)
class PairedEvaluation(Evaluation):
    """An evaluation of the tasks on noisy text, with what the noise costs on the same items; `results` also hold the
    bits per byte of the pairs.

    texts: the pairs' bits per byte. clean, noisy: the tasks on the items that the pairs cover, None without tasks.
    gaps: by task, of its main metric: noisy less clean, an estimate over items whose two answers stay together.
    """

    texts: Evaluation
    clean: Evaluation | None
    noisy: Evaluation | None
    gaps: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        texts: Evaluation,
        clean: Evaluation | None = None,
        noisy: Evaluation | None = None,
        gaps: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """Together; the model, settings and command are those of `noisy`, without tasks those of `texts`."""
        main = noisy or texts
        results = {**main.results, **texts.results}
        parts: dict[str, Any] = {"texts": texts, "clean": clean, "noisy": noisy, "gaps": gaps or {}}
        return cls(model=main.model, settings=main.settings, results=results, command=main.command, **parts)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        clean = self.clean.results if self.clean else {}
        return {**super().to_json(), "clean": dict(clean), "gaps": dict(self.gaps)}


def evaluate_pairs(
    subject: Subject, tasks: Sequence[Task], place: Place, file: Path, out: Path, *, seed: int = 0, **options: Any
) -> PairedEvaluation:
    """Evaluate on the pairs of `file` (lines of `clean` and `noisy`); options as of `evaluate`.

    The three evaluations lie in `out`: texts, clean, noisy. Raises ValueError as `evaluate` does, and for a file that
    is malformed; a task none of whose items is in it is an error.
    """
    paired = Paired.load(file)
    if out.exists() and not options.get("resume") and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists already; say --resume to go on with it, or choose another directory")
    limit = options.pop("limit", None)
    progress: Progress | None = options.pop("progress", None)

    def run(name: str, own: Sequence[Task], where: Place, settings: Settings) -> Evaluation:
        return evaluate(subject, own, where, settings=settings, out=out / name, progress=progress, **options)

    def alone() -> Evaluation:
        return run("texts", [PairedTexts()], replace(place, named={FILE: file}), Settings(limit, seed=seed))

    if not tasks:
        return PairedEvaluation.of(alone())
    # First what may still be wrong: tasks and their data.
    clean = run("clean", tasks, place, Settings(limit, covered=paired, seed=seed))
    noisy = run("noisy", tasks, place, Settings(limit, noise=paired, seed=seed))
    texts = alone()
    gaps = {str(task): _gap(task, out, seed) for task in tasks}
    return PairedEvaluation.of(texts, clean, noisy, gaps)


def _gap(task: Task, out: Path, seed: int) -> dict[str, Any]:
    name, metric = next(iter(task.metrics.items()))
    clean, noisy = (_records(out / side, task, name) for side in ("clean", "noisy"))

    groups: dict[str, list[Numbers]] = {}
    for item, own in clean.items():
        if item in noisy:
            group = own.groups[task.level] if task.macro and task.level is not None else ""
            groups.setdefault(group, []).append(noisy[item].contributions[name] + own.contributions[name])
    # As the task's own result: a mean over groups where that is one.
    drawn = {
        group: estimate_difference(metric, items, (seed, zlib.crc32(group.encode()))) for group, items in groups.items()
    }
    gap = mean_of(drawn) if task.macro else drawn[""].estimate if drawn else NO_ITEMS
    return {"metric": name, **gap.to_json()}


def _records(out: Path, task: Task, metric: str) -> dict[str, Record]:
    records = Journal(out / RECORDS / f"{file_name(str(task))}.jsonl").known()
    return {item: one for item, one in records.items() if metric in one.metrics}
