"""`blt study efficiency`: how it measures, what explains the time, and the command."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bltkit.bench import MachineRates, RepeatLimits, Timing
from bltkit.bench.timing import Side
from bltkit.files.json_lines import read_lines
from bltkit.model import blt_preset, entropy_preset
from bltkit.study.driver import run_study
from bltkit.study.efficiency import EfficiencyStudy, efficiency_timing
from bltkit.study.efficiency.efficiency_tables import fits_of, latest, sections
from bltkit.study.efficiency.efficiency_timing import MACHINE, measured_in_turn
from bltkit.study.efficiency.predicted_cost import ByteCost, systems_of
from tests.test_cli import Blt_, blt

__all__ = ["blt"]

CPU = torch.device("cpu")
RATES = MachineRates(copy_gb_per_second=20.0, product_gb_per_second={"fp32": 10.0}, matmul_gflops=50.0)
SPEEDS = {"patch 4": 1000.0, "patch 6": 1250.0, "patch 8": 1500.0, "token 512 at 4.4": 2000.0}
PLAN = EfficiencyStudy.smoke().replace(repeats=3, phases=("prefill", "decode", "train"))
STAMP = {"threads": 1, "commit": None, "machine": {"cpu": "a cpu", "torch": "2"}, "command": "blt"}
Rows = list[dict[str, Any]]


# --- measuring, by a clock that is told what to say


class Clock:
    """Stands in for the clock: tells the speeds it was given, a little less in every round; counts its groups."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> None:
        self.fails_at, self.groups = fails_at, list[list[str]]()
        monkeypatch.setattr(efficiency_timing, "measured_in_turn", self.measure)
        monkeypatch.setattr(efficiency_timing, "machine_rates", lambda device: RATES)

    def measure(self, sides: Sequence[Side], limits: RepeatLimits, device: torch.device, progress: Any) -> list[Timing]:
        if len(self.groups) == self.fails_at:
            raise KeyboardInterrupt
        self.groups.append([side.name for side in sides])
        sides[-1].run()
        timings = []
        for side in sides:
            took = side.bytes_per_run / SPEEDS.get(side.name, 1.0)
            timings.append(Timing(side.bytes_per_run, tuple(took * (1 + 0.1 * at) for at in range(limits.repeats))))
        return timings


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    with pytest.MonkeyPatch.context() as monkeypatch:
        Clock(monkeypatch)
        return run_study(PLAN, tmp_path_factory.mktemp("study"), STAMP).rows()


def test_rows(rows: Rows) -> None:
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
    committed = read_lines(Path(__file__).parents[1] / "docs" / "efficiency.jsonl")
    assert set(rows[0]) == set(committed[0]) and set(rows[0]["conditions"]) == set(committed[0]["conditions"])


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        run_study(PLAN, tmp_path, STAMP)
    rest = Clock(monkeypatch)
    assert len(run_study(PLAN, tmp_path, STAMP).rows()) == 12 and rest.groups == [[*SPEEDS, MACHINE]]
    more = Clock(monkeypatch)
    run_study(PLAN.replace(contexts=(48, 64), phases=("prefill",)), tmp_path, STAMP)
    assert len(more.groups) == 1
    # A system more: the group is measured again as a whole, since rounds belong together.
    run_study(PLAN.replace(phases=("prefill",), patch_bytes=(4.0, 5.0)), tmp_path, STAMP)
    assert more.groups[1:] == [["patch 4", "patch 5", "token 512 at 4.4", MACHINE]]
    with pytest.raises(ValueError, match="has rows with threads = 1, now it is 2; choose another --out"):
        run_study(PLAN.replace(threads=2), tmp_path, STAMP | {"threads": 2})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_bytes": (30.0,)}, "patch_bytes = 30 must lie between 1 and num_bytes = 24"),
        ({"patch_bytes": (0.5,)}, "patch_bytes = 0.5 must lie"),
        ({"contexts": (4,)}, "bytes_per_token = 4.4"),
        ({"contexts": (6,)}, "contexts: 6 bytes hold no patch of 8"),
        ({"shapes": ("tiyn",)}, "no BLT preset 'tiyn'.*tiny"),
        ({"entropy": "tiyn"}, "no entropy model preset 'tiyn'.*tiny"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_study(PLAN.replace(**fields), tmp_path / "out", STAMP)
    assert not (tmp_path / "out").exists()


def test_every_side_has_its_turn_in_every_round() -> None:
    log: list[str] = []

    def side(name: str) -> Side:
        def say(what: str) -> Callable[[], None]:
            return lambda: log.append(what)

        return Side(name, 7.0, say(name), say(f"before {name}"))

    timings = measured_in_turn([side("a"), side("b"), side("c")], RepeatLimits(repeats=4, seconds=0.0), CPU)
    runs = [name for name in log if not name.startswith("before")]
    assert runs == [*"abc", *"abc", *"bca", *"cab", *"abc"]
    assert log[::2] == [f"before {name}" for name in runs]
    assert [(timing.bytes_per_run, len(timing.seconds)) for timing in timings] == [(7.0, 4)] * 3


def test_systems() -> None:
    systems = systems_of(blt_preset("tiny"), (4, 4.5), 512, 4.4, entropy_preset("tiny"), "tiny")
    assert [system.name for system in systems] == [
        "patch 4",
        "patch 4.5",
        "patch 4 + entropy tiny",
        "patch 4.5 + entropy tiny",
        "token 512 at 4.4",
    ]
    assert [system.kind for system in systems] == ["blt"] * 4 + ["token"]


# --- what explains it


def retimed(times: Callable[[dict[str, Any]], float], rows: Rows) -> pd.DataFrame:
    """The rows as another clock would have them."""
    return pd.DataFrame(
        row | {"seconds_per_byte": times(row), "seconds": [times(row) * row["bytes_per_run"]] * 3} for row in rows
    )


def fits(frame: pd.DataFrame, predictor: str = "operations") -> list[Any]:
    table = fits_of(frame)
    return list(table[table.predictor == predictor].itertuples())


def test_time_in_proportion_to_operations_is_explained(rows: Rows) -> None:
    proportional = fits(retimed(lambda row: 2e-9 * row["flops_per_byte"], rows))
    assert [fit.phase for fit in proportional] == ["prefill", "decode", "train", "all"]
    for fit in proportional:
        assert (fit.slope, fit.r2, fit.r2_proportional) == pytest.approx((1, 1, 1))
        assert fit.residuals == pytest.approx([1.0] * fit.points)
        assert fit.interval is None  # all rounds are the same: no spread is no certainty
    steep = fits(retimed(lambda row: row["flops_per_byte"] ** 2, rows))
    assert [(fit.slope, fit.r2) for fit in steep] == [pytest.approx((2, 1))] * 4
    assert all(fit.r2_proportional < 0.8 for fit in steep)


def test_time_that_follows_the_prediction_is_explained_by_it_alone(rows: Rows) -> None:
    frame = retimed(lambda row: 3 * row["predicted"]["seconds_per_byte"], rows)
    assert [fit.r2_proportional for fit in fits(frame, "predicted")] == pytest.approx([1.0] * 4)
    together = fits(frame)[-1]
    assert together.phase == "all" and together.r2 < 0.9
    assert math.exp(sum(map(math.log, together.residuals))) == pytest.approx(1)


def test_a_constant_time_is_explained_by_nothing(rows: Rows) -> None:
    assert fits_of(retimed(lambda row: 1e-3, rows)).empty


def test_of_two_rows_the_later_one_counts(rows: Rows) -> None:
    again = latest(pd.DataFrame([*rows, rows[0] | {"seconds_per_byte": 7.0}]))
    assert again.seconds_per_byte.iloc[-1] == 7.0 and len(again) == len(rows)


COMMITTED = {  # slope, R², its interval and R² of slope 1, of the implementation before pandas
    ("operations", "prefill"): (1.040552962912, 0.9470699788875, 0.9167842595672, 0.963086088296, 0.9456315153071),
    ("operations", "decode"): (0.8701999921634, 0.8426691587866, 0.7996944885442, 0.8629637939596, 0.8239205785142),
    ("operations", "train"): (0.9204570301161, 0.9697548240947, 0.907005936602, 0.9766788047881, 0.9625128241883),
    ("operations", "all"): (0.3629455905285, 0.03540322672394, 0.03154218389882, 0.0399614635623, -0.07366866601635),
    ("predicted", "prefill"): (0.9855424642508, 0.9803883965411, 0.9491442681269, 0.9826383439493, 0.9801774190958),
    ("predicted", "decode"): (0.8882240193002, 0.842516838029, 0.8003507479171, 0.8626438330264, 0.8291745429659),
    ("predicted", "train"): (0.9632773150284, 0.9783561086868, 0.8960901801712, 0.9841854332996, 0.9769342280194),
    ("predicted", "all"): (1.166323493003, 0.9796451172321, 0.9692120066243, 0.9812513207236, 0.9597228883514),
}


def test_fits_of_the_committed_rows() -> None:
    """Figures of docs/efficiency.md."""
    frame = pd.DataFrame(read_lines(Path(__file__).parents[1] / "docs" / "efficiency.jsonl"))
    table = fits_of(frame).set_index(["predictor", "phase"])
    assert list(table.index) == list(COMMITTED)
    for key, (slope, r2, low, high, proportional) in COMMITTED.items():
        fit = table.loc[key]
        assert (fit.slope, fit.r2, *fit.interval, fit.r2_proportional) == pytest.approx(
            (slope, r2, low, high, proportional), rel=1e-12
        )


def test_paper(rows: Rows) -> None:
    tables = [
        table.cells.to_numpy().tolist() for section in sections(pd.DataFrame(rows)) for table in section.report_tables()
    ]
    cells = [cell for table in tables for row in table for cell in row]
    assert cells.count("patch 8") == 3 + 1 + 3  # phases, systems, residuals
    explained = [[str(cell) for cell in row[:3]] for row in tables[-2]]
    assert ["operations", "all", "12"] in explained and ["the predicted time", "train", "4"] in explained


# --- the command


@pytest.mark.slow
def test_the_command(tmp_path: Path, blt: Blt_) -> None:
    out = tmp_path / "out"
    words = "study efficiency --preset tiny --vocab-size 512 --context 32 --num-bytes 24 --repeats 2 --entropy tiny"
    reply = blt(*words.split(), "--out", out, "--json").json()
    assert len(reply["rows"]) == 3 * 7
    assert all(row["bytes_per_second"] > 0 and len(row["seconds"]) == 2 for row in reply["rows"])
    assert [fit["phase"] for fit in reply["fits"]] == 2 * ["prefill", "decode", "train", "all"]
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
