"""The study `entropy` in drawings: surprisal over entropy, and how even the bits in patches are over their size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bltkit.study.scatter import Marker, Panel, Point, Scatter, draw_scatter
from bltkit.views.chart import COLOURS
from bltkit.views.scene import Scene

Row = Mapping[str, Any]
Label = Callable[[Sequence[Row], Row], str]

ACROSS = 3
"""Panels in a row."""

_MODELS = {
    "entropy-model": ("entropy model", COLOURS[0]),
    "blt": ("BLT", COLOURS[1]),
    "context-mixing": ("context mixing", COLOURS[2]),
}
_FAMILIES: dict[str, tuple[str, Marker]] = {
    "own": ("highest entropies", "circle"),
    "entropy at words": ("highest entropies", "circle"),
    "entropy at tokens": ("highest entropies", "circle"),
    "fixed": ("fixed", "square"),
    "fixed at words": ("fixed", "square"),
    "fixed at tokens": ("fixed", "square"),
    "random": ("random", "down"),
    "words": ("words", "up"),
    "tokens": ("tokens", "diamond"),
}


def drawings(rows: Sequence[Row], label: Label) -> dict[str, Scene]:
    """Each by its name, without a suffix."""
    return {"calibration": draw_scatter(_calibration(rows, label)), "evenness": draw_scatter(_evenness(rows, label))}


def _calibration(rows: Sequence[Row], label: Label) -> Scatter:
    panels = []
    for row in rows:
        points = [
            Point(one["entropy"], one["surprisal"][name], colour)
            for one in row["calibration"]["bins"]
            for name, (_, colour) in _MODELS.items()
            if name in one["surprisal"]
        ]
        panels.append(Panel(label(rows, row), tuple(points), diagonal=True))
    return Scatter(
        "Entropy, and the surprise that follows",
        "bins of as many bytes each, in the order of the entropy model's entropies",
        "mean entropy, bits",
        "mean surprisal, bits",
        _grid(panels),
        tuple(found for name, found in _MODELS.items() if any(name in row["bits_per_byte"] for row in rows)),
        (),
        notes=("dashed: as surprised as uncertain",),
    )


def _evenness(rows: Sequence[Row], label: Label) -> Scatter:
    panels = []
    for row in rows:
        points = [
            Point(found["bytes_per_patch"], one["patch_gini"], _MODELS[judge][1], _FAMILIES[name][1])
            for name, found in row["rules"].items()
            for judge, one in found["judges"].items()
            if one["patch_gini"] is not None
        ]
        panels.append(Panel(label(rows, row), tuple(points)))
    judges = {judge for row in rows for judge in row["rules"]["own"]["judges"]}
    return Scatter(
        "How uneven the bits in patches are",
        "Gini's coefficient of the bits that a patch carries; the lower, the more even",
        "bytes a patch",
        "Gini's coefficient",
        _grid(panels),
        tuple((f"bits by {shown}", colour) for name, (shown, colour) in _MODELS.items() if name in judges),
        tuple(dict.fromkeys(_FAMILIES.values())),
    )


def _grid(panels: Sequence[Panel]) -> tuple[tuple[Panel, ...], ...]:
    across = len(panels) if len(panels) <= ACROSS else -(-len(panels) // -(-len(panels) // ACROSS))
    return tuple(tuple(panels[at : at + across]) for at in range(0, len(panels), across))
