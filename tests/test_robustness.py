"""`blt study robustness`: what is measured, that it is measured once, and what the page says of it."""

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.cli.study.robustness import NOISES
from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import PAPER, parse_noise
from bltkit.eval.requests import Answer, Compression, Likelihood, Request, Scored
from bltkit.files.json_lines import read_lines
from bltkit.study.curves import At, Line, draw_curves, scale_of
from bltkit.study.robustness import (
    CurvePoint,
    RobustnessPlan,
    conditions,
    curves_of,
    page_of,
    retained,
    run,
    table,
    write_report,
)
from tests.test_cli import Blt_, blt

__all__ = ["blt"]

WORDS = ("mill", "river", "tower", "bridge", "lantern", "harbour")
PLAN = RobustnessPlan(tasks=("piqa",), noises=("drop", "uppercase:0.5"), intensities=(0.3, 1.0))


@dataclass
class Knowing:
    """Knows the right ending of a clean question; of a damaged one it guesses. Counts what it is asked."""

    name: str = "knowing"
    kind: str = "bltkit"
    fingerprint: str = "f0"
    asked: list[Request] = field(default_factory=list)
    fails_after: int = 10**9

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """The right ending repeats the word that the question asks about."""
        for at, request in enumerate(requests):
            assert isinstance(request, Likelihood) and not isinstance(request, Compression)
            if len(self.asked) >= self.fails_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            word = re.search(rb"about the (\w+) now", request.context)
            known = word is not None and word[1] in WORDS_BYTES
            right = known and word is not None and word[1] in request.continuation
            guess = zlib.crc32(request.context + request.continuation) / 2**32
            yield at, Scored(-1.0 if right else -10.0 - guess, False)


WORDS_BYTES = {word.encode() for word in WORDS}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """60 questions of two choices, and pairs for ten of them."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows, pairs = [], []
    for number in range(60):
        right, wrong = WORDS[number % 6], WORDS[(number + 1 + number // 6 % 5) % 6]
        query = f"Question: who knows more about the {right} now, {number}?"
        choices = [f"the {right}", f"the {wrong}"]
        gold = number % 2
        rows.append({"query": query, "choices": choices[::-1] if gold else choices, "gold": gold})
        if number < 10:
            pairs.append({"clean": query, "noisy": query.replace("about the", "abaut teh")})
    for name, some in (("piqa.jsonl", rows), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return Place.of([folder])


def loader(*subjects: Knowing) -> Callable[[str], Any]:
    """Hands out subjects by name."""
    return {subject.name: subject for subject in subjects}.__getitem__


def test_conditions() -> None:
    found = [(one.curve, one.intensity, one.own, one.key[0]) for one in conditions(PLAN)]
    assert found == [
        (None, 0.0, True, None),
        ("drop", 0.1, True, "drop:0.1"),
        ("drop", 0.3, False, "drop:0.3"),
        ("drop", 1.0, False, "drop:1"),
        ("uppercase", 0.3, False, "uppercase:0.3"),
        ("uppercase", 0.5, True, "uppercase:0.5"),
        ("uppercase", 1.0, False, "uppercase:1"),
    ]
    plan = RobustnessPlan(
        tasks=("piqa",), noises=("repeat:0.3,times=2", "drop:0.5+ocr:0.2", "drop:0"), intensities=(0.5,)
    )
    assert [(one.curve, one.key[0]) for one in conditions(plan)[1:]] == [
        ("repeat:times=2", "repeat:0.3,times=2"),
        ("repeat:times=2", "repeat:0.5,times=2"),
        ("drop:0.5+ocr:0.2", "drop:0.25+ocr:0.1"),
        ("drop:0.5+ocr:0.2", "drop:0.5+ocr:0.2"),
        ("drop", "drop:0.5"),
    ]
    assert NOISES == PAPER
    with pytest.raises(ValueError, match="unknown noise 'drp'; did you mean 'drop'"):
        conditions(RobustnessPlan(tasks=("piqa",), noises=("drp",)))


def test_a_study(place: Place, tmp_path: Path) -> None:
    knowing, other = Knowing(), Knowing("other", "token", "0f")
    seen: list[tuple[int, int]] = []
    models = {"a": "knowing", "b": "other"}
    rows = run(
        PLAN,
        models,
        place,
        tmp_path / "out",
        {"command": "blt ..."},
        load=loader(knowing, other),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert rows == read_lines(tmp_path / "out" / "rows.jsonl") and len(rows) == 2 * 7
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert len(knowing.asked) == 7 * 60 * 2
    clean, *noisy = [row for row in rows if row["model"] == "a"]
    assert clean["value"] == 1.0 and clean["noise"] is None and clean["chance"] == 0.5 and clean["n"] == 60
    assert noisy[2]["noise"] == "drop:1"
    assert max(row["value"] for row in noisy if row["curve"] == "drop") < 0.8  # few questions stay whole
    assert {(row["source"], row["kind"], row["fingerprint"]) for row in rows if row["model"] == "b"} == {
        ("other", "token", "0f")
    }
    # What is asked is the damaged text, damaged by the noise of the row.
    texts = {request.context for request in knowing.asked if isinstance(request, Likelihood)}
    query = "Question: who knows more about the mill now, 0?"
    assert any(parse_noise("uppercase:0.5").apply(query, "piqa/0/query").encode() in text for text in texts)
    # Nothing is measured twice, also where a study is taken further.
    asked = len(knowing.asked)
    again = run(PLAN, models, place, tmp_path / "out", {}, load=loader(knowing, other))
    assert again == rows and len(knowing.asked) == asked
    more = PLAN.replace(intensities=(0.3, 0.6, 1.0))
    assert len(run(more, models, place, tmp_path / "out", {}, load=loader(knowing, other))) == len(rows) + 4
    assert len(knowing.asked) == asked + 2 * 60 * 2


def test_a_study_goes_on_where_it_was_broken_off(place: Place, tmp_path: Path) -> None:
    whole = run(PLAN, {"a": "knowing"}, place, tmp_path / "whole", {}, load=loader(Knowing()))
    broken = Knowing(fails_after=300)
    with pytest.raises(KeyboardInterrupt):
        run(PLAN, {"a": "knowing"}, place, tmp_path / "out", {}, load=loader(broken))
    assert len(read_lines(tmp_path / "out" / "rows.jsonl")) == 2
    rest = Knowing()
    rows = run(PLAN, {"a": "knowing"}, place, tmp_path / "out", {}, load=loader(rest))
    assert 300 + len(rest.asked) - 7 * 120 in (0, 1)  # the item that was broken in two is asked again
    for found, expected in zip(rows, whole, strict=True):
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_other_weights_or_limits_are_another_study(place: Place, tmp_path: Path) -> None:
    plan = PLAN.replace(noises=("drop:1",), intensities=(1.0,))
    run(plan, {"a": "knowing"}, place, tmp_path, {}, load=loader(Knowing()))
    for other, model, message in (
        (plan, Knowing(fingerprint="f1"), "fingerprint was f0, and is f1 now"),
        (plan.replace(limit=5), Knowing(), "limit was None, and is 5 now"),
        (plan.replace(seed=1), Knowing(), "seed was 0, and is 1 now"),
    ):
        with pytest.raises(ValueError, match=message):
            run(other, {"a": "knowing"}, place, tmp_path, {}, load=loader(model))
        assert not model.asked


def test_pairs_are_held_against_the_same_items(place: Place, tmp_path: Path) -> None:
    pairs = f"paired:{place.directories[0] / 'pairs.jsonl'}"
    plan = RobustnessPlan(tasks=("piqa",), noises=(pairs, "drop"), intensities=(0.5,))
    rows = run(plan, {"a": "knowing"}, place, tmp_path / "out", {}, load=loader(Knowing()))
    by_curve = {curve.noise: curve for curve in curves_of(rows)}
    assert by_curve[pairs].clean.n == 10 == by_curve[pairs].points[0].n
    assert by_curve[pairs].clean.left_out == 50 and by_curve["drop"].clean.n == 60
    assert by_curve[pairs].clean.value == 1.0 > by_curve[pairs].points[0].value
    assert [point.intensity for point in by_curve[pairs].points] == [1.0]
    (place.directories[0] / "pairs.jsonl").write_text('{"clean": "x", "noisy": "y"}\n')
    with pytest.raises(ValueError, match="covers no item of piqa"):
        run(plan, {"a": "knowing"}, place, tmp_path / "other", {}, load=loader(Knowing()))
    assert not (tmp_path / "other").exists()


@given(st.floats(0, 1), st.floats(0.3, 1), st.floats(0, 0.25))
def test_what_is_retained(value: float, clean: float, by_chance: float) -> None:
    def of(value: float, low: float, better: str = "higher", level: float | None = by_chance) -> float | None:
        return retained(value, CurvePoint(0, clean, (low, 1.0), 10), level, better)

    assert of(clean, 0.3) == pytest.approx(1) and of(by_chance, 0.3) == 0
    found = of(value, 0.3)
    assert found is not None and by_chance + found * (clean - by_chance) == pytest.approx(value)
    assert of(value, by_chance) is None  # not sure to be above chance
    assert of(value, 0.3, "lower") is None and of(value, 0.3, level=None) is None


def test_the_report_says_what_was_measured(place: Place, tmp_path: Path) -> None:
    models = {"a": "knowing", "b<i>": "other"}
    subjects = loader(Knowing(), Knowing("other", "token", "0f"))
    rows = run(PLAN, models, place, tmp_path, {"command": "blt <study>"}, load=subjects)
    said, page = table(rows), page_of(rows)
    curves = curves_of(rows)
    assert [(curve.noise, curve.model) for curve in curves] == [
        ("drop", "a"), ("drop", "b<i>"), ("uppercase", "a"), ("uppercase", "b<i>"),
    ]  # fmt: skip
    first = curves[0]
    (own,) = first.own
    assert own.intensity == 0.1 and own.retained is not None
    shares = [point.retained[0] for curve in curves[::2] for point in curve.own if point.retained]
    assert f"a keeps {100 * sum(shares) / 2:.0f} % of its scores above chance" in said.replace("\u2212", "-")
    assert f"| drop | a | 0.1 | {own.value:.3f} |" in said and "Chance is 0.500" in said
    assert page.count("<polyline") == 4 and page.count("<polygon") == 4 and page.count("stroke-dasharray") == 2
    assert "b&lt;i&gt;" in page and "<i>" not in page and "blt &lt;study&gt;" in page
    assert not re.search(r"(src|href)=|https?://|url\(|@import", page)
    assert write_report(rows, tmp_path) == (tmp_path / "table.md", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    with pytest.raises(ValueError, match="no rows of `blt study robustness`"):
        table([{"what": "fast-decoding", "value": 1.0}])


def test_a_model_at_chance_has_nothing_to_keep(place: Place, tmp_path: Path) -> None:
    rows = run(PLAN, {"a": "knowing"}, place, tmp_path, {}, load=loader(Knowing()))
    rows = [{**row, "value": 0.5, "interval": [0.4, 0.6]} for row in rows]
    assert "says nothing of robustness yet" in table(rows) and "keeps" not in table(rows)


def test_curves_are_drawn_to_scale() -> None:
    line = Line("a", (At(0, 0.5, (0.4, 0.6)), At(1, 0.25, (0.2, 0.3), ring=True, title="a < b")))
    scale = scale_of([line])
    svg = draw_curves([line], "t", x_name="intensity", scale=scale, level=0.25)
    points = re.findall(r'<polyline points="([^"]+)"', svg)[0].split()
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in points)
    lines = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', svg)
    zero, top = (float(lines[at][2]) for at in (0, len(scale.ticks) - 1))
    high = scale.ticks[-1]
    assert float(lines[0][0]) == x0 and float(lines[0][1]) == x1
    assert (zero - y0) / (zero - top) == pytest.approx(0.5 / high, abs=1e-3)
    assert (zero - y1) / (zero - top) == pytest.approx(0.25 / high, abs=1e-3)
    assert any(float(one[2]) == y1 == float(one[3]) for one in lines)  # the level
    assert svg.count('r="8"') == 1 and "a &lt; b" in svg
    with pytest.raises(ValueError, match="no lines"):
        draw_curves([], "t", x_name="", scale=scale)


BAD = [
    (("--out", "{out}"), "needs --model NAME=MODEL"),
    (("--out", "{out}", "--model", "a=bltkit:tiny"), "needs --task NAME"),
    (("--out", "{out}", "--report"), "there is no rows.jsonl in it"),
    (("--out", "{out}", "--report", "--noise", "drop"), "--noise is for measuring"),
    (("{good}", "--noise", "drp"), "unknown noise 'drp'; did you mean 'drop'?"),
    (("{good}", "--intensity", "1.5"), "intensities"),
    (("{good}", "--task", "pika"), "no task 'pika'; did you mean 'piqa'?"),
    (("{good}", "--task", "boolq"), "boolq.jsonl: not in"),
    (("{good}", "--paired", "{out}"), "no such file"),
    (("{good}", "--limit", "0"), "limit = 0"),
    (("{good}", "--model", "b"), "is not NAME=SOURCE"),
    (("{good}", "--model", "b=token:nowhere"), "nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, blt: Blt_, place: Place, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    good = ["--model", "a=bltkit:tiny", "--task", "piqa", "--data", str(place.directories[0]), "--out", str(out)]
    spread = [part for one in arguments for part in (good if one == "{good}" else [one.format(out=out)])]
    ran = blt("study", "robustness", *spread)
    assert ran.status == 2 and not ran.out
    assert message in ran.err.splitlines()[-1] and len(ran.err.splitlines()) == 1
    assert not out.exists()


def test_the_command(place: Place, tmp_path: Path, blt: Blt_) -> None:
    line = ["study", "robustness", "--model", "a=bltkit:tiny", "--task", "piqa", "--data", place.directories[0]]
    line += ["--noise", "uppercase", "--intensity", "1", "--limit", "3", "--out", tmp_path / "out"]
    found = blt(*line, "--json").json()
    assert [row["noise"] for row in found["rows"]] == [None, "uppercase:1"]
    assert all(row["n"] == 3 and row["command"].startswith("blt") for row in found["rows"])
    ran = blt("study", "robustness", "--report", "--out", tmp_path / "out")
    assert ran.out.decode() == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "wrote" in ran.err and Path(found["page"]).is_file()


def test_pairs_that_changed_are_not_taken_for_measured(place: Place, tmp_path: Path, blt: Blt_) -> None:
    file = place.directories[0] / "pairs.jsonl"
    line = ["study", "robustness", "--model", "a=bltkit:tiny", "--task", "piqa", "--data", place.directories[0]]
    line += ["--paired", file, "--limit", "2", "--out", tmp_path / "out"]
    assert blt(*line).status == 0
    file.write_text(file.read_text(encoding="utf-8").replace("abaut", "abowt"), encoding="utf-8")
    ran = blt(*line)
    assert ran.status == 2 and "pairs was" in ran.err
