"""The page of one evaluation: what was evaluated, all tasks at a glance, then each task with its groups and items."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.eval.report.items import AMOUNTS, Amount, samples
from bltkit.eval.report.plots import DotPanel, PlotMark, PlotRow, dot_whisker, histogram
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
    short,
)
from bltkit.views.pages import Cell, CellLike, PageTable, Picture, picture, render_page

REPORT = "report.html"
MAX_BYTES = 2_000_000
"""Of a page; it shows fewer items where it would be larger."""
MAX_GROUPS = 250
"""Rows of a table by group."""


_ESTIMATE = ("value", "95 % interval", "std. error", "chance")


@dataclass(frozen=True)
class GroupSection:
    """A level's groups: in a picture and in a table. left_out: groups beyond MAX_GROUPS."""

    level: str
    picture: Picture | None
    table: PageTable
    left_out: int


@dataclass(frozen=True)
class TaskSection:
    """Everything about one task but its items."""

    name: str
    anchor: str
    said: str
    prompt: Cell
    metrics: PageTable
    groups: tuple[GroupSection, ...]
    spread: tuple[str, Picture, str] | None
    """Heading, picture and caption of how items differ."""


def write_page(directory: Path, place: Path | None = None) -> Path:
    """Write the page of the evaluation in `directory` to `place`, or else into the directory; returns where it is.

    Raises ValueError where the directory holds no finished evaluation.
    """
    run = read_run(Path(directory))
    place = Path(place or run.directory / REPORT)
    tasks = run.results.results
    items = counted(sum(task.n for task in tasks.values()), "item")
    fixed = {
        "name": run.results.model.name,
        "about": f"Evaluation: {counted(len(tasks), 'task')}, {items}",
        "circumstances": circumstances(run.results),
        "overview": _overview(tasks),
        "summary": _summary(tasks),
        "sections": [_section(run, name) for name in tasks],
    }
    title = f"Evaluation of {run.results.model.name}"

    def draw(amount: Amount) -> str:
        cards = {name: samples(run, name, amount) for name in tasks}
        return render_page("eval/report/evaluation.html.j2", title, items=cards, **fixed)

    write_atomic(place, fitting(draw))
    return place


def fitting(draw: Callable[[Amount], str]) -> bytes:
    """The page with as many items as it can show without becoming larger than a page may be."""
    data = b""
    for amount in AMOUNTS:
        data = draw(amount).encode()
        if len(data) <= MAX_BYTES:
            break
    return data


def anchor(task: str) -> str:
    """A task's place in the page."""
    return "task-" + hashlib.sha256(task.encode("utf-8", "replace")).hexdigest()[:8]


def _overview(tasks: Mapping[str, TaskResult]) -> Picture | None:
    """Main metrics as dots with whiskers, a panel for each scale that there is."""
    scales: dict[tuple[float | None, str, str], list[str]] = {}
    for name, task in tasks.items():
        scale = (task.highest, task.better, "" if task.highest is not None else task.metric)
        scales.setdefault(scale, []).append(name)
    panels = [
        DotPanel(
            f"{better} is better",
            tuple(figure_row(name, main_figure(tasks[name]), tasks[name].highest) for name in names),
            highest,
        )
        for (highest, better, _), names in scales.items()
    ]
    titles = [about(f"{name}, {main_metric(task)}", main_figure(task), task.highest) for name, task in tasks.items()]
    return picture(lambda: dot_whisker(panels), "; ".join(titles)) if panels else None


def figure_row(name: str, figure: Figure, highest: float | None) -> PlotRow:
    """A figure as a row of a plot."""
    marks = () if figure.value is None else (PlotMark(figure.value, figure.interval),)
    return PlotRow(name, marks, number(figure.value, highest), figure.chance)


def _summary(tasks: Mapping[str, TaskResult]) -> PageTable:
    """One line a task."""
    heads = (
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
    rows = [
        (
            Cell(name, link=anchor(name)),
            main_metric(task),
            cell(task.value, task.highest),
            ends_of(task, task.highest),
            cell(task.stderr, task.highest),
            cell(task.chance, task.highest),
            Cell(f"{task.n:,}", task.n),
            NOTHING if task.shots is None else task.shots,
            Cell(cut(task), task.cut_contexts, "bad" if task.cut_contexts else ""),
            short(task.prompt_hash),
        )
        for name, task in tasks.items()
    ]
    return PageTable("results of all tasks", heads, rows, texts=2, sortable=True)


def _section(run: StoredRun, name: str) -> TaskSection:
    task = run.results.results[name]
    return TaskSection(
        name,
        anchor(name),
        _said(task),
        short(task.prompt_hash),
        _metrics(task),
        tuple(_groups(task, level) for level, groups in task.groups.items() if len(groups) > 1),
        _spread(task, run.entries[name]),
    )


def _said(task: TaskResult) -> str:
    parts = [
        counted(task.n, "item"),
        None if task.shots is None else counted(task.shots, "shot"),
        _cut(task),
        None if not task.left_out else f"{counted(task.left_out, 'item')} left out, which the noise does not cover",
        None if task.seconds is None else f"{task.seconds:,.1f} s",
        None if task.bytes is None else counted(task.bytes, "byte"),
        None if task.task_seed is None else f"task seed {task.task_seed}",
    ]
    return " · ".join(part for part in parts if part is not None)


def _cut(task: TaskResult) -> str | None:
    if not task.cut_contexts:
        return None
    window = "" if task.window is None else f", the model is shown {task.window.size:,} {task.window.unit} at once"
    return f"{cut(task)} {'context' if cut(task) == '1' else 'contexts'} cut on the left{window}"


def _metrics(task: TaskResult) -> PageTable:
    """All metrics over items, and the means over groups."""
    rows: list[tuple[CellLike, ...]] = []
    for name, metric in task.metrics.items():
        figures: list[tuple[str, Figure]] = [(name, metric)]
        if task.macro is not None and name in task.macro.metrics:
            figures.append((f"{name} by {task.macro.level}", task.macro.metrics[name]))
        for title, figure in figures:
            rows.append(
                (
                    title,
                    cell(figure.value, metric.highest),
                    ends_of(figure, metric.highest),
                    cell(figure.stderr, metric.highest),
                    cell(figure.chance, metric.highest),
                    Cell(f"{figure.n:,}", figure.n),
                    Cell(direction(metric), kind="t quiet"),
                )
            )
    return PageTable("metrics", ("metric", *_ESTIMATE, "n", ""), rows)


def _groups(task: TaskResult, level: str) -> GroupSection:
    """A level's groups, the best first, on one scale."""
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
    figures = {name: groups[name].get(main, Figure(n=0, value=None)) for name in names}
    rows: list[tuple[CellLike, ...]] = [
        (
            name,
            cell(figure.value, highest),
            ends_of(figure, highest),
            Cell(f"{figure.n:,}", figure.n),
            *(_further(task, groups[name].get(other), other) for other in others),
        )
        for name, figure in figures.items()
    ]
    panel = DotPanel(
        f"{main}, {better} is better", tuple(figure_row(*row, highest) for row in figures.items()), highest
    )
    return GroupSection(
        level,
        picture(lambda: dot_whisker([panel], 500), f"{main} by {level}, as in the table"),
        PageTable(f"by {level}", (level, main, "95 % interval", "items", *others), rows, sortable=True),
        len(groups) - len(names),
    )


def _further(task: TaskResult, figure: Figure | None, metric: str) -> Cell:
    highest = task.metrics[metric].highest if metric in task.metrics else None
    return cell(None if figure is None else figure.value, highest)


def _spread(task: TaskResult, entries: Mapping[str, StoredEntry]) -> tuple[str, Picture, str] | None:
    """How sure the choices were, or how a metric's values lie, where items have more than two of them."""
    margins = _finite(entry.margin for entry in entries.values())
    if len(margins) > 1:
        sides = {"left": "another is likelier", "right": "the right one is likeliest"}
        draw = partial(histogram, margins, signed=True, **sides)
        shown = picture(draw, f"{task.task}: margins of {len(margins)} items")
        caption = "ln p of the right choice less that of the likeliest other, in nats; an item counts once."
        return None if shown is None else ("How clearly the right choice wins", shown, caption)
    for name in task.metrics:
        values = _finite(item_value(entry.metrics.get(name)) for entry in entries.values())
        if len(set(values)) > 2:
            shown = picture(partial(histogram, values), f"{task.task}: {name} of {len(values)} items")
            caption = f"{counted(len(values), 'item')}, each on its own."
            return None if shown is None else (f"{name} of the items", shown, caption)
    return None


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
