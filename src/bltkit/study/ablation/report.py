"""An ablation on paper: a table of its variants and a picture, from its rows alone.

Variants are compared with the first of their group over the seeds that both have. Intervals come from what is left of
bits per byte after a group's effects of variant and of seed, pooled over all variants: with two or three seeds, one
variant's own spread says little.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.study.ablation.catalog import ABLATIONS
from bltkit.study.ablation.trainings import best_rate, rate_of
from bltkit.study.scatter import Panel, Point, Scatter, draw_scatter
from bltkit.views.chart import COLOURS

PAGE = "table.md"
PICTURE = "{name}.png"

Row = Mapping[str, Any]

_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""97.5 % points of Student's t, by degrees of freedom from 1 on; the last one for more of them."""
_HEAD = (
    "variant",
    "million bytes",
    "bits per byte",
    "against the first",
    "bytes a patch",
    "million parameters",
    "kFLOP a byte",
)


def write_report(rows: Sequence[Row], out: Path, *, pictures: bool = True) -> tuple[Path, ...]:
    """Write the table and, where asked for, a picture of each ablation into `out`; returns the pictures written.

    Raises ValueError for no rows, and for pictures without matplotlib: the table is there by then.
    """
    write_atomic(out / PAGE, table(rows).encode())
    written = []
    for name in _names(rows) if pictures else ():
        path = out / PICTURE.format(name=name)
        write_atomic(path, draw_scatter(picture(name, rows)).to_png())
        written.append(path)
    return tuple(written)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a section for each ablation. Raises ValueError where there are no rows."""
    if not rows:
        raise ValueError("there are no rows of `blt study ablation` to report; run it without --report first")
    lines = ["# Ablations"]
    for name in _names(rows):
        every = [row for row in rows if row["ablation"] == name]
        own = at_best_rates(every)
        texts = list(dict.fromkeys(text for row in own for text in row["by_text"]))
        more = [f"{text}: bits (bytes)" for text in texts] if len(texts) > 1 else []
        head = [*_HEAD, *more]
        lines += ["", f"## {name}", "", _question(name), "", _about(own), "", _line(head), _line(["---"] * len(head))]
        lines += [_line(_cells(variant, own, texts if more else [])) for variant in _variants(own)]
        lines += _rates(every)
    return "\n".join(lines) + "\n"


def at_best_rates(rows: Sequence[Row]) -> list[Row]:
    """The rows of each variant at the learning rate that served it best with the first seed."""
    chosen = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        tried = [row for row in rows if row["variant"] == variant]
        first = min(row["seed"] for row in tried)
        chosen[variant] = best_rate([row for row in tried if row["seed"] == first])
    return [row for row in rows if rate_of(row) == chosen[row["variant"]]]


def _rates(rows: Sequence[Row]) -> list[str]:
    """Markdown: what each learning rate gave with the first seed, where several were tried."""
    rates = sorted({rate_of(row) for row in rows})
    if len(rates) < 2:
        return []
    first = min(row["seed"] for row in rows)
    bits = {(row["variant"], rate_of(row)): row["bits_per_byte"] for row in rows if row["seed"] == first}
    of_rate = {rate_of(row): row["config"]["optim"]["lr"] for row in rows}
    head = ["bits per byte, one seed, at lr", *(f"{of_rate[rate]:g}" for rate in rates)]
    table = [head, ["---"] * len(head)]
    for variant in _variants(rows):
        at_rates = [bits.get((variant, rate)) for rate in rates]
        table.append([variant, *("" if value is None else f"{value:.3f}" for value in at_rates)])
    return ["", *map(_line, table)]


def difference(variant: str, rows: Sequence[Row]) -> tuple[float, float | None] | None:
    """Bits per byte more than the first variant of the group, mean over seeds, and half of its 95 % interval.

    None for the first variant itself, and without a common seed. The half is None where no variant has two seeds, or
    where nothing is left of bits per byte but those effects: no spread is no certainty.
    """
    cells = {(row["variant"], row["seed"]): row["bits_per_byte"] for row in rows}
    group = next(row["group"] for row in rows if row["variant"] == variant)
    first = next(name for name in _variants(rows) if any(r["variant"] == name and r["group"] == group for r in rows))
    seeds = dict.fromkeys(row["seed"] for row in rows if {(variant, row["seed"]), (first, row["seed"])} <= set(cells))
    both = [cells[variant, seed] - cells[first, seed] for seed in seeds]
    if variant == first or not both:
        return None
    variance, freedom = _noise(rows)
    if not freedom or not variance:
        return fmean(both), None
    t = _STUDENT[min(freedom, len(_STUDENT)) - 1]
    return fmean(both), t * (2 * variance / len(both)) ** 0.5


def _noise(rows: Sequence[Row]) -> tuple[float, int]:
    """Variance of bits per byte beside the effects of variant and seed, and its degrees of freedom: of
    variants that have all seeds of their group."""
    squares, freedom = 0.0, 0
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        seeds = {row["seed"] for row in own}
        cells = {(row["variant"], row["seed"]): row["bits_per_byte"] for row in own}
        full = [name for name in _variants(own) if all((name, seed) in cells for seed in seeds)]
        if len(full) < 2 or len(seeds) < 2:
            continue
        whole = fmean(cells[name, seed] for name in full for seed in seeds)
        of_variant = {name: fmean(cells[name, seed] for seed in seeds) for name in full}
        of_seed = {seed: fmean(cells[name, seed] for name in full) for seed in seeds}
        squares += sum(
            (cells[name, seed] - of_variant[name] - of_seed[seed] + whole) ** 2 for name in full for seed in seeds
        )
        freedom += (len(full) - 1) * (len(seeds) - 1)
    return squares / max(1, freedom), freedom


def picture(name: str, rows: Sequence[Row]) -> Scatter:
    """Bits per byte over operations per byte: a point for each run, a panel for each group, the same colour for what is
    the same in all of them."""
    own = at_best_rates([row for row in rows if row["ablation"] == name])
    names = {variant: variant.partition(": ")[2] or variant for variant in _variants(own)}
    if not any(row["group"] for row in own):
        names = {variant: variant for variant in names}
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(dict.fromkeys(names.values()))}
    panels = []
    for group in dict.fromkeys(row["group"] for row in own):
        points = tuple(
            Point(row["flops_per_byte"] / 1e6, row["bits_per_byte"], colours[names[row["variant"]]])
            for row in own
            if row["group"] == group
        )
        panels.append(Panel(group or name, points))
    return Scatter(
        _question(name),
        _about(own),
        "million operations per byte of training",
        "bits per byte of held-out text",
        (tuple(panels),),
        tuple(colours.items()),
        (),
        shared_y=True,
    )


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["ablation"] for row in rows))


def _variants(rows: Sequence[Row]) -> list[str]:
    """In the catalogue's order; those it no longer has stand behind."""
    found = dict.fromkeys(row["variant"] for row in rows)
    known = [one.name for one in ABLATIONS[rows[0]["ablation"]].variants] if rows[0]["ablation"] in ABLATIONS else []
    return [name for name in known if name in found] + [name for name in found if name not in known]


def _question(name: str) -> str:
    return ABLATIONS[name].question if name in ABLATIONS else name


def _about(rows: Sequence[Row]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    first = rows[0]
    text = ", ".join(first["by_text"])
    changes = "".join(f", {change}" for change in first.get("changes", ()))
    return f"{first['bytes_seen'] / 1e6:.2g} MB of {text}; seeds {seeds}{changes}."


def _cells(variant: str, rows: Sequence[Row], texts: Sequence[str]) -> list[str]:
    own = [row for row in rows if row["variant"] == variant]
    bits = [row["bits_per_byte"] for row in own]
    spread = f" ± {stdev(bits):.3f}" if len(set(bits)) > 1 else ""
    units = [row["unit_bytes"] for row in own if row["unit_bytes"]]
    found = difference(variant, rows)
    against = "" if found is None else f"{found[0]:+.3f}" + ("" if found[1] is None else f" ± {found[1]:.3f}")
    cells = [
        variant,
        f"{fmean(row['bytes_seen'] for row in own) / 1e6:.2f}",
        f"{fmean(bits):.3f}{spread}",
        against,
        f"{fmean(units):.2f}" if units else "",
        f"{(own[0]['params'] - own[0]['params_tables']) / 1e6:.2f} + {own[0]['params_tables'] / 1e6:.2f}",
        f"{fmean(row['flops_per_byte'] for row in own) / 1e3:,.0f}",
    ]
    return cells + [_of_text(own, text) for text in texts]


def _of_text(rows: Sequence[Row], text: str) -> str:
    own = [row["by_text"][text] for row in rows if text in row["by_text"]]
    if not own:
        return ""
    units = [one["unit_bytes"] for one in own if one["unit_bytes"]]
    return f"{fmean(one['bits_per_byte'] for one in own):.3f}" + (f" ({fmean(units):.2f})" if units else "")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
