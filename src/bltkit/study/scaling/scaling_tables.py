"""The study `scaling` in tables, from its rows alone."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bltkit.study.scaling.analysis import (
    Along,
    best_sizes,
    cost_exponent,
    data_ratio,
    isoflops,
    matched,
    parametric,
)
from bltkit.study.scaling.fits import Isoflop, TooFew
from bltkit.study.scaling.rows import mean_over_seeds
from bltkit.study.scaling.scaling_findings import Findings, base_family, in_flops

Row = Mapping[str, Any]

DASH = "\u2013"
_ALONG: tuple[tuple[Along, str], ...] = (("flops", "FLOPs"), ("num_bytes", "bytes"), ("seconds", "seconds"))


@dataclass(frozen=True)
class Table:
    """texts: columns that stand left. drawing: the picture that stands below it."""

    title: str
    about: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    drawing: str | None = None
    texts: int = 1


def tables(rows: Sequence[Row], found: Findings) -> list[Table]:
    """All of them; those of which there is nothing to tell are left out."""
    own = [
        _measured(rows, found),
        _isoflops(found),
        _fits(found),
        _crossovers(found),
        _matched(found),
        _fixed_inference(rows, found),
        _sources(rows, found),
    ]
    return [one for one in own if one.lines]


def _measured(rows: Sequence[Row], found: Findings) -> Table:
    cells: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        if row.get("what") == "scaling":
            cells.setdefault((row["size"], row["family"], row["budget"]), []).append(row)
    lines = []
    for (size, family, budget), some in sorted(cells.items(), key=lambda one: (*found.place(*one[0][:2]), one[0])):
        losses = [row["bits_per_byte"] for row in {row["seed"]: row for row in some}.values()]
        spread = f" \u00b1 {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        last = some[-1]
        share = last["flops_of_scorer"] / last["flops"]
        lines.append(
            (
                family,
                size,
                in_flops(budget),
                f"{statistics.mean(losses):.4f}{spread}",
                str(len(losses)),
                f"{last['params_multiplied']:,}",
                f"{last['params']:,}",
                f"{last['forward_flops_per_byte'] / 1e6:.3f}",
                f"{last['bytes_seen'] / 1e6:.2f}",
                str(last["steps"]),
                f"{last['unit_bytes']:.2f}",
                f"{100 * share:.0f} %" if share else DASH,
            )
        )
    return Table(
        "What was measured",
        "Mean over seeds and standard deviation. Parameters: those in products, and all of them (tables that are "
        "looked up included). MF: millions of forward operations per byte of text, without the entropy model. Bytes a "
        "unit: a patch or a token, mean over training. Scorer: the entropy model's share of the FLOPs.",
        (
            *("family", "size", "FLOPs", "bits per byte", "seeds", "in products", "parameters", "MF a byte"),
            *("MB seen", "steps", "bytes a unit", "scorer"),
        ),
        tuple(lines),
        drawing="flops",
        texts=2,
    )


def _isoflops(found: Findings) -> Table:
    lines: list[tuple[str, ...]] = []
    for family in found.families:
        ranges = {} if isinstance(found.noise, str) else best_sizes(found.points, family, found.noise)
        for budget, one in isoflops(found.points, family).items():
            if isinstance(one, Isoflop):
                where = "between the sizes" if one.inside else "outside the sizes"
                range_ = ranges.get(budget)
                between = DASH if range_ is None else f"{_big(range_.size[0])} to {_big(range_.size[1])}"
                ratio = f"{data_ratio(found.points, family, budget, one.best):.3g}" if one.inside else DASH
                if one.inside and range_ is not None:
                    ratio += f" ({range_.ratio[0]:.2g} to {range_.ratio[1]:.2g})"
                lines.append((family, in_flops(budget), _big(one.best), between, ratio, f"{one.lowest:.4f}", where))
            else:
                lines.append((family, in_flops(budget), *[DASH] * 4, one))
    return Table(
        "The best size of a budget",
        "A parabola in the logarithm of the parameters in products, through the best size of a budget and its two "
        "neighbours: nothing checks its form, and a lowest point outside the sizes is no estimate. Bytes of text per "
        "parameter are those that the budget pays for at the best size.",
        ("family", "FLOPs", "best size", "95 %", "bytes per parameter", "bits per byte", "where"),
        tuple(lines),
        drawing="isoflop",
    )


def _fits(found: Findings) -> Table:
    lines = []
    for family in found.families:
        try:
            noise = None if isinstance(found.noise, str) else found.noise
            fit, ranges = parametric(found.points, family, noise)
        except TooFew as why:
            lines.append((family, *[DASH] * 7, str(why)))
            continue
        by_size = cost_exponent(found.points, family)

        def ranged(name: str, value: float, ranges: Mapping[str, tuple[float, float]] = ranges) -> str:
            low_high = ranges.get(name)
            return f"{value:.3g}" + ("" if low_high is None else f" ({low_high[0]:.2g} to {low_high[1]:.2g})")

        note = "" if fit.determined else "not determined: a number ended at its edge"
        lines.append(
            (
                family,
                ranged("e", fit.e),
                f"{fit.a:.3g}",
                ranged("alpha", fit.alpha),
                f"{fit.b:.3g}",
                ranged("beta", fit.beta),
                f"{100 * fit.error:.2f} %",
                f"{by_size:.2f}",
                note or f"N ~ C^{ranged('size_exponent', fit.size_exponent(by_size))}",
            )
        )
    return Table(
        "Loss over size and data",
        "L = E + A / N^a + B / D^b, bits per byte over parameters in products and bytes of text; in brackets 95 %. "
        "Five numbers from a grid this small predict between its points and little beyond. Where a byte costs as N^g, "
        "the best size of a budget C grows as C^(b / (a + g b)).",
        ("family", "E", "A", "a", "B", "b", "error", "g", "best size over budget"),
        tuple(lines),
    )


def _crossovers(found: Findings) -> Table:
    lines = []
    for one in found.crossovers:
        if isinstance(one, str):
            continue
        shown = [
            f"{value:+.4f} ({low:+.4f} to {high:+.4f})".replace("-", "\u2212")
            for value, (low, high) in zip(one.differences, one.difference_intervals, strict=True)
        ]
        trend = f"{one.trend:+.3f} ({one.trend_interval[0]:+.3f} to {one.trend_interval[1]:+.3f})"
        at = DASH if one.at is None else f"{one.at:.2g}" + ("" if one.inside else " (extrapolated)")
        between = DASH if one.interval is None else f"{one.interval[0]:.2g} to {one.interval[1]:.2g}"
        draws = f"{100 * one.crossing:.0f} %"
        lines.append((one.first, one.second, *shown, trend.replace("-", "\u2212"), at, between, draws))
    shown_budgets = [f"at {in_flops(budget)}" for budget in found.budgets]
    lines = [line for line in lines if len(line) == len(shown_budgets) + 6]
    return Table(
        "Crossovers",
        "First less second in bits per byte, each at its best of the sizes that both have, by budget: below zero the "
        "first is better. A line through them over log FLOPs gives their change per factor of ten and the crossover, "
        "which is not estimated where a best size lies at an end of the sizes; draws: how many of the bootstrap's have "
        "one within a factor of ten of the budgets.",
        ("first", "second", *shown_budgets, "change", "crossover", "95 %", "draws"),
        tuple(lines),
        texts=2,
    )


def _matched(found: Findings) -> Table:
    lines = []
    main = [point for point in found.points if point.main]
    for size in found.sizes:
        for along, name in _ALONG:
            one = matched(main, size, along)
            if one is not None:
                at, losses = one
                shown = f"{in_flops(at)} {name}" if along == "flops" else f"{_big(at)} {name}"
                lines.append((size, shown, *(_loss(losses.get(family)) for family in found.families)))
    return Table(
        "The same global transformer at the same cost",
        "Bits per byte of one size of each family, which is to say of models around equal global transformers, at the "
        "same FLOPs, after the same bytes, and, where rates were measured (`--rates`), in the same seconds of training "
        "on one machine: the largest that all of them reach, between budgets by straight lines in logarithms.",
        ("size", "at", *found.families),
        tuple(lines),
        drawing="bytes",
        texts=2,
    )


def _fixed_inference(rows: Sequence[Row], found: Findings) -> Table:
    bases = {point.size.partition("@")[0] for point in found.points if not point.main}
    base = base_family(found)
    some = [
        point
        for point in mean_over_seeds(found.points)
        if not point.main or (point.size in bases and point.family == base)
    ]
    costs = {(row["family"], row["size"]): row for row in rows if row.get("what") == "scaling"}
    lines = []
    for family, size in dict.fromkeys((point.family, point.size) for point in some):
        losses = {one.budget: one.loss for one in some if (one.family, one.size) == (family, size)}
        row = costs[family, size]
        per_byte = f"{row['forward_flops_per_byte'] / 1e6:.3f}"
        shown = (_loss(losses.get(budget)) for budget in found.budgets)
        lines.append((family, size, f"{row['params_multiplied']:,}", per_byte, *shown))
    return Table(
        "Patch and model grown together",
        "Models that cost the same per byte at inference: what longer patches save goes into a wider global "
        "transformer. Bits per byte by training budget.",
        ("family", "size", "in products", "MF a byte", *(in_flops(budget) for budget in found.budgets)),
        tuple(lines) if bases else (),
        drawing="inference",
        texts=2,
    )


def _sources(rows: Sequence[Row], found: Findings) -> Table:
    labels = list(dict.fromkeys(label for row in rows for label in row.get("by_source", ())))
    largest = [row for row in rows if row.get("what") == "scaling" and row["budget"] == found.budgets[-1]]
    cells: dict[tuple[str, str], list[Row]] = {}  # by size and family
    for row in largest:
        cells.setdefault((row["size"], row["family"]), []).append(row)
    lines = []
    for (size, family), some in sorted(cells.items(), key=lambda one: found.place(*one[0])):
        means = [
            statistics.mean(row["by_source"][label]["bits_per_byte"] for row in some if label in row["by_source"])
            for label in labels
        ]
        lines.append((family, size, *(f"{mean:.4f}" for mean in means)))
    return Table(
        f"By source, at {in_flops(found.budgets[-1])} FLOPs",
        "Bits per byte of each source's held-out documents, mean over seeds.",
        ("family", "size", *labels),
        tuple(lines) if len(labels) > 1 else (),
        texts=2,
    )


def _loss(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def _big(value: float) -> str:
    """With a unit of thousands."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"
