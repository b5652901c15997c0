"""HTML pages: Jinja2 templates beside the modules that fill them, and the values that their macros lay out.

    render_page("views/patches.html.j2", title="Patches", table=PageTable("patches", ("start", "bytes"), rows))

A template extends `views/page.html.j2` (head, look, sorting) and imports `views/macros.html.j2` (tables, facts,
pictures). Text is escaped wherever it enters. A page loads nothing: style and script stand in it, and its content
policy allows nothing else but pictures within the page, so that not even a mistake here lets a text act.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bltkit.views.figures import Figure, displayable, has_matplotlib, to_page_svg


@dataclass(frozen=True)
class Cell:
    """Cell of a table where its text alone does not do.

    value: the number that rows are sorted by. kind: class names. link: the id of an element of the page. code: the
    hash that the text is the beginning of, shown where the mouse rests. note: a second, smaller line. mark: number of
    the compared run whose symbol stands in front, named `label` where the text does not name it.
    """

    text: str | int = ""
    value: float | None = None
    kind: str = ""
    link: str = ""
    code: str = ""
    note: str = ""
    mark: int | None = None
    label: str = ""


CellLike: TypeAlias = Cell | str | int
Facts: TypeAlias = Mapping[str, CellLike | None]
"""Names and their values, for the macro `facts`; None leaves a pair out."""


@dataclass(frozen=True)
class PageTable:
    """PageTable that scrolls by itself where the page is narrow. The first cell of a row is its header.

    label: name for screen readers. texts: number of columns aligned left, in front of those of figures. sortable: by a
    click on a column's head, where scripts run.
    """

    label: str
    heads: Sequence[CellLike]
    rows: Sequence[Sequence[CellLike]]
    texts: int = 1
    sortable: bool = False


@dataclass(frozen=True)
class Picture:
    """SVG image of a page, with its text for readers who cannot see it."""

    address: str
    alt: str


def picture(draw: Callable[[], Figure], alt: str) -> Picture | None:
    """Picture of a figure, which follows the reader's choice of light or dark; None without matplotlib."""
    if not has_matplotlib():
        return None
    data = base64.b64encode(to_page_svg(draw()).encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{data}", alt)


def render_page(template: str, title: str, **values: Any) -> str:
    """A whole page: encode it as UTF-8. Characters that no page may hold become U+FFFD.

    template: its path within the package. title: text of the browser's tab.
    """
    text = _environment().get_template(template).render(values, title=title)
    return displayable(text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bltkit", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style, script = (environment.loader.get_source(environment, f"views/page.{kind}")[0] for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment.globals.update(style=Markup(style), script=Markup(script), policy=policy)
    environment.globals.update(cell_of=_cell_of, has_pictures=has_matplotlib)
    return environment


def _cell_of(value: CellLike) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
