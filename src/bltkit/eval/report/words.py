"""Numbers and circumstances in words, the same on a page of one evaluation and on one that compares several."""

import math

from bltkit.eval.report.stored_runs import Figure, MetricFigure, Results, TaskResult
from bltkit.views.pages import Cell, Facts

NOTHING = "—"


def number(value: float | None, highest: float | None = 1.0) -> str:
    """A metric's value: three places behind the point, one on a scale to 100."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{_places(highest)}f}"


def signed(value: float | None, highest: float | None = 1.0) -> str:
    """A difference, with its sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{_places(highest)}f}".replace("-", "\u2212")
    return text if float(text.replace("\u2212", "-")) else text.lstrip("+\u2212")


def interval(ends: tuple[float, float] | None, highest: float | None = 1.0, *, sign: bool = False) -> str:
    """Both ends."""
    if ends is None:
        return NOTHING
    show = signed if sign else number
    return f"{show(ends[0], highest)} to {show(ends[1], highest)}"


def ends_of(figure: Figure | TaskResult, highest: float | None = 1.0) -> str:
    """A figure's interval, or why it has none."""
    if figure.interval is None and figure.interval_method is not None:
        return figure.interval_method
    return interval(figure.interval, highest)


def cut(task: TaskResult) -> str:
    """How many contexts lost their beginning, of how many where the results say it."""
    whole = "" if not task.cut_contexts or task.contexts is None else f" of {task.contexts:,}"
    return f"{task.cut_contexts:,}{whole}"


def cell(value: float | None, highest: float | None = 1.0) -> Cell:
    """A value in a table, which is sorted by it exactly."""
    return Cell(number(value, highest), value if value is None or math.isfinite(value) else None)


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 item`, `2,000 items`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def main_metric(task: TaskResult) -> str:
    """Its name, and what it is the mean of where not of all items alike."""
    return task.metric if task.mean_over == "items" else f"{task.metric} by {task.mean_over}"


def direction(metric: MetricFigure | TaskResult) -> str:
    """Which way is up."""
    top = "" if metric.highest is None else f", at most {metric.highest:g}"
    return f"{metric.better} is better{top}"


def main_figure(task: TaskResult) -> Figure:
    """A task's main result as a figure."""
    return Figure(
        n=task.n,
        value=task.value,
        stderr=task.stderr,
        interval=task.interval,
        interval_method=task.interval_method,
        chance=task.chance,
    )


def about(name: str, figure: Figure, highest: float | None) -> str:
    """A drawing's title."""
    ends = "" if figure.interval is None else f", 95 % interval {interval(figure.interval, highest)}"
    level = "" if figure.chance is None else f", chance {number(figure.chance, highest)}"
    return f"{name}: {number(figure.value, highest)}{ends}{level}"


def short(fingerprint: str) -> Cell:
    """The beginning of a hash; the whole of it where the mouse rests."""
    return Cell(fingerprint[:10], code=fingerprint)


def circumstances(results: Results) -> Facts:
    """Model, settings and command of an evaluation."""
    return {
        "kind": {"bltkit": "byte model", "token": "token model"}.get(results.model.kind, results.model.kind),
        "fingerprint": short(results.model.fingerprint),
        "strategy": results.model.strategy,
        "noise": results.noise or "none",
        "items covered by": results.covered,
        "limit": "none" if results.limit is None else f"first {results.limit:,} of a group",
        "seed": results.seed,
        "commit": None if results.commit is None else short(results.commit),
        "command": None if not results.command else Cell(results.command[:2000], kind="pre"),
    }


def _places(highest: float | None) -> int:
    return 1 if highest is not None and highest > 10 else 3
