"""`blt study entropy`: what models say of bytes, texts and excerpts, rows measured once, the report."""

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit import cli
from bltkit.checkpoint import Bundle, save_bundle
from bltkit.eval.score import byte_scores, windows
from bltkit.files.json_lines import read_lines
from bltkit.model import Blt, BoundaryConfig, BoundaryModel, EntropyConfig, EntropyModel
from bltkit.patching import parse_rule
from bltkit.study.entropy_quality.entropy_report import RULES
from bltkit.study.entropy_quality.entropy_study import EntropyStudy
from bltkit.study.entropy_quality.scores import byte_figures
from bltkit.study.entropy_quality.texts import DEFAULTS, excerpt, read_texts
from bltkit.study.report import to_markdown
from bltkit.study.store import ROWS, ResultStore
from bltkit.vocab import encode
from tests import tiny
from tests.tiny_training import STACK, Workplace

TEXT = ("It was cold, and the crow knew it. Она летит домой, 漢字かな. " * 12).encode()
CONTEXT, STRIDE = 48, 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLT, its entropy model alone, and a text."""
    folder = tmp_path_factory.mktemp("entropy")
    config: Any = Workplace(folder).config("blt").model
    scorer = tiny.fill(EntropyModel(EntropyConfig(**STACK, window=16)), 1, head=3.0)
    rule = parse_rule("threshold:threshold=2.5")
    save_bundle(folder / "blt", Bundle(tiny.fill(Blt(config), 0), scorer, rule, {"row_bytes": CONTEXT + 1}))
    save_bundle(folder / "alone", Bundle(None, scorer, rule, {"row_bytes": CONTEXT + 1}))
    boundary = tiny.fill(BoundaryModel(BoundaryConfig(**STACK, window=16)), 1)
    save_bundle(folder / "boundary", Bundle(None, boundary, parse_rule("bpe"), {}))
    (folder / "text.txt").write_bytes(TEXT)
    (folder / "noise.bin").write_bytes(np.random.default_rng(0).integers(0, 256, 900).astype(np.uint8).tobytes())
    return folder


def bundle_of(place: Path, name: str) -> Bundle:
    from bltkit.checkpoint import load_bundle

    return load_bundle(place / name)


def study(place: Path, out: Path, *more: str, model: str = "blt") -> tuple[int, str]:
    line = ["study", "entropy", "--model", str(place / model), "--out", str(out), "--bytes", "800", *more]
    printed = io.StringIO()
    with redirect_stdout(printed):
        status = cli.main(line)
    return status, printed.getvalue()


@torch.no_grad()
def test_figures_of_bytes_are_those_of_the_window_that_scores_them(place: Path) -> None:
    bundle, data = bundle_of(place, "blt"), TEXT[:150]
    scorer: Any = bundle.scorer
    found = byte_figures(bundle, data, CONTEXT, STRIDE, seed=1)
    for window in windows(len(data), CONTEXT, STRIDE):
        ids = encode(data[window.begin : window.stop])
        p = torch.softmax(scorer(ids[None, :-1])[0].double(), -1)
        for at in range(window.first, window.stop):
            row = p[at - window.begin]
            assert found.entropies[at] == pytest.approx(float(-(row * row.log2()).sum()), rel=1e-4)
            assert found.surprisals[at] == pytest.approx(-math.log2(row[data[at] + 4]), rel=1e-4)
            assert np.isclose((-row.log2()).numpy(), found.drawn[at], rtol=1e-4).any(), "costs what no byte costs"
    scores = byte_scores(bundle, data, CONTEXT, STRIDE)
    assert found.blt == pytest.approx(scores.nats.numpy() / math.log(2))
    assert scores.opens is not None and (found.opens == scores.opens.numpy()).all()
    assert bundle.rule is not None and bundle.rule.scores == "entropy"
    np.testing.assert_array_equal(found.opens[1:], found.entropies[1:] * math.log(2) > 2.5)
    again = byte_figures(bundle, data, CONTEXT, STRIDE, seed=1)
    np.testing.assert_array_equal(found.drawn, again.drawn)
    assert (byte_figures(bundle, data, CONTEXT, STRIDE, seed=2).drawn != found.drawn).any()


def test_bytes_drawn_from_predictions_cost_their_entropy(place: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()
    found = byte_figures(bundle_of(place, "alone"), data, CONTEXT, STRIDE)
    spread = found.drawn.std() / math.sqrt(len(data))
    assert abs(found.drawn.mean() - found.entropies.mean()) < 4 * spread
    assert found.blt is None


def test_a_study_measures_once_and_reports_from_its_rows(place: Path, tmp_path: Path) -> None:
    texts = ("--text", f"prose={place / 'text.txt'}", "--text", f"noise={place / 'noise.bin'}")
    status, printed = study(place, tmp_path, *texts[:2])
    assert status == 0 and "prose" in printed
    first = (tmp_path / ROWS).read_bytes()
    status, printed = study(place, tmp_path, *texts, "--json")
    rows = json.loads(printed)["rows"]
    assert status == 0 and (tmp_path / ROWS).read_bytes().startswith(first)
    assert [row["text"] for row in rows] == ["prose", "noise"] and rows == read_lines(tmp_path / ROWS)
    assert {path.name for path in tmp_path.iterdir()} == {
        ROWS,
        f".{ROWS}.lock",
        "table.md",
        "report.html",
        "calibration.png",
        "calibration.svg",
        "evenness.png",
        "evenness.svg",
    }
    assert study(place, tmp_path, *texts, "--seed", "4")[0] == 2, "rows of the same names, measured otherwise"
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    with redirect_stdout(io.StringIO()):
        assert cli.main(["study", "entropy", "--out", str(tmp_path), "--report"]) == 0
        assert cli.main(["study", "entropy", "--out", str(tmp_path), "--report", "--seed", "1"]) == 2
    assert (tmp_path / "report.html").read_bytes() == page
    assert page.count(b"data:image/svg+xml") == page.count(b"<img") == 2 and b"<link" not in page

    prose, noise = rows
    assert prose["scripts"].keys() >= {"Latin", "Cyrillic"} and noise["scripts"] == {}
    assert noise["rules"]["own"]["cut_characters"] is None and prose["rules"]["own"]["cut_characters"] is not None
    assert set(prose["rules"]) <= set(RULES) and {"own", "fixed", "random", "words"} <= set(prose["rules"])
    for name in ("own", "words"):
        same = [name, {"own": "fixed", "words": "fixed at words"}[name]]
        assert len({prose["rules"][one]["borders"] for one in same}) == 1
    assert prose["conditions"]["digest"] != noise["conditions"]["digest"]
    assert math.isclose(prose["bits_per_byte"]["entropy-model"] - prose["mean_entropy"], prose["calibration"]["gap"])


def test_an_entropy_model_alone_is_judged_by_the_mixing_model(place: Path, tmp_path: Path) -> None:
    status, _ = study(place, tmp_path, "--text", f"prose={place / 'text.txt'}", "--primed-bytes", "60", model="alone")
    (row,) = read_lines(tmp_path / ROWS)
    assert status == 0 and "blt" not in row["bits_per_byte"]
    assert set(row["rules"]["own"]["judges"]) == {"context-mixing"}
    assert 790 < row["bytes"] <= 803 and 50 < row["primed_bytes"] <= 60
    lines = to_markdown(EntropyStudy(), EntropyStudy().sections(ResultStore(tmp_path, "entropy").frame())).splitlines()
    assert "| prose " in "\n".join(lines) and "BLT: Gini" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("more", "model", "words"),
    [
        (("--text", "prose"), "blt", "NAME=SOURCE"),
        (("--text", "a=missing.txt"), "blt", "missing.txt"),
        ((), "boundary", "BoundaryModel"),
        (("--tokenizer", "missing.json"), "blt", "missing.json"),
        (("--bytes", "3"), "blt", "bytes"),
    ],
)
def test_mistakes_are_one_line(
    more: tuple[str, ...], model: str, words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = () if "--text" in more else ("--text", f"prose={place / 'text.txt'}")
    assert study(place, tmp_path, *more, *text, model=model)[0] == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said


COMMITTED = """
| prose | 65,536 | 65,536 | 2.210 | 2.401 | 1.948 | 2.103 | 2.410 |
| code | 0.818 [0.809, 0.828] | 0.645 [0.634, 0.660] | 0.882 [0.871, 0.891] | 0.869 [0.861, 0.877] | 0.663 [0.649, 0.677] |
| wiki | 2.687 | 3.233 | +0.546 | 0.546 (0.035) | 1.259 |
| udhr | Khmer | 2,245 | 1.24 | 0.43 | 20.2 | 1.9 | 95.6 % |
"""  # noqa: E501


def test_the_committed_rows_say_what_version_0_1_0_printed(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_bytes(Path("docs/entropy-quality.jsonl").read_bytes())
    study, frame = EntropyStudy(), ResultStore(tmp_path, "entropy").frame()
    text = to_markdown(study, study.sections(frame))
    lines, expected = ([[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
                       for text in (text, COMMITTED.strip()))  # fmt: skip
    assert all(line in lines for line in expected)
    pictures = study.figures(frame)
    assert {name: len(figure.axes) for name, figure in pictures.items()} == {"calibration": 9, "evenness": 9}


def test_default_texts_are_there_and_of_their_type() -> None:
    texts = {text.name: text for text in read_texts({}, 20_000, 0)}
    assert list(texts) == list(DEFAULTS)
    for name, text in texts.items():
        assert len(text.data) > 3000, name
        strange = text.data.decode("utf-8", "replace").count("\ufffd")
        assert (strange > 1000) == (name == "binary"), name
    assert b"def " in texts["code"].data
    wide = sum(value >= 0x80 for value in texts["scripts"].data)
    assert wide > len(texts["scripts"].data) / 2


@given(st.text(min_size=1, max_size=400), st.integers(64, 600), st.integers(0, 100))
def test_excerpts_are_within_their_sizes_and_cut_no_character(text: str, num_bytes: int, primed: int) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode() * 8
    taken, between = excerpt(data, num_bytes, primed)
    assert len(between) <= primed and len(taken) <= num_bytes + 3 and taken
    taken.decode()
    if len(data) <= num_bytes:
        assert (taken, between) == (data, b"")
    else:
        assert len(taken) > num_bytes - 8


def test_excerpts_of_a_long_text_come_from_all_over_it() -> None:
    data = b"".join(b"%07d\n" % at for at in range(10_000))
    taken, between = excerpt(data, 16_384, 8_192)
    lines = [int(line) for line in taken.split(b"\n") if len(line) == 7]
    assert min(lines) < 10 and max(lines) > 7_000 and len(taken) == 16_384 and len(between) == 8_192
    assert not set(between.split(b"\n")[1:-1]) & set(taken.split(b"\n")[1:-1])
