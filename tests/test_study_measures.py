"""What studies measure text with, and how they draw: each against the slow and obvious way to say it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.data import Document
from bltkit.files.json_lines import append_lines, read_lines
from bltkit.generate import Session
from bltkit.study.fast_decoding.passages import passages_of
from bltkit.study.fast_decoding.quality import agreement, is_utf8, may_be_python, nats_of, stays_python
from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.stats import Resampling
from bltkit.views.figures import COLOURS, MUTED
from bltkit.vocab import NEVER_EMITTED, encode
from tests import tiny

BYTES = st.lists(st.integers(0, 3), max_size=12).map(bytes)


@given(BYTES, BYTES)
def test_agreement(one: bytes, other: bytes) -> None:
    equal, prefix = agreement(one, other)
    assert equal == sum(one[at] == other[at] for at in range(min(len(one), len(other))))
    assert one[:prefix] == other[:prefix]
    assert prefix == min(len(one), len(other)) or one[prefix] != other[prefix]


@given(st.one_of(st.binary(max_size=6), st.text(max_size=4).map(str.encode)), st.integers(0, 6))
def test_a_character_cut_short_is_no_fault(data: bytes, cut: int) -> None:
    data = data[:cut]

    def decodes(text: bytes) -> bool:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return error.reason == "unexpected end of data" and error.end == len(text)
        return True

    assert is_utf8(data) == decodes(data)


@pytest.mark.parametrize(
    ("source", "good"),
    [
        (b"x = 1\n", True),
        (b"def f(a):\n", True),
        (b"x = [1,\n", True),
        (b"try:\n    x()\n", True),
        (b"'''a text\n", True),
        (b"    x = 1\n    return x\n\ndef f():\n", True),
        (b"            x = 1\n        y = 2\n    z = 3\n", True),
        (b"", True),
        (b"'\\d'\n", True),
        (b"x = = 1\n", False),
        (b"def f(:\n", False),
        (b")\n", False),
        (b"a b\n", False),
        (b"x = '\xff'\n", False),
        (b"x = 1\0\n", False),
        (b"def f():\n    x\n  y\n", False),
        (b"(" * 5000 + b"\n", False),
    ],
)
def test_what_may_be_python(source: bytes, good: bool) -> None:
    assert may_be_python(source) is good


def test_python_is_judged_where_something_was_finished() -> None:
    prompt = b"def f(x):\n    y = "
    assert stays_python(prompt, b"x\n    return y\n  half a li") is True
    assert stays_python(prompt, b"x x\n    return y\n") is False
    assert stays_python(prompt, b"no end of a line") is None
    assert stays_python(b"prose that is none\nat all", b"x\n") is None
    assert stays_python(b"y = ", b"1\n") is None


@settings(max_examples=12)
@given(tiny.cases(), st.integers(1, 8))
def test_nats_equal_those_of_a_pass_without_cache(case: tiny.Case, size: int) -> None:
    data = bytes(np.random.RandomState(case.seed).choice(list(b"ab \n\xff"), size))
    session = Session.start(case.model, case.scorer, case.rule).extend(case.ids)
    ids = [*case.ids, *encode(data, bos=False).tolist()]
    logits = case.run(ids)[0].clone()
    logits[:, list(NEVER_EMITTED)] = -math.inf
    found = logits.log_softmax(-1)
    expected = -sum(float(found[at - 1, ids[at]]) for at in range(len(case.ids), len(ids)))
    assert nats_of(session, data) == pytest.approx(expected, rel=1e-9)
    assert nats_of(session, b"") == 0 and session.positions == (len(case.ids),)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_intervals_are_those_of_resampled_units(units: list[tuple[int, int, int]]) -> None:
    above, below, other = (np.array(column, dtype=np.float64) for column in zip(*units, strict=True))
    resampling = Resampling(len(units), seed=3, resamples=200)
    found = resampling.quotient(above, below)
    ratio = resampling.ratio(above, other, other, other)
    random = np.random.default_rng(3)
    quotients, ratios = [], []
    for counts in random.multinomial(len(units), [1 / len(units)] * len(units), size=200):
        drawn = [unit for unit, count in zip(units, counts, strict=True) for _ in range(count)]
        if sum(unit[1] for unit in drawn):
            quotients.append(sum(unit[0] for unit in drawn) / sum(unit[1] for unit in drawn))
        ratios.append(sum(unit[0] for unit in drawn) / sum(unit[2] for unit in drawn))
    if not below.sum():
        assert found.value is found.interval is None
    else:
        assert found.value == pytest.approx(above.sum() / below.sum())
        spread = np.ptp(quotients) > 1e-12 and np.count_nonzero(below) > 1
        assert found.interval == (pytest.approx(np.quantile(quotients, [0.025, 0.975]).tolist()) if spread else None)
    spread = np.ptp(ratios) > 1e-12
    assert ratio.interval == (pytest.approx(np.quantile(ratios, [0.025, 0.975]).tolist()) if spread else None)
    saving = resampling.saving(above, other, other, other)
    assert ratio.value is not None and saving.value == pytest.approx(1 - ratio.value)
    if spread:
        assert saving.low is not None and saving.high is not None and saving.low <= saving.high
    else:
        assert saving.interval is None


@settings(max_examples=60)
@given(
    st.lists(st.text("aé\n ", max_size=120).map(str.encode), min_size=1, max_size=4),
    st.integers(4, 12),
    st.integers(1, 9),
    st.integers(0, 3),
    st.sampled_from(["prose", "code"]),
)
def test_passages_lie_apart_in_their_documents(
    texts: list[bytes], prompt_bytes: int, room: int, seed: int, name: str
) -> None:
    found = [Document(str(at), text) for at, text in enumerate(texts)]
    places = sum(max(0, len(text)) // (prompt_bytes + room) for text in texts)
    sizes: dict[str, Any] = {"prompt_bytes": prompt_bytes, "room": room, "rest_bytes": 7, "seed": seed}
    with pytest.raises(ValueError, match=f"has room for {places} prompts of {prompt_bytes} bytes"):
        passages_of(name, found, places + 1, **sizes)
    if not places:
        return
    passages = passages_of(name, found, places, **sizes)
    assert passages == passages_of(name, found, places, **sizes)
    assert passages.is_code == (name == "code")
    ends: dict[str, int] = {}
    for one in passages.passages:
        text = texts[int(one.document)]
        begin = text.find(one.prompt + one.rest, ends.get(one.document, 0))
        assert begin >= 0
        ends[one.document] = begin + len(one.prompt)
        assert prompt_bytes - 3 <= len(one.prompt) <= prompt_bytes and len(one.rest) <= 7
        assert is_utf8(one.prompt) and (one.prompt + one.rest).decode() and one.prompt.decode() is not None


def test_code_begins_where_it_is_python() -> None:
    code = b"".join(b"def f%d(x):\n    y = x + %d\n    return [y,\n        x]\n\n\n" % (at, at) for at in range(40))
    passages = passages_of("code", [Document("a.py", code)], 8, prompt_bytes=40, room=80, rest_bytes=60).passages
    assert all(may_be_python(one.prompt[: one.prompt.rfind(b"\n") + 1]) for one in passages)
    broken = b"a b c\n" * 100
    assert len(passages_of("code", [Document("a.py", broken)], 2, prompt_bytes=40, room=80, rest_bytes=9).passages) == 2


def test_lines_are_complete_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    append_lines(path, [{"a": 1}, {"b": "é\n"}])
    path.write_bytes(path.read_bytes() + b'{"c": ')
    assert read_lines(path) == [{"a": 1}, {"b": "é\n"}]
    append_lines(path, [{"d": 2}])
    assert read_lines(path) == [{"a": 1}, {"b": "é\n"}, {"d": 2}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_lines(path, [{"a": 3}, {"e": math.nan}])
    assert len(read_lines(path)) == 3
    path.write_bytes(b'{"a": 1}\n[]\n')
    with pytest.raises(ValueError, match="line 2: not a JSON object"):
        read_lines(path)


PLACES = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 8)), min_size=1, max_size=12)


@settings(max_examples=10, deadline=None)
@given(PLACES, st.sampled_from(["log", "linear", "percent"]))
def test_points_stand_inside_their_axes(places: list[tuple[float, float]], scale: Any) -> None:
    xs, ys = zip(*places, strict=True)
    series = PlotSeries("a", xs, ys, intervals=[(y / 2, y) for y in ys], names=["p"] * len(xs))
    panel = PlotPanel("t", [series, PlotSeries("fit", (0.001, 1e4), (ys[0], 9.0), 1, "", "--")], diagonal=True)
    figure = panels([[panel, panel], [panel]], "Title", about="About " * 40, x_scale=scale, notes=["note"])
    assert len(figure.axes) == 3 and figure.get_label().startswith("Title. About")
    for axes in figure.axes:
        corner, opposite = axes.get_position().get_points()
        assert (corner > 0).all() and (opposite < 1).all()
        for x, y in places:
            place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
            assert (place > -1e-9).all() and (place < 1 + 1e-9).all()
    names = [text.get_text() for text in figure.texts]
    assert names[0] == "Title" and names[-3:] == ["a", "fit", "note"]


def test_a_legend_names_colours_and_markers_and_panels_cannot_be_none() -> None:
    kinds = [PlotSeries(f"of {marker}", (1.0,), (1.0,), at, marker) for at, marker in enumerate("osD")]
    figure = panels([[PlotPanel("t", kinds)]], "T", markers={"one": "o", "other": "^"})
    legend = [(line.get_marker(), line.get_color()) for line in figure.artists]
    assert legend == [*(("s", colour) for colour in COLOURS[:3]), ("o", MUTED), ("^", MUTED)]
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "s", "D"]
    with pytest.raises(ValueError, match="no panels"):
        panels([], "T")


@settings(max_examples=10, deadline=None)
@given(st.floats(1.5, 3.0), st.floats(1.02, 1.6))
def test_a_narrow_logarithmic_axis_still_has_ticks(low: float, ratio: float) -> None:
    panel = PlotPanel("t", [PlotSeries("a", (1e6, 2e6), (low, low * ratio))])
    (axes,) = panels([[panel]], "T", x_scale="log", y_scale="log").axes
    bottom, top = axes.get_ylim()
    assert 2 <= sum(bottom <= tick <= top for tick in axes.get_yticks()) <= 12


def test_panels_that_share_a_scale_compare() -> None:
    """The same value stands at the same height in all of them, and at another where they do not share."""
    rows = [[PlotPanel("low", [PlotSeries("", (1, 2), (1, 2))]), PlotPanel("high", [PlotSeries("", (1, 2), (2, 9))])]]
    for shared in (True, False):
        low, high = (axes.get_ylim() for axes in panels(rows, "T", share_y=shared).axes)
        assert (low == high) is shared
