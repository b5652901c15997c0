"""The page that sets several evaluations side by side: the first run is what the others are held against."""

from collections.abc import Sequence
from pathlib import Path

from bltkit.checkpoint import write_atomic
from bltkit.eval.report.differences import DRAWS, Difference
from bltkit.eval.report.items import Amount, chosen, prompt, replies, visible
from bltkit.eval.report.lanes import Axis, Mark, centred, head, lane, plot_line, symbol
from bltkit.eval.report.page import fitting
from bltkit.eval.report.pairing import RunComparison, TaskPair, compare
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
    scale,
    short,
    signed,
)
from bltkit.views.html import Cell, Html, Node, join, page, table, tag


def write_comparison(directories: Sequence[Path], place: Path) -> RunComparison:
    """Compare evaluations with the first of them, and write the page to `place`.

    Raises ValueError where `compare` does.
    """
    comparison = compare(directories)
    write_atomic(place, fitting(lambda amount: comparison_page(comparison, amount)))
    return comparison


def comparison_page(comparison: RunComparison, amount: Amount) -> str:
    """The page as text."""
    others = range(1, len(comparison.runs))
    return page(
        f"Comparison of {len(comparison.runs)} evaluations",
        tag("h1", f"{len(comparison.runs)} evaluations side by side"),
        tag("p", f"{comparison.labels[0]} is what the others are compared with.", class_="quiet"),
        _runs(comparison),
        _warnings(comparison, comparison.pairs),
        _settings(comparison, comparison.pairs),
        tag("h2", "Results"),
        _legend(comparison),
        _overview(comparison),
        _values(comparison),
        tag("p", "Over all items of each run, which need not be the same ones.", class_="quiet small"),
        [_against(comparison, other, amount) for other in others],
    )


def _runs(comparison: RunComparison) -> Html:
    rows = [
        (
            join(symbol(at), label),
            run.results.model.kind,
            short(run.results.model.fingerprint),
            run.results.noise or "none",
            NOTHING if run.results.limit is None else f"{run.results.limit:,}",
            run.results.seed,
            visible(str(run.directory), 60),
        )
        for at, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True))
    ]
    return table(("run", "kind", "fingerprint", "noise", "limit", "seed", "directory"), rows, label="runs")


def _warnings(comparison: RunComparison, pairs: Sequence[TaskPair]) -> Html:
    """One line for each reason that keeps runs apart, with the tasks that it concerns."""
    reasons: dict[tuple[int, str], list[str]] = {}
    for pair in pairs:
        for reason in pair.reasons:
            reasons.setdefault((pair.other, reason), []).append(pair.task)
    first = comparison.labels[0]
    lines = [
        tag(
            "p",
            tag("strong", f"{comparison.labels[other]} and {first} are not compared"),
            f" in {_listed(tasks)}: {reason}.",
            class_="warning",
        )
        for (other, reason), tasks in reasons.items()
    ]
    return join(*lines)


def _settings(comparison: RunComparison, pairs: Sequence[TaskPair]) -> Html:
    """One line for each setting that differs between two runs that are compared all the same."""
    named: dict[tuple[int, str], list[str]] = {}
    for pair in pairs:
        for setting in pair.settings:
            named.setdefault((pair.other, setting), []).append(pair.task)
    first = comparison.labels[0]
    lines = [
        tag("p", tag("strong", f"{comparison.labels[other]} and {first}: "), f"{setting} ({_listed(tasks)}).")
        for (other, setting), tasks in named.items()
    ]
    return join(*lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _legend(comparison: RunComparison) -> Html:
    return tag("ul", [tag("li", symbol(at), label) for at, label in enumerate(comparison.labels)], class_="legend")


def _overview(comparison: RunComparison) -> Html:
    """Every task's main metric, a dot for each run; a scale for each that there is."""
    scales: dict[tuple[float | None, str, str], list[str]] = {}
    for task in comparison.tasks:
        one = _results(comparison, task)[0][1]
        scales.setdefault((one.highest, one.better, "" if one.highest is not None else one.metric), []).append(task)
    rows: list[Node] = []
    for (highest, better, _), tasks in scales.items():
        axis = scale(highest, [main_figure(one) for task in tasks for _, one in _results(comparison, task)])
        rows.append(plot_line(f"{better} is better", head(axis), kind=" head"))
        for task in tasks:
            found = _results(comparison, task)
            marks = [Mark(one.value, one.interval, at) for at, one in found if one.value is not None]
            titles = [about(comparison.labels[at], main_figure(one), highest) for at, one in found]
            name = (task, tag("span", f" {main_metric(found[0][1])}", class_="quiet small"))
            drawing = lane(axis, marks, f"{task}: {'; '.join(titles)}", _chance(comparison, task, None, None))
            rows.append(plot_line(name, drawing))
    return tag("figure", tag("div", rows, class_="plot"))


def _results(comparison: RunComparison, task: str) -> list[tuple[int, TaskResult]]:
    """Of the runs that have it."""
    found = [(at, run.results.results.get(task)) for at, run in enumerate(comparison.runs)]
    return [(at, one) for at, one in found if one is not None]


def _values(comparison: RunComparison) -> Html:
    """A line for each task and metric, a column for each run."""
    rows: list[tuple[Node | Cell, ...]] = []
    for task in comparison.tasks:
        found = dict(_results(comparison, task))
        first = next(iter(found.values()))
        names = list(dict.fromkeys(name for one in found.values() for name in one.metrics))
        lines: list[tuple[str, str | None]] = [(name, None) for name in names]
        if first.macro is not None:
            lines += [(name, first.macro.level) for name in names if name in first.macro.metrics]
        for name, level in lines:
            highest = next(one.metrics[name].highest for one in found.values() if name in one.metrics)
            cells = [_value(found.get(at), name, level, highest) for at in range(len(comparison.runs))]
            rows.append((task, _named(name, level), cell(_chance(comparison, task, name, level), highest), *cells))
    heads = [join(symbol(at), label) for at, label in enumerate(comparison.labels)]
    return table(("task", "metric", "chance", *heads), rows, texts=2, sortable=True, label="values of all runs")


def _named(metric: str, level: str | None) -> str:
    return metric if level is None else f"{metric} by {level}"


def _chance(comparison: RunComparison, task: str, metric: str | None, level: str | None) -> float | None:
    """What guessing scores, as the first run that knows it has it. metric: None is the main one."""
    for _, result in _results(comparison, task):
        figure: Figure | None = main_figure(result)
        if metric is not None and level is None:
            figure = result.metrics.get(metric)
        elif metric is not None:
            figure = None if result.macro is None else result.macro.metrics.get(metric)
        if figure is not None and figure.chance is not None:
            return figure.chance
    return None


def _value(task: TaskResult | None, name: str, level: str | None, highest: float | None) -> Cell:
    figure: Figure | None = None
    if task is not None and level is None:
        figure = task.metrics.get(name)
    elif task is not None and task.macro is not None:
        figure = task.macro.metrics.get(name)
    if figure is None or figure.value is None:
        return Cell(NOTHING)
    ends = tag("div", ends_of(figure, highest), class_="quiet small")
    return Cell(join(number(figure.value, highest), ends), figure.value)


def _against(comparison: RunComparison, other: int, amount: Amount) -> Html:
    """One run against the first: differences by scale, then the items on which they disagree."""
    first, label, pairs = comparison.labels[0], comparison.labels[other], comparison.of(other)
    compared = [pair for pair in pairs if not pair.reasons]
    return tag(
        "section",
        tag("h2", symbol(other), f"{label} against {first}"),
        _warnings(comparison, pairs),
        _settings(comparison, pairs),
        None if pairs else tag("p", "The two have no task in common.", class_="warning"),
        _differences(comparison, other, compared) if compared else None,
        _agreement(comparison, other, compared) if compared else None,
        [_disagreements(comparison, pair, amount) for pair in compared],
    )


def _differences(comparison: RunComparison, other: int, pairs: Sequence[TaskPair]) -> Html:
    """A line for each task and metric, those of one scale together, below the scale."""
    first, label = comparison.labels[0], comparison.labels[other]
    scales: dict[tuple[float | None, str, str], list[tuple[str, Difference]]] = {}
    for pair in pairs:
        for one in pair.differences:
            key = (one.highest, one.better, "" if one.highest is not None else one.metric)
            scales.setdefault(key, []).append((pair.task, one))
    rows: list[tuple[Node | Cell, ...]] = []
    for (_, better, _), lines in scales.items():
        axis = centred([end for _, one in lines for end in (one.interval or (one.value,))])
        rows.append(
            (Cell(f"{better} is better", kind="quiet"), "", "", "", "", Cell(head(axis), kind="lane"), "", "", "")
        )
        rows += [_line(axis, task, one, other) for task, one in lines]
    heads = ("task", "metric", "items", symbol(0, first), symbol(other, label), "", "difference", "95 % interval", "")
    unknown = [f"{pair.task} ({', '.join(pair.unknown)})" for pair in pairs if pair.unknown]
    return join(
        table(heads, rows, texts=2, label=f"differences of {label} to {first}"),
        tag(
            "p",
            f"{label} less {first} on the items that both answered, and 95 % intervals: of shares those of Bonett and "
            f"Price, of other metrics of {DRAWS:,} paired bootstraps over items. Better or worse is said where the "
            "interval excludes 0.",
            f" No difference can be worked out for {_listed(unknown)}." if unknown else None,
            class_="quiet small",
        ),
    )


def _line(axis: Axis, task: str, one: Difference, other: int) -> tuple[Node | Cell, ...]:
    ends = one.method if one.interval is None else interval(one.interval, one.highest, sign=True)
    drawing = lane(
        axis, [Mark(one.value, one.interval, other)], f"{task}, {one.metric}: {signed(one.value, one.highest)}, {ends}"
    )
    return (
        task,
        _named(one.metric, one.level),
        Cell(f"{one.n:,}", one.n),
        cell(one.first, one.highest),
        cell(one.other, one.highest),
        Cell(drawing, kind="lane"),
        Cell(signed(one.value, one.highest), one.value),
        ends,
        Cell(one.statement, kind={"better": "t good", "worse": "t bad"}.get(one.statement, "t quiet")),
    )


def _agreement(comparison: RunComparison, other: int, pairs: Sequence[TaskPair]) -> Html:
    """How often which run was better on an item, by the main metric."""
    rows: list[tuple[Node | Cell, ...]] = []
    for pair in pairs:
        known = pair.alike + len(pair.first_better) + len(pair.other_better)
        better = (len(pair.first_better), len(pair.other_better), pair.alike, pair.both_right)
        rows.append(
            (
                pair.task,
                _count(pair.common),
                *(_count(count if known else None) for count in better),
                _count(pair.only_first),
                _count(pair.only_other),
            )
        )
    one, two = symbol(0, comparison.labels[0]), symbol(other, comparison.labels[other])
    heads = (
        "task",
        "common items",
        join(one, "better"),
        join(two, "better"),
        "alike",
        "of these right",
        join("only in ", one),
        join("only in ", two),
    )
    return join(
        tag("h3", "Item by item, by main metric"), table(heads, rows, sortable=True, label="agreement of items")
    )


def _count(count: int | None) -> Cell:
    return Cell(NOTHING) if count is None else Cell(f"{count:,}", count)


def _disagreements(comparison: RunComparison, pair: TaskPair, amount: Amount) -> Html | None:
    """Some items that one run got better than the other."""
    cards: list[Html] = []
    words = []
    for which, ids in ((0, pair.first_better), (pair.other, pair.other_better)):
        picked = chosen(ids, amount.items - amount.items // 3)
        cards += [_card(comparison, pair, item, which, amount) for item in picked]
        if ids:
            words.append(f"{len(picked)} of {counted(len(ids), 'item')} that {comparison.labels[which]} answers better")
    if not cards:
        return None
    return tag("details", tag("summary", f"{pair.task}: ", ", ".join(words)), tag("div", cards, class_="items"))


def _card(comparison: RunComparison, pair: TaskPair, item: str, which: int, amount: Amount) -> Html:
    parts: list[Node] = [
        tag("h4", f"{comparison.labels[which]} is better · ", visible(item, 80)),
        prompt(comparison.runs[0].record(pair.task, item), amount),
    ]
    for at in (0, pair.other):
        run = comparison.runs[at]
        parts += [
            tag("h4", symbol(at), comparison.labels[at]),
            replies(run.record(pair.task, item), run.results.results[pair.task], amount),
        ]
    return tag("article", parts, class_="item")
