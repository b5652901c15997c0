"""The builder of HTML pages: whatever stands in a text stays text, and a page is whole and loads nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.views.html import Cell, Html, escape, facts, join, page, table, tag
from tests.html_pages import HOSTILE, Page, check_alone

ANY_TEXT = st.text(st.characters(exclude_categories=()))


class Texts(HTMLParser):
    """What an element holds as text, and its attributes."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.found = "", [("", "")]
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@given(ANY_TEXT)
def test_text_comes_back_from_a_parser_as_it_went_in(text: str) -> None:
    """As content and as an attribute; what no page may hold comes back as U+FFFD, one for one."""
    markup = tag("p", text, title=text)
    markup.encode()
    found = Texts(markup)
    back = dict(found.found)["title"]
    assert found.text == back and len(back) == len(text)
    unfit = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
    assert back == unfit.sub("\ufffd", text)


def test_only_markup_goes_in_as_it_is() -> None:
    assert tag("b", "<i>", tag("i", "&"), 3, None, [["x", Html("<hr>")]]) == "<b>&lt;i&gt;<i>&amp;</i>3x<hr></b>"
    assert isinstance(join("a", "<"), Html) and join("a", "<") == "a&lt;"
    assert escape("a\nb\tc") == "a\nb\tc"
    assert tag("br") == "<br>" and tag("line", x1=0.5, stroke_width=2, class_="g", hidden=True, title=None) == (
        '<line x1="0.5" stroke-width="2" class="g" hidden></line>'
    )


@pytest.mark.parametrize("name", ["script", "style", "a b", "p><script", ""])
def test_elements_that_could_act_are_not_made(name: str) -> None:
    with pytest.raises(AssertionError):
        tag(name, "x")
    with pytest.raises(AssertionError):
        tag("p", "x", onclick="alert(1)")


def test_a_page_stands_alone_whatever_is_in_it() -> None:
    text = page(
        HOSTILE,
        tag("h1", HOSTILE),
        facts({"name": HOSTILE, "nothing": None}),
        table((HOSTILE, "n"), [(HOSTILE, Cell(HOSTILE, 0.1, "bad"))], caption=HOSTILE, sortable=True, label=HOSTILE),
    )
    text.encode()
    found = check_alone(text)
    assert "nothing" not in found.text and found.text.count("alert(1)") == 7
    assert found.cells[1][1] == {"class": "bad", "data-v": "0.1"}


def test_the_policy_lets_the_pages_own_script_and_style_work() -> None:
    """The hashes it names are those of what stands in the page."""
    text = page("t", tag("p", "x"))
    policy = next(one["content"] for one in Page(text).named("meta") if "http-equiv" in one)
    for name in ("script", "style"):
        inside = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in str(policy)
