"""The page of one evaluation: what was evaluated, all tasks at a glance, then each task with its groups and items."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.eval.report.items import AMOUNTS, Amount, samples
from bltkit.eval.report.lanes import Mark, head, histogram, lane, plot_line
from bltkit.eval.report.stored_runs import Figure, StoredEntry, StoredRun, TaskResult, item_value, read_run
from bltkit.eval.report.words import (
    NOTHING,
    about,
    cell,
    circumstances,
    counted,
    cut,
    direction,
    ends_of,
    main_figure,
    main_metric,
    number,
    scale,
    short,
)
from bltkit.views.html import Cell, Html, Node, join, page, table, tag

REPORT = "report.html"
MAX_BYTES = 2_000_000
"""Of a page; it shows fewer items where it would be larger."""
MAX_GROUPS = 250
"""Rows of a table by group."""


def write_page(directory: Path, place: Path | None = None) -> Path:
    """Write the page of the evaluation in `directory` to `place`, or else into the directory; returns where it is.

    Raises ValueError where the directory holds no finished evaluation.
    """
    run = read_run(Path(directory))
    place = Path(place or run.directory / REPORT)
    write_atomic(place, fitting(lambda amount: evaluation_page(run, amount)))
    return place


def fitting(draw: Callable[[Amount], str]) -> bytes:
    """The page with as many items as it can show without becoming larger than a page may be."""
    data = b""
    for amount in AMOUNTS:
        data = draw(amount).encode()
        if len(data) <= MAX_BYTES:
            break
    return data


def evaluation_page(run: StoredRun, amount: Amount) -> str:
    """The page as text."""
    results = run.results
    tasks = results.results
    items = counted(sum(task.n for task in tasks.values()), "item")
    title = f"Evaluation of {results.model.name}"
    return page(
        title,
        tag("h1", results.model.name),
        tag("p", f"Evaluation: {counted(len(tasks), 'task')}, {items}", class_="quiet"),
        circumstances(results),
        tag("h2", "Results"),
        overview(tasks),
        summary(tasks),
        tag(
            "p",
            "Dots are main metrics, lines their 95 % intervals: Wilson's of shares, of other metrics that of a "
            "bootstrap over items. A dashed line is what guessing scores. A metric by a level is the mean over its "
            "groups, each weighing the same.",
            class_="quiet small",
        ),
        [section(run, name, amount) for name in tasks],
    )


def anchor(task: str) -> str:
    """A task's place in the page."""
    return "task-" + hashlib.sha256(task.encode("utf-8", "replace")).hexdigest()[:8]


def overview(tasks: Mapping[str, TaskResult]) -> Html:
    """Main metrics as dots with whiskers, a plot for each scale that there is."""
    scales: dict[tuple[float | None, str], list[str]] = {}
    for name, task in tasks.items():
        scales.setdefault((task.highest, "" if task.highest is not None else task.metric), []).append(name)
    return tag("figure", tag("div", [_plot(tasks, names) for names in scales.values()], class_="plot"))


def _plot(tasks: Mapping[str, TaskResult], names: Sequence[str]) -> list[Node]:
    figures = {name: main_figure(tasks[name]) for name in names}
    first = tasks[names[0]]
    axis = scale(first.highest, list(figures.values()))
    rows: list[Node] = [plot_line(f"{first.better} is better", head(axis), kind=" head")]
    for name, figure in figures.items():
        task = tasks[name]
        mark = [] if figure.value is None else [Mark(figure.value, figure.interval)]
        title = about(f"{name}, {main_metric(task)}", figure, task.highest)
        drawing = lane(axis, mark, title, figure.chance)
        link = tag("a", name, href=f"#{anchor(name)}")
        rows.append(plot_line(link, drawing, number(figure.value, task.highest)))
    return rows


def summary(tasks: Mapping[str, TaskResult]) -> Html:
    """One line a task."""
    rows = [
        (
            tag("a", name, href=f"#{anchor(name)}"),
            main_metric(task),
            cell(task.value, task.highest),
            ends_of(task, task.highest),
            cell(task.stderr, task.highest),
            cell(task.chance, task.highest),
            Cell(f"{task.n:,}", task.n),
            NOTHING if task.shots is None else task.shots,
            Cell(cut(task), task.cut_contexts, "bad" if task.cut_contexts else None),
            short(task.prompt_hash),
        )
        for name, task in tasks.items()
    ]
    head_ = (
        "task",
        "metric",
        "value",
        "95 % interval",
        "std. error",
        "chance",
        "items",
        "shots",
        "contexts cut",
        "prompt",
    )
    return table(head_, rows, texts=2, sortable=True, label="results of all tasks")


def section(run: StoredRun, name: str, amount: Amount) -> Html:
    """Everything about one task."""
    task = run.results.results[name]
    entries = run.entries[name]
    return tag(
        "section",
        tag("h2", name),
        tag("p", _said(task), class_="quiet"),
        _metrics(task),
        [_groups(task, level) for level, groups in task.groups.items() if len(groups) > 1],
        _distribution(task, entries),
        samples(run, name, amount),
        id=anchor(name),
    )


def _said(task: TaskResult) -> Html:
    parts: list[Node] = [
        counted(task.n, "item"),
        None if task.shots is None else counted(task.shots, "shot"),
        _cut(task),
        None if not task.left_out else f"{counted(task.left_out, 'item')} left out, which the noise does not cover",
        None if task.seconds is None else f"{task.seconds:,.1f} s",
        None if task.bytes is None else counted(task.bytes, "byte"),
        None if task.task_seed is None else f"task seed {task.task_seed}",
    ]
    there = [part for part in parts if part is not None]
    return join(" · ".join(map(str, there)), " · prompt ", short(task.prompt_hash))


def _cut(task: TaskResult) -> str | None:
    if not task.cut_contexts:
        return None
    window = "" if task.window is None else f", the model is shown {task.window.size:,} {task.window.unit} at once"
    return f"{cut(task)} {'context' if cut(task) == '1' else 'contexts'} cut on the left{window}"


def _metrics(task: TaskResult) -> Html:
    """All metrics over items, and the means over groups."""
    rows = []
    for name, metric in task.metrics.items():
        mean = None if task.macro is None else task.macro.metrics.get(name)
        for what, figure in ((name, metric), (None, mean)):
            if figure is None:
                continue
            assert isinstance(figure, Figure)
            level = "" if task.macro is None else task.macro.level
            rows.append(
                (
                    name if what else f"{name} by {level}",
                    cell(figure.value, metric.highest),
                    ends_of(figure, metric.highest),
                    cell(figure.stderr, metric.highest),
                    cell(figure.chance, metric.highest),
                    Cell(f"{figure.n:,}", figure.n),
                    Cell(direction(metric), kind="t quiet"),
                )
            )
    return table(("metric", "value", "95 % interval", "std. error", "chance", "n", ""), rows, label="metrics")


def _groups(task: TaskResult, level: str) -> Html:
    """A level's groups, the best first, each with a dot on the scale that all share."""
    groups, main = task.groups[level], task.metric
    if main not in {name for figures in groups.values() for name in figures}:
        main = next((name for figures in groups.values() for name in figures), task.metric)
    metric = task.metrics.get(main)
    highest, better = (None, "higher") if metric is None else (metric.highest, metric.better)
    others = sorted({name for figures in groups.values() for name in figures} - {main}, key=[*task.metrics].index)
    sign = -1 if better == "higher" else 1

    def order(group: str) -> tuple[bool, float, str]:
        value = groups[group][main].value if main in groups[group] else None
        return value is None, 0.0 if value is None else sign * value, group

    names = sorted(groups, key=order)[:MAX_GROUPS]
    axis = scale(highest, [groups[name][main] for name in names if main in groups[name]])
    rows: list[tuple[Node | Cell, ...]] = []
    for name in names:
        figure = groups[name].get(main, Figure(n=0, value=None))
        marks = [] if figure.value is None else [Mark(figure.value, figure.interval)]
        further = [groups[name].get(other) for other in others]
        rows.append(
            (
                name,
                Cell(lane(axis, marks, about(name, figure, highest), figure.chance), kind="lane"),
                cell(figure.value, highest),
                ends_of(figure, highest),
                Cell(f"{figure.n:,}", figure.n),
                *(
                    cell(
                        None if one is None else one.value,
                        task.metrics[other].highest if other in task.metrics else None,
                    )
                    for other, one in zip(others, further, strict=True)
                ),
            )
        )
    left_out = len(groups) - len(names)
    return join(
        tag("h3", f"By {level}"),
        table(
            (level, Cell(head(axis), kind="lane"), main, "95 % interval", "items", *others),
            rows,
            sortable=True,
            dense=True,
            label=f"by {level}",
        ),
        tag("p", f"The {left_out:,} last ones are left out.", class_="quiet small") if left_out else None,
    )


def _distribution(task: TaskResult, entries: Mapping[str, StoredEntry]) -> Html | None:
    """How sure the choices were, or how a metric's values lie, where items have more than two of them."""
    margins = [entry.margin for entry in entries.values() if entry.margin is not None]
    if len(margins) > 1:
        return join(
            tag("h3", "How clearly the right choice wins"),
            tag(
                "figure",
                histogram(
                    margins,
                    f"{task.task}: margins of {len(margins)} items",
                    left="another is likelier",
                    right="the right one is likeliest",
                    signed=True,
                ),
                tag(
                    "figcaption",
                    "ln p of the right choice less that of the likeliest other, in nats; an item counts once.",
                    class_="small",
                ),
            ),
        )
    for name in task.metrics:
        values = [item_value(entry.metrics.get(name)) for entry in entries.values()]
        there = [value for value in values if value is not None]
        if len(set(there)) > 2:
            return join(
                tag("h3", f"{name} of the items"),
                tag(
                    "figure",
                    histogram(there, f"{task.task}: {name} of {len(there)} items"),
                    tag("figcaption", f"{counted(len(there), 'item')}, each on its own.", class_="small"),
                ),
            )
    return None
