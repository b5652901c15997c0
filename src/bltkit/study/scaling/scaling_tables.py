"""Sections of the report of the study `scaling`: sentences and tables, from its rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bltkit.study.report import ReportTable, Section
from bltkit.study.scaling.scaling_analysis import (
    CELL,
    LOSS,
    PARAMS,
    Along,
    Crossover,
    Frame,
    Interval,
    SeedNoise,
    best_sizes,
    cells_of,
    cost_exponent,
    crossover,
    data_ratio,
    isoflops,
    matched,
    noise_of,
    parametric,
    points_of,
)
from bltkit.study.scaling.scaling_fits import TooFew

DASH = "\u2013"
_ALONG: tuple[tuple[Along, str], ...] = (("flops", "FLOPs"), ("bytes_seen", "bytes"), ("rated_seconds", "seconds"))


@dataclass(frozen=True)
class Findings:
    """Values that sentences, tables and figures share; where rows are too few for one, the reason stands in its place.

    points: see `points_of`. main: those of sizes that did not grow with their patch.
    """

    points: Frame

    @cached_property
    def main(self) -> Frame:
        """Points of the plan's sizes."""
        return self.points[self.points["main"]]

    @cached_property
    def cells(self) -> Frame:
        """Means over seeds."""
        return cells_of(self.points)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Families, sorted."""
        return tuple(sorted(set(self.main["family"]))) or (str(self.points["family"].iloc[0]),)

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """Sizes of the plan, smallest first."""
        return tuple(self.main.sort_values(PARAMS, kind="stable")["size"].unique())

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Budgets, ascending."""
        return tuple(sorted(set(self.points["budget"].astype(float))))

    @cached_property
    def noise(self) -> SeedNoise | str:
        """Seed noise."""
        try:
            return noise_of(self.points)
        except TooFew as why:
            return str(why)

    @cached_property
    def crossovers(self) -> tuple[Crossover | str, ...]:
        """Crossovers of the compared pairs; empty without noise."""
        results: list[Crossover | str] = []
        if not isinstance(noise := self.noise, SeedNoise):
            return ()
        for first, second in compared(self.families):
            try:
                results.append(crossover(self.main, first, second, noise))
            except TooFew as why:
                results.append(str(why))
        return tuple(dict.fromkeys(results))

    @cached_property
    def base_family(self) -> str:
        """Family that grown models are compared with: the shortest patches of the same rule."""
        rules = {name.rpartition("-")[0] for name in self.points.loc[~self.points["main"], "family"]}
        same = [name for name in self.families if name.rpartition("-")[0] in rules]
        return min(same, key=lambda name: float(name.rpartition("-")[2]), default=self.families[0])

    def place(self, size: str, family: str) -> tuple[int, int]:
        """Sort key of a table: by size, then by family; models that grew with their patch come last."""
        return (*self.sizes, size).index(size), (*self.families, family).index(family)


def compared(families: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs to compare: every family of patches with every one of tokens, and the first family of patches with the
    others."""
    tokens = [name for name in families if name.startswith("bpe")]
    patched = [name for name in families if name not in tokens]
    return [(name, other) for name in patched for other in tokens] + [(patched[0], other) for other in patched[1:]]


def sections(frame: Frame) -> Iterator[Section]:
    """The whole report; tables without rows are left out."""
    findings = Findings(points_of(frame))
    yield Section(paragraphs=_paragraphs(findings))
    for build in (_measured, _isoflops, _fits, _crossovers, _matched, _fixed_inference, _sources):
        section = build(findings)
        if any(len(table.cells) for table in section.report_tables()):
            yield section


def _paragraphs(findings: Findings) -> list[str]:
    paragraphs = [
        "Budgets are training FLOPs by the exact count of useful operations, forward and backward, the entropy model's "
        "forward pass over every byte included where the plan says so. What is not counted: the entropy model's own "
        "training, that a tokenizer has read the training text, and what is computed for padding. Bits per byte are of "
        "held-out documents, the same rows for all. A run is a trunk at the full rate and a decay of its own for each "
        "budget."
    ]
    if isinstance(noise := findings.noise, SeedNoise):
        spread = f"{100 * noise.relative:.2f} % of bits per byte ({noise.freedom} degrees of freedom)"
        paragraphs.append(
            f"Seeds differ by {spread}, standard deviation. Intervals are of 95 % and know of no other noise."
        )
    else:
        paragraphs.append(f"No intervals: {noise}.")
    trainings = findings.points.get("flops_of_scorer_training")  # the first rows lack it
    flops = 0.0 if trainings is None else float(trainings.max())
    if flops > 0:
        paragraphs.append(
            f"The entropy model's own training took {in_flops(flops)} FLOPs, once for all runs: "
            f"{100 * flops / findings.budgets[0]:.0f} % of the smallest budget, "
            f"{100 * flops / findings.budgets[-1]:.0f} % of the largest."
        )
    return paragraphs + [
        result if isinstance(result, str) else f"{result.first} and {result.second}: {result.verdict()}."
        for result in findings.crossovers
    ]


def _section(
    title: str, about: str, heads: Sequence[str], lines: Sequence[Sequence[str]], figure: str = "", texts: int = 1
) -> Section:
    import pandas as pd

    cells = pd.DataFrame(list(lines), columns=list(heads))
    return Section(title, [about], [ReportTable(cells, texts)], [figure] if figure else [])


def _measured(findings: Findings) -> Section:
    groups = dict(iter(findings.points.groupby(CELL)))
    lines = []
    for family, size, budget in sorted(groups, key=lambda cell: (*findings.place(cell[1], cell[0]), *cell)):
        rows = groups[family, size, budget]
        last = rows.iloc[-1]
        spread = f" \u00b1 {rows[LOSS].std():.4f}" if len(rows) > 1 else ""
        share = last["flops_of_scorer"] / last["flops"]
        lines.append(
            (
                family,
                size,
                in_flops(budget),
                f"{rows[LOSS].mean():.4f}{spread}",
                str(len(rows)),
                f"{last[PARAMS]:,}",
                f"{last['params']:,}",
                f"{last['forward_flops_per_byte'] / 1e6:.3f}",
                f"{last['bytes_seen'] / 1e6:.2f}",
                str(last["steps"]),
                f"{last['unit_bytes']:.2f}",
                f"{100 * share:.0f} %" if share else DASH,
            )
        )
    return _section(
        "What was measured",
        "Mean over seeds and standard deviation. Parameters: those in products, and all of them (tables that are "
        "looked up included). MF: millions of forward operations per byte of text, without the entropy model. Bytes a "
        "unit: a patch or a token, mean over training. Scorer: the entropy model's share of the FLOPs.",
        (
            *("family", "size", "FLOPs", "bits per byte", "seeds", "in products", "parameters", "MF a byte"),
            *("MB seen", "steps", "bytes a unit", "scorer"),
        ),
        lines,
        figure="flops",
        texts=2,
    )


def _isoflops(findings: Findings) -> Section:
    lines: list[tuple[str, ...]] = []
    for family in findings.families:
        noise = findings.noise
        ranges = best_sizes(findings.points, family, noise) if isinstance(noise, SeedNoise) else {}
        for budget, fit in isoflops(findings.points, family).items():
            if isinstance(fit, str):
                lines.append((family, in_flops(budget), *[DASH] * 4, fit))
                continue
            between, ratio = DASH, DASH
            if fit.inside:
                ratio = f"{data_ratio(findings.points, family, budget, fit.best):.3g}"
            if budget in ranges:
                sizes, ratios = ranges[budget]
                between = f"{_big(sizes[0])} to {_big(sizes[1])}"
                ratio += f" ({ratios[0]:.2g} to {ratios[1]:.2g})" if fit.inside else ""
            where = "between the sizes" if fit.inside else "outside the sizes"
            lines.append((family, in_flops(budget), _big(fit.best), between, ratio, f"{fit.lowest:.4f}", where))
    return _section(
        "The best size of a budget",
        "A parabola in the logarithm of the parameters in products, through the best size of a budget and its two "
        "neighbours: nothing checks its form, and a lowest point outside the sizes is no estimate. Bytes of text per "
        "parameter are those that the budget pays for at the best size.",
        ("family", "FLOPs", "best size", "95 %", "bytes per parameter", "bits per byte", "where"),
        lines,
        figure="isoflop",
    )


def _fits(findings: Findings) -> Section:
    lines: list[tuple[str, ...]] = []
    for family in findings.families:
        try:
            fit, ranges = parametric(
                findings.points, family, findings.noise if isinstance(findings.noise, SeedNoise) else None
            )
        except TooFew as why:
            lines.append((family, *[DASH] * 7, str(why)))
            continue
        by_size = cost_exponent(findings.points, family)
        growth = f"N ~ C^{_ranged(fit.size_exponent(by_size), ranges.get('size_exponent'))}"
        lines.append(
            (
                family,
                _ranged(fit.e, ranges.get("e")),
                f"{fit.a:.3g}",
                _ranged(fit.alpha, ranges.get("alpha")),
                f"{fit.b:.3g}",
                _ranged(fit.beta, ranges.get("beta")),
                f"{100 * fit.error:.2f} %",
                f"{by_size:.2f}",
                growth if fit.determined else "not determined: a number ended at its edge",
            )
        )
    return _section(
        "Loss over size and data",
        "L = E + A / N^a + B / D^b, bits per byte over parameters in products and bytes of text; in brackets 95 %. "
        "Five numbers from a grid this small predict between its points and little beyond. Where a byte costs as N^g, "
        "the best size of a budget C grows as C^(b / (a + g b)).",
        ("family", "E", "A", "a", "B", "b", "error", "g", "best size over budget"),
        lines,
    )


def _crossovers(findings: Findings) -> Section:
    lines = []
    for result in findings.crossovers:
        if isinstance(result, str) or result.budgets != findings.budgets:
            continue
        differences = [
            f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
            for value, (low, high) in zip(result.differences, result.difference_intervals, strict=True)
        ]
        trend = f"{result.trend:+.3f} ({result.trend_interval[0]:+.3f} to {result.trend_interval[1]:+.3f})"
        at = DASH if result.at is None else f"{result.at:.2g}" + ("" if result.inside else " (extrapolated)")
        between = DASH if result.interval is None else f"{result.interval[0]:.2g} to {result.interval[1]:.2g}"
        signed = [text.replace("-", "\u2212") for text in (*differences, trend)]
        lines.append((result.first, result.second, *signed, at, between, f"{100 * result.crossing:.0f} %"))
    at_budgets = [f"at {in_flops(budget)}" for budget in findings.budgets]
    return _section(
        "Crossovers",
        "First less second in bits per byte, each at its best of the sizes that both have, by budget: below zero the "
        "first is better. A line through them over log FLOPs gives their change per factor of ten and the crossover, "
        "which is not estimated where a best size lies at an end of the sizes; draws: how many of the bootstrap's have "
        "one within a factor of ten of the budgets.",
        ("first", "second", *at_budgets, "change", "crossover", "95 %", "draws"),
        lines,
        texts=2,
    )


def _matched(findings: Findings) -> Section:
    lines = []
    for size in findings.sizes:
        for along, name in _ALONG:
            result = matched(findings.cells[findings.cells["main"]], size, along)
            if result is not None:
                at, losses = result
                cost = f"{in_flops(at) if along == 'flops' else _big(at)} {name}"
                lines.append((size, cost, *(_loss(losses.get(family)) for family in findings.families)))
    return _section(
        "The same global transformer at the same cost",
        "Bits per byte of one size of each family, which is to say of models around equal global transformers, at the "
        "same FLOPs, after the same bytes, and, where rates were measured (`--rates`), in the same seconds of training "
        "on one machine: the largest that all of them reach, between budgets by straight lines in logarithms.",
        ("size", "at", *findings.families),
        lines,
        figure="bytes",
        texts=2,
    )


def _fixed_inference(findings: Findings) -> Section:
    grown = ~findings.points["main"]
    bases = set(findings.points.loc[grown, "base_size"])
    base = findings.points["size"].isin(bases) & (findings.points["family"] == findings.base_family)
    lines = []
    for (family, size), rows in findings.points[grown | base].groupby(["family", "size"], sort=False):
        losses = rows.groupby("budget")[LOSS].mean()
        last = rows.iloc[-1]
        per_byte = f"{last['forward_flops_per_byte'] / 1e6:.3f}"
        shown = (_loss(losses.get(budget)) for budget in findings.budgets)
        lines.append((family, size, f"{last[PARAMS]:,}", per_byte, *shown))
    return _section(
        "Patch and model grown together",
        "Models that cost the same per byte at inference: what longer patches save goes into a wider global "
        "transformer. Bits per byte by training budget.",
        ("family", "size", "in products", "MF a byte", *map(in_flops, findings.budgets)),
        lines if bases else [],
        figure="inference" if bases else "",
        texts=2,
    )


def _sources(findings: Findings) -> Section:
    largest = findings.points[findings.points["budget"] == findings.budgets[-1]]
    labels = list(dict.fromkeys(label for by_source in findings.points["by_source"] for label in by_source))
    groups = dict(iter(largest.groupby(["size", "family"])))
    lines = []
    for size, family in sorted(groups, key=lambda cell: findings.place(*cell)):
        means = [_mean_of_source(groups[size, family]["by_source"], label) for label in labels]
        lines.append((family, size, *map(_loss, means)))
    return _section(
        f"By source, at {in_flops(findings.budgets[-1])} FLOPs",
        "Bits per byte of each source's held-out documents, mean over seeds.",
        ("family", "size", *labels),
        lines if len(labels) > 1 else [],
        texts=2,
    )


def _mean_of_source(by_source: "Sequence[Mapping[str, Mapping[str, float]]]", label: str) -> float | None:
    losses = [sources[label][LOSS] for sources in by_source if label in sources]
    return sum(losses) / len(losses) if losses else None


def in_flops(value: float) -> str:
    """Three digits, with an exponent without its sign."""
    return f"{value:.3g}".replace("e+", "e")


def _ranged(value: float, interval: Interval | None) -> str:
    return f"{value:.3g}" + ("" if interval is None else f" ({interval[0]:.2g} to {interval[1]:.2g})")


def _loss(value: float | None) -> str:
    return DASH if value is None or math.isnan(value) else f"{value:.4f}"


def _big(value: float) -> str:
    """Three digits with a unit of thousands."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"
