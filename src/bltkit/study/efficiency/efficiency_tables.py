"""Tables, figure and fits of the study `efficiency`, from its rows alone.

How much of the measured time do the operations explain? Straight lines through log seconds per byte answer twice: a
power law of the operations, with slope and factor of its own, may fit well where time is far from proportional to
them, so the share that mere proportion explains (slope 1) stands beside it. The same for the predicted time. An
interval says what other rounds would have given, nothing about other shapes or machines.
"""

import random
from typing import Any

import numpy as np
import pandas as pd

from bltkit.eval.statistics import percentile_interval
from bltkit.study.efficiency.phases import PHASES
from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.report import ReportTable, Section
from bltkit.study.stats import fit_line
from bltkit.views.figures import Figure

MARKERS = {"prefill": "o", "decode": "s", "train": "^"}
SAMPLES = 400
"""Resamples of the rounds."""
KEY = ["preset", "phase", "context"]
"""Columns of a group: its systems were timed side by side."""

_COUNTED = (
    "Every byte of text is counted, of a token model as many as its tokens stand for. Predicted: the longer of "
    "operations over the rate of large products and bytes read over the rate of one-row products (they happen in "
    "the same products), and then the update over the rate of copies. Time is the median of the rounds."
)
_EXPLAINED = (
    "Lines through log seconds per byte. R²: share of the variance over these points. Over rounds: 95 % of it with "
    "the rounds drawn anew. R² of slope 1: time in proportion, below 0 where that is worse than a constant."
)
_UNEXPLAINED = "Measured time over that of the line through the operations: of the phase's own points, and of all."


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each system and group, in the order of measurement."""
    return frame.drop_duplicates([*KEY, "system"], keep="last").reset_index(drop=True)


def fits_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Lines log(seconds per byte) = slope * log(x) + constant for each phase, then over `all`.

    Columns: `phase`; `predictor` (x is the `operations` per byte, or the `predicted` seconds per byte); `points`;
    `slope`; `r2`, the share of the variance of log time that the line explains; `r2_proportional`, the same of the line
    of slope 1, below 0 where it is worse than the mean; `interval`, 95 % of r2 over resampled rounds, None with a
    single round or where all draws agree; `residuals`, measured over fitted time for each row of the phase. Phases with
    too few points or no spread are left out.
    """
    rows = latest(frame)
    groups: list[tuple[str, pd.DataFrame]] = [
        (phase, rows[rows.phase == phase].reset_index(drop=True)) for phase in PHASES if phase in set(rows.phase)
    ]
    if len(groups) > 1:
        groups.append(("all", rows))
    columns = "phase", "predictor", "points", "slope", "r2", "r2_proportional", "interval", "residuals"
    fits = [_fit(name, group, predictor) for predictor in ("operations", "predicted") for name, group in groups]
    return pd.DataFrame([fit for fit in fits if fit is not None], columns=columns)


def _fit(phase: str, rows: pd.DataFrame, predictor: str) -> tuple[Any, ...] | None:
    predicted = rows.flops_per_byte if predictor == "operations" else rows.predicted.str["seconds_per_byte"]
    x, y = np.log(predicted.to_numpy(float)), np.log(rows.seconds_per_byte.to_numpy(float))
    fit = fit_line(x, y)
    if fit is None:
        return None
    residuals = np.exp(y - fit.slope * x - fit.constant).tolist()
    return phase, predictor, len(rows), fit.slope, fit.r2, fit.r2_proportional, _interval(rows, x), residuals


def _interval(rows: pd.DataFrame, x: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of R² over resampled rounds, which are drawn for all systems of a group at once."""
    groups = [group for _, group in rows.groupby(KEY, sort=False)]
    rounds = [min(map(len, group.seconds)) for group in groups]
    if min(map(len, rows.seconds)) < 2:
        return None
    generator = random.Random(0)
    draws = [[[generator.randrange(count) for _ in range(count)] for count in rounds] for _ in range(SAMPLES)]
    y = np.empty((len(rows), SAMPLES))
    for at, (group, count) in enumerate(zip(groups, rounds, strict=True)):
        seconds = np.array([list(times[:count]) for times in group.seconds])[:, [draw[at] for draw in draws]]
        y[group.index] = np.log(np.median(seconds, axis=-1) / group.bytes_per_run.to_numpy(float)[:, None])
    fits = (fit_line(x, sample) for sample in y.T)
    return percentile_interval(np.array([fit.r2 for fit in fits if fit is not None]))


def sections(frame: pd.DataFrame) -> list[Section]:
    """Systems, a table for each phase, preset and context, and what explains the time."""
    rows = latest(frame)
    about = f"{_where(rows)}; {_versions(rows)}. Random weights, fp32, one row."
    systems = rows.drop_duplicates(["preset", "system"])
    systems = pd.DataFrame(
        {
            "preset": systems.preset,
            "system": systems.system,
            "parameters": systems.params.map("{:,}".format),
            "without tables that are looked up": systems.params_without_lookups.map("{:,}".format),
            "entropy model": systems.entropy_params.map(lambda count: "" if pd.isna(count) else f"{int(count):,}"),
        }
    )
    described = [Section("", (about, _COUNTED), (ReportTable(systems, 2),), ("efficiency",))]
    for (preset, phase, context), group in rows.groupby(KEY, sort=False):
        rates = group.iloc[0].rates
        meanwhile = (
            f"The machine meanwhile: {rates['matmul_gflops']:.1f} GFLOP/s in large products, "
            f"{rates['product_gb_per_second']:.1f} GB/s in one-row products, {rates['copy_gb_per_second']:.1f} GB/s in "
            "copies."
        )
        described.append(Section(f"{phase}, {preset}, {context:,} bytes", (meanwhile,), (_speeds(group),)))
    fits = fits_of(rows)
    return [
        *described,
        Section("How much of the time is explained", (_EXPLAINED,), (ReportTable(_explained(fits), 2),)),
        Section("What the operations leave unexplained", (_UNEXPLAINED,), (ReportTable(_residuals(rows, fits), 4),)),
    ]


def _where(rows: pd.DataFrame) -> str:
    machines = (
        f"{machine.get('gpu', machine.get('cpu'))}, {threads} thread{'' if threads == 1 else 's'}"
        for machine, threads in zip(rows.machine, rows.threads, strict=True)
    )
    return "; ".join(dict.fromkeys(machines))


def _versions(rows: pd.DataFrame) -> str:
    versions = zip(rows.machine, rows.commit, strict=True)
    return "; ".join(
        dict.fromkeys(f"torch {machine['torch']}, commit {commit or 'unknown'}" for machine, commit in versions)
    )


def _speeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of a group."""
    first = rows.iloc[0]
    parts = pd.DataFrame(rows.predicted.tolist(), index=rows.index) * 1000
    times = [sorted(1000 * np.array(seconds) / size) for seconds, size in rows[["seconds", "bytes_per_run"]].to_numpy()]
    cells = [
        ("system", rows.system, "{}"),
        ("bytes/s", rows.bytes_per_second, "{:,.1f}"),
        ("ms per byte", 1000 * rows.seconds_per_byte, "{:.3g}"),
        ("rounds from, to", pd.Series([f"{own[0]:.3g}, {own[-1]:.3g}" for own in times], rows.index), "{}"),
        ("MFLOP per byte", rows.flops_per_byte / 1e6, "{:.2f}"),
        ("MB read", rows.read_bytes_per_byte / 1e6, "{:.2f}"),
        ("MB update", rows.update_bytes_per_byte / 1e6, "{:.2f}"),
        (
            "predicted ms: operations, reads, update",
            parts.apply("{seconds_per_byte:.3g}: {operations:.3g}, {reads:.3g}, {update:.3g}".format_map, axis=1),
            "{}",
        ),
        ("measured / predicted", rows.measured_to_predicted, "{:.2f}"),
        ("operations' share of the time", rows.share_of_operations, "{:.0%}"),
        ("operations, times the first's", rows.flops_per_byte / first.flops_per_byte, "{:.2f}"),
        ("time, times the first's", rows.seconds_per_byte / first.seconds_per_byte, "{:.2f}"),
    ]
    return pd.DataFrame({name: values.map(form.format) for name, values, form in cells})


def _explained(fits: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "time against": fits.predictor.replace("predicted", "the predicted time"),
            "phase": fits.phase,
            "points": fits.points,
            "slope": fits.slope.map("{:.2f}".format),
            "R²": fits.r2.map("{:.2f}".format),
            "over rounds": fits.interval.map(lambda ends: "{:.2f} to {:.2f}".format(*ends) if ends else ""),
            "R² of slope 1": fits.r2_proportional.map("{:.2f}".format),
        }
    )


def _residuals(rows: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """Measured over fitted time of the operations' lines."""
    table = rows[["preset", "phase", "context", "system"]].rename(columns={"context": "bytes"})
    table["bytes"] = table.bytes.map("{:,}".format)
    table[["of its phase", "of all"]] = ""
    for fit in fits[fits.predictor == "operations"].itertuples():
        column = "of all" if fit.phase == "all" else "of its phase"
        table.loc[(rows.phase == fit.phase) | (fit.phase == "all"), column] = [f"{own:.2f}" for own in fit.residuals]
    return table


def figure(frame: pd.DataFrame) -> Figure:
    """Measured against predicted time, all phases in one panel; beside it the prediction by operations alone."""
    rows = latest(frame)
    names = [
        "token" if kind == "token" else f"patch {size:g}{'' if pd.isna(scorer) else ' + entropy'}"
        for kind, size, scorer in zip(rows.kind, rows.unit_bytes, rows.entropy_params, strict=True)
    ]
    colours = {name: at for at, name in enumerate(dict.fromkeys(names))}  # presets share them
    series = list(rows.groupby([pd.Series(names, name="name"), "phase"], sort=False))

    def panel(title: str, part: str) -> PlotPanel:
        points = [
            PlotSeries(
                name, 1000 * group.predicted.str[part], 1000 * group.seconds_per_byte, colours[name], MARKERS[phase]
            )
            for (name, phase), group in series
        ]
        return PlotPanel(title, points, diagonal=True)

    return panels(
        [[panel("operations or reads, and the update", "seconds_per_byte"), panel("operations alone", "operations")]],
        "Time of a byte, predicted and measured",
        about=f"{_where(rows)} · {', '.join(rows.preset.unique())}",
        x_name="predicted, ms per byte",
        y_name="measured, ms per byte",
        x_scale="log",
        y_scale="log",
        markers={phase: MARKERS[phase] for phase in PHASES if phase in set(rows.phase)},
        notes=("dashed: the prediction is right",),
    )
