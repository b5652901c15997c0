"""Pictures and the terminal: every byte is there, whatever it is, and nothing comes from elsewhere."""

import io
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from bltkit.model import blt_preset
from bltkit.patching import SpaceRule, StrideRule, ThresholdRule
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.views.ansi import render
from bltkit.views.compare import Comparison, Scheme, compare
from bltkit.views.glyphs import cells, wrap
from bltkit.views.pictures import MAX_LINES, draw, html_page, write_picture
from bltkit.views.scene import Label, png_glyphs

WEIRD = "Grüße 世界 שלום e\u0301 \x00\x1b[31m\t\u200b\u202e🙂 $x_1^2$ <b>&amp;</b>\r\n\n".encode() + b"\xff\xfe\xc3"
TEXTS = st.one_of(st.binary(max_size=50), st.text(max_size=25).map(str.encode), st.just(WEIRD))


def fake_scores(ids: Tensor) -> Tensor:
    return (ids.cumsum(-1) * 0.6180339887).remainder(1.0).float()


def patched(data: bytes, threshold: float = 0.6) -> PatchedText:
    return patch_text(data, ThresholdRule(threshold=threshold), fake_scores)


def compared(data: bytes) -> Comparison:
    schemes = compare(data, config=blt_preset("tiny"), scorer=None)
    entropy = Scheme("entropy", "Entropy", patched(data), 1e6)
    return Comparison(data, (*schemes.schemes, entropy), schemes.left_out, schemes.context)


@given(TEXTS, st.sets(st.integers(1, 49)), st.sampled_from([str.isprintable, str.isascii, lambda character: False]))
def test_cells_cover_every_byte_and_no_border(data: bytes, borders: set[int], shows: Callable[[str], bool]) -> None:
    found = cells(data, sorted({0} | borders), shows)
    assert [cell.start for cell in found] == [0, *(cell.end for cell in found)][: len(found)]
    assert (found[-1].end if found else 0) == len(data)
    for cell in found:
        assert cell.inside == tuple(border for border in sorted(borders) if cell.start < border < cell.end)
        piece = data[cell.start : cell.end]
        assert cell.text.isprintable()
        if cell.kind == "text":
            assert cell.text.removeprefix("\u25cc").encode() == piece.removeprefix("\u25cc".encode()) and all(
                map(shows, cell.text)
            )
        elif cell.kind == "hex":
            assert bytes.fromhex(cell.text) == piece and len(piece) == 1
        else:
            assert piece in (b"\n", b"\t")


def test_cells_of_characters() -> None:
    def shown(data: bytes, starts: tuple[int, ...] = (0,)) -> list[str]:
        return [cell.text for cell in cells(data, starts)]

    assert shown("aé世".encode()) == ["a", "é", "世"]
    assert shown("aé".encode(), (0, 2)) == ["a", "é"], "a border inside a character does not tear it"
    assert [cell.inside for cell in cells("aé世".encode(), (0, 1, 2, 4, 5))] == [(), (2,), (4, 5)]
    assert shown("e\u0301x".encode()) == ["e\u0301", "x"]
    assert shown("e\u0301".encode(), (0, 1)) == ["e\u0301"]
    assert shown("\u0301\n\u0301".encode()) == ["\u25cc\u0301", "↵", "\u25cc\u0301"]
    assert shown("Привет 🙂".encode(), (0, 3, 5)) == [*"Привет", " ", "🙂"]
    assert shown(b"\xd0\x9f\xd1|\xe4\xb8") == ["П", "D1", "|", "E4", "B8"]
    assert shown(b"\x00\n\xff\xe4") == ["00", "↵", "FF", "E4"]


@given(TEXTS, st.integers(1, 20))
def test_lines_hold_all_cells(data: bytes, columns: int) -> None:
    content = cells(data, (0,))
    lines = wrap(content, columns, lambda cell: cell.num_bytes)
    assert tuple(cell for line in lines for cell in line) == content
    for line in lines:
        assert sum(cell.num_bytes for cell in line) <= columns or len(line) == 1
        text = "".join(cell.text for cell in line if cell.kind == "symbol" or cell.text != "↵")
        assert not re.search("↵[^↵]", text)


LONG = "$\\frac{1}{2}$ 世界".encode() * 12


@pytest.mark.parametrize(
    "data", [b"a", b"Hello, world.", WEIRD, b"\n", LONG], ids=["a", "hello", "weird", "newline", "long"]
)
@pytest.mark.parametrize("subject", [patched, compared])
def test_png(tmp_path: Path, data: bytes, subject: Callable[[bytes], PatchedText | Comparison]) -> None:
    shown = subject(data)
    path = write_picture(shown, tmp_path / "picture.PNG")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    scene = draw(shown, png_glyphs())
    assert (width, height) == (int(2 * scene.width), int(2 * scene.height))
    assert 400 < width < 4000 and 150 < height < 4000
    assert list(tmp_path.iterdir()) == [path]
    assert scene.to_png() == content  # the same picture each time


def test_png_shows_hex_where_the_font_has_no_glyph() -> None:
    labels = [
        shape.text for shape in draw(patched("a世".encode(), 2.0), png_glyphs()).shapes if isinstance(shape, Label)
    ]
    assert {"a", "E4", "B8", "96"} <= set(labels) and "世" not in labels


class _Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag not in ("meta", "polyline", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("polyline", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data


@given(TEXTS.filter(bool))
def test_html_holds_every_byte_and_nothing_from_elsewhere(data: bytes) -> None:
    for subject in (patched(data), compared(data)):
        page = html_page(subject)
        assert '<meta charset="utf-8">' in page
        assert not re.search(r"https?://|<script|<link|@import|url\(|\bsrc=|\bon\w+=", page)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202e]", page)
        parser = _Page()
        parser.feed(page)
        parser.close()
        assert parser.open == []
        rows = [row for row in parser.rows if row]
        expected = [subject] if isinstance(subject, PatchedText) else [scheme.patched for scheme in subject.schemes]
        pieces = [bytes.fromhex(next(cell for cell in row[2:] if re.fullmatch("[0-9a-f ]+", cell))) for row in rows]
        assert b"".join(pieces) == data * len(expected)
        assert pieces == [piece for value in expected for piece in value.pieces]


def test_html_sets_real_glyphs(tmp_path: Path) -> None:
    path = write_picture(patched("世<b>".encode(), 2.0), tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert ">世</text>" in page and ">&lt;</text>" in page and "<b>" not in page


def test_mistakes(tmp_path: Path) -> None:
    for name in ("picture.pdf", "picture", "png"):
        with pytest.raises(ValueError, match=r"must end in \.png or \.html"):
            write_picture(patched(b"a"), tmp_path / name)
    with pytest.raises(ValueError, match="text is empty"):
        write_picture(patched(b""), tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"a picture holds {MAX_LINES}"):
        write_picture(patched(b"a\n" * (MAX_LINES + 1)), tmp_path / "a.html")
    with pytest.raises(OSError):
        write_picture(patched(b"a"), tmp_path / "absent" / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'bltkit\[plot\]'"):
        write_picture(patched(b"a"), tmp_path / "a.png")
    assert write_picture(patched(b"a"), tmp_path / "a.html").exists()


def printed(subject: PatchedText | Comparison, *, color: bool, width: int = 70, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    system = "truecolor" if color else None
    console = Console(file=file, force_terminal=color, color_system=system, width=width, legacy_windows=False)  # type: ignore[arg-type]
    console.print(render(subject))
    file.seek(0)
    return file.read()


def test_terminal_without_colour_marks_borders() -> None:
    assert printed(patch_text(b"Hi,  a b", SpaceRule()), color=False).splitlines()[0] == "Hi,│  a │b"
    assert "\x1b" not in printed(compared(WEIRD), color=False)
    rows = printed(compare(b"abcdefgh", config=None, scorer=None), color=False).splitlines()
    assert rows[:3] == ["Bytes   a│b│c│d│e│f│g│h", "Stride  abcd│efgh", "Space   abcdefgh"]


def test_terminal_in_colour_marks_nothing_else() -> None:
    output = printed(patch_text(b"Hi,  a b", StrideRule(k=4)), color=True)
    assert "|" not in output and output.count("\x1b[") > 2
    backgrounds = re.findall(r"48;2;(\d+;\d+;\d+)m", output)
    assert len(set(backgrounds)) == 2


@given(TEXTS, st.integers(20, 100), st.booleans(), st.sampled_from(["utf-8", "ascii"]))
def test_terminal_takes_everything(data: bytes, width: int, color: bool, encoding: str) -> None:
    subjects: list[PatchedText | Comparison] = [patched(data)]
    for subject in subjects + ([compared(data)] if data else []):
        output = printed(subject, color=color, width=width, encoding=encoding)
        plain = re.sub(r"\x1b\[[\d;]*m", "", output)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200b\u202e]", plain)
        if encoding == "ascii":
            assert plain.isascii()
