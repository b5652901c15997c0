"""Differences of two runs' metrics on the items of both, with 95 % intervals that keep an item's two answers together.

Of shares the interval of Bonett and Price, which keeps its width where the runs answer alike; of other metrics that of
a paired bootstrap: a draw takes as many items as there are, with replacement, and the same ones of both runs. So what
makes an item hard for both does not blur the difference. One item has no interval, and neither have items that all
differ by the same.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bltkit.eval.intervals import Interval
from bltkit.eval.report.stored_runs import MetricFigure, StoredEntry, TaskResult
from bltkit.eval.statistics import Method, interval_over_groups, is_share, paired_share, percentile_interval
from bltkit.eval.tasks import TASKS
from bltkit.eval.tasks.task import quotient

DRAWS = 1000
SEED = 0
_BLOCK = 64
"""Draws at a time: their weights take _BLOCK x items numbers."""

Numbers = npt.NDArray[np.float64]
Of = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Difference:
    """Of a metric, on the common items: the other run's value less the first one's, with its paired interval.

    level: of the groups that weigh the same (macro mean); None where all items do. method: how the interval is
    computed, or why there is none.
    """

    metric: str
    level: str | None
    n: int
    first: float
    other: float
    interval: Interval | None
    method: Method
    better: str
    highest: float | None

    @property
    def value(self) -> float:
        """Other less first."""
        return self.other - self.first

    @property
    def statement(self) -> str:
        """better or worse where the interval excludes 0, else not clear."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not clear"
        return "better" if (self.value > 0) == (self.better == "higher") else "worse"


def paired(
    result: TaskResult,
    mine: Mapping[str, StoredEntry],
    theirs: Mapping[str, StoredEntry],
    ids: Sequence[str],
    metrics: Mapping[str, MetricFigure],
) -> tuple[Difference, ...]:
    """Differences of all metrics that both runs have, over those of the items `ids` that have them, and of their means
    over groups, where the results have such; for these, items are drawn within their group.
    """
    found = []
    for name in result.metrics:
        known = [item for item in ids if name in mine[item].metrics and name in theirs[item].metrics]
        of = _of(result.task, name)
        given = [[run[item].metrics[name] for item in known] for run in (mine, theirs)]
        sizes = {len(one) if isinstance(one, tuple) else 1 for run in given for one in run}
        if name not in metrics or len(sizes) != 1 or (of is None and sizes - {1, 2}):
            continue
        both = [np.array([one if isinstance(one, tuple) else (one, 1.0) for one in run]) for run in given]
        found.append(_difference(of or quotient, name, None, result.metrics[name], [both]))
        if result.macro is not None and name in result.macro.metrics:
            groups: dict[str, list[int]] = {}
            for at, item in enumerate(known):
                groups.setdefault(mine[item].groups.get(result.macro.level, ""), []).append(at)
            members = [[run[places] for run in both] for places in groups.values()]
            found.append(_difference(of or quotient, name, result.macro.level, result.metrics[name], members))
    return tuple(one for one in found if one is not None)


def _of(task: str, metric: str) -> Of | None:
    """How this version of the task makes a value of sums; None where it does not know the task."""
    kind = TASKS.get(re.split("[:,]", task)[0])
    known = None if kind is None else kind.metrics.get(metric)
    return None if known is None else known.of


def _resampled(of: Of, both: Sequence[Numbers]) -> Numbers:
    """(items, sums) of both runs -> (1 + DRAWS, 2): their values as they are, then of each draw."""
    count = len(both[0])
    rng, share = np.random.default_rng(SEED), np.full(count, 1 / count)
    blocks = [np.ones((1, count), dtype=np.int64)]
    found: list[Numbers] = []
    for start in range(0, DRAWS, _BLOCK):
        blocks.append(rng.multinomial(count, share, size=min(_BLOCK, DRAWS - start)))
        found += [np.stack([_apply(of, block @ run) for run in both], 1) for block in blocks]
        blocks = []
    return np.concatenate(found)


def _apply(of: Of, sums: Numbers) -> Numbers:
    """(draws, sums) -> (draws,)."""
    if of is quotient:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Numbers = np.where(sums[:, 1] != 0, sums[:, 0] / sums[:, 1], np.nan)
        return ratio
    return np.array([of(row.tolist()) for row in sums])


def _difference(
    of: Of, name: str, level: str | None, metric: MetricFigure, groups: Sequence[Sequence[Numbers]]
) -> Difference | None:
    """The difference of the means over groups, which is one group for a metric over all items; None where no group has
    both values. groups: (items, sums) of both runs."""
    drawn = [(both, _resampled(of, both)) for both in groups]
    drawn = [(both, values) for both, values in drawn if np.isfinite(values[0]).all()]
    if not drawn:
        return None
    values = np.mean([one for _, one in drawn], axis=0)
    first, other = map(float, values[0])
    interval, method = _interval(of, drawn, values[1:, 1] - values[1:, 0])
    count = sum(len(both[0]) for both in groups)
    return Difference(name, level, count, first, other, interval, method, metric.better, metric.highest)


def _interval(
    of: Of, drawn: Sequence[tuple[Sequence[Numbers], Numbers]], gains: Numbers
) -> tuple[Interval | None, Method]:
    """drawn: runs and (1 + DRAWS, 2) values of each group. gains: (DRAWS,), of the mean over groups."""
    sizes = [len(both[0]) for both, _ in drawn]
    if sum(sizes) == 1:
        return None, "one item"
    if of is quotient and all(is_share(run) for both, _ in drawn for run in both):
        counts = [paired_share(both[0][:, 0], both[1][:, 0]) for both, _ in drawn]
        return (counts[0].interval, "bonett-price") if len(counts) == 1 else interval_over_groups(counts)
    if min(sizes) == 1:  # its draws are all the same, as if its difference were exact
        return None, "one item in a group"
    interval = percentile_interval(gains)
    return interval, "no spread" if interval is None else "bootstrap"
