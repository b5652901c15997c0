"""The page that sets several evaluations side by side: the first run is what the others are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.eval.report.differences import DRAWS, Difference
from bltkit.eval.report.items import Amount, ItemCard, Reply, chosen, prompt, replies, visible
from bltkit.eval.report.page import fitting
from bltkit.eval.report.pairing import RunComparison, TaskPair, compare
from bltkit.eval.report.plots import DotPanel, PlotMark, PlotRow, dot_whisker
from bltkit.eval.report.stored_runs import Figure, TaskResult
from bltkit.eval.report.words import (
    NOTHING,
    about,
    cell,
    counted,
    ends_of,
    interval,
    main_figure,
    main_metric,
    number,
    short,
    signed,
)
from bltkit.views.pages import Cell, CellLike, PageTable, Picture, picture, render_page


@dataclass(frozen=True)
class PairSection:
    """One run against the first, but for the items on which they disagree."""

    other: int
    label: str
    warnings: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    has_tasks: bool
    picture: Picture | None
    differences: PageTable | None
    without: str
    """Metrics without a difference."""
    agreement: PageTable | None


def write_comparison(directories: Sequence[Path], place: Path) -> RunComparison:
    """Compare evaluations with the first of them, and write the page to `place`.

    Raises ValueError where `compare` does.
    """
    comparison = compare(directories)
    others = range(1, len(comparison.runs))
    fixed = {
        "labels": comparison.labels,
        "runs": _runs(comparison),
        "warnings": _warnings(comparison, comparison.pairs),
        "settings": _settings(comparison, comparison.pairs),
        "overview": _overview(comparison),
        "values": _values(comparison),
        "sections": [_against(comparison, other) for other in others],
        "draws": DRAWS,
    }
    title = f"Comparison of {len(comparison.runs)} evaluations"

    def draw(amount: Amount) -> str:
        items = {
            other: [_disagreements(comparison, pair, amount) for pair in comparison.of(other) if not pair.reasons]
            for other in others
        }
        return render_page("eval/report/comparison.html.j2", title, items=items, **fixed)

    write_atomic(place, fitting(draw))
    return comparison


def _runs(comparison: RunComparison) -> PageTable:
    rows = [
        (
            Cell(label, mark=at),
            run.results.model.kind,
            short(run.results.model.fingerprint),
            run.results.noise or "none",
            NOTHING if run.results.limit is None else f"{run.results.limit:,}",
            run.results.seed,
            "".join(piece for piece, _ in visible(str(run.directory), 60)),
        )
        for at, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True))
    ]
    return PageTable("runs", ("run", "kind", "fingerprint", "noise", "limit", "seed", "directory"), rows)


def _warnings(comparison: RunComparison, pairs: Sequence[TaskPair]) -> list[tuple[str, str]]:
    """One line for each reason that keeps runs apart, with the tasks that it concerns: subject and rest."""
    reasons: dict[tuple[int, str], list[str]] = {}
    for pair in pairs:
        for reason in pair.reasons:
            reasons.setdefault((pair.other, reason), []).append(pair.task)
    first = comparison.labels[0]
    return [
        (f"{comparison.labels[other]} and {first} are not compared", f" in {_listed(tasks)}: {reason}.")
        for (other, reason), tasks in reasons.items()
    ]


def _settings(comparison: RunComparison, pairs: Sequence[TaskPair]) -> list[tuple[str, str]]:
    """One line for each setting that differs between two runs that are compared all the same."""
    named: dict[tuple[int, str], list[str]] = {}
    for pair in pairs:
        for setting in pair.settings:
            named.setdefault((pair.other, setting), []).append(pair.task)
    first = comparison.labels[0]
    return [
        (f"{comparison.labels[other]} and {first}: ", f"{setting} ({_listed(tasks)}).")
        for (other, setting), tasks in named.items()
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _overview(comparison: RunComparison) -> Picture | None:
    """Every task's main metric, a dot for each run; a panel for each scale that there is."""
    scales: dict[tuple[float | None, str, str], list[str]] = {}
    for task in comparison.tasks:
        one = _results(comparison, task)[0][1]
        scales.setdefault((one.highest, one.better, "" if one.highest is not None else one.metric), []).append(task)
    panels, titles = [], []
    for (highest, better, _), tasks in scales.items():
        rows = []
        for task in tasks:
            results = _results(comparison, task)
            marks = tuple(PlotMark(one.value, one.interval, at) for at, one in results if one.value is not None)
            rows.append(PlotRow(task, marks, main_metric(results[0][1]), _chance(comparison, task, None, None)))
            values = [about(comparison.labels[at], main_figure(one), highest) for at, one in results]
            titles.append(f"{task}: {'; '.join(values)}")
        panels.append(DotPanel(f"{better} is better", tuple(rows), highest))
    return picture(lambda: dot_whisker(panels), ". ".join(titles)) if panels else None


def _results(comparison: RunComparison, task: str) -> list[tuple[int, TaskResult]]:
    """Of the runs that have it."""
    results = [(at, run.results.results.get(task)) for at, run in enumerate(comparison.runs)]
    return [(at, one) for at, one in results if one is not None]


def _values(comparison: RunComparison) -> PageTable:
    """A line for each task and metric, a column for each run."""
    rows: list[tuple[CellLike, ...]] = []
    for task in comparison.tasks:
        results = dict(_results(comparison, task))
        first = next(iter(results.values()))
        names = list(dict.fromkeys(name for one in results.values() for name in one.metrics))
        lines: list[tuple[str, str | None]] = [(name, None) for name in names]
        if first.macro is not None:
            lines += [(name, first.macro.level) for name in names if name in first.macro.metrics]
        for name, level in lines:
            highest = next(one.metrics[name].highest for one in results.values() if name in one.metrics)
            cells = [_value(results.get(at), name, level, highest) for at in range(len(comparison.runs))]
            rows.append((task, _named(name, level), cell(_chance(comparison, task, name, level), highest), *cells))
    heads = [Cell(label, mark=at) for at, label in enumerate(comparison.labels)]
    return PageTable("values of all runs", ("task", "metric", "chance", *heads), rows, texts=2, sortable=True)


def _named(metric: str, level: str | None) -> str:
    return metric if level is None else f"{metric} by {level}"


def _figure(task: TaskResult, metric: str, level: str | None) -> Figure | None:
    if level is None:
        return task.metrics.get(metric)
    return None if task.macro is None else task.macro.metrics.get(metric)


def _chance(comparison: RunComparison, task: str, metric: str | None, level: str | None) -> float | None:
    """What guessing scores, as the first run that knows it has it. metric: None is the main one."""
    for _, result in _results(comparison, task):
        figure = main_figure(result) if metric is None else _figure(result, metric, level)
        if figure is not None and figure.chance is not None:
            return figure.chance
    return None


def _value(task: TaskResult | None, name: str, level: str | None, highest: float | None) -> Cell:
    figure = None if task is None else _figure(task, name, level)
    if figure is None or figure.value is None:
        return Cell(NOTHING)
    return Cell(number(figure.value, highest), figure.value, note=ends_of(figure, highest))


def _against(comparison: RunComparison, other: int) -> PairSection:
    """One run against the first: differences by scale, and item by item."""
    pairs = comparison.of(other)
    compared = [pair for pair in pairs if not pair.reasons]
    without = [f"{pair.task} ({', '.join(pair.unknown)})" for pair in compared if pair.unknown]
    return PairSection(
        other,
        comparison.labels[other],
        _warnings(comparison, pairs),
        _settings(comparison, pairs),
        bool(pairs),
        _difference_picture(other, compared),
        _differences(comparison, other, compared) if compared else None,
        _listed(without),
        _agreement(comparison, other, compared) if compared else None,
    )


def _difference_picture(other: int, pairs: Sequence[TaskPair]) -> Picture | None:
    """A row for each task and metric, those of one scale together."""
    scales: dict[tuple[float | None, str, str], list[PlotRow]] = {}
    for pair in pairs:
        for one in pair.differences:
            scale = (one.highest, one.better, "" if one.highest is not None else one.metric)
            name = f"{pair.task}, {_named(one.metric, one.level)}"
            row = PlotRow(name, (PlotMark(one.value, one.interval, other),), signed(one.value, one.highest))
            scales.setdefault(scale, []).append(row)
    panels = [DotPanel(f"{better} is better", tuple(rows), centred=True) for (_, better, _), rows in scales.items()]
    return picture(lambda: dot_whisker(panels), "differences, as in the table") if panels else None


def _differences(comparison: RunComparison, other: int, pairs: Sequence[TaskPair]) -> PageTable:
    """A line for each task and metric."""
    first, label = comparison.labels[0], comparison.labels[other]
    rows = [_line(pair.task, one) for pair in pairs for one in pair.differences]
    sides = (Cell(mark=0, label=first), Cell(mark=other, label=label))
    heads = ("task", "metric", "items", *sides, "difference", "95 % interval", "", "")
    return PageTable(f"differences of {label} to {first}", heads, rows, texts=2)


def _line(task: str, one: Difference) -> tuple[CellLike, ...]:
    return (
        task,
        _named(one.metric, one.level),
        Cell(f"{one.n:,}", one.n),
        cell(one.first, one.highest),
        cell(one.other, one.highest),
        Cell(signed(one.value, one.highest), one.value),
        one.method if one.interval is None else interval(one.interval, one.highest, sign=True),
        Cell(one.statement, kind={"better": "t good", "worse": "t bad"}.get(one.statement, "t quiet")),
        Cell(f"{one.better} is better", kind="t quiet"),
    )


def _agreement(comparison: RunComparison, other: int, pairs: Sequence[TaskPair]) -> PageTable:
    """How often which run was better on an item, by the main metric."""
    rows: list[tuple[CellLike, ...]] = []
    for pair in pairs:
        has_verdicts = bool(pair.alike or pair.first_better or pair.other_better)
        better = (len(pair.first_better), len(pair.other_better), pair.alike, pair.both_right)
        rows.append(
            (
                pair.task,
                _count(pair.common),
                *(_count(count if has_verdicts else None) for count in better),
                _count(pair.only_first),
                _count(pair.only_other),
            )
        )
    first, label = comparison.labels[0], comparison.labels[other]
    heads = (
        "task",
        "common items",
        Cell("better", mark=0, label=first),
        Cell("better", mark=other, label=label),
        "alike",
        "of these right",
        Cell("only", mark=0, label=first),
        Cell("only", mark=other, label=label),
    )
    return PageTable("agreement of items", heads, rows, sortable=True)


def _count(count: int | None) -> Cell:
    return Cell(NOTHING) if count is None else Cell(f"{count:,}", count)


def _disagreements(comparison: RunComparison, pair: TaskPair, amount: Amount) -> tuple[str, list[ItemCard]]:
    """Some items that one run got better than the other, and a line that says how many are shown."""
    cards: list[ItemCard] = []
    words = []
    for which, ids in ((0, pair.first_better), (pair.other, pair.other_better)):
        picked = chosen(ids, amount.items - amount.items // 3)
        cards += [_card(comparison, pair, item, which, amount) for item in picked]
        if ids:
            words.append(f"{len(picked)} of {counted(len(ids), 'item')} that {comparison.labels[which]} answers better")
    return f"{pair.task}: {', '.join(words)}", cards


def _card(comparison: RunComparison, pair: TaskPair, item: str, which: int, amount: Amount) -> ItemCard:
    answers = []
    for at in (0, pair.other):
        run = comparison.runs[at]
        shown = replies(run.record(pair.task, item), run.results.results[pair.task], amount)
        answers.append(Reply(at, *shown, label=comparison.labels[at]))
    asked = prompt(comparison.runs[0].record(pair.task, item), amount)
    return ItemCard(visible(item, 80), asked, tuple(answers), better=comparison.labels[which])
