"""Differences of two runs' metrics on the items of both, with intervals from paired bootstraps.

A draw takes as many items as there are, with replacement, and the same ones of both runs; so what makes an item hard
for both does not blur the difference.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bltkit.eval.tasks import TASKS
from bltkit.eval.tasks.task import quotient
from bltkit.study.evaluation_page.runs import Entry, MetricFigure, TaskResult

DRAWS = 1000
LEVEL = 0.95
SEED = 0
_BLOCK = 64
"""Draws at a time: their weights take _BLOCK x items numbers."""

Numbers = npt.NDArray[np.float64]
Of = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Difference:
    """Of a metric, on the common items: the other run's value less the first one's, with its paired interval.

    level: of the groups that weigh the same (macro mean); None where all items do.
    """

    metric: str
    level: str | None
    n: int
    first: float
    other: float
    interval: tuple[float, float] | None
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
    mine: Mapping[str, Entry],
    theirs: Mapping[str, Entry],
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
        values = _resampled(of or quotient, both)
        found.append(_difference(name, None, result.metrics[name], len(known), values))
        if result.macro is not None and name in result.macro.metrics:
            groups: dict[str, list[int]] = {}
            for at, item in enumerate(known):
                groups.setdefault(mine[item].groups.get(result.macro.level, ""), []).append(at)
            drawn = [_resampled(of or quotient, [run[places] for run in both]) for places in groups.values()]
            there = [one for one in drawn if np.isfinite(one[0]).all()]
            values = np.mean(there, axis=0) if there else np.full((1, 2), np.nan)
            found.append(_difference(name, result.macro.level, result.metrics[name], len(known), values))
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


def _difference(name: str, level: str | None, metric: MetricFigure, count: int, values: Numbers) -> Difference | None:
    """None where a value is not defined. values: (1 + DRAWS, 2)."""
    if not np.isfinite(values[0]).all():
        return None
    gains = values[1:, 1] - values[1:, 0]
    gains = gains[np.isfinite(gains)]  # a draw may hold no item with anything to divide by
    ends = None
    if len(gains):
        low, high = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = (float(low), float(high))
    first, other = map(float, values[0])
    return Difference(name, level, count, first, other, ends, metric.better, metric.highest)
