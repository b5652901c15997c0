"""Figures of the study `scaling`: isoFLOP curves, and loss over FLOPs, bytes and seconds."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.scaling.scaling_analysis import LOSS, PARAMS, Frame, cells_of, isoflops, points_of
from bltkit.study.scaling.scaling_fits import Isoflop
from bltkit.study.scaling.scaling_tables import Findings, in_flops
from bltkit.study.stats import fit_power
from bltkit.views.figures import MARKERS, Figure

ACROSS = 3
"""Maximum number of panels side by side."""


def figures(frame: Frame) -> dict[str, Figure]:
    """Figures by their files' stems. Raises ValueError without rows or matplotlib."""
    findings = Findings(points_of(frame))
    drawn = {
        "isoflop": _isoflop(findings),
        "flops": _loss_over(findings, "flops", "training FLOPs"),
        "bytes": _loss_over(findings, "bytes_seen", "bytes of text"),
    }
    if findings.main["rated_seconds"].notna().all():
        drawn["seconds"] = _loss_over(findings, "rated_seconds", "seconds of training")
    if len(findings.main) < len(findings.points):
        drawn["inference"] = _inference(findings)
    return drawn


def _isoflop(findings: Findings) -> Figure:
    drawn = []
    for family in findings.families:
        points = findings.main[findings.main["family"] == family]
        grid = np.geomspace(points[PARAMS].min() / 1.3, points[PARAMS].max() * 1.3, 60)
        series = []
        for colour, budget in enumerate(findings.budgets):
            runs = points[points["budget"] == budget]
            series.append(PlotSeries(f"{in_flops(budget)} FLOPs", list(runs[PARAMS]), list(runs[LOSS]), colour))
            fit = isoflops(points, family).get(budget)
            if isinstance(fit, Isoflop):
                series.append(PlotSeries("", list(grid), list(fit.predict(grid)), colour, marker="", line="-"))
                if fit.inside:
                    series.append(PlotSeries("", [fit.best], [fit.lowest], colour, marker="*"))
        drawn.append(PlotPanel(family, series))
    return panels(
        _rows(drawn),
        "Loss over size at the same training FLOPs",
        about="a dot is a run, a line the parabola through the best size of a budget and its neighbours",
        x_name="parameters in products",
        y_name="bits per byte",
        x_scale="log",
        share_y=True,
        markers={"a run": "o", "lowest point": "*"},
    )


def _loss_over(findings: Findings, along: str, name: str) -> Figure:
    """A panel for each size."""
    drawn = [
        PlotPanel(f"size {size}", _curves(findings.main[findings.main["size"] == size], findings.families, along))
        for size in findings.sizes
    ]
    about = "a mark is a run; lines: power laws through the means over seeds"
    ticks = {budget: in_flops(budget) for budget in findings.budgets} if along == "flops" else None
    return _panels(drawn, f"Loss over {name}", about, name, ticks)


def _inference(findings: Findings) -> Figure:
    """A panel for each size that grew, with families of patches whose models cost the same per byte."""
    base, sizes = findings.base_family, findings.points["base_size"]
    grown = ~findings.points["main"]
    names = list(dict.fromkeys([base, *findings.points.loc[grown, "family"]]))
    drawn = []
    for size in sizes[grown].unique():
        points = findings.points[(sizes == size) & (grown | (findings.points["family"] == base))]
        drawn.append(PlotPanel(f"size {size}", _curves(points, names, "flops")))
    about = "models that cost the same per byte at inference"
    return _panels(drawn, "Patch and model grown together", about, "training FLOPs")


def _panels(
    drawn: Sequence[PlotPanel], title: str, about: str, name: str, x_ticks: Mapping[float, str] | None = None
) -> Figure:
    return panels(
        _rows(drawn),
        title,
        about=about,
        x_name=name,
        y_name="bits per byte",
        x_scale="log",
        y_scale="log",
        share_y=True,
        x_ticks=x_ticks,
    )


def _curves(points: Frame, families: Sequence[str], along: str) -> list[PlotSeries]:
    """Runs of each family, and a power law through their means over seeds."""
    series = []
    for colour, family in enumerate(families):
        runs = points[points["family"] == family]
        if not len(runs):
            continue
        marker = MARKERS[colour % 5]
        series.append(PlotSeries(family, list(runs[along]), list(runs[LOSS]), colour, marker))
        means = cells_of(runs)
        if means[along].nunique() > 1:
            fit = fit_power(means[along], means[LOSS])
            grid = np.geomspace(means[along].min(), means[along].max(), 20)
            series.append(PlotSeries("", list(grid), list(fit.scale * grid**fit.exponent), colour, "", "-"))
    return series


def _rows(drawn: Sequence[PlotPanel]) -> list[Sequence[PlotPanel]]:
    across = math.ceil(len(drawn) / math.ceil(len(drawn) / ACROSS))
    return [drawn[at : at + across] for at in range(0, len(drawn), across)]
