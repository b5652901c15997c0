"""Pictures of the ledger: what a byte costs against the size of patches, the model staying as it is.

Bars show each module's share, by the exact count and by the paper's formula; below, on logarithmic axes, the global
transformer's cost falls as the inverse of the patch size, and what runs for every byte stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bltkit.checkpoint.atomic import write_atomic
from bltkit.cost.ledger.row import Ledger
from bltkit.cost.ledger.target import is_token_model, ledger_of
from bltkit.views.figures import (
    COLOURS,
    PAPER,
    Axes,
    Figure,
    add_axes,
    check_suffix,
    house_style,
    new_figure,
    number,
    titled,
    write_figure,
)
from bltkit.views.line_plots import LinePlot, PlotLine, draw_into, size_of
from bltkit.views.pages import PageTable, picture, render_page

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
_LEFT, _TOP, _HEIGHT, _BARS, _GROUP, _LEGEND = 84.0, 100.0, 354.0, 512.0, 204.0, 260.0
"""Pixels: place and height of the bars' axes, height of their part, width of a size and of the legend."""
_LEAST_LABEL = 0.04
"""Share of the axis of a segment that holds its share."""


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
    """Draw the costs into a .png, .svg or .html file.

    Raises ValueError for another suffix, and see `costs_of`; for a picture that is not a page without matplotlib.
    """
    path = Path(path)
    is_page = check_suffix(path, ".png", ".svg", ".html") == ".html"
    costs = costs_of(target, context, overrides)
    if is_page:
        write_atomic(path, _page(costs).encode())
    else:
        write_figure(draw_costs(costs), path)


@house_style()
def draw_costs(costs: UnitCosts) -> Figure:
    """Bars of modules for a few sizes, and below them cost against size."""
    plot = curves(costs)
    (width, height), about = size_of(plot), _about(costs)
    bars = _LEFT + len(SIZES) * _GROUP + _LEGEND
    figure = new_figure(max(width, bars, 56 + 7.3 * len(about)), _BARS + height)
    titled(figure, f"What a byte costs, by bytes per {costs.unit}", about)
    _draw_bars(add_axes(figure, _LEFT, _TOP, len(SIZES) * _GROUP, _HEIGHT), costs)
    draw_into(figure, plot, _BARS)
    return figure


def _about(costs: UnitCosts) -> str:
    context = costs.ledgers[SIZES[0]].context
    return f"{costs.name}: MFLOP per byte of text, forward, {context:,} bytes of context; parameters constant"


def bars(costs: UnitCosts) -> list[tuple[float, str, Mapping[str, float]]]:
    """Size, kind and MFLOP of each module, from the bottom of a bar to its top.

    A pair of bars for each size: the exact count with the entropy model, and the paper's formula.
    """
    pairs: list[tuple[float, str, Mapping[str, float]]] = []
    for size in SIZES:
        ledger = costs.ledgers[size]
        modules = [name for name in NAMES if name in ledger.modules]
        exact = {name: ledger.modules[name].flops_exact / 1e6 for name in modules}
        paper = {name: (ledger.modules[name].flops_paper or 0.0) / 1e6 for name in modules if name != "entropy"}
        pairs += [(size, "exact", exact), (size, "paper", paper)]
    return pairs


def _draw_bars(axes: Axes, costs: UnitCosts) -> None:
    places = [at // 2 + (-0.19 if at % 2 == 0 else 0.19) for at in range(2 * len(SIZES))]
    shown = bars(costs)
    names = list(shown[0][2])
    bottoms = [0.0] * len(shown)
    top = max(sum(parts.values()) for _, _, parts in shown)
    for name in names:
        heights = [parts.get(name, 0.0) for _, _, parts in shown]
        axes.bar(places, heights, 0.35, bottoms, color=_COLOUR[name], label=NAMES[name], edgecolor=PAPER, linewidth=0.6)
        for place, height, bottom, (_, _, parts) in zip(places, heights, bottoms, shown, strict=True):
            if height > _LEAST_LABEL * top:
                share = f"{height / sum(parts.values()):.0%}"
                axes.text(place, bottom + height / 2, share, color=PAPER, ha="center", va="center", weight="bold")
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, total in zip(places, bottoms, strict=True):
        axes.annotate(number(total), (place, total), (0, 3), textcoords="offset points", ha="center", weight="bold")
    axes.set_xticks(places, [kind for _, kind, _ in shown])
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.5, len(SIZES) - 0.5), ylim=(0, 1.06 * top))
    for at, size in enumerate(SIZES):
        axes.annotate(
            f"{size:g} bytes per {costs.unit}", (at, 0), (0, -28), textcoords="offset points", ha="center", size=9,
            weight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.legend(reverse=True, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, handlelength=1, handleheight=1)


def curves(costs: UnitCosts) -> LinePlot:
    """Cost against the size of patches or tokens: in all, of the global transformer, and of everything else."""
    points = {size: costs.ledgers[size] for size in CURVE_SIZES}
    seldom = {size: sum(_flops(ledger, name) for name in ("latent", *_TOKEN)) for size, ledger in points.items()}
    total = {size: ledger.total_with_entropy.flops_exact for size, ledger in points.items()}
    lines = {"all, exact": (total, COLOURS[6], False)}
    if costs.unit == "patch":
        rest = {size: total[size] - seldom[size] for size in points}
        lines |= {"global transformer": (seldom, COLOURS[0], False), "everything else": (rest, COLOURS[1], False)}
    paper = {size: ledger.total.flops_paper or 0.0 for size, ledger in points.items()}
    lines["all, the paper's formula"] = (paper, COLOURS[2], True)
    return LinePlot(
        title=f"The inverse of bytes per {costs.unit}",
        about="both axes logarithmic: twice as many bytes at half the cost is a straight line downward",
        x_name=f"bytes per {costs.unit}",
        y_name="MFLOP per byte of text",
        lines=tuple(
            PlotLine(name, tuple((size, flops / 1e6) for size, flops in own.items()), colour, dashed)
            for name, (own, colour, dashed) in lines.items()
        ),
    )


_TOKEN = ("attention", "ffn", "head")


def _flops(ledger: Ledger, name: str) -> float:
    return ledger.modules[name].flops_exact if name in ledger.modules else 0.0


def _page(costs: UnitCosts) -> str:
    modules = [name for name in NAMES if name in next(iter(costs.ledgers.values())).modules]
    rows = []
    for size in SIZES:
        ledger = costs.ledgers[size]
        shares = ledger.shares()
        exact, paper = ledger.total_with_entropy.flops_exact / 1e6, (ledger.total.flops_paper or 0.0) / 1e6
        rows.append([f"{size:g}", f"{exact:.2f}", f"{paper:.2f}", *(f"{shares[name]:.1%}" for name in modules)])
    heads = (f"bytes per {costs.unit}", "MFLOP per byte", "the paper's", *(NAMES[name] for name in modules))
    title = f"What a byte costs: {costs.name}"
    return render_page(
        "cost/ledger/costs.html.j2",
        title,
        picture=picture(lambda: draw_costs(costs), f"{title}, by module and by bytes per {costs.unit}"),
        table=PageTable(title, heads, rows, texts=0),
    )
