"""The study `scaling` in pictures: isoFLOP curves, and loss over FLOPs, bytes and seconds."""

import math
from collections.abc import Sequence

import numpy as np

from bltkit.study.scaling.analysis import Along, isoflops
from bltkit.study.scaling.fits import Isoflop, TooFew, fit_power
from bltkit.study.scaling.rows import ScalingPoint, mean_over_seeds
from bltkit.study.scaling.scaling_findings import Findings, base_family
from bltkit.study.scatter import Marker, Panel, Scatter, Trace, draw_scatter
from bltkit.study.scatter import Point as Mark
from bltkit.views.chart import COLOURS
from bltkit.views.scene import Scene

ACROSS = 3
"""Panels in a row at most."""

_MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond", "up", "down")


def drawings(found: Findings) -> dict[str, Scene]:
    """Each by its name, without a suffix."""
    main = [point for point in found.points if point.main]
    scenes = {
        "isoflop": draw_scatter(_isoflop(found)),
        "flops": draw_scatter(_loss(found, main, "flops", "training FLOPs")),
        "bytes": draw_scatter(_loss(found, main, "num_bytes", "bytes of text")),
    }
    if not any(math.isnan(point.seconds) for point in main):
        scenes["seconds"] = draw_scatter(_loss(found, main, "seconds", "seconds of training"))
    if len(main) < len(found.points):
        scenes["inference"] = draw_scatter(_inference(found))
    return scenes


def _isoflop(found: Findings) -> Scatter:
    colours = {budget: COLOURS[at % len(COLOURS)] for at, budget in enumerate(found.budgets)}
    panels = []
    for family in found.families:
        own = [point for point in found.points if point.family == family and point.main]
        marks = [Mark(point.params, point.loss, colours[point.budget]) for point in own]
        traces = []
        ends = min(point.params for point in own), max(point.params for point in own)
        grid = np.geomspace(ends[0] / 1.3, ends[1] * 1.3, 60)
        for budget, one in isoflops(found.points, family).items():
            if isinstance(one, Isoflop):
                traces.append(
                    Trace(tuple(zip(grid.tolist(), one.predict(grid).tolist(), strict=True)), colours[budget])
                )
                if one.inside:
                    marks.append(Mark(one.best, one.lowest, colours[budget], "star"))
        panels.append(Panel(family, tuple(marks), traces=tuple(traces)))
    return Scatter(
        "Loss over size at the same training FLOPs",
        "a dot is a run, a line the parabola through the best size of a budget and its neighbours",
        "parameters in products",
        "bits per byte",
        _grid(panels),
        tuple((f"{budget:.3g} FLOPs".replace("e+", "e"), colour) for budget, colour in colours.items()),
        (("a run", "circle"), ("lowest point", "star")),
        x_scale="log",
        shared_y=True,
    )


def _loss(found: Findings, points: Sequence[ScalingPoint], along: Along, name: str) -> Scatter:
    """A panel for each size; lines are power laws through the means over seeds."""
    colours = {family: COLOURS[at % len(COLOURS)] for at, family in enumerate(found.families)}
    panels = []
    for size in found.sizes:
        own = [point for point in points if point.size == size]
        marks = tuple(
            Mark(getattr(one, along), one.loss, colours[one.family], _marker(found.families, one.family)) for one in own
        )
        panels.append(Panel(f"size {size}", marks, traces=_powers(own, along, colours)))
    return Scatter(
        f"Loss over {name}",
        "a mark is a run; lines: power laws through the means over seeds",
        name,
        "bits per byte",
        _grid(panels),
        tuple(colours.items()),
        (),
        x_scale="log",
        y_scale="log",
        shared_y=True,
    )


def _inference(found: Findings) -> Scatter:
    """Families of patches whose models cost the same per byte, a panel for each size that grew."""
    grown = [point for point in found.points if not point.main]
    base = base_family(found)
    names = list(dict.fromkeys([base, *(point.family for point in grown)]))
    colours = {family: COLOURS[at % len(COLOURS)] for at, family in enumerate(names)}
    panels = []
    for size in dict.fromkeys(point.size.partition("@")[0] for point in grown):
        own = [one for one in found.points if one.size == size and one.family == base]
        own += [one for one in grown if one.size.partition("@")[0] == size]
        marks = tuple(Mark(one.flops, one.loss, colours[one.family], _marker(names, one.family)) for one in own)
        panels.append(Panel(f"size {size}", marks, traces=_powers(own, "flops", colours)))
    return Scatter(
        "Patch and model grown together",
        "models that cost the same per byte at inference",
        "training FLOPs",
        "bits per byte",
        _grid(panels),
        tuple(colours.items()),
        (),
        x_scale="log",
        y_scale="log",
        shared_y=True,
    )


def _powers(points: Sequence[ScalingPoint], along: Along, colours: dict[str, str]) -> tuple[Trace, ...]:
    traces = []
    means = mean_over_seeds(points)
    for family in dict.fromkeys(point.family for point in means):
        own = [point for point in means if point.family == family]
        x = [getattr(point, along) for point in own]
        try:
            fit = fit_power(x, [point.loss for point in own])
        except TooFew:
            continue
        grid = np.geomspace(min(x), max(x), 20)
        line = zip(grid.tolist(), (fit.scale * grid**fit.exponent).tolist(), strict=True)
        traces.append(Trace(tuple(line), colours[family]))
    return tuple(traces)


def _marker(families: Sequence[str], family: str) -> Marker:
    return _MARKERS[list(families).index(family) % len(_MARKERS)]


def _grid(panels: Sequence[Panel]) -> tuple[tuple[Panel, ...], ...]:
    across = math.ceil(len(panels) / math.ceil(len(panels) / ACROSS))
    return tuple(tuple(panels[at : at + across]) for at in range(0, len(panels), across))
