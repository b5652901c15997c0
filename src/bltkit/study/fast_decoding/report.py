"""The study `fast-decoding` on paper: a table and two pictures, from its rows alone.

`quality.png` sets speed beside what the text is worth, `ledgers.png` the gigabytes that an estimate saves beside the
seconds that the clock says were saved.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.study.fast_decoding.decoding_settings import AR
from bltkit.study.scatter import Marker, Panel, Point, Scatter, draw_scatter
from bltkit.views.chart import COLOURS

TABLE = "table.md"
QUALITY = "quality.png"
LEDGERS = "ledgers.png"

Row = Mapping[str, Any]

_MARKERS: dict[str, Marker] = {
    "ar": "circle",
    "speculative": "up",
    "diffusion": "square",
    "verified": "diamond",
    "auto": "star",
}
_SHORT = {"draft": "k", "alpha": "α", "gamma": "γ", "steps": "n", "align_border": "border"}

_HEAD = (
    "setting",
    "bytes/s",
    "times ar",
    "passes a byte: decoder, encoder, global, entropy",
    "bytes a round",
    "drafts kept",
    "GB by the paper (saved)",
    "GB read: weights + KV (saved)",
    "time saved",
    "as ar",
    "repeated",
    "UTF-8",
    "Python",
    "bits per byte",
    "times ar's",
)


def write_report(rows: Sequence[Row], out: Path, *, pictures: bool = True) -> tuple[Path, ...]:
    """Write the table and, where asked for, the pictures into `out`; returns the pictures written.

    Raises ValueError for no rows, and for pictures without matplotlib: the table is there by then.
    """
    write_atomic(out / TABLE, table(rows).encode())
    if not pictures:
        return ()
    written = []
    for name, scatter in ((QUALITY, quality(rows)), (LEDGERS, ledgers(rows))):
        write_atomic(out / name, draw_scatter(scatter).to_png())
        written.append(out / name)
    return tuple(written)


def table(rows: Sequence[Row]) -> str:
    """Markdown: held-out bits per byte of each model, then the settings of each model, text and temperature."""
    measured = _settings(rows)
    lines = ["# Fast decoding", "", *_about(rows), "", *_heldout(rows)]
    for text, temperature, model in _groups(measured):
        group = [row for row in measured if _key(row) == (text, temperature, model)]
        lines += ["", f"## {model}, {text}, {_temperature(temperature)}", "", _line(_HEAD), _line(["---"] * len(_HEAD))]
        lines += [_line(_cells(row)) for row in sorted(group, key=_order)]
    return "\n".join(lines) + "\n"


def quality(rows: Sequence[Row]) -> Scatter:
    """Speed against the bits per byte of what was made; a dashed line where the model's own `ar` is."""
    measured = [row for row in _settings(rows) if row["bits_per_byte"] is not None and row["against_ar"]]
    colours = _colours(rows)

    def panel(text: str, temperature: float) -> Panel:
        own = [row for row in measured if (row["text"], row["temperature"]) == (text, temperature)]
        points = [_point(row, row["against_ar"], row["bits_per_byte"], colours) for row in own]
        levels = [(row["bits_per_byte"], colours[row["model"]]) for row in own if row["setting"] == AR]
        return Panel(f"{text}, {_temperature(temperature)}", tuple(points), tuple(levels))

    return Scatter(
        "Speed, and what the text is worth to the model itself",
        _circumstances(rows),
        "bytes per second, times those of the same model's ar",
        "bits per byte of the text made, under the model's autoregressive pass",
        _grid(measured, panel),
        tuple(colours.items()),
        _markers(measured),
        x_scale="log",
        notes=("dashed: text that ar makes", "right and low is good"),
    )


def ledgers(rows: Sequence[Row]) -> Scatter:
    """What two ledgers say is saved against what the clock says; a row of panels for each text and temperature."""
    measured = [row for row in _settings(rows) if row["time_saved"] is not None and row["setting"] != AR]
    colours = _colours(rows)
    kinds = {"paper_gb_saved": "the paper's formula", "gb_saved": "all that was read"}

    def panel(text: str, temperature: float, field: str) -> Panel:
        own = [row for row in measured if (row["text"], row["temperature"]) == (text, temperature)]
        points = [_point(row, row[field], row["time_saved"], colours) for row in own if row[field] is not None]
        return Panel(f"{kinds[field]}: {text}, {_temperature(temperature)}", tuple(points), diagonal=True)

    return Scatter(
        "Gigabytes saved by estimate, seconds saved by the clock",
        _circumstances(rows),
        "gigabytes saved per byte made, against the same model's ar",
        "time saved per byte made",
        tuple(tuple(panel(*place, field) for field in kinds) for place in _places(measured)),
        tuple(colours.items()),
        _markers(measured),
        x_scale="percent",
        y_scale="percent",
        notes=(
            "dashed: the estimate is right",
            "the paper's formula: 16-bit weights of",
            "decoder and of encoder + global, no",
            "entropy model, no keys and values",
        ),
    )


def _settings(rows: Sequence[Row]) -> list[Row]:
    found = [row for row in rows if row["kind"] == "setting"]
    if not found:
        raise ValueError("there are no rows of `blt study fast-decoding` to report; measure first")
    return found


def _key(row: Row) -> tuple[str, float, str]:
    return row["text"], row["temperature"], row["model"]


def _order(row: Row) -> int:
    """Settings of a kind together, in the order in which they were measured."""
    kinds = list(_MARKERS)
    return kinds.index(row["strategy"]["kind"]) if row["strategy"]["kind"] in kinds else len(kinds)


def _groups(rows: Sequence[Row]) -> list[tuple[str, float, str]]:
    return list(dict.fromkeys(map(_key, rows)))


def _places(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["text"], row["temperature"]) for row in rows))


def _grid(rows: Sequence[Row], panel: Any) -> tuple[tuple[Panel, ...], ...]:
    """Texts side by side, temperatures under one another."""
    texts = dict.fromkeys(row["text"] for row in rows)
    temperatures = sorted({row["temperature"] for row in rows})
    return tuple(tuple(panel(text, temperature) for text in texts) for temperature in temperatures)


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    return {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(dict.fromkeys(row["model"] for row in rows))}


def _markers(rows: Sequence[Row]) -> tuple[tuple[str, Marker], ...]:
    kinds = {row["strategy"]["kind"] for row in rows}
    return tuple((kind, marker) for kind, marker in _MARKERS.items() if kind in kinds)


def _point(row: Row, x: float, y: float, colours: Mapping[str, str]) -> Point:
    kind = row["strategy"]["kind"]
    return Point(x, y, colours[row["model"]], _MARKERS.get(kind, "down"), _short(row["setting"]))


def _short(setting: str) -> str:
    """The fields alone, for a point whose shape says the rest."""
    _, _, rest = setting.partition(":")
    if "first=masked" in rest and "latent=open" in rest:
        rest = rest.replace("first=masked", "paper").replace("latent=open", "")
    words = []
    for item in filter(None, rest.split(",")):
        name, _, value = item.partition("=")
        short = _SHORT.get(name, name)
        words.append(short if value in ("true", "") else f"{short} {value.removeprefix('0')}")
    return " ".join(words)


def _temperature(value: float) -> str:
    return f"temperature {value:g}" if value else "greedy"


def _circumstances(rows: Sequence[Row]) -> str:
    """Where it was measured; several places are named, since their seconds do not compare."""
    found = list(dict.fromkeys(f"{_machine(row)}, {_count(row['threads'], 'thread')}" for row in rows))
    first = _settings(rows)[0]["conditions"]
    size = f"{_count(first['prompts'], 'prompt')} of {first['prompt_bytes']} bytes, {first['max_bytes']} bytes made"
    return f"{'; '.join(found)} · {size}"


def _machine(row: Row) -> str:
    machine = row["machine"]
    return str(machine.get("gpu", machine["cpu"]))


def _about(rows: Sequence[Row]) -> Iterator[str]:
    versions = dict.fromkeys(f"torch {row['machine']['torch']}, commit {row['commit'] or 'unknown'}" for row in rows)
    yield f"{_circumstances(rows)}; {'; '.join(versions)}."
    yield ""
    yield (
        "In brackets: 95 % of a bootstrap over prompts, or Wilson's interval over prompts for a share at 0 or 1 in all "
        "of them. GB: mean of a continuation. As ar: positions with the byte that ar has there. Repeated: bytes in a "
        "16-gram that occurs again. Python: prompt and continuation, cut to whole lines, may be the beginning of a "
        "program; of those whose prompt is one."
    )


def _heldout(rows: Sequence[Row]) -> Iterator[str]:
    found = [row for row in rows if row["kind"] == "heldout"]
    if not found:
        return
    yield "## What the texts themselves say behind the prompts"
    yield ""
    texts = list(dict.fromkeys(row["text"] for row in found))
    models = {row["model"]: row for row in found}
    plain = next((name for name, row in models.items() if row["block"] is None), None)
    yield _line(["model", "block", "objective", "steps", *(f"{text}, bits per byte" for text in texts)])
    yield _line(["---"] * (4 + len(texts)))
    scored = {(row["model"], row["text"]): row for row in found}
    for name, row in models.items():
        cells = [_against(scored.get((name, text)), scored.get((plain or "", text))) for text in texts]
        objective = row["objective"] or {}
        said = ", ".join(f"{key} {value}" for key, value in objective.items() if key not in ("kind", "block"))
        kind = objective.get("kind", "")
        yield _line([name, _or_dash(row["block"]), f"{kind} {said}".strip() or "–", _or_dash(row["steps"]), *cells])


def _against(row: Row | None, plain: Row | None) -> str:
    if row is None:
        return "–"
    found = _with_interval(row, "bits_per_byte", 4)
    if plain is None or plain is row:
        return found
    return f"{found}, {100 * (row['bits_per_byte'] / plain['bits_per_byte'] - 1):+.1f} % of {plain['model']}"


def _cells(row: Row) -> list[str]:
    share = ("acceptance", "agreement", "repeated_share", "valid_utf8", "valid_python")
    kept, agreed, repeated, utf8, python = (_share(row, name) for name in share)
    time, paper, read = (_percent(row[name], 0) for name in ("time_saved", "paper_gb_saved", "gb_saved"))
    passes = [_number(row[f"{name}_passes_per_byte"], 2) for name in ("decoder", "encoder", "global", "entropy")]
    return [
        row["setting"].replace(",", ", "),
        _number(row["bytes_per_second"], 1),
        _with_interval(row, "against_ar", 2),
        ", ".join(passes),
        _number(row["bytes_per_round"], 2),
        kept,
        f"{_small(row['paper_gb'])} ({paper})",
        f"{_small(row['weight_gb_read'])} + {_small(row['kv_gb_read'])} ({read})",
        time,
        agreed,
        repeated,
        utf8,
        python if row["valid_python"] is None else f"{python} of {row['python_judged']}",
        _with_interval(row, "bits_per_byte", 3),
        _with_interval(row, "bits_against_ar", 2),
    ]


def _with_interval(row: Row, name: str, digits: int) -> str:
    interval, value = _interval(row, name), _number(row[name], digits)
    return value if interval is None else f"{value} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _share(row: Row, name: str) -> str:
    interval, value = _interval(row, name), _percent(row[name])
    return value if interval is None else f"{value} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _interval(row: Row, name: str) -> Sequence[float] | None:
    """None too for one without width, which version 0.1.0 wrote where prompts show no spread."""
    interval: Sequence[float] | None = row["intervals"].get(name)
    return None if interval is None or interval[0] == interval[1] else interval


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
