"""Pictures of speeds: what was measured, under the right names, legible, and nothing that cannot be compared."""

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.views.chart import Chart, Series, draw_chart, number
from bltkit.views.scene import Curve, Dot, Label
from bltkit.views.speed import batch_chart, context_chart, read_rows, write_speeds


def measured(context: int, ours: float, batch: int = 1, **others: Any) -> dict[str, Any]:
    row = {"what": "decode", "preset": "69m", "context": context, "batch": batch, "threads": 1, "ours": ours}
    return row | {"machine": {"cpu": "CPU"}, "peer": None, "peer_name": None} | others


ROWS = [
    measured(128, 100.0),
    measured(1024, 90.0, peer=1.6, peer_name="transformers 5"),
    measured(128, 200.0, strategy="speculative", draft=8, form={"weights": "bf16"}),
    measured(1024, 150.0, strategy="speculative", draft=8, form={"weights": "bf16"}),
    measured(128, 110.0, strategy="ar", temperature=0.0, peer=290.0, peer_name="llama", peer_dtype="bfloat16"),
    measured(1024, 400.0, batch=4),
]


def points(chart: Chart) -> dict[str, tuple[tuple[float, float], ...]]:
    return {line.name: line.points for line in chart.series}


def test_speed_against_context() -> None:
    chart = context_chart(ROWS)
    assert points(chart) == {
        "ar": ((128, 110.0), (1024, 90.0)),  # of two rows that measured the same the later one
        "speculative, k = 8, bf16": ((128, 200.0), (1024, 150.0)),
        "transformers 5": ((1024, 1.6),),
        "llama, bfloat16": ((128, 290.0),),
    }
    assert [line.dashed for line in chart.series] == [False, False, True, True]
    assert len({line.colour for line in chart.series}) == 4
    assert chart.about == "shape 69m · CPU · 1 thread · batch 1"


def test_speed_against_batch() -> None:
    chart = batch_chart(ROWS)
    assert points(chart) == {"ar": ((1, 90.0), (4, 400.0))}
    assert chart.series[0].note == "400, 4.4 times batch 1"
    assert "1,024 bytes of context" in chart.about
    assert points(batch_chart(ROWS[:1])) == {"ar": ((1, 100.0),)}


def test_several_shapes_are_told_apart() -> None:
    chart = context_chart([*ROWS[:1], measured(128, 500.0, preset="tiny", temperature=0.8)])
    assert points(chart).keys() == {"69m: ar", "tiny: ar, temperature 0.8"}
    assert "shape" not in chart.about


@pytest.mark.parametrize("other", [{"threads": 2}, {"machine": {"cpu": "CPU", "gpu": "GPU"}}])
def test_rows_that_cannot_be_compared(other: dict[str, Any]) -> None:
    for draw in (context_chart, batch_chart):
        with pytest.raises(ValueError, match="draw them apart"):
            draw([ROWS[0], ROWS[1] | other])
        with pytest.raises(ValueError, match="no rows"):
            draw([])


@given(
    st.lists(
        st.dictionaries(st.floats(0.5, 1e5), st.floats(0.01, 1e5), min_size=1, max_size=5),
        min_size=1,
        max_size=12,
    )
)
def test_everything_stands_inside_and_no_name_on_another(lines: list[dict[float, float]]) -> None:
    series = [Series(f"line {at}", tuple(sorted(line.items())), "#000000") for at, line in enumerate(lines)]
    scene = draw_chart(Chart("Title", "about", "x", "y", tuple(series)))
    dots = [shape for shape in scene.shapes if isinstance(shape, Dot)]
    assert len(dots) == sum(map(len, lines))
    assert all(0 < dot.x < scene.width and 0 < dot.y < scene.height for dot in dots)
    names = sorted(shape.y for shape in scene.shapes if isinstance(shape, Label) and shape.text.startswith("line "))
    assert len(names) == len(lines)
    assert names[0] > 100 and names[-1] < scene.height - 40
    assert all(after - before > 16 for before, after in pairwise(names))


def test_equal_ratios_are_equal_distances() -> None:
    line = Series("line", ((1, 10), (10, 100), (100, 1000)), "#000000")
    scene = draw_chart(Chart("Title", "about", "x", "y", (line,)))
    one, two, three = [shape for shape in scene.shapes if isinstance(shape, Dot)]
    assert two.x - one.x == pytest.approx(three.x - two.x) and two.x > one.x
    assert two.y - one.y == pytest.approx(three.y - two.y) and two.y < one.y
    curve = next(shape for shape in scene.shapes if isinstance(shape, Curve) and shape.stroke == "#000000")
    assert curve.points == tuple((dot.x, dot.y) for dot in (one, two, three))
    ticks = {shape.text: shape.y for shape in scene.shapes if isinstance(shape, Label) and shape.anchor == "end"}
    assert ticks["100"] - 4 == pytest.approx(two.y)


def test_lines_that_are_none() -> None:
    for points in ((), ((1.0, 0.0),), ((2.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (1.0, 2.0))):
        with pytest.raises(ValueError, match="series 'line'"):
            Series("line", points, "#000000")
    with pytest.raises(ValueError, match="no lines"):
        draw_chart(Chart("Title", "about", "x", "y", ()))


def test_numbers() -> None:
    assert [number(value) for value in (0.1834, 3.456, 78.51, 293.3, 16384)] == [
        "0.18",
        "3.46",
        "78.5",
        "293",
        "16,384",
    ]


def test_rows_are_read_from_files_of_measurements(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [ROWS[0], {"rows": ROWS[1:3]}, {"what": "prefill"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert read_rows(path) == ROWS[:3]
    kept = Path(__file__).parents[1] / "docs" / "measurements.jsonl"
    assert points(context_chart(read_rows(kept)[:1]))["ar"][0][0] == 512
    path.write_text('{"what": "decode"}\n[]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: not a JSON object"):
        read_rows(path)


def test_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = write_speeds(ROWS, tmp_path / "speed.png")
    assert found == (tmp_path / "speed.png", tmp_path / "speed-batch.png")
    for path in found:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert min(struct.unpack(">II", data[16:24])) > 500
    assert write_speeds(ROWS[:1], tmp_path / "one.png") == (tmp_path / "one.png",)
    only_batches = [ROWS[1], ROWS[5]]
    assert write_speeds(only_batches, tmp_path / "b.png") == (tmp_path / "b-batch.png",)
    with pytest.raises(ValueError, match=r"must end in \.png"):
        write_speeds(ROWS, tmp_path / "speed.pdf")
