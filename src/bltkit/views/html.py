"""HTML pages that stand alone: a builder that escapes by default, and the shell (head, look, sorting) all pages share.

    page("Robustness", tag("p", "a < b"), table(("task", "n"), [("hellaswag", 100)]))

Text is escaped wherever it enters; only `Html`, which `tag` returns, goes in as it is. A page loads nothing: style and
script stand in it, and its content policy allows nothing else, so that not even a mistake here lets a text act.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bltkit.views.html_style import SCRIPT, STYLE

_VOID = frozenset({"br", "col", "hr", "meta"})
# What no page may hold: control characters but tab and line feed, halves of surrogate pairs, noncharacters.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*")


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


Node: TypeAlias = Html | str | int | Iterable["Node"] | None
"""What can stand in an element; None is nothing."""


def escape(text: str) -> Html:
    """Text as markup, also inside an attribute's double quotes; what no page may hold becomes U+FFFD."""
    text = _UNFIT.sub("\ufffd", text)
    return Html(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;"))


def join(*nodes: Node) -> Html:
    """Nodes one behind the other."""
    return Html("".join(_pieces(nodes)))


def tag(name: str, /, *children: Node, **attributes: str | float | bool | None) -> Html:
    """An element. `class_` is class, `stroke_width` is stroke-width; None and False leave an attribute out.

    Texts directly in `script` or `style` elements cannot be escaped: do not make these with it.
    """
    assert _NAME.fullmatch(name) and name not in {"script", "style"}, name
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
        assert _NAME.fullmatch(key) and not key.startswith("on"), key
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(key if value is True else f'{key}="{escape(shown)}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened) if name in _VOID else Html(f"{opened}{join(*children)}</{name}>")


@dataclass(frozen=True)
class HtmlCell:
    """A table's cell where its text alone does not do: `value` is what rows are sorted by, `kind` its class."""

    content: Node
    value: float | None = None
    kind: str | None = None


Cell = HtmlCell


def table(
    head: Sequence[Node | Cell],
    rows: Iterable[Sequence[Node | Cell]],
    *,
    caption: Node = None,
    texts: int = 1,
    sortable: bool = False,
    dense: bool = False,
    label: str = "table",
) -> Html:
    """A table that scrolls by itself where the page is narrow.

    The first cell of a row is its header. The first `texts` columns stand left, the others are figures and stand
    right. label: what the table is, for screen readers. sortable: by a click on a column's head, where scripts run.
    dense: rows without space between them, for drawings that stand below one another.
    """
    names = [_cell("th", "col", value, at < texts) for at, value in enumerate(head)]
    lines = [
        tag("tr", [_cell("td" if at else "th", None if at else "row", one, at < texts) for at, one in enumerate(row)])
        for row in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            None if caption is None else tag("caption", caption),
            tag("thead", tag("tr", names)),
            tag("tbody", [("\n", line) for line in lines]),
            class_=" ".join(name for name, on in (("sortable", sortable), ("dense", dense)) if on) or None,
        ),
        class_="scroll",
        role="region",
        tabindex="0",
        aria_label=label,
    )


def facts(pairs: Mapping[str, Node]) -> Html:
    """Names and what they are: a short list of circumstances. None leaves a pair out."""
    there = ((name, value) for name, value in pairs.items() if value is not None)
    found = [tag("div", tag("dt", name), tag("dd", value), class_="fact") for name, value in there]
    return tag("dl", found, class_="facts")


def page(title: str, *body: Node) -> str:
    """A whole page: encode it as UTF-8. `title` stands in the browser's tab; the body brings its own heading."""
    policy = f"default-src 'none'; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; base-uri 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n{join(*body)}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _pieces(nodes: Iterable[Node]) -> Iterable[str]:
    for node in nodes:
        if node is None:
            continue
        if isinstance(node, Html):
            yield node
        elif isinstance(node, str):
            yield escape(node)
        elif isinstance(node, int):
            yield str(node)
        else:
            yield from _pieces(node)


def _cell(name: str, scope: str | None, value: Node | Cell, is_text: bool) -> Html:
    cell = value if isinstance(value, Cell) else Cell(value)
    kind = " ".join(filter(None, ("t" if is_text else None, cell.kind))) or None
    sorting = None if cell.value is None else repr(float(cell.value))
    return tag(name, cell.content, scope=scope, class_=kind, data_v=sorting)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
