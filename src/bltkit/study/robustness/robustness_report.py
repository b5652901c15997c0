"""Report of the study `robustness`: shares of the clean score above chance that models keep, scores by task, curves.

The share that is kept is (score - chance) / (clean score - chance), where the clean score stands above chance with its
whole interval; otherwise there is nothing that noise could take. The clean score is taken as exact in it.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bltkit.eval.runner import file_name
from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.report import ReportTable, Section
from bltkit.views.figures import MARKERS, Figure

_DASH = "\u2013"
_TICKS = {0.0: "clean", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
_CURVE = ["task", "curve", "model"]


def points_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores by task, noise and model, each in the order of the rows, then by intensity from the clean score on.

    Of several rows of one score the last one counts. Noises without their clean score yet are left out. Columns beside
    those of the rows: `low` and `high` of the interval; `against`, the difference to the clean score; `kept`,
    `kept_low`, `kept_high`, the share kept above chance. Missing where they are not defined.
    """
    rows = frame[frame.value.notna()].drop_duplicates([*_CURVE, "intensity"], keep="last").reset_index(drop=True)
    ends = [ends if ends is not None and ends[0] < ends[1] else (None, None) for ends in rows.interval]
    rows[["low", "high"]] = pd.DataFrame(ends, columns=["low", "high"], dtype=float)  # none without width
    # Pairs are compared with the clean score of their own items.
    rows["base"] = rows.curve.where(rows.curve.fillna("").str.startswith("paired:"), "")
    clean = rows[rows.noise.isna()]
    noisy = rows[rows.noise.notna()].merge(clean[["task", "model", "base"]], on=["task", "model", "base"])
    cleans = noisy[["task", "model", "base", "curve"]].drop_duplicates().merge(
        clean.drop(columns="curve"), on=["task", "model", "base"]
    )  # fmt: skip
    points = pd.concat([cleans, noisy])
    points = points.merge(cleans[[*_CURVE, "value", "low"]], on=_CURVE, suffixes=("", "_clean"))
    chance = points.chance.astype(float)
    above = points.noise.notna() & (points.better == "higher") & (points.low_clean > chance)
    scale = (points.value_clean - chance).where(above)
    for kept, score in {"kept": "value", "kept_low": "low", "kept_high": "high"}.items():
        points[kept] = (points[score] - chance) / scale
    points["against"] = points.value - points.value_clean
    order = [points[name].map({value: at for at, value in enumerate(frame[name].unique())}) for name in _CURVE]
    keys = pd.concat([*order, points.intensity], axis=1)
    return points.loc[keys.sort_values(list(keys.columns)).index].reset_index(drop=True)


def sections(frame: pd.DataFrame) -> list[Section]:
    """Findings and a table of what each model keeps, then a section for each task."""
    points = points_of(frame)
    first = Section("", _findings(points), [ReportTable(_kept(points), 2, "what is kept above chance")])
    tasks = points.groupby("task", sort=False)
    return [first, *(_task_section(str(task), rows) for task, rows in tasks)]


def figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """A figure for each task, a panel for each noise."""
    points = points_of(frame)
    models = list(points.model.unique())
    return {
        f"robustness-{file_name(str(task))}": _figure(str(task), rows, models)
        for task, rows in points.groupby("task", sort=False)
    }


def _figure(task: str, points: pd.DataFrame, models: Sequence[str]) -> Figure:
    first = points.iloc[0]
    chance = [(first.chance, "chance")] if first.better == "higher" and first.chance and first.chance > 0 else []
    charts = [
        PlotPanel(str(noise), [_series(rows, models) for _, rows in curves.groupby("model", sort=False)], chance)
        for noise, curves in points.groupby("curve", sort=False)
    ]
    return panels(
        [charts[at : at + 2] for at in range(0, len(charts), 2)],
        task,
        about=f"{first.metric} over the intensity of noise. {_RINGS}",
        x_name="intensity",
        y_name=first.metric,
        share_y=True,
        x_limits=(-0.04, 1.04),
        x_ticks=_TICKS,
    )


def _series(points: pd.DataFrame, models: Sequence[str]) -> PlotSeries:
    model = points.model.iloc[0]
    at = models.index(model)
    intervals = [None if pd.isna(low) else (low, high) for low, high in zip(points.low, points.high, strict=True)]
    return PlotSeries(
        model,
        points.intensity.tolist(),
        points.value.tolist(),
        at,
        MARKERS[at % len(MARKERS)],
        "-",
        intervals,
        band=True,
        rings=(points.own.astype(bool) & points.noise.notna()).tolist(),
    )


_RINGS = "Rings are at the intensities that the noises were named with."


def _findings(points: pd.DataFrame) -> list[str]:
    findings = [
        "Noise damages the texts that a task asks about, at intensities from 0 to 1; gold answers stay as they are. "
        "Intensity says which share of the places that a noise can damage it does damage, so noises are not equally "
        "strong at the same one; each place that is damaged at a lower intensity is damaged at a higher one.",
        "What is kept: (score \u2212 chance) / (clean score \u2212 chance), the clean score taken as exact; a dash "
        "where the clean score's interval does not lie above chance, so that there is nothing to lose.",
    ]
    kept = points[points.own.astype(bool) & points.kept.notna()].groupby("model", sort=False).kept
    order = [model for model in points.model.unique() if model in kept.groups]
    for model, (mean, count) in kept.agg(["mean", "count"]).loc[order].iterrows():
        ran = "1 pair of task and noise" if count == 1 else f"{count:.0f} pairs of task and noise"
        findings.append(f"{model} keeps {_percent(mean)} of its scores above chance, as the mean over {ran}.")
    if not order:
        findings.append(
            "No model stands above chance on any of the tasks, so the study says nothing of robustness yet."
        )
    return findings


def _kept(points: pd.DataFrame) -> pd.DataFrame:
    """Noises with their own intensity down, tasks across: the share that each model keeps."""
    named = points[points.own.astype(bool) & points.noise.notna()]
    cells = named.assign(kept=_shares(named)).pivot_table(
        "kept", ["noise", "model"], "task", aggfunc="first", sort=False
    )
    cells = cells.reindex(columns=points.task.unique()).fillna(_DASH).reset_index()
    return cells.rename(columns={"noise": "kept above chance under"})


def _task_section(task: str, points: pd.DataFrame) -> Section:
    first = points.iloc[0]
    cleans = points[points.noise.isna() & ~points.curve.str.startswith("paired:")].drop_duplicates("model")
    said = [f"{first.metric}, {first.better} is better."]
    if first.chance and first.chance > 0:
        said.append(f"Chance is {_number(first.chance)}.")
    if len(cleans):
        said.append(f"Clean: {'; '.join(f'{row.model} {_score(row)}' for row in cleans.itertuples())}.")
    noisy = points.noise.notna()
    cells = pd.DataFrame(
        {
            "noise": points.curve,
            "model": points.model,
            "intensity": points.intensity.map("{:g}".format),
            "score": points.value.map(_number),
            "95 %": [_between(*ends) for ends in zip(points.low, points.high, strict=True)],
            "against clean": points.against.map(lambda value: _minus(f"{value:+.3f}")).where(noisy, _DASH),
            "kept above chance": _shares(points),
            "items": [
                f"{row.n} ({row.left_out} left out)" if row.left_out else str(row.n) for row in points.itertuples()
            ],
        }
    )
    values = points[["intensity", "value", "low", "against", "kept", "n"]].set_axis(cells.columns[2:], axis=1)
    table = ReportTable(cells, 2, f"figures of {task}", values.reindex(columns=cells.columns))
    return Section(task, [" ".join([*said, _RINGS])], [table], [f"robustness-{file_name(task)}"], "Figures")


def _score(point: Any) -> str:
    return _number(point.value) + ("" if pd.isna(point.low) else f" ({_between(point.low, point.high)})")


def _between(low: float, high: float) -> str:
    return _DASH if pd.isna(low) else f"{_number(low)} to {_number(high)}"


def _shares(points: pd.DataFrame) -> list[str]:
    cells = []
    for share, low, high in points[["kept", "kept_low", "kept_high"]].itertuples(index=False):
        ends = "" if pd.isna(low) else f" ({_percent(low)} to {_percent(high)})"
        cells.append(_DASH if pd.isna(share) else _percent(share) + ends)
    return cells


def _percent(share: float) -> str:
    return _minus(f"{100 * share:.0f} %")


def _number(value: float) -> str:
    return _minus(f"{value:.3f}")


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")
