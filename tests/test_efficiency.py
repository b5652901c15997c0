"""`blt study efficiency`: how it measures, what explains the time, and the command."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bltkit.bench import MachineRates, RepeatLimits, Timing
from bltkit.bench.timing import Side
from bltkit.files.json_lines import read_lines
from bltkit.model import blt_preset, entropy_preset
from bltkit.model.config import BltConfig
from bltkit.study.efficiency import (
    ByteCost,
    EfficiencyPlan,
    EfficiencyTools,
    fits_of,
    latest,
    picture,
    run,
    systems_of,
    table,
)
from bltkit.study.efficiency.fit import line
from bltkit.study.efficiency.measure import MACHINE, measured_in_turn
from bltkit.study.row_file import ROWS
from bltkit.study.scatter import draw_scatter
from tests.test_cli import Blt_, blt

__all__ = ["blt"]

CPU = torch.device("cpu")
RATES = MachineRates(copy_gb_per_second=20.0, product_gb_per_second={"fp32": 10.0}, matmul_gflops=50.0)
SPEEDS = {"patch 4": 1000.0, "patch 6": 1250.0, "patch 8": 1500.0, "token 512 at 4.4": 2000.0}
PLAN = EfficiencyPlan(presets=("tiny",), vocab_size=512, contexts=(48,), num_bytes=24, repeats=3)
STAMP = {"threads": 1, "commit": None, "machine": {"cpu": "a cpu", "torch": "2"}, "command": "blt"}


# --- measuring, by a clock that is told what to say


class Clock:
    """Says the speeds it was given, a little less in every round; counts its groups."""

    def __init__(self, speeds: dict[str, float], fails_at: int | None = None) -> None:
        self.speeds, self.fails_at = speeds, fails_at
        self.groups: list[list[str]] = []

    def measure(self, sides: Sequence[Side], limits: RepeatLimits, device: torch.device, progress: Any) -> list[Timing]:
        if len(self.groups) == self.fails_at:
            raise KeyboardInterrupt
        self.groups.append([side.name for side in sides])
        sides[-1].run()
        found = []
        for side in sides:
            took = side.bytes_per_run / self.speeds.get(side.name, 1.0)
            found.append(Timing(side.bytes_per_run, tuple(took * (1 + 0.1 * at) for at in range(limits.repeats))))
        return found

    @property
    def tools(self) -> EfficiencyTools:
        return EfficiencyTools(self.measure, lambda device: RATES)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(PLAN, tmp_path_factory.mktemp("study"), STAMP, tools=Clock(SPEEDS).tools)


def test_rows(rows: list[dict[str, Any]]) -> None:
    assert [(row["phase"], row["system"]) for row in rows] == [
        (phase, system) for phase in ("prefill", "decode", "train") for system in SPEEDS
    ]
    for row in rows:
        assert row["bytes_per_second"] == pytest.approx(SPEEDS[row["system"]] / 1.1)  # the median round
        cost = ByteCost(row["flops_per_byte"], row["read_bytes_per_byte"], row["update_bytes_per_byte"])
        assert row["predicted"]["seconds_per_byte"] == pytest.approx(cost.predicted(RATES))
        assert row["measured_to_predicted"] * cost.predicted(RATES) * row["bytes_per_second"] == pytest.approx(1)
        assert row["bound"] == ("reads" if row["phase"] == "decode" else "operations")
    flops = {(row["phase"], row["system"]): row["flops_per_byte"] for row in rows}
    for phase in ("prefill", "decode", "train"):
        assert flops[phase, "patch 4"] > flops[phase, "patch 6"] > flops[phase, "patch 8"]


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    broken = Clock(SPEEDS, fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(PLAN, tmp_path, STAMP, tools=broken.tools)
    assert len(read_lines(tmp_path / ROWS)) == 8
    seen: list[tuple[int, int]] = []
    rest = Clock(SPEEDS)
    found = run(PLAN, tmp_path, STAMP, tools=rest.tools, progress=lambda *at: seen.append(at))
    assert rest.groups == [[*SPEEDS, MACHINE]] and len(found) == 12 and seen[0] == (0, 15)
    more = Clock(SPEEDS)
    run(PLAN.replace(contexts=(48, 64), phases=("prefill",)), tmp_path, STAMP, tools=more.tools)
    assert len(more.groups) == 1
    with pytest.raises(ValueError, match="has rows with threads = 1, now it is 2; choose another --out"):
        run(PLAN, tmp_path, STAMP | {"threads": 2}, tools=more.tools)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_bytes": (30.0,)}, "patch_bytes = 30 must lie between 1 and num_bytes = 24"),
        ({"patch_bytes": (0.5,)}, "patch_bytes = 0.5 must lie"),
        ({"contexts": (4,)}, "bytes_per_token = 4.4"),
        ({"contexts": (6,)}, "contexts: 6 bytes hold no patch of 8"),
        ({"presets": ("tiyn",)}, "no BLT preset 'tiyn'.*tiny"),
        ({"entropy": "tiyn"}, "no entropy model preset 'tiyn'.*tiny"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(PLAN.replace(**fields), tmp_path / "out", STAMP)
    assert not (tmp_path / "out").exists()


def test_every_side_has_its_turn_in_every_round() -> None:
    log: list[str] = []

    def side(name: str) -> Side:
        def say(what: str) -> Callable[[], None]:
            return lambda: log.append(what)

        return Side(name, 7.0, say(name), say(f"before {name}"))

    found = measured_in_turn([side("a"), side("b"), side("c")], RepeatLimits(repeats=4, seconds=0.0), CPU)
    runs = [name for name in log if not name.startswith("before")]
    assert runs == [*"abc", *"abc", *"bca", *"cab", *"abc"]
    assert log[::2] == [f"before {name}" for name in runs]
    assert [(one.bytes_per_run, len(one.seconds)) for one in found] == [(7.0, 4)] * 3


def test_systems() -> None:
    config: BltConfig = blt_preset("tiny")
    found = systems_of(config, (4, 4.5), 512, 4.4, entropy_preset("tiny"), "tiny")
    assert [one.name for one in found] == [
        "patch 4",
        "patch 4.5",
        "patch 4 + entropy tiny",
        "patch 4.5 + entropy tiny",
        "token 512 at 4.4",
    ]
    assert [one.kind for one in found] == ["blt"] * 4 + ["token"]


# --- what explains it


@given(
    points=st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=12, unique_by=lambda at: at[0])
)
def test_a_line_is_that_of_numpy(points: list[tuple[float, float]]) -> None:
    x, y = (list(values) for values in zip(*points, strict=True))
    found = line(x, y)
    if np.var(x) < 1e-4 or np.var(y) < 1e-4:
        return
    assert found is not None
    slope, constant, r2, proportional = found
    assert (slope, constant) == pytest.approx(tuple(np.polyfit(x, y, 1)), abs=1e-6, rel=1e-6)
    assert r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-6)
    assert proportional <= r2 + 1e-9


def made(times: Callable[[dict[str, Any]], float], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as another clock would have them."""
    return [row | {"seconds_per_byte": times(row), "seconds": [times(row) * row["bytes_per_run"]] * 3} for row in rows]


def test_time_in_proportion_to_operations_is_explained(rows: list[dict[str, Any]]) -> None:
    proportional = fits_of(made(lambda row: 2e-9 * row["flops_per_byte"], rows))
    assert [fit.phase for fit in proportional] == ["prefill", "decode", "train", "all"]
    for fit in proportional:
        assert (fit.slope, fit.r2, fit.r2_proportional) == pytest.approx((1, 1, 1))
        assert fit.residuals == pytest.approx([1.0] * fit.points)
        assert fit.interval is None  # all rounds are the same: no spread is no certainty
    steep = fits_of(made(lambda row: row["flops_per_byte"] ** 2, rows))
    assert [(fit.slope, fit.r2) for fit in steep] == [pytest.approx((2, 1))] * 4
    assert all(fit.r2_proportional < 0.8 for fit in steep)


def test_time_that_follows_the_prediction_is_explained_by_it_alone(rows: list[dict[str, Any]]) -> None:
    own = made(lambda row: 3 * row["predicted"]["seconds_per_byte"], rows)
    assert [fit.r2_proportional for fit in fits_of(own, "predicted")] == pytest.approx([1.0] * 4)
    together = fits_of(own)[-1]
    assert together.phase == "all" and together.r2 < 0.9
    assert math.exp(sum(map(math.log, together.residuals))) == pytest.approx(1)


def test_a_constant_time_is_explained_by_nothing(rows: list[dict[str, Any]]) -> None:
    assert fits_of(made(lambda row: 1e-3, rows)) == []


def test_of_two_rows_the_later_one_counts(rows: list[dict[str, Any]]) -> None:
    again = rows[0] | {"seconds_per_byte": 7.0}
    assert latest([*rows, again])[-1]["seconds_per_byte"] == 7.0 and len(latest([*rows, again])) == len(rows)
    with pytest.raises(ValueError, match="no rows of `blt study efficiency`"):
        latest([])


def test_paper(rows: list[dict[str, Any]]) -> None:
    page = table(rows)
    assert page.count("| patch 8 |") == 3 + 1 + 3  # phases, systems, residuals
    assert "| operations | all | 12 |" in page and "| the predicted time | train | 4 |" in page
    drawn = draw_scatter(picture(rows)).to_svg("efficiency")
    assert ">token<" in drawn and "operations alone" in drawn
    another = [row | {"preset": "other", "system": f"{row['system']} + entropy x", "entropy_params": 7} for row in rows]
    assert len(picture([*rows, *another]).colours) == len({name for name, _ in picture([*rows, *another]).colours}) == 7


# --- the command


@pytest.mark.slow
def test_the_command(tmp_path: Path, blt: Blt_) -> None:
    out = tmp_path / "out"
    words = "study efficiency --preset tiny --vocab-size 512 --context 32 --num-bytes 24 --repeats 2 --entropy tiny"
    found = blt(*words.split(), "--out", out, "--json").json()
    assert len(found["rows"]) == 3 * 7
    assert all(row["bytes_per_second"] > 0 and len(row["seconds"]) == 2 for row in found["rows"])
    assert [fit["phase"] for fit in found["fits"]] == 2 * ["prefill", "decode", "train", "all"]
    assert (out / "table.md").exists()
    ran = blt("study", "efficiency", "--report", "--out", out)
    assert ran.status == 0 and ran.out.decode() == (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--report --threads 2", "--threads is for measuring"),
        ("--report", "there is no rows.jsonl in it"),
        ("--preset tiyn", "no BLT preset 'tiyn'"),
        ("--phase trian", "phases"),
    ],
)
def test_mistakes_of_the_command(words: str, message: str, tmp_path: Path, blt: Blt_) -> None:
    ran = blt("study", "efficiency", "--out", tmp_path, *words.split())
    assert ran.status == 2 and message in ran.err and len(ran.err.splitlines()) == 1
