"""Pairs of clean and noisy text from real sources: as a noise, and as a task of its own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.dataset_source import Place
from bltkit.eval.noise import Paired, parse_noise
from bltkit.eval.requests import Coded, Compression
from bltkit.eval.tasks.paired import PairedTexts
from bltkit.eval.tasks.task import Item
from tests.eval_rows_paired import PAIRS, ROWS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The small rows as a file."""
    path = tmp_path / "paired.jsonl"
    path.write_text(ROWS["paired"]["paired.jsonl"], encoding="utf-8")
    return path


def test_a_text_is_looked_up(file: Path) -> None:
    noise = parse_noise(f"paired:{file}")
    assert isinstance(noise, Paired) and parse_noise(str(noise)) == noise and noise.at(1) is noise
    for pair in PAIRS:
        assert noise.covers(pair["clean"]) and noise.apply(pair["clean"], "any key") == pair["noisy"]
        assert noise.covers(pair["noisy"]) == (pair["noisy"] == pair["clean"])
    assert noise.apply("\n See you tonight! ", "k") == "\n c u 2nite "
    assert noise.covers("") and noise.covers(" \n") and noise.apply(" \n", "k") == " \n"
    assert not noise.covers("See you") and not noise.covers("see you tonight!")
    with pytest.raises(ValueError, match="has no pair for 'See you'"):
        noise.apply("See you", "k")
    with pytest.raises(ValueError, match="one intensity, 1"):
        noise.at(0.5)


def test_the_fingerprint_is_of_the_pairs(tmp_path: Path, file: Path) -> None:
    first = Paired.load(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join([*reversed(lines), "", lines[0], ""]), encoding="utf-8")
    assert Paired.load(tmp_path / "other.jsonl").fingerprint == first.fingerprint
    (tmp_path / "other.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    assert Paired.load(tmp_path / "other.jsonl").fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"clean": "a"}', "line 2: field 'noisy' is missing; the row has clean"),
        ('{"noisy": "a", "text": "b"}', "line 2: field 'clean' is missing; the row has noisy, text"),
        ('{"clean": 1, "noisy": "a"}', "line 2: clean = 1 is not a text"),
        ('{"clean": "a", "noisy": " "}', "line 2: noisy = ' ' is not a text"),
        ('{"clean": "a", "noisy": "\\ud800"}', "line 2: not JSON (\\ud800 is half a surrogate pair"),
        ("[1]", "line 2: not a JSON object"),
        ("{", "line 2: not JSON (Expecting property name"),
        ('{"clean": "x", "noisy": "z"}', "this clean text stands there before"),
    ],
)
def test_a_malformed_file_names_its_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"clean": "x", "noisy": "y"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        parse_noise(f"paired:{path}")
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        parse_noise(f"paired:{tmp_path}/none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        parse_noise(f"paired:{tmp_path}/empty.jsonl")


def test_the_task_asks_for_both_texts(file: Path) -> None:
    task, place = PairedTexts(), Place.of([file.parent])
    items = list(task.items(place))
    assert [task.requests(item) for item in items] == [
        (Compression(pair["clean"].encode()), Compression(pair["noisy"].encode())) for pair in PAIRS
    ]
    assert [item.groups for item in items] == [{"source": pair["source"]} for pair in PAIRS]
    assert [item.id for item in PairedTexts(part=("scans",)).items(place)] == ["0", "2"]
    with pytest.raises(ValueError, match=r"paired:scan: no such source in .*; did you mean 'scans'"):
        list(PairedTexts(part=("scan",)).items(place))
    with pytest.raises(ValueError, match=r"paired.jsonl: not found in the hub; .* give --data DIR"):
        list(task.items(Place()))
    file.write_text(json.dumps({"clean": "a"}) + "\n")
    with pytest.raises(ValueError, match="row 1: field 'noisy' is missing"):
        list(task.items(place))


@given(
    st.lists(
        st.tuples(st.floats(0.1, 1e4), st.integers(1, 999), st.floats(0.1, 1e4), st.integers(1, 999)),
        min_size=1,
        max_size=5,
    )
)
def test_the_gap_is_of_sums(costs: list[tuple[float, int, float, int]]) -> None:
    """Nats over bytes, all texts together, and not a mean of what each text costs."""
    task = PairedTexts()
    item = Item("0", PAIRS[0])
    grades = [task.grade(item, (Coded(clean, size), Coded(noisy, other))) for clean, size, noisy, other in costs]

    def value(name: str) -> float:
        found = [grade.metrics[name] for grade in grades]
        pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in found]
        return task.metrics[name].of([sum(column) for column in zip(*pairs, strict=True)])

    clean, size, noisy, other = np.asarray(costs).sum(axis=0)
    assert value("bits_per_byte_clean") == pytest.approx(clean / size / math.log(2))
    assert value("bits_per_byte_noisy") == pytest.approx(noisy / other / math.log(2))
    expected = noisy / other / math.log(2) - clean / size / math.log(2)
    assert value("bits_per_byte_gap") == pytest.approx(expected, abs=1e-9)
    assert value("likelihood_gap") == pytest.approx((noisy - clean) / math.log(2) / len(costs), abs=1e-9)
    likelier = np.mean([1.0 if a / b < c / d else 0.5 if a / b == c / d else 0.0 for a, b, c, d in costs])
    assert value("clean_likelier") == pytest.approx(likelier)
    assert math.isnan(task.metrics["bits_per_byte_gap"].of([0, 0, 0, 0]))
