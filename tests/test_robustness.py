"""`blt study robustness`: what is measured, that it is measured once, and what the page says of it."""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import PAPER, parse_noise
from bltkit.eval.requests import Answer, Compression, Likelihood, Request, Scored
from bltkit.files.json_lines import read_lines
from bltkit.study.driver import run_study
from bltkit.study.report import to_markdown, write_report
from bltkit.study.robustness.robustness_report import points_of
from bltkit.study.robustness.robustness_study import NOISES, RobustnessStudy
from tests.test_cli import Blt_, blt

__all__ = ["blt"]

WORDS = ("mill", "river", "tower", "bridge", "lantern", "harbour")
PLAN = RobustnessStudy(
    models={"a": "knowing"}, tasks=("piqa",), noises=("drop", "uppercase:0.5"), intensities=(0.3, 1.0)
)


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


@pytest.fixture
def measure(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs a study on subjects, which it knows by name; returns all of its rows."""

    def run(study: RobustnessStudy, *subjects: Knowing, out: str = "out", **options: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr("bltkit.eval.subjects.open_subject", {one.name: one for one in subjects}.__getitem__)
        study = study.replace(data=tuple(map(str, place.directories)))
        return run_study(study, tmp_path / out, {"command": "blt <study>"}, **options).rows()

    return run


def test_conditions() -> None:
    found = [(one.curve, one.intensity, one.own, one.key[0]) for one in PLAN.conditions]
    assert found == [
        (None, 0.0, True, None),
        ("drop", 0.1, True, "drop:0.1"),
        ("drop", 0.3, False, "drop:0.3"),
        ("drop", 1.0, False, "drop:1"),
        ("uppercase", 0.3, False, "uppercase:0.3"),
        ("uppercase", 0.5, True, "uppercase:0.5"),
        ("uppercase", 1.0, False, "uppercase:1"),
    ]
    plan = PLAN.replace(noises=("repeat:0.3,times=2", "drop:0.5+ocr:0.2", "drop:0"), intensities=(0.5,))
    assert [(one.curve, one.key[0]) for one in plan.conditions[1:]] == [
        ("repeat:times=2", "repeat:0.3,times=2"),
        ("repeat:times=2", "repeat:0.5,times=2"),
        ("drop:0.5+ocr:0.2", "drop:0.25+ocr:0.1"),
        ("drop:0.5+ocr:0.2", "drop:0.5+ocr:0.2"),
        ("drop", "drop:0.5"),
    ]
    assert NOISES == PAPER
    with pytest.raises(ValueError, match="unknown noise 'drp'; did you mean 'drop'"):
        PLAN.replace(noises=("drp",)).units()


def test_a_study(measure: Any, tmp_path: Path) -> None:
    knowing, other = Knowing(), Knowing("other", "token", "0f")
    seen: list[tuple[int, int]] = []
    study = PLAN.replace(models={"a": "knowing", "b": "other"})
    rows = measure(study, knowing, other, progress=lambda done, total: seen.append((done, total)))
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
    assert measure(study, knowing, other) == rows and len(knowing.asked) == asked
    assert len(measure(study.replace(intensities=(0.3, 0.6, 1.0)), knowing, other)) == len(rows) + 4
    assert len(knowing.asked) == asked + 2 * 60 * 2


def test_an_interrupted_study_resumes(measure: Any, tmp_path: Path) -> None:
    whole = measure(PLAN, Knowing(), out="whole")
    with pytest.raises(KeyboardInterrupt):
        measure(PLAN, Knowing(fails_after=300))
    assert len(read_lines(tmp_path / "out" / "rows.jsonl")) == 2
    rest = Knowing()
    rows = measure(PLAN, rest)
    assert 300 + len(rest.asked) - 7 * 120 in (0, 1)  # the item that was broken in two is asked again
    for row, expected in zip(rows, whole, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}


def test_other_weights_or_limits_are_another_study(measure: Any) -> None:
    plan = PLAN.replace(noises=("drop:1",), intensities=(1.0,))
    measure(plan, Knowing())
    for other, model, message in (
        (plan, Knowing(fingerprint="f1"), "fingerprint = 'f0', and the plan says 'f1'"),
        (plan.replace(limit=5), Knowing(), "limit = None, and the plan says 5"),
        (plan.replace(seed=1), Knowing(), "seed = 0, and the plan says 1"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(other, model)
        assert not model.asked


def test_pairs_are_held_against_the_same_items(place: Place, measure: Any, tmp_path: Path) -> None:
    pairs = str(place.directories[0] / "pairs.jsonl")
    plan = PLAN.replace(noises=("drop",), paired=(pairs,), intensities=(0.5,))
    points = points_of(pd.DataFrame(measure(plan, Knowing())))
    clean, noisy = points[points.curve == f"paired:{pairs}"].to_dict("records")
    assert clean["n"] == 10 == noisy["n"] and clean["left_out"] == 50 and noisy["intensity"] == 1.0
    assert clean["value"] == 1.0 > noisy["value"]
    assert points[points.curve == "drop"].n.iloc[0] == 60
    Path(pairs).write_text('{"clean": "x", "noisy": "y"}\n')
    with pytest.raises(ValueError, match="covers no item of piqa"):
        measure(plan, Knowing(), out="other")
    assert not (tmp_path / "other").exists()


def row(model: str, task: str, curve: str | None, intensity: float, value: float, width: float, **more: Any) -> Any:
    """A row as the study writes it."""
    names = {"model": model, "task": task, "curve": curve, "intensity": intensity, "own": intensity != 0.3}
    kind, _, fields = (curve or "").partition(":")
    noise = None if not intensity else curve if kind == "paired" else f"{kind}:{intensity:g},{fields}".rstrip(",")
    score = {"metric": "acc_norm", "better": "higher", "chance": {"piqa": 0.5, "cute": 0.0}.get(task)}
    if task == "utf8":
        score |= {"metric": "bits_per_byte", "better": "lower"}
    weights = {"source": f"dir/{model}", "kind": "token", "fingerprint": "f00", "limit": None, "seed": 0}
    interval = [value - width, value + width]
    rest = {"value": value, "interval": interval, "n": 200, "left_out": 0, "command": "blt <study>"}
    return {"what": "robustness", **weights, **names, "noise": noise, **score, **rest, **more}


def test_what_is_retained() -> None:
    """Numbers of the release before pandas, for the same rows."""
    rows = [
        row("blt", "piqa", None, 0.0, 0.71, 0.03),
        row("blt", "piqa", "drop", 0.3, 0.677, 0.02),
        row("blt", "piqa", "drop", 0.1, 0.6, 0.02),  # measured again below
        row("blt", "piqa", "paired:p.jsonl", 0.0, 0.66, 0.1, n=20),
        row("blt", "piqa", "paired:p.jsonl", 1.0, 0.6, 0.0, n=20),
        row("blt", "piqa", "drop", 0.1, 0.69, 0.025),
        row("blt", "cute", None, 0.0, 0.31, 0.03),
        row("blt", "cute", "drop", 0.1, 0.289, 0.02, left_out=3),
        row("blt", "utf8", None, 0.0, 1.9, 0.03),
        row("blt", "utf8", "drop", 0.1, 1.97, 0.02),
        row("none", "piqa", None, 0.0, 0.51, 0.03),
        row("none", "piqa", "drop", 0.1, 0.5, 0.03),
        row("none", "cute", "drop", 0.1, 0.5, 0.03),  # without a clean score
    ]
    points = points_of(pd.DataFrame(rows))
    assert points[["task", "curve", "model", "intensity"]].to_numpy().tolist() == [
        ["piqa", "drop", "blt", 0.0], ["piqa", "drop", "blt", 0.1], ["piqa", "drop", "blt", 0.3],
        ["piqa", "drop", "none", 0.0], ["piqa", "drop", "none", 0.1],
        ["piqa", "paired:p.jsonl", "blt", 0.0], ["piqa", "paired:p.jsonl", "blt", 1.0],
        ["cute", "drop", "blt", 0.0], ["cute", "drop", "blt", 0.1],
        ["utf8", "drop", "blt", 0.0], ["utf8", "drop", "blt", 0.1],
    ]  # fmt: skip
    nan = math.nan
    kept = [
        nan,
        0.9047619047619042,
        0.8428571428571432,
        nan,
        nan,
        nan,
        0.6249999999999999,
        nan,
        0.932258064516129,
        nan,
        nan,
    ]
    assert points.kept.tolist() == pytest.approx(kept, abs=1e-12, nan_ok=True)
    assert points.kept_low.iloc[1] == pytest.approx(0.7857142857142856, abs=1e-12)
    assert points.kept_high.iloc[1] == pytest.approx(1.0238095238095235, abs=1e-12)
    assert points[["low", "kept_low"]].iloc[6].isna().all()  # an interval without width is none
    study = RobustnessStudy.model_construct()
    text = " ".join(to_markdown(study, study.sections(pd.DataFrame(rows))).split())
    assert "blt keeps 82 % of its scores above chance, as the mean over 3 pairs of task and noise." in text
    assert "none keeps" not in text and "90 % (79 % to 102 %)" in text and "200 (3 left out)" in text
    assert "| drop:0.1 | none | \u2013 | \u2013 | \u2013 |" in text


@given(st.floats(0, 1), st.floats(0.3, 1), st.floats(0, 0.25))
@settings(max_examples=20, deadline=None)
def test_the_share_that_is_kept(value: float, clean: float, chance: float) -> None:
    def kept(value: float, low: float, better: str = "higher", level: float | None = chance) -> Any:
        scores = {"interval": [low, 1.0], "chance": level, "better": better}
        rows = [row("a", "t", None, 0.0, clean, 0.0, **scores), row("a", "t", "drop", 1.0, value, 0.0, **scores)]
        return points_of(pd.DataFrame(rows)).kept.iloc[1]

    assert kept(clean, 0.3) == pytest.approx(1) and kept(chance, 0.3) == 0
    assert chance + kept(value, 0.3) * (clean - chance) == pytest.approx(value)
    assert math.isnan(kept(value, chance))  # not sure to be above chance
    assert math.isnan(kept(value, 0.3, "lower")) and math.isnan(kept(value, 0.3, level=None))


def test_the_report_says_what_was_measured(measure: Any, tmp_path: Path) -> None:
    study = PLAN.replace(models={"a": "knowing", "b<i>": "other"})
    frame = pd.DataFrame(measure(study, Knowing(), Knowing("other", "token", "0f")))
    report = write_report(study, frame, tmp_path)
    page = report.page.read_text(encoding="utf-8")
    assert [path.name for path in report.figures] == ["robustness-piqa.png", "robustness-piqa.svg"]
    (figure,) = study.figures(frame).values()
    assert [axes.get_title("left") for axes in figure.axes] == ["drop", "uppercase"]
    points = points_of(frame)
    for axes in figure.axes:
        curves = points[points.curve == axes.get_title("left")]
        drawn = [line.get_ydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
        assert drawn == [curves[curves.model == model].value.tolist() for model in ("a", "b<i>")]
    own = points[(points.model == "a") & points.own & points.noise.notna()]
    assert f"a keeps {100 * own.kept.mean():.0f} % of its scores above chance" in report.text.replace("\u2212", "-")
    assert "Chance is 0.500" in report.text
    assert "b&lt;i&gt;" in page and "<i>" not in page and "blt &lt;study&gt;" in page
    assert page.count("data:image/svg+xml;base64,") == 1 and "other (token, 0f)" in page
    assert not re.search(r"(src|href)=.(?!data:)|https?://|url\(|@import", page)


def test_a_model_at_chance_has_nothing_to_keep(measure: Any) -> None:
    frame = pd.DataFrame([{**row, "value": 0.5, "interval": [0.4, 0.6]} for row in measure(PLAN, Knowing())])
    text = to_markdown(PLAN, PLAN.sections(frame))
    assert "says nothing of robustness yet" in text and "keeps" not in text


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
    assert ran.status == 2 and "pairs = " in ran.err
