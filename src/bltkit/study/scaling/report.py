"""The study `scaling` on paper: table.md, report.html with its pictures in it, and the pictures as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.checkpoint import write_atomic
from bltkit.study.scaling.drawings import drawings
from bltkit.study.scaling.scaling_findings import Findings, findings, paragraphs
from bltkit.study.scaling.tables import Table, tables
from bltkit.views import html
from bltkit.views.scene import Scene

TABLE = "table.md"
PAGE = "report.html"

Row = Mapping[str, Any]


def write_report(rows: Sequence[Row], out: Path, *, pictures: bool = True) -> tuple[Path, ...]:
    """Write the table, the page and the pictures into `out`; returns the paths of all but the table.

    Raises ValueError for no rows, and, when the table and the page are written, without matplotlib.
    """
    found = findings(rows)
    own = tables(rows, found)
    scenes = drawings(found)
    write_atomic(out / TABLE, _markdown(rows, found, own).encode())
    write_atomic(out / PAGE, _page(rows, found, own, scenes).encode())
    written = [out / PAGE]
    for name, scene in scenes.items() if pictures else ():
        write_atomic(out / f"{name}.png", scene.to_png())
        written.append(out / f"{name}.png")
    return tuple(written)


def table(rows: Sequence[Row]) -> str:
    """Everything as Markdown. Raises ValueError for no rows."""
    found = findings(rows)
    return _markdown(rows, found, tables(rows, found))


def _markdown(rows: Sequence[Row], found: Findings, own: Sequence[Table]) -> str:
    lines = ["# Scaling", "", *(line for text in paragraphs(rows, found) for line in (text, ""))]
    for one in own:
        lines += [f"## {one.title}", "", one.about, "", _line(one.head), _line(["---"] * len(one.head))]
        lines += [_line(cells) for cells in one.lines] + [""]
    return "\n".join(lines)


def _page(rows: Sequence[Row], found: Findings, own: Sequence[Table], scenes: Mapping[str, Scene]) -> str:
    body: list[html.Node] = [html.tag("p", text) for text in paragraphs(rows, found)]
    shown = set()
    for one in own:
        body += [html.tag("h2", one.title), html.tag("p", one.about, class_="quiet")]
        body.append(html.table(one.head, one.lines, texts=one.texts, sortable=True, label=one.title))
        if one.drawing is not None and one.drawing in scenes:
            shown.add(one.drawing)
            body.append(_figure(one.drawing, scenes[one.drawing]))
    body += [_figure(name, scene) for name, scene in scenes.items() if name not in shown]
    last = [row for row in rows if row.get("what") == "scaling"][-1]
    said = {
        "plan": str(last["plan"]),
        "rows": str(len(found.points)),
        "threads": str(last["threads"]),
        "precision": str(last["precision"]),
        "commit": last.get("commit"),
        "command": html.tag("pre", last["command"]) if last.get("command") else None,
    }
    return html.page("Scaling", html.tag("h1", "Scaling"), html.facts(said), *body)


def _figure(name: str, scene: Scene) -> html.Html:
    return html.tag("figure", html.Html(scene.to_svg(name)), class_="picture scroll")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
