"""Table and figure of an ablation, from its rows alone.

Variants are compared with the first of their group over the seeds that both have. Intervals come from the residuals of
bits per byte after a group's effects of variant and of seed, pooled over all variants: with two or three seeds, the
spread of one variant says little.
"""

import pandas as pd

from bltkit.study.ablation.catalog import ABLATIONS
from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.report import Section
from bltkit.study.stats import seed_noise, t_half
from bltkit.views.figures import Figure


def section(rows: pd.DataFrame) -> Section:
    """The section of one ablation: a table of variants and, where several were tried, one of learning rates."""
    rows = _with_rates(rows)
    best = at_best_rates(rows)
    tables = [_variant_table(best)] + ([_rate_table(rows)] if rows.rate.nunique() > 1 else [])
    name = str(rows.ablation.iloc[0])
    return Section(name, (_question(name), _about(best)), tables, (name,))


def at_best_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each variant at the learning rate with its fewest bits per byte with the first seed."""
    rows = _with_rates(rows)
    first = rows[rows.seed == rows.groupby("variant").seed.transform("min")]
    best = first.loc[first.groupby("variant").bits_per_byte.idxmin()].set_index("variant").rate
    return rows[rows.rate == rows.variant.map(best)]


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte more than the first variant of the group: `mean` over the common seeds, and `half` of its 95 %
    interval, by variant.

    Both are missing for the first variant, and without a common seed; `half` too where no two variants have two seeds,
    or where the effects leave no residuals: no spread is no certainty.
    """
    groups = []
    for _, group in rows.groupby("group", sort=False):
        bits = group.pivot(index="seed", columns="variant", values="bits_per_byte")[variants_of(group)]
        gaps = bits.iloc[:, 1:].sub(bits.iloc[:, 0], axis=0)
        groups.append(pd.DataFrame({"mean": gaps.mean(), "seeds": gaps.count()}).reindex(bits.columns))
    table = pd.concat(groups)
    variance, freedom = seed_noise(rows, "group", "variant", "seed", "bits_per_byte")
    table["half"] = [t_half(2 * variance, freedom, seeds) if seeds else None for seeds in table.seeds.fillna(0)]
    return table[["mean", "half"]]


def variants_of(rows: pd.DataFrame) -> list[str]:
    """Variants in the catalogue's order; those that it no longer holds come last."""
    measured, name = list(rows.variant.unique()), rows.ablation.iloc[0]
    order = [variant.name for variant in ABLATIONS[name].variants] if name in ABLATIONS else []
    return sorted(measured, key=lambda variant: order.index(variant) if variant in order else len(order))


def _variant_table(rows: pd.DataFrame) -> pd.DataFrame:
    by_variant = rows.groupby("variant")
    order = variants_of(rows)
    means = by_variant[["bytes_seen", "bits_per_byte", "unit_bytes", "flops_per_byte"]].mean().loc[order]
    spread = by_variant.bits_per_byte.std().loc[order]
    first = by_variant[["params", "params_tables"]].first().loc[order] / 1e6
    against = differences(rows).loc[order]
    table = pd.DataFrame(
        {
            "variant": order,
            "million bytes": (means.bytes_seen / 1e6).map("{:.2f}".format),
            "bits per byte": _with_halves(means.bits_per_byte, spread.where(spread > 0), "{:.3f}"),
            "against the first": _with_halves(against["mean"], against.half, "{:+.3f}"),
            "bytes per patch": means.unit_bytes.map(lambda size: "" if pd.isna(size) else f"{size:.2f}"),
            "million parameters": [
                f"{row.params - row.params_tables:.2f} + {row.params_tables:.2f}" for row in first.itertuples()
            ],
            "kFLOP per byte": (means.flops_per_byte / 1e3).map("{:,.0f}".format),
        }
    )
    texts = pd.DataFrame(rows.by_text.tolist(), rows.index)
    for text in texts.columns if len(texts.columns) > 1 else ():
        parts = pd.DataFrame(texts[text].dropna().tolist(), texts[text].dropna().index)
        means = parts.groupby(rows.variant)[["bits_per_byte", "unit_bytes"]].mean().reindex(order)
        table[f"{text}: bits (bytes)"] = [
            "" if pd.isna(bits) else f"{bits:.3f}" + ("" if pd.isna(size) else f" ({size:.2f})")
            for bits, size in means.itertuples(index=False)
        ]
    return table


def _rate_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte at each learning rate with the first seed."""
    first = rows[rows.seed == rows.seed.min()]
    table = first.pivot(index="variant", columns="rate", values="bits_per_byte").reindex(variants_of(rows))
    lr = {rate: config["optim"]["lr"] for rate, config in zip(rows.rate, rows.config, strict=True)}
    table = table.map(lambda bits: "" if pd.isna(bits) else f"{bits:.3f}").rename(columns=lambda rate: f"{lr[rate]:g}")
    return table.rename_axis("bits per byte, one seed, at lr").reset_index()


def figure(rows: pd.DataFrame) -> Figure:
    """Bits per byte over operations per byte: a point for each run, a panel for each group.

    The same shape has the same colour in all groups.
    """
    rows, name = at_best_rates(rows), str(rows.ablation.iloc[0])
    names = {variant: variant for variant in variants_of(rows)}
    if rows.group.any():
        names = {variant: variant.partition(": ")[2] or variant for variant in names}
    colours = {shape: at for at, shape in enumerate(dict.fromkeys(names.values()))}
    drawn = [
        PlotPanel(
            group or name,
            [
                PlotSeries(shape, runs.flops_per_byte / 1e6, runs.bits_per_byte, colours[shape])
                for variant, shape in names.items()
                if len(runs := of_group[of_group.variant == variant])
            ],
        )
        for group, of_group in rows.groupby("group", sort=False)
    ]
    return panels(
        [drawn],
        _question(name),
        about=_about(rows),
        x_name="million operations per byte of training",
        y_name="bits per byte of held-out text",
        share_y=True,
    )


def _with_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a learning rate in all of them; those of the first release have the common one."""
    rate = rows.rate.fillna(1.0) if "rate" in rows else 1.0
    return rows.assign(rate=rate, unit_bytes=rows.unit_bytes.astype(float))


def _with_halves(values: pd.Series, halves: pd.Series, form: str) -> list[str]:
    """Cells such as `2.396 ± 0.015`."""
    return [
        "" if pd.isna(value) else form.format(value) + ("" if pd.isna(half) else f" ± {half:.3f}")
        for value, half in zip(values, halves, strict=True)
    ]


def _question(name: str) -> str:
    return ABLATIONS[name].question if name in ABLATIONS else name


def _about(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    changes = first.changes if isinstance(first.get("changes"), list) else ()
    seeds = sorted(rows.seed.unique().tolist())
    more = "".join(f", {change}" for change in changes)
    return f"{first.bytes_seen / 1e6:.2g} MB of {', '.join(first.by_text)}; seeds {seeds}{more}."
