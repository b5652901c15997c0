"""Pictures and the terminal: every byte is there, whatever it is, and nothing comes from elsewhere."""

import io
import re
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from bltkit.model import blt_preset
from bltkit.patching import SpaceRule, StrideRule, ThresholdRule
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.views.ansi import render
from bltkit.views.compare import Comparison, Scheme, compare
from bltkit.views.figures import has_glyph
from bltkit.views.glyphs import MAX_PICTURE_LINES, cells, text_lines, wrap
from bltkit.views.patch_page import LEVELS, patch_page
from bltkit.views.pictures import draw, write_picture
from tests.html_pages import check_alone

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
def test_png_and_svg(tmp_path: Path, data: bytes, subject: Callable[[bytes], PatchedText | Comparison]) -> None:
    pytest.importorskip("matplotlib")
    path = write_picture(subject(data), tmp_path / "picture.PNG")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 400 < width < 4000 and 150 < height < 4000
    assert list(tmp_path.iterdir()) == [path]
    if len(data) < 20:  # the same picture each time
        assert write_picture(subject(data), tmp_path / "again.png").read_bytes() == content
    svg = write_picture(subject(data), tmp_path / "picture.svg").read_text()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg") and not re.search(r"<script|<image|<!DOCTYPE|url\((?!#)|href=\"(?!#)", svg)


def drawn(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_picture_has_a_column_for_every_byte() -> None:
    """Backgrounds are as wide as the patches, points and dots lie over their bytes, at the height of the score."""
    pytest.importorskip("matplotlib")
    subject = patched("aé, 世".encode())
    scores, band = draw(subject).axes
    (boxes,) = band.collections
    spans = [path.vertices[:, 0] for path in boxes.get_paths()]
    for span, start, length in zip(spans, subject.starts, subject.lengths, strict=True):
        assert start < span.min() < start + 0.2 and start + length - 0.2 < span.max() < start + length
    (curve,) = (line for line in scores.lines if len(line.get_xdata()) == len(subject.data))
    assert curve.get_xdata().tolist() == [at + 0.5 for at in range(len(subject.data))]
    assert curve.get_ydata().tolist() == list(subject.scores or ())
    assert curve.get_markevery() == list(subject.starts)
    assert [text.get_text() for text in scores.texts] == ["θ = 0.60"]


def test_pictures_show_hex_where_no_font_has_the_glyph() -> None:
    pytest.importorskip("matplotlib")
    assert drawn(draw(patched("a世".encode(), 2.0)).axes[1]) == [
        "a",
        *(["世"] if has_glyph("世") else ["E4", "B8", "96"]),
    ]
    assert not has_glyph("\U000e0041") and drawn(draw(patched("\U000e0041".encode(), 2.0)).axes[1])[0] == "F3"


@given(TEXTS.filter(bool))
@settings(deadline=None, max_examples=30)
def test_html_holds_every_byte_and_nothing_from_elsewhere(data: bytes) -> None:
    for subject in (patched(data), compared(data)):
        text = patch_page(subject)
        assert not re.search(r"https?://|\bsrc=|[\u200b\u202e]", text)
        page = check_alone(text)
        values = [subject] if isinstance(subject, PatchedText) else [scheme.patched for scheme in subject.schemes]
        # Rows of patches begin with their start; hex is the last column but one.
        pieces = [bytes.fromhex(row[-2]) for row in page.rows if row[0].isdigit() and len(row) in (4, 5)]
        assert pieces == [one for value in values for one in value.pieces]
        columns = [one.get("class") or "" for one in page.named("i")]
        assert len(columns) == len(data) * len(values)
        opens = [at for at, kind in enumerate(columns) if " o" in kind]
        assert opens == places_of_starts(values, len(data))


def places_of_starts(values: Sequence[PatchedText], size: int) -> list[int]:
    """Of a page's columns; schemes take turns line by line."""
    places, done = [], 0
    for line in text_lines(values[0].data, at_newlines=False) if len(values) > 1 else [None]:
        first, last = (line[0].start, line[-1].end) if line else (0, size)
        for value in values:
            places += [done + start - first for start in value.starts if first <= start < last]
            done += last - first
    return places


def test_html_sets_real_glyphs(tmp_path: Path) -> None:
    path = write_picture(patched("世<b>".encode(), 2.0), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "<b>世</b>" in text and "<b>&lt;</b>" in text
    page = check_alone(text)
    assert "Dashed line: the threshold θ = 2.00." in page.text
    hints = [one["title"] for one in page.named("span") if one.get("title")]
    assert hints == ["patch 1: 6 bytes from 0 · e4 b8 96 3c 62 3e · entropy 0.618"]


def test_bars_are_as_high_as_the_scores() -> None:
    subject = patched(b"Hello, world.")
    page = check_alone(patch_page(subject))
    heights = [int(re.findall(r"\bh(\d+)", one["class"] or "")[0]) for one in page.named("i")]
    assert subject.scores is not None and max(heights) == LEVELS
    top = max(*subject.scores, 0.6)
    assert heights == [round(LEVELS * score / top) for score in subject.scores]
    style = page.scripts[0]
    assert all(f".h{height} {{ --h: {height}; }}" in style for height in range(LEVELS + 1))


def test_mistakes(tmp_path: Path) -> None:
    for name in ("picture.pdf", "picture", "png"):
        with pytest.raises(ValueError, match=r"must end in \.png, \.svg or \.html"):
            write_picture(patched(b"a"), tmp_path / name)
    with pytest.raises(ValueError, match="text is empty"):
        write_picture(patched(b""), tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"a picture holds {MAX_PICTURE_LINES}"):
        write_picture(patched(b"a\n" * (MAX_PICTURE_LINES + 1)), tmp_path / "a.html")
    with pytest.raises(OSError):
        write_picture(patched(b"a"), tmp_path / "absent" / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("a.png", "a.svg"):
        with pytest.raises(ValueError, match=r"pip install 'bltkit\[plot\]'"):
            write_picture(patched(b"a"), tmp_path / name)
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
