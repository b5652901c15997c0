"""Report of the study `entropy` from its rows: tables, and figures of surprisal over entropy and of even patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.report import ReportTable, Section, number, percent, with_interval
from bltkit.views.figures import Figure

JUDGES = {"blt": "BLT", "context-mixing": "mixing"}
"""Name of a judge of information in tables."""

RULES = {
    "own": ("the model's own", "highest entropies"),
    "fixed": ("fixed, same rate", "fixed"),
    "random": ("random, same rate", "random"),
    "words": ("words (space rule)", "words"),
    "entropy at words": ("entropy, as many", "highest entropies"),
    "fixed at words": ("fixed, as many", "fixed"),
    "tokens": ("tokens", "tokens"),
    "entropy at tokens": ("entropy, as many", "highest entropies"),
    "fixed at tokens": ("fixed, as many", "fixed"),
}
"""Names of a border set in tables, in their order, and in figures."""

_PREDICTORS = {
    "blt": "BLT",
    "entropy-model": "entropy model",
    "context-mixing": "context mixing",
    "bzip2": "bzip2 -9",
    "xz": "xz -9e",
}
_CORRELATED = {
    "blt": "BLT",
    "context-mixing": "context mixing",
    "entropy-model": "entropy model",
    "drawn": "bytes drawn",
    "judges": "BLT and mixing",
}
_MODELS = {"entropy-model": "entropy model", "blt": "BLT", "context-mixing": "context mixing"}
_MARKERS = {"highest entropies": "o", "fixed": "s", "random": "v", "words": "^", "tokens": "D"}
_ACROSS = 3
"""Maximum number of panels side by side."""

_CORRELATION = (
    "Of each byte's entropy with its surprisal by the BLT, the context-mixing model and the entropy model itself; then "
    "with that of bytes drawn from the entropy model (what a calibrated one would reach: entropy is the mean of a "
    "surprisal, not the surprisal); last, of the BLT's surprisals with the mixing model's. In brackets: 95 % of a "
    "bootstrap over blocks."
)
_CALIBRATION = (
    "Bits. Error: mean distance of mean surprisal and mean entropy in bins of equal size (in brackets: by chance, were "
    "the model calibrated). Slope: of surprisal over entropy, 1 if calibrated."
)
_BORDERS = (
    "Mean bits of a patch's first byte and of the others, the share of all bits that first bytes carry, and how even "
    "the bits in patches are, by each judge. Cut: characters of several bytes with a border inside."
)
_SCRIPTS = (
    "Spaces, digits and signs count with the letter before them. Cut: characters of several bytes with a border inside."
)


def sections(frame: pd.DataFrame) -> Sequence[Section]:
    """All tables. Raises ValueError without rows."""
    rows = _labelled(frame)
    models = dict.fromkeys(f"{row['model']} ({row['rule']})" for row in rows)
    commits = dict.fromkeys(str(row.get("commit") or "unknown") for row in rows)
    about = f"{', '.join(models)}; windows of {rows[0]['context']} bytes; commit {', '.join(commits)}."
    borders = [
        Section(f"Borders: {row['label']}", [_BORDERS] if row is rows[0] else [], [_borders(row)]) for row in rows
    ]
    against = (
        f"Words: the space rule. Tokens: {rows[0]['tokenizer']}; they begin with the space before a word, and once "
        "more with that space left to the token before. As many: the highest entropies, as many as there are words or "
        "tokens. Chance: the F1 of random borders as many."
    )
    sources = "Of the same bytes. The last three start from nothing, or from the bytes they were primed with."
    result = [
        Section(paragraphs=[about]),
        Section("Bits per byte", [sources], [pd.DataFrame(map(_predictors, rows))]),
        Section(
            "Spearman's correlation of entropy and surprisal", [_CORRELATION], [pd.DataFrame(map(_correlations, rows))]
        ),
        Section(
            "Calibration of the entropy model",
            [_CALIBRATION],
            [pd.DataFrame(map(_calibration, rows))],
            figures=["calibration"],
        ),
        *borders,
        Section("How uneven the bits in patches are", figures=["evenness"]),
        Section("Entropy's borders against words and tokens", [against], [ReportTable(_agreement(rows), texts=3)]),
    ]
    if any(row["scripts"] for row in rows):
        result.append(
            Section("Scripts, by the model's own borders", [_SCRIPTS], [ReportTable(_scripts(rows), texts=2)])
        )
    return result


def figures(frame: pd.DataFrame) -> Mapping[str, Figure]:
    """`calibration`: surprisal over entropy; `evenness`: Gini's coefficient over bytes per patch; a panel per text."""
    rows = _labelled(frame)
    across = -(-len(rows) // -(-len(rows) // _ACROSS))
    lines = [rows[at : at + across] for at in range(0, len(rows), across)]
    calibration = panels(
        [[PlotPanel(row["label"], _surprises(row), diagonal=True) for row in line] for line in lines],
        "Entropy, and the surprise that follows",
        about="bins of as many bytes each, in the order of the entropy model's entropies",
        x_name="mean entropy, bits",
        y_name="mean surprisal, bits",
        notes=["dashed: as surprised as uncertain"],
    )
    evenness = panels(
        [[PlotPanel(row["label"], _unevenness(row)) for row in line] for line in lines],
        "How uneven the bits in patches are",
        about="Gini's coefficient of the bits that a patch carries; the lower, the more even",
        x_name="bytes per patch",
        y_name="Gini's coefficient",
        markers=_MARKERS,
    )
    return {"calibration": calibration, "evenness": evenness}


def _surprises(row: Mapping[str, Any]) -> list[PlotSeries]:
    bins = row["calibration"]["bins"]
    entropies = [part["entropy"] for part in bins]
    return [
        PlotSeries(shown, entropies, [part["surprisal"][name] for part in bins], colour)
        for colour, (name, shown) in enumerate(_MODELS.items())
        if name in row["bits_per_byte"]
    ]


def _unevenness(row: Mapping[str, Any]) -> list[PlotSeries]:
    return [
        PlotSeries(
            f"bits by {_MODELS[judge]}",
            [rule["bytes_per_patch"]],
            [figures["patch_gini"]],
            list(_MODELS).index(judge),
            _MARKERS[RULES[name][1]],
        )
        for name, rule in row["rules"].items()
        for judge, figures in rule["judges"].items()
        if figures["patch_gini"] is not None
    ]


def _labelled(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows, each with its text as `label`, after its model where there are several."""
    if frame.empty:
        raise ValueError("there are no rows of `blt study entropy` to report; measure first")
    several = frame["model"].nunique() > 1
    return [
        row | {"label": f"{row['model']}: {row['text']}" if several else row["text"]}
        for row in frame.to_dict("records")
    ]


def _predictors(row: Mapping[str, Any]) -> dict[str, str]:
    sizes = {"text": row["label"], "bytes": f"{row['bytes']:,}", "primed": f"{row['primed_bytes']:,}"}
    return sizes | {shown: number(row["bits_per_byte"].get(name), 3) for name, shown in _PREDICTORS.items()}


def _correlations(row: Mapping[str, Any]) -> dict[str, str]:
    estimates = {shown: row["spearman"].get(name) or {} for name, shown in _CORRELATED.items()}
    cells = {
        shown: with_interval(estimate.get("value"), estimate.get("interval"), 3)
        for shown, estimate in estimates.items()
    }
    return {"text": row["label"], **cells}


def _calibration(row: Mapping[str, Any]) -> dict[str, str]:
    figures = row["calibration"]
    return {
        "text": row["label"],
        "mean entropy": number(row["mean_entropy"], 3),
        "mean surprisal": number(row["bits_per_byte"]["entropy-model"], 3),
        "gap": f"{figures['gap']:+.3f}",
        "error": f"{figures['ece']:.3f} ({figures['ece_noise']:.3f})",
        "slope": number(figures["slope"], 3),
    }


def _borders(row: Mapping[str, Any]) -> pd.DataFrame:
    lines = []
    for name, (shown, _) in RULES.items():
        if name in row["rules"]:
            rule = row["rules"][name]
            line = {"borders": shown, "bytes a patch": f"{rule['bytes_per_patch']:.2f}"}
            for judge, figures in rule["judges"].items():
                line |= {
                    f"{JUDGES[judge]}: first, inside": f"{number(figures['first'], 2)}, {number(figures['inside'], 2)}",
                    f"{JUDGES[judge]}: on first": percent(figures["first_share"]),
                    f"{JUDGES[judge]}: bits a patch": number(figures["patch_mean"], 1),
                    f"{JUDGES[judge]}: CV": number(figures["patch_cv"], 2),
                    f"{JUDGES[judge]}: Gini": number(figures["patch_gini"], 3),
                }
            lines.append(line | {"cut": percent(rule["cut_characters"])})
    return pd.DataFrame(lines)


def _agreement(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": row["label"],
            "against": against,
            "borders": {"own": "the model's own"}.get(rate, "as many"),
            "precision": percent(shares["precision"]),
            "recall": percent(shares["recall"]),
            "F1": percent(shares["f1"]),
            "chance": percent(shares["chance"]),
        }
        for row in rows
        for against, by_rate in row["agreement"].items()
        for rate, shares in by_rate.items()
    )


def _scripts(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": row["label"],
            "script": name,
            "bytes": f"{figures['bytes']:,}",
            "bytes a patch": number(figures["bytes_per_patch"], 2),
            "characters": number(figures["characters_per_patch"], 2),
            **{f"bits ({shown})": number(figures["bits_per_patch"].get(name), 1) for name, shown in JUDGES.items()},
            "cut": percent(figures["cut_share"]),
        }
        for row in rows
        for name, figures in row["scripts"].items()
    )
