"""Pages from templates: whatever stands in a text stays text, and a page is whole and loads nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.views.figures import PAPER, displayable, house_style, new_figure, to_page_svg, to_png, write
from bltkit.views.pages import Cell, PageTable, picture, render_page
from tests.html_pages import HOSTILE, UNFIT, Page, check_alone, pictures

ANY_TEXT = st.text(st.characters(exclude_categories=()))
COSTS = "cost/ledger/costs.html.j2"


class Titles(HTMLParser):
    """Attributes `title` of a page, as a parser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.titles: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.titles += [value or "" for name, value in attrs if name == "title"]


@given(ANY_TEXT)
def test_text_comes_back_from_a_parser_as_it_went_in(text: str) -> None:
    """As content and as an attribute; what no page may hold comes back as U+FFFD, one for one."""
    table = PageTable(text, ("a", "b"), [(f"<{text}>", Cell(f"<{text}>", code=f"<{text}>"))])
    markup = render_page(COSTS, "t", picture=None, table=table)
    markup.encode()
    expected = f"<{UNFIT.sub(chr(0xFFFD), text)}>"
    assert Page(markup).rows[1] == [expected, expected] and Titles(markup).titles == [expected]
    assert displayable(text) == UNFIT.sub("\ufffd", text)


def test_a_page_stands_alone_whatever_is_in_it() -> None:
    cells = (HOSTILE, Cell(HOSTILE, 0.1, "bad", note=HOSTILE, mark=2, label=HOSTILE))
    table = PageTable(HOSTILE, (HOSTILE, "n"), [cells], sortable=True)
    text = render_page(COSTS, HOSTILE, picture=None, table=table)
    text.encode()
    page = check_alone(text)
    assert page.text.count("alert(1)") == 6
    assert page.cells[1][1] == {"class": "bad", "data-v": "0.1"}
    assert [one["class"] for one in page.named("table")] == ["sortable"]
    region = next(one for one in page.named("div") if one.get("role") == "region")
    assert region["tabindex"] == "0" and (region["aria-label"] or "").startswith("<script>")


def test_the_policy_lets_the_pages_own_script_and_style_work() -> None:
    """The hashes it names are those of what stands in the page."""
    text = render_page(COSTS, "t", picture=None, table=PageTable("t", ("a",), []))
    policy = next(one["content"] for one in Page(text).named("meta") if "http-equiv" in one)
    for name in ("script", "style"):
        inside = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in str(policy)


def test_pictures_follow_light_and_dark_and_keep_texts_harmless() -> None:
    pytest.importorskip("matplotlib")
    with house_style():
        figure = new_figure(200, 100)
        write(figure, 10, 50, HOSTILE)
    shown = picture(lambda: figure, HOSTILE)
    page = check_alone(render_page(COSTS, "t", picture=shown, table=PageTable("t", ("a",), [])))
    (svg,) = pictures(page)
    assert "alert" in svg and "<script" not in svg and PAPER in svg
    assert "var(--c1c2430)" in svg and "--c1c2430:#e4e8ee" in svg
    assert page.named("img")[0]["alt"] == UNFIT.sub("\ufffd", HOSTILE)


def test_a_picture_too_large_for_png_is_refused_in_one_line() -> None:
    pytest.importorskip("matplotlib")
    with house_style(), pytest.raises(ValueError, match=r"1000 x 40000 pixels, more than 32768 on a side; .*\.svg"):
        to_png(new_figure(500, 20_000))
    assert "<svg" in to_page_svg(new_figure(500, 20_000))


def test_templates_lie_beside_their_modules_in_the_package() -> None:
    """As importlib finds them, which is how an installed wheel is read; and none is left that nothing uses."""
    package = files("bltkit")
    source = Path(__file__).parents[1] / "src" / "bltkit"
    templates = {path.relative_to(source).as_posix() for path in source.rglob("*.html.j2")}
    assert len(templates) >= 6
    texts = [path.read_text(encoding="utf-8") for kind in ("py", "j2") for path in source.rglob(f"*.{kind}")]
    for name in (*templates, "views/page.css", "views/page.js"):
        assert package.joinpath(name).read_text(encoding="utf-8")
    assert all(any(f'"{name}"' in text for text in texts) for name in templates)
