"""Pictures of speeds: what was measured, under the right names, legible, and nothing that cannot be compared."""

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.views.figures import number
from bltkit.views.line_plots import LinePlot, PlotLine, draw_lines
from bltkit.views.speed import batch_plot, context_plot, read_rows, write_speeds


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


def points(plot: LinePlot) -> dict[str, tuple[tuple[float, float], ...]]:
    return {line.name: line.points for line in plot.lines}


def test_speed_against_context() -> None:
    plot = context_plot(ROWS)
    assert points(plot) == {
        "ar": ((128, 110.0), (1024, 90.0)),  # of two rows that measured the same the later one
        "speculative, k = 8, bf16": ((128, 200.0), (1024, 150.0)),
        "transformers 5": ((1024, 1.6),),
        "llama, bfloat16": ((128, 290.0),),
    }
    assert [line.dashed for line in plot.lines] == [False, False, True, True]
    assert len({line.colour for line in plot.lines}) == 4
    assert plot.about == "shape 69m · CPU · 1 thread · batch 1"


def test_speed_against_batch() -> None:
    plot = batch_plot(ROWS)
    assert points(plot) == {"ar": ((1, 90.0), (4, 400.0))}
    assert plot.lines[0].note == "400, 4.4 times batch 1"
    assert "1,024 bytes of context" in plot.about
    assert points(batch_plot(ROWS[:1])) == {"ar": ((1, 100.0),)}


def test_several_shapes_are_told_apart() -> None:
    plot = context_plot([*ROWS[:1], measured(128, 500.0, preset="tiny", temperature=0.8)])
    assert points(plot).keys() == {"69m: ar", "tiny: ar, temperature 0.8"}
    assert "shape" not in plot.about


@pytest.mark.parametrize("other", [{"threads": 2}, {"machine": {"cpu": "CPU", "gpu": "GPU"}}])
def test_rows_that_cannot_be_compared(other: dict[str, Any]) -> None:
    for draw in (context_plot, batch_plot):
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
@settings(max_examples=8, deadline=None)
def test_everything_stands_inside_and_no_name_on_another(lines: list[dict[float, float]]) -> None:
    pytest.importorskip("matplotlib")
    drawn = tuple(PlotLine(f"line {at}", tuple(sorted(line.items())), "#000000") for at, line in enumerate(lines))
    figure = draw_lines(LinePlot("Title", "about", "x", "y", drawn))
    (axes,) = figure.axes
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    assert all(left < x < right and low < y < high for line in lines for x, y in line.items())
    names = [text for text in axes.texts if text.get_text().startswith("line ")]
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
    assert len(boxes) == len(lines) and figure.bbox.contains(boxes[0].x0, boxes[0].y0)
    assert all(above.y0 > below.y1 for below, above in pairwise(boxes))
    assert all(figure.bbox.contains(box.x1, box.y1) for box in boxes)


def test_equal_ratios_are_equal_distances() -> None:
    pytest.importorskip("matplotlib")
    points = ((1, 10), (10, 100), (100, 1000))
    (axes,) = draw_lines(LinePlot("Title", "about", "x", "y", (PlotLine("line", points, "#000000"),))).axes
    one, two, three = axes.transData.transform(points).tolist()
    assert two[0] - one[0] == pytest.approx(three[0] - two[0]) and two[1] - one[1] == pytest.approx(three[1] - two[1])
    assert tuple(map(tuple, axes.lines[0].get_xydata().tolist())) == points
    labels = [axes.yaxis.get_major_formatter()(tick, 0) for tick in axes.get_yticks()]
    assert {"10", "100", "1,000"} <= set(labels)


def test_lines_that_are_none() -> None:
    for points in ((), ((1.0, 0.0),), ((2.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (1.0, 2.0))):
        with pytest.raises(ValueError, match="line 'line'"):
            PlotLine("line", points, "#000000")
    with pytest.raises(ValueError, match="no lines"):
        draw_lines(LinePlot("Title", "about", "x", "y", ()))


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
    assert points(context_plot(read_rows(kept)[:1]))["ar"][0][0] == 512
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
    with pytest.raises(ValueError, match=r"must end in \.png or \.svg"):
        write_speeds(ROWS, tmp_path / "speed.pdf")
