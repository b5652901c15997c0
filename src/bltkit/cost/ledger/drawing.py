"""Pictures of the ledger: what a byte costs against the size of patches, the model staying as it is.

Bars show each module's share, by the exact count and by the paper's formula; below, on logarithmic axes, the global
transformer's cost falls as the inverse of the patch size, and what runs for every byte stays.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bltkit.checkpoint.atomic import write_atomic
from bltkit.cost.ledger.row import Ledger
from bltkit.cost.ledger.target import is_token_model, ledger_of
from bltkit.views import html
from bltkit.views.chart import COLOURS, Chart, Series, draw_chart, number
from bltkit.views.pictures import HAIRLINE, INK, MUTED, PAPER
from bltkit.views.scene import Box, Curve, Dot, Label, Scene, Shape

SIZES = (4.0, 6.0, 8.0)
"""Bytes per patch of the bars: the paper's."""
CURVE_SIZES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)

NAMES = {
    "latent": "global transformer",
    "attention": "attention",
    "ffn": "feed-forward",
    "head": "head",
    "decoder": "local decoder",
    "decoder_cross": "cross-attention, decoder",
    "encoder": "local encoder",
    "encoder_cross": "cross-attention, encoder",
    "entropy": "entropy model",
}
"""Modules that compute, from the bottom of a bar to its top, as people call them."""

_COLOUR = dict(zip(NAMES, (COLOURS[0], COLOURS[0], COLOURS[5], COLOURS[3], *COLOURS[1:6]), strict=True)) | {
    "entropy": "#8a8f98"
}
_MARGIN, _LEFT, _TOP, _HEIGHT = 28.0, 84.0, 124.0, 330.0
_BAR, _GAP, _BETWEEN, _LEGEND = 74.0, 10.0, 46.0, 230.0
_LINE, _LETTER = 19.0, 7.3
_LEAST_LABEL = 14.0
"""Height of a segment that holds its share."""


@dataclass(frozen=True)
class UnitCosts:
    """The ledgers of one model, cut into units of several sizes: patches, or tokens."""

    name: str
    ledgers: Mapping[float, Ledger]

    @property
    def unit(self) -> str:
        """What there are bytes per."""
        return "token" if next(iter(self.ledgers.values())).bytes_per_token is not None else "patch"


def costs_of(target: str, context: int = 8192, overrides: Sequence[str] = ()) -> UnitCosts:
    """At `SIZES` and `CURVE_SIZES`. Raises ValueError for a model that has neither patches nor tokens."""
    token = is_token_model(target)
    sizes = sorted({*SIZES, *CURVE_SIZES})
    found = {
        size: ledger_of(target, None if token else size, context, overrides, bytes_per_token=size if token else None)
        for size in sizes
    }
    if set(found[sizes[0]].modules) == {"entropy"}:
        raise ValueError(f"{target} reads every byte: its cost does not depend on the size of patches; draw a BLT")
    return UnitCosts(target, found)


def write_costs(target: str, path: str | Path, context: int = 8192, overrides: Sequence[str] = ()) -> None:
    """Draw the costs into a .png or .html file. Raises ValueError for another suffix, and see `costs_of`."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".html"):
        raise ValueError(f"picture {str(path)!r}: its name must end in .png or .html")
    costs = costs_of(target, context, overrides)
    scenes = (draw_bars(costs), draw_chart(curves(costs)))
    write_atomic(path, stacked(scenes).to_png() if suffix == ".png" else _page(costs, scenes).encode())


def draw_bars(costs: UnitCosts, sizes: Sequence[float] = SIZES) -> Scene:
    """A pair of stacked bars for each size: the exact count with the entropy model, and the paper's formula."""
    ledgers = [costs.ledgers[size] for size in sizes]
    modules = [name for name in NAMES if name in ledgers[0].modules]
    top = max(max(one.total_with_entropy.flops_exact, one.total.flops_paper or 0.0) for one in ledgers)
    pair = 2 * _BAR + _GAP
    width = len(sizes) * (pair + _BETWEEN)
    about = (
        f"{costs.name}: MFLOP per byte of text, forward, {ledgers[0].context:,} bytes of context; parameters constant"
    )
    shapes: list[Shape] = [
        Label(_MARGIN, 44, f"What a byte costs, by bytes per {costs.unit}", 19, INK, bold=True),
        Label(_MARGIN, 66, about, 12.5, MUTED),
    ]
    bottom = _TOP + _HEIGHT
    for value in _ticks(top / 1e6):
        y = bottom - value * 1e6 / top * _HEIGHT
        shapes += [Box(_LEFT, y, width, 1, HAIRLINE), Label(_LEFT - 10, y + 4, _short(value), 11, MUTED, "end")]
    for at, (size, one) in enumerate(zip(sizes, ledgers, strict=True)):
        left = _LEFT + at * (pair + _BETWEEN) + _BETWEEN / 2
        exact = {name: one.modules[name].flops_exact for name in modules}
        paper = {name: one.modules[name].flops_paper or 0.0 for name in modules if name != "entropy"}
        for bar, (kind, parts) in enumerate((("exact", exact), ("paper", paper))):
            x = left + bar * (_BAR + _GAP)
            shapes += _bar(x, bottom, parts, _HEIGHT / top)
            shapes.append(Label(x + _BAR / 2, bottom + 17, kind, 11, MUTED, "middle"))
        name = f"{size:g} bytes per {costs.unit}"
        shapes.append(Label(left + pair / 2, bottom + 37, name, 12.5, INK, "middle", bold=True))
    shapes.append(Box(_LEFT, bottom, width, 1, MUTED))
    legend = _LEFT + width + 24
    for row, name in enumerate(reversed(modules)):
        y = _TOP + 10 + row * _LINE
        shapes += [Box(legend, y - 10, 12, 12, _COLOUR[name]), Label(legend + 20, y, NAMES[name], 12, INK)]
    page = max(legend + _LEGEND + _MARGIN, 2 * _MARGIN + _LETTER * len(about))
    return Scene(page, bottom + 58, tuple(shapes), PAPER)


def curves(costs: UnitCosts) -> Chart:
    """Cost against the size of patches or tokens: in all, of the global transformer, and of everything else."""
    points = {size: costs.ledgers[size] for size in CURVE_SIZES}
    seldom = {size: sum(_flops(one, name) for name in ("latent", *_TOKEN)) for size, one in points.items()}
    total = {size: one.total_with_entropy.flops_exact for size, one in points.items()}
    lines = {"all, exact": (total, COLOURS[6], False)}
    if costs.unit == "patch":
        rest = {size: total[size] - seldom[size] for size in points}
        lines |= {"global transformer": (seldom, COLOURS[0], False), "everything else": (rest, COLOURS[1], False)}
    paper = {size: one.total.flops_paper or 0.0 for size, one in points.items()}
    lines["all, the paper's formula"] = (paper, COLOURS[2], True)
    return Chart(
        title=f"The inverse of bytes per {costs.unit}",
        about="both axes logarithmic: twice as many bytes at half the cost is a straight line downward",
        x_name=f"bytes per {costs.unit}",
        y_name="MFLOP per byte of text",
        series=tuple(
            Series(name, tuple((size, flops / 1e6) for size, flops in own.items()), colour, dashed)
            for name, (own, colour, dashed) in lines.items()
        ),
    )


_TOKEN = ("attention", "ffn", "head")


def _flops(ledger: Ledger, name: str) -> float:
    return ledger.modules[name].flops_exact if name in ledger.modules else 0.0


def stacked(scenes: Sequence[Scene]) -> Scene:
    """One scene under the other."""
    shapes, y = list[Shape](), 0.0
    for scene in scenes:
        shapes += [_lower(shape, y) for shape in scene.shapes]
        y += scene.height
    return Scene(max(scene.width for scene in scenes), y, tuple(shapes), scenes[0].background)


def _lower(shape: Shape, by: float) -> Shape:
    if isinstance(shape, Curve):
        return replace(shape, points=tuple((x, y + by) for x, y in shape.points))
    assert isinstance(shape, Box | Label | Dot)
    return replace(shape, y=shape.y + by)


def _bar(x: float, bottom: float, parts: Mapping[str, float], pixels: float) -> Iterator[Shape]:
    total, y = sum(parts.values()), bottom
    for name, flops in parts.items():
        height = flops * pixels
        y -= height
        share = f"{flops / total:.0%}"
        yield Box(x, y, _BAR, max(height - 0.8, 0.3), _COLOUR[name], f"{NAMES[name]}: {flops / 1e6:.2f} MFLOP, {share}")
        if height >= _LEAST_LABEL:
            yield Label(x + _BAR / 2, y + height / 2 + 4, share, 11, PAPER, "middle", bold=True)
    yield Label(x + _BAR / 2, y - 7, number(total / 1e6), 12, INK, "middle", bold=True)


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, four to eight of them."""
    step = next(n * 10.0**power for power in range(-6, 12) for n in (1, 2, 5) if top / (n * 10.0**power) < 8)
    return [step * at for at in range(int(top / step) + 1)]


def _short(value: float) -> str:
    return "0" if not value else number(value)


def _page(costs: UnitCosts, scenes: Sequence[Scene]) -> str:
    title = f"What a byte costs: {costs.name}"
    modules = [name for name in NAMES if name in next(iter(costs.ledgers.values())).modules]
    lines = []
    for size in SIZES:
        one = costs.ledgers[size]
        shares = one.shares()
        exact, paper = one.total_with_entropy.flops_exact / 1e6, (one.total.flops_paper or 0.0) / 1e6
        lines.append([f"{size:g}", f"{exact:.2f}", f"{paper:.2f}", *(f"{shares[name]:.1%}" for name in modules)])
    head = (f"bytes per {costs.unit}", "MFLOP a byte", "the paper's", *(NAMES[name] for name in modules))
    pictures = [html.tag("figure", html.Html(scene.to_svg(title)), class_="picture scroll") for scene in scenes]
    about = "Forward pass; shares by the exact count. The paper's formula leaves the entropy model out."
    shown = html.table(head, lines, texts=0, label=title)
    return html.page(title, html.tag("h1", title), *pictures, html.tag("p", about, class_="quiet"), shown)
