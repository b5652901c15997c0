"""An HTML page read back with the standard library's parser: is it well formed, what is in it, what does it load."""

import base64
import re
from html.parser import HTMLParser

HOSTILE = '<script>alert("1")</script>\'"><img src=x onerror=alert(1)>&amp;<!--]]>\x00\x1b[31m\x7f\udc80\ufffe'
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters that no page may hold."""

VOID = {"br", "col", "hr", "meta", "img"}
SVG = "data:image/svg+xml;base64,"
ADDRESSES = {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}


class Page(HTMLParser):
    """tags: (name, attributes) in order; rows: the texts of every table row's cells; text: all of it.

    Fails on tags that are not closed in the order they were opened, and on attributes given twice.
    """

    def __init__(self, page: str, *, closes_itself: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self._closes_itself = closes_itself
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.cells: list[list[dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def named(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a name."""
        return [attributes for tag, attributes in self.tags if tag == name]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.cells.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cells[-1].append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert self._closes_itself, f"<{tag}/> closes itself"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.scripts.append(data)
            return
        self.pieces.append(data)
        if self._open and {"td", "th"} & set(self._open) and "title" not in self._open:
            self.rows[-1][-1] += data


def pictures(page: Page) -> list[str]:
    """The SVG images of a page."""
    return [base64.b64decode((one["src"] or "").removeprefix(SVG)).decode() for one in page.named("img")]


def check_alone(text: str) -> Page:
    """The page, once it is clear that it loads nothing, runs nothing but its own script, and is accessible."""
    assert not UNFIT.search(text)
    page = Page(text)
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            inside = (value or "").startswith(SVG if tag == "img" else "#")
            assert name not in ADDRESSES or inside, (tag, name, value)
            assert not name.startswith("on") and name != "style", (tag, name, value)
    assert all(one["alt"] for one in page.named("img"))
    for picture in pictures(page):
        assert not UNFIT.search(picture) and "prefers-color-scheme: dark" in picture
        for tag, attributes in Page(picture.partition("?>")[2], closes_itself=True).tags:
            assert tag not in ("script", "image", "a", "foreignobject"), tag
            values = {name: value or "" for name, value in attributes.items() if not name.startswith("xmlns")}
            assert values.get("xlink:href", "#").startswith("#") and "http" not in " ".join(values.values())
    assert not {"link", "iframe", "object", "embed", "base", "form", "input"} & {tag for tag, _ in page.tags}
    assert len(page.named("script")) == len(page.named("style")) == len(page.named("main")) == 1
    assert not any(word in script for script in page.scripts for word in ("url(", "@import", "http", "fetch(", "eval("))
    policy = next(one["content"] for one in page.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    assert page.named("html")[0]["lang"] == "en"
    assert all(one.get("scope") in ("row", "col") for one in page.named("th"))
    ids = [value for _, attributes in page.tags for name, value in attributes.items() if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [one["href"] for one in page.named("a")]
    assert all(target is not None and target[1:] in ids for target in targets)
    return page
