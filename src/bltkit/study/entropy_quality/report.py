"""The study `entropy` on paper: tables as Markdown, an HTML page with tables and drawings, PNGs; from rows alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.study.entropy_quality.quality_drawings import drawings
from bltkit.views import html

TABLE = "table.md"
PAGE = "report.html"

Row = Mapping[str, Any]

JUDGES = {"blt": "BLT", "context-mixing": "mixing"}
"""A judge of information -> how tables call it."""

RULES = {
    "own": "the model's own",
    "fixed": "fixed, same rate",
    "random": "random, same rate",
    "words": "words (space rule)",
    "entropy at words": "entropy, as many",
    "fixed at words": "fixed, as many",
    "tokens": "tokens",
    "entropy at tokens": "entropy, as many",
    "fixed at tokens": "fixed, as many",
}
"""A border set -> how tables call it, in their order."""


_BORDERS = (
    "Mean bits of a patch's first byte and of the others, the share of all bits that first bytes carry, and how even "
    "the bits in patches are, by each judge. Cut: characters of several bytes with a border inside."
)


@dataclass(frozen=True)
class QualityTable:
    """Texts under a head; `about` says what they are. The first `texts` columns are words."""

    title: str
    about: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    texts: int = 1
    drawing: str = ""
    """The one that the page has behind it."""


def write_report(rows: Sequence[Row], out: Path, *, pictures: bool = True) -> tuple[Path, ...]:
    """Write the tables, the page and, where asked for, the pictures into `out`; returns page and pictures.

    Raises ValueError for no rows, and for pictures without matplotlib: tables and page are there by then.
    """
    write_atomic(out / TABLE, table(rows).encode())
    write_atomic(out / PAGE, _page(rows).encode())
    written = [out / PAGE]
    for name, scene in drawings(rows, label).items() if pictures else ():
        write_atomic(out / f"{name}.png", scene.to_png())
        written.append(out / f"{name}.png")
    return tuple(written)


def table(rows: Sequence[Row]) -> str:
    """All tables as Markdown."""
    found = tables(rows)
    lines = ["# Entropy and information", "", f"{_about(rows)}."]
    for one in found:
        lines += ["", f"## {one.title}", "", *([one.about, ""] if one.about else []), _line(one.head)]
        lines.append(_line(["---" if at < one.texts else "---:" for at in range(len(one.head))]))
        lines += map(_line, one.lines)
    return "\n".join(lines) + "\n"


def tables(rows: Sequence[Row]) -> list[QualityTable]:
    """What was measured. Raises ValueError for no rows."""
    if not rows:
        raise ValueError("there are no rows of `blt study entropy` to report; measure first")
    found = [_predictors(rows), _correlation(rows), _calibration(rows)]
    borders = [_borders(rows, row) for row in rows]
    found += [borders[0], *(replace(one, about="") for one in borders[1:])]
    found[-1] = replace(found[-1], drawing="evenness")
    found.append(_agreement(rows))
    if any(row["scripts"] for row in rows):
        found.append(_scripts(rows))
    return found


def label(rows: Sequence[Row], row: Row) -> str:
    """A row's text, behind its model where there are several."""
    several = len({one["model"] for one in rows}) > 1
    return f"{row['model']}: {row['text']}" if several else str(row["text"])


def _predictors(rows: Sequence[Row]) -> QualityTable:
    names = ("blt", "entropy-model", "context-mixing", "bzip2", "xz")
    return QualityTable(
        "Bits per byte",
        "Of the same bytes. The last three start from nothing, or from the bytes they were primed with.",
        ("text", "bytes", "primed", "BLT", "entropy model", "context mixing", "bzip2 -9", "xz -9e"),
        tuple(
            (
                label(rows, row),
                f"{row['bytes']:,}",
                f"{row['primed_bytes']:,}",
                *(_number(row["bits_per_byte"].get(name), 3) for name in names),
            )
            for row in rows
        ),
    )


def _correlation(rows: Sequence[Row]) -> QualityTable:
    names = ("blt", "context-mixing", "entropy-model", "drawn", "judges")
    return QualityTable(
        "Spearman's correlation of entropy and surprisal",
        "Of each byte's entropy with its surprisal by the BLT, the context-mixing model and the entropy model itself; "
        "then with that of bytes drawn from the entropy model (what a calibrated one would reach: entropy is the mean "
        "of a surprisal, not the surprisal); last, of the BLT's surprisals with the mixing model's. In brackets: 95 % "
        "of a bootstrap over blocks.",
        ("text", "BLT", "context mixing", "entropy model", "bytes drawn", "BLT and mixing"),
        tuple((label(rows, row), *(_interval(row["spearman"].get(name)) for name in names)) for row in rows),
    )


def _calibration(rows: Sequence[Row]) -> QualityTable:
    lines = []
    for row in rows:
        found = row["calibration"]
        lines.append(
            (
                label(rows, row),
                _number(row["mean_entropy"], 3),
                _number(row["bits_per_byte"]["entropy-model"], 3),
                f"{found['gap']:+.3f}",
                f"{found['ece']:.3f} ({found['ece_noise']:.3f})",
                _number(found["slope"], 3),
            )
        )
    return QualityTable(
        "Calibration of the entropy model",
        "Bits. Error: mean distance of mean surprisal and mean entropy in bins of equal size (in brackets: by chance, "
        "were the model calibrated). Slope: of surprisal over entropy, 1 if calibrated.",
        ("text", "mean entropy", "mean surprisal", "gap", "error", "slope"),
        tuple(lines),
        drawing="calibration",
    )


def _borders(rows: Sequence[Row], row: Row) -> QualityTable:
    judges = [name for name in JUDGES if name in row["rules"]["own"]["judges"]]
    head = ["borders", "bytes a patch"]
    for name in judges:
        head += [f"{JUDGES[name]}: first, inside", "on first", "bits a patch", "CV", "Gini"]
    lines = []
    for name, shown in RULES.items():
        if name in row["rules"]:
            found = row["rules"][name]
            cells = [shown, f"{found['bytes_per_patch']:.2f}"]
            for judge in judges:
                own = found["judges"][judge]
                cells += [
                    f"{_number(own['first'], 2)}, {_number(own['inside'], 2)}",
                    _percent(own["first_share"]),
                    _number(own["patch_mean"], 1),
                    _number(own["patch_cv"], 2),
                    _number(own["patch_gini"], 3),
                ]
            lines.append((*cells, _percent(found["cut_characters"])))
    return QualityTable(
        f"Borders: {label(rows, row)}",
        _BORDERS,
        (*head, "cut"),
        tuple(lines),
    )


def _agreement(rows: Sequence[Row]) -> QualityTable:
    lines = []
    for row in rows:
        for name, found in row["agreement"].items():
            for how, one in found.items():
                shares = (_percent(one[field]) for field in ("precision", "recall", "f1", "chance"))
                lines.append((label(rows, row), name, {"own": "the model's own"}.get(how, "as many"), *shares))
    return QualityTable(
        "Entropy's borders against words and tokens",
        f"Words: the space rule. Tokens: {rows[0]['tokenizer']}; they begin with the space before a word, and once "
        "more with that space left to the token before. As many: the highest entropies, as many as there are words or "
        "tokens. Chance: the F1 of random borders as many.",
        ("text", "against", "borders", "precision", "recall", "F1", "chance"),
        tuple(lines),
        texts=3,
    )


def _scripts(rows: Sequence[Row]) -> QualityTable:
    lines = [
        (
            label(rows, row),
            name,
            f"{one['bytes']:,}",
            _number(one["bytes_per_patch"], 2),
            _number(one["characters_per_patch"], 2),
            *(_number(one["bits_per_patch"].get(judge), 1) for judge in JUDGES),
            _percent(one["cut_share"]),
        )
        for row in rows
        for name, one in row["scripts"].items()
    ]
    return QualityTable(
        "Scripts, by the model's own borders",
        "Spaces, digits and signs count with the letter before them. Cut: characters of several bytes with a border "
        "inside.",
        ("text", "script", "bytes", "bytes a patch", "characters", "bits (BLT)", "bits (mixing)", "cut"),
        tuple(lines),
        texts=2,
    )


def _page(rows: Sequence[Row]) -> str:
    first = rows[0]
    body: list[html.Node] = []
    scenes = drawings(rows, label)
    for one in tables(rows):
        shown = html.table(one.head, one.lines, texts=one.texts, label=one.title)
        about = html.tag("p", one.about, class_="quiet") if one.about else None
        body += [html.tag("h2", one.title), about, shown]
        if one.drawing:
            drawn = scenes[one.drawing].to_svg(one.drawing)
            body.append(html.tag("figure", html.Html(drawn), class_="picture scroll"))
    said = {
        "models": ", ".join(dict.fromkeys(str(row["model"]) for row in rows)),
        "rule": first["rule"],
        "window": f"{first['context']} bytes",
        "commit": first.get("commit"),
        "command": html.tag("pre", first["command"]) if first.get("command") else None,
    }
    return html.page("Entropy and information", html.tag("h1", "Entropy and information"), html.facts(said), *body)


def _about(rows: Sequence[Row]) -> str:
    models = dict.fromkeys(f"{row['model']} ({row['rule']})" for row in rows)
    commits = dict.fromkeys(str(row.get("commit") or "unknown") for row in rows)
    return f"{', '.join(models)}; windows of {rows[0]['context']} bytes; commit {', '.join(commits)}"


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    low_high = found["interval"]
    if low_high is not None and low_high[0] == low_high[1]:  # in rows of version 0.1.0, where the draws agree
        low_high = None
    return f"{found['value']:.3f}" + ("" if low_high is None else f" [{low_high[0]:.3f}, {low_high[1]:.3f}]")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _line(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"
