"""`evaluate`, which `blt eval` and Python users call: models, tasks and noises by name, results and a page on disk."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bltkit.eval.aggregate import cut_warning
from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import Noise, parse_noise
from bltkit.eval.paired_noise import SIDES, PairedEvaluation, evaluate_pairs
from bltkit.eval.runner import Evaluation, Settings
from bltkit.eval.runner import evaluate as run
from bltkit.eval.subjects import Subject, open_subject
from bltkit.eval.tasks import TASKS, Task, parse_tasks
from bltkit.generate import parse_strategy, typed


def evaluate(
    model: str | Subject = "bltkit:tiny",
    tasks: str | Task | Sequence[str | Task] = (),
    *,
    data: str | Path | Sequence[str | Path] = (),
    limit: int | None = None,
    noise: str | Noise | None = None,
    paired: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    context: int | None = None,
    strategy: str | None = None,
    batch: int | None = None,
    weights: str | None = None,
    scorer_weights: str | None = None,
    device: str = "cpu",
    allow_code_execution: bool = False,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate a model on benchmarks; `blt eval` is this function.

    model: as users name it (`token:DIR` is a Hugging Face token model), or a `Subject`. tasks: `hellaswag,cute:spell`,
    or a sequence of names and `Task` values. data: directories of the tasks' files; without, the hub's data sets.
    limit: maximum number of items of a task, or of each of its parts. noise: such as `drop:0.1`. paired: a file of
    lines with `clean` and `noisy` text, for which the result is a `PairedEvaluation`; tasks may then be empty.
    seed: of the bootstrap. out: directory for results.json, every item's record and report.html. resume: continue
    the evaluation in `out`.
    context, strategy, batch, weights, scorer_weights, device: as for `open_subject`, not beside a `Subject`.
    allow_code_execution: consent to run programs that the model writes, in a sandbox. command: recorded in the results.
    progress: told (items done, items in all). say: told which contexts were cut and which pages were written, a line
    at a time.
    Raises ValueError for what is unknown, missing or malformed, before anything is asked.
    """
    several = [tasks] if isinstance(tasks, str) or not isinstance(tasks, Sequence) else tasks
    paths = [data] if isinstance(data, str | Path) or not isinstance(data, Sequence) else data
    # Subjects, tasks and noises are protocols: a value of one is recognised by a method that it has.
    for name, value, method in [
        ("model", model, "answers"),
        *[("tasks", task, "items") for task in several],
        *[("data", path, "joinpath") for path in paths],
        ("noise", "" if noise is None else noise, "covers"),
    ]:
        if not isinstance(value, str) and not hasattr(value, method):
            raise ValueError(f"{name} = {value!r} is of type {type(value).__name__}; give it by name")
    typed("strategy", strategy, str | None)
    typed("seed", seed, int)
    for name, number in {"limit": limit, "context": context, "batch": batch}.items():
        typed(name, number, int | None)
    if not several and paired is None:
        raise ValueError(f"tasks: none is named; name some of {', '.join(TASKS)}, such as hellaswag,cute:spell")
    if noise is not None and paired is not None:
        raise ValueError("give noise or paired, not both")
    if resume and out is None:
        raise ValueError("resume continues the evaluation in a directory; name it with out")
    chosen: list[Task] = []
    for task in several:
        chosen += parse_tasks([task]) if isinstance(task, str) else [task]
    settings = Settings(limit, parse_noise(noise) if isinstance(noise, str) else noise, seed=seed)
    place = Place.of(paths)
    options: dict[str, Any] = {"context": context, "batch": batch, "weights": weights, "scorer_weights": scorer_weights}
    if isinstance(model, str):
        options["strategy"] = None if strategy is None else parse_strategy(strategy)
        model = open_subject(model, device=device, **options)
    elif {strategy, *options.values()} != {None}:
        raise ValueError(f"{', '.join(options)} and strategy belong to the subject that is given; set them there")
    shared: dict[str, Any] = {
        "resume": resume,
        "execute": allow_code_execution,
        "command": command,
        "progress": progress,
    }
    directory = None if out is None else Path(out)
    pages: Sequence[str] = ("",)
    if paired is None:
        result = run(model, chosen, place, settings=settings, out=directory, **shared)
        sides = {"": result}
    else:
        with ExitStack() as stack:
            target = directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pairs = evaluate_pairs(model, chosen, place, Path(paired), target, seed=seed, limit=limit, **shared)
        result, pages = pairs, SIDES
        sides = {f", {name}": side for name, side in (("clean", pairs.clean), ("noisy", pairs.noisy)) if side}
    if say is not None:
        _warn_of_cuts(sides, chosen, say)
    if directory is not None:
        _write_pages([directory / name for name in pages], say)
    return result


def _warn_of_cuts(sides: Mapping[str, Evaluation], tasks: Sequence[Task], say: Callable[[str], None]) -> None:
    """One line for each task some of whose contexts were cut; tasks of an earlier run are left out."""
    for label, evaluation in sides.items():
        for name in map(str, tasks):
            if (line := cut_warning(f"{name}{label}", evaluation.results[name])) is not None:
                say(line)


def _write_pages(directories: Sequence[Path], say: Callable[[str], None] | None) -> None:
    from bltkit.eval.report import write_page

    for directory in directories:
        if directory.exists():
            page = write_page(directory)
            if say is not None:
                say(f"wrote {page}")


__all__ = ["Evaluation", "PairedEvaluation", "evaluate"]
