"""What people see of patches: whole characters, colours for light and dark, cut texts, and statistics."""

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorType
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from bltkit import api, cli
from bltkit.patching import PatchingRule, SpaceRule, StrideRule, ThresholdRule, parse_rule
from bltkit.patching.patched import PatchedText, patch_text
from bltkit.terminal import palette
from bltkit.views.ansi import MAX_LINES, render
from bltkit.views.compare import Comparison, compare
from bltkit.views.patch_lengths import PatchLengths, lengths_of, measure_lengths
from bltkit.views.patch_page import patch_page
from bltkit.views.pictures import draw, write_picture

Channels = tuple[float, float, float]


def printed(
    subject: PatchedText | Comparison, *, color: str | None = None, width: int = 80, lines: int | None = None
) -> str:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=color is not None, color_system=color, width=width, legacy_windows=False
    )  # type: ignore[arg-type]
    console.print(render(subject, lines))
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("Привет", StrideRule(k=3), "Пр┊и│ве┊т"),
        ("Привет", StrideRule(k=4), "Пр│ив│ет"),
        ("Привет", SpaceRule(), "Пр┊и┊в┊е┊т┊"),
        ("世界", StrideRule(k=2), "世┊界┊"),
        ("a🙂b", StrideRule(k=1), "a│🙂┊┊┊│b"),
        ("e\u0301x", StrideRule(k=2), "e\u0301┊x"),
        ("\u0301", StrideRule(k=9), "\u25cc\u0301"),
        ("a|b", StrideRule(k=2), "a|│b"),
        ("fünf", StrideRule(k=9), "fünf"),
    ],
)  # fmt: skip
def test_characters_are_whole(text: str, rule: PatchingRule, line: str) -> None:
    assert printed(patch_text(text.encode(), rule)).splitlines()[0].rstrip() == line


def test_what_is_no_utf8_is_hex() -> None:
    assert printed(patch_text("aП".encode()[:2] + b"\xff", StrideRule(k=2))).splitlines()[0] == "aD0│FF"


def test_a_border_inside_has_the_next_colour() -> None:
    output = printed(patch_text("Пр".encode(), StrideRule(k=3)), color="truecolor")
    rgb = [";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) for colour in palette.BACKGROUNDS]
    first, inside = f"48;2;{rgb[0]}m", f"48;2;{rgb[1]}m"
    assert output.index(first) < output.index("р") < output.index(inside) < output.index("┊")


def luminance(channels: Channels) -> float:
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Channels, other: Channels) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("system", "to_text"), [("truecolor", 4.5), ("256", 4.5), ("standard", 3.5)])
def test_patches_stand_out_on_light_and_dark(system: str, to_text: float) -> None:
    styles = [palette.patch_style(number, system) for number in range(8)]
    for number, style in enumerate(styles):
        assert style.bgcolor is not None and style.color is not None
        background = tuple(style.bgcolor.get_truecolor(DEFAULT_TERMINAL_THEME, foreground=False))
        ink = tuple(style.color.get_truecolor(DEFAULT_TERMINAL_THEME))
        if system == "standard":
            assert style.bgcolor.type == ColorType.STANDARD and style.bgcolor.number not in (0, 7)
            background = tuple(VGA[style.bgcolor.number or 0])
        assert min(contrast(background, (0, 0, 0)), contrast(background, (255, 255, 255))) >= 3
        assert contrast(background, ink) >= to_text
        assert style.bgcolor != styles[number - 1].bgcolor, "neighbours differ"
    codes = {
        code for style in styles for code in style.render("x", color_system=_SYSTEMS[system]).split("m")[0].split(";")
    }
    assert codes.isdisjoint({"47", "103", "107", "100"})


VGA = {2: (0, 170, 0), 5: (170, 0, 170)}
_SYSTEMS = {
    name: getattr(__import__("rich.color", fromlist=["ColorSystem"]).ColorSystem, member)
    for name, member in (("truecolor", "TRUECOLOR"), ("256", "EIGHT_BIT"), ("standard", "STANDARD"))
}


def test_colours_of_the_cube_are_not_rounded() -> None:
    levels = {0, 95, 135, 175, 215, 255}
    for colour in palette.BACKGROUNDS:
        assert {int(colour[i : i + 2], 16) for i in (1, 3, 5)} <= levels


def test_borders_are_marked_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setenv("NO_COLOR", "1")
    Console(file=file, force_terminal=True, width=80).print(render(patch_text(b"Hi,  a b", SpaceRule())))
    assert file.getvalue().splitlines()[0] == "Hi,│  a │b"


def long_text() -> bytes:
    return b"".join(b"line %d of a long text\n" % number for number in range(4000))


def by_words(data: bytes) -> PatchedText:
    return patch_text(data, SpaceRule())


def by_all(data: bytes) -> Comparison:
    return compare(data, config=None, scorer=None)


@pytest.mark.parametrize("make", [by_words, by_all])
@pytest.mark.parametrize("color", [None, "truecolor"])
def test_a_long_text_is_cut_with_a_note(make: Callable[[bytes], PatchedText | Comparison], color: str | None) -> None:
    data = long_text()
    output = printed(make(data), color=color, lines=MAX_LINES)
    assert output.count("\n") < MAX_LINES + 25
    assert f"of {len(data):,} bytes are shown; --all shows all, --stats" in output.replace("\n", " ")
    short = make(data[:200])
    assert printed(short, color=color, lines=MAX_LINES) == printed(short, color=color)


def test_cut_texts_end_at_characters() -> None:
    output = printed(patch_text("世".encode() * 3000, SpaceRule()), width=20, lines=4)
    assert "E4" not in output and output.count("世") < 60


def test_the_verb_cuts_and_shows_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_bytes(long_text()[:6000])
    assert cli.main(["patch", "--file", str(tmp_path / "text"), "--rule", "space"]) == 0
    cut = capsys.readouterr().out
    assert "--all shows all" in " ".join(cut.split()) and cut.count("\n") < 60
    assert cli.main(["patch", "--file", str(tmp_path / "text"), "--rule", "space", "--all"]) == 0
    whole = capsys.readouterr().out
    assert "--all" not in whole and whole.count("\n") > 400


GOLDEN = """\
25 bytes in 9 patches, rule space

bytes per patch  mean  10%  25%  median  75%  90%  99%  max
                 2.78    1    2       2    3    7    7    7

     length      patches    share  of bytes
          1            1    11.1%      4.0%  ████████
          2            4    44.4%     32.0%  ██████████████████████████████
          3            3    33.3%     36.0%  ██████████████████████
          4            0     0.0%      0.0%
          5            0     0.0%      0.0%
          6            0     0.0%      0.0%
          7            1    11.1%     28.0%  ████████"""


def test_statistics_look_like_this() -> None:
    counts = PatchLengths(SpaceRule(), {1: 1, 2: 4, 3: 3, 7: 1})
    assert counts.summary() == GOLDEN
    assert counts.summary(unicode=False).isascii()
    assert list(counts.to_json())[:4] == ["num_bytes", "rule", "num_patches", "mean_patch_bytes"]
    assert sum(row["patches"] for row in counts.rows()) == counts.num_patches
    assert lengths_of((), SpaceRule()).summary() == "0 bytes in 0 patches, rule space"


class Fake:
    """Scores that depend on the byte and on how many were read: state has to be carried."""

    resets = frozenset[int]({1})

    def start(self, rows: int = 1) -> "Fake.State":
        return Fake.State(0)

    class State:
        def __init__(self, read: int) -> None:
            self.read = read

        def forget(self, rows: object) -> "Fake.State":
            return Fake.State(0)

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        at = torch.arange(ids.shape[1])
        return ((ids * 31 + at * 17) % 23).float()

    def extend_scores(self, ids: torch.Tensor, state: "Fake.State") -> tuple[torch.Tensor, "Fake.Read"]:
        at = torch.arange(ids.shape[1]) + state.read
        return ((ids * 31 + at * 17) % 23).float(), Fake.Read(state.read)

    class Read:
        def __init__(self, read: int) -> None:
            self.read = read

        def keep(self, counts: list[int]) -> "Fake.State":
            return Fake.State(self.read + counts[0])


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=30), max_size=5),
    st.sampled_from(["space", "stride:k=3.3", "byte", "threshold:threshold=15", "rise:rise=3,max_patch_bytes=4"]),
)
def test_pieces_count_as_the_whole(pieces: list[bytes], text: str) -> None:
    rule = parse_rule(text)
    whole = patch_text(b"".join(pieces), rule, Fake().scores)
    counted = measure_lengths(pieces, rule, Fake())  # type: ignore[arg-type]
    assert counted == lengths_of(whole.lengths, rule)
    assert counted.mean == pytest.approx(whole.mean_patch_bytes) and counted.largest == whole.largest


def test_statistics_of_the_model_are_those_of_its_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = long_text()[:20_000]
    (tmp_path / "text").write_bytes(data)
    lm = api.load("bltkit:tiny")
    assert cli.main(["patch", "--file", str(tmp_path / "text"), "--stats", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = lengths_of(lm.patches(data).lengths, lm.rule or SpaceRule()).to_json()
    assert found == expected
    assert cli.main(["patch", "hi", "--stats", "--compare"]) == 2


def test_json_begins_with_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["patch", "hello world", "--json"]) == 0
    names = list(json.loads(capsys.readouterr().out))
    assert names.index("mean_patch_bytes") < names.index("starts") < names.index("patches")
    assert names[0] == "num_bytes" and names[-1] == "patches"


def test_pictures_show_whole_characters_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    subject = patch_text("Привет, 世界 🙂 e\u0301 שלום".encode() + b"\xff", ThresholdRule(threshold=0.5), Fake().scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_picture(subject, tmp_path / "a.png")
        write_picture(subject, tmp_path / "a.svg")
    shown = [text.get_text() for text in draw(subject).axes[1].texts]
    assert {*"Привет", "e\u0301", "FF"} <= set(shown) and "D0" not in shown
    page = patch_page(subject)
    assert all(f"<b>{character}</b>" in page for character in "Привет世界🙂")


def test_a_very_long_file_needs_little_memory(tmp_path: Path) -> None:
    """Of 30 MB, read in pieces, a few are in memory at a time."""
    program = (
        "import resource, sys\n"
        "from bltkit.patching import parse_rule\n"
        "from bltkit.views.patch_lengths import measure_lengths\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = measure_lengths((b'some words ' * 6000 for _ in range(60)), parse_rule('stride:k=4'))\n"
        "print(found.num_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == 11 * 6000 * 60 and int(out[1]) < 60_000
