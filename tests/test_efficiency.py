"""`blt study efficiency`: what systems cost, that what is timed costs that, how time is explained, and the command."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bltkit.bench import Limits, MachineRates, Timing
from bltkit.bench.timing import Side
from bltkit.eval.json_lines import read_lines
from bltkit.model import blt_preset, entropy_preset
from bltkit.model.config import BltConfig, StackConfig, TokenShape
from bltkit.model.flops import mean_visible_keys
from bltkit.study.efficiency import (
    ROWS,
    Cost,
    Plan,
    System,
    Tools,
    equal_token_shape,
    fits_of,
    latest,
    picture,
    run,
    systems_of,
    table,
)
from bltkit.study.efficiency.cost import decoding_cost, reading_cost, training_cost
from bltkit.study.efficiency.fit import line
from bltkit.study.efficiency.measure import MACHINE, measured_in_turn, runners_of
from bltkit.study.efficiency.sides import Runner, _TokenWalk, _Walk
from bltkit.study.flops import ledger, token_ledger
from bltkit.study.scatter import draw_scatter
from tests.test_cli import Blt_, blt

__all__ = ["blt"]

CPU = torch.device("cpu")
RATES = MachineRates(copy_gb_per_second=20.0, product_gb_per_second={"fp32": 10.0}, matmul_gflops=50.0)
TOKENS = TokenShape(width=64, layers=3, heads=2, ffn_width=96, vocab_size=500)
SPEEDS = {"patch 4": 1000.0, "patch 6": 1250.0, "patch 8": 1500.0, "token 512 at 4.4": 2000.0}
PLAN = Plan(presets=("tiny",), vocab_size=512, contexts=(48,), num_bytes=24, repeats=3)
STAMP = {"threads": 1, "commit": None, "machine": {"cpu": "a cpu", "torch": "2"}, "command": "blt"}


def runner(system: System) -> Runner:
    return runners_of([system], CPU)[0]


# --- what it costs


@settings(max_examples=30)
@given(preset=st.sampled_from(["tiny", "20m", "69m", "400m", "1b"]), vocab=st.integers(300, 4096))
def test_the_token_model_has_as_many_parameters(preset: str, vocab: int) -> None:
    shape = equal_token_shape(blt_preset(preset), vocab)
    target = ledger(blt_preset(preset), None).params_without_embeddings
    assert token_ledger(shape).params_without_embeddings == pytest.approx(target, rel=5e-3)
    assert shape.width == blt_preset(preset).latent.width


def test_a_vocabulary_may_leave_no_room() -> None:
    with pytest.raises(ValueError, match=r"vocab_size = 32000.*take a smaller vocabulary"):
        equal_token_shape(blt_preset("20m"), 32_000)


@given(context=st.integers(1, 60), steps=st.integers(1, 30), unit=st.sampled_from([1.0, 2.5, 4.4]))
def test_decoding_tokens_costs_what_a_loop_counts(context: int, steps: int, unit: float) -> None:
    found = decoding_cost(System("tokens", TOKENS, unit), context, steps, steps)
    flops = reads = 0.0
    for at in range(context, context + steps):
        keys = at + 1
        layer = 2 * (4 * 64**2 + 3 * 64 * 96) + 4 * 64 * keys
        flops += 3 * layer + 2 * 64 * 500
        weights = 3 * (4 * 64**2 + 3 * 64 * 96 + 2 * 64) + 64 + 64 * 500 + 64
        reads += 4 * (weights + 3 * 2 * 64 * keys)
    assert found.flops == pytest.approx(flops / (steps * unit))
    assert found.read_bytes == pytest.approx(reads / (steps * unit))


def scores(stack: StackConfig, first: int, end: int) -> float:
    """Operations of attention's scores of positions [first, end), each against the keys that it sees."""
    return sum(4 * stack.layers * stack.width * min(at + 1, stack.window or at + 1) for at in range(first, end))


@pytest.mark.parametrize("unit", [4, 6, 8])
def test_decoding_bytes_costs_what_its_products_count(unit: int) -> None:
    """Products as torch counts them in the very run that is timed; scores by a loop, since torch counts none here."""
    config = blt_preset("tiny")
    context, num_bytes = 145, 48  # behind the window of 128
    side, cost = runner(System("patches", config, unit)).side("decode", context, num_bytes)
    assert side.prepare is not None
    side.prepare()
    with FlopCounterMode(display=False) as counter:
        side.run()
    attended = sum(scores(stack, context, context + num_bytes) for stack in (config.encoder, config.decoder))
    # The patches that close are the last ones of the row; the first of all is BOS's own.
    attended += scores(config.latent, 1 + (context - 1) // unit, 1 + (context - 1 + num_bytes) // unit)
    crossing = 4 * config.encoder.width * config.cross_attn_k * (config.num_encoder_cross + config.num_decoder_cross)
    expected = counter.get_total_flops() + attended + num_bytes * crossing
    assert cost.flops * num_bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("unit", [4.0, 4.5, 6.0])
def test_as_many_patches_close_as_are_charged(unit: float) -> None:
    system = System("patches", blt_preset("tiny"), unit)
    side, cost = runner(system).side("decode", 41, 36)
    walk: _Walk = side.run.__self__  # type: ignore[attr-defined]
    before = walk.session.latents[0].positions[0]
    assert side.prepare is not None
    for _ in range(2):  # every run begins at the same place
        side.prepare()
        side.run()
        closed = walk.now.latents[0].positions[0] - before
        assert walk.now.positions == (77,)
    assert cost == decoding_cost(system, 41, 36, closed)


def test_reading_and_training_are_charged_for_the_patches_there_are() -> None:
    system = System("patches", blt_preset("tiny"), 4.0)
    patches = 1 + math.ceil(47 / 4)
    assert runner(system).side("prefill", 48, 8)[1] == reading_cost(system, 48, patches)
    assert runner(system).side("train", 48, 8)[1] == training_cost(system, 48, patches)
    reading, training = reading_cost(system, 48, patches), training_cost(system, 48, patches)
    assert training.flops == pytest.approx(3 * reading.flops)
    assert reading.update_bytes == 0 < training.update_bytes


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_an_entropy_model_adds_its_own_cost_and_nothing_else(phase: Any) -> None:
    plain = System("plain", blt_preset("tiny"), 4.0)
    scored = replace(plain, name="scored", scorer=entropy_preset("tiny"))
    (side, cost), (other, more) = (runner(one).side(phase, 40, 24) for one in (plain, scored))
    own = scored.ledger(40).modules["entropy"]
    at_end = 4 * 3 * 128 * (52.5 - mean_visible_keys(40, 256))  # behind the context more keys are seen
    assert more.flops - cost.flops == pytest.approx(own.flops_exact + (at_end if phase == "decode" else 0))
    assert more.read_bytes > cost.read_bytes and more.update_bytes == cost.update_bytes
    for one in (side, other):
        if one.prepare is not None:
            one.prepare()
        one.run()


def test_tokens_are_chosen_as_without_a_cache() -> None:
    found = runner(System("tokens", TOKENS, 4.0))
    model = found._llama.double()
    ids = found._tokens(40)
    walk = _TokenWalk(model, ids, 5)
    walk.prepare()
    walk.run()
    whole = ids
    with torch.no_grad():
        for _ in range(6):
            whole = torch.cat((whole, model(whole)[:, -1:].argmax(-1)), 1)
    assert walk.token.tolist() == whole[:, -1:].tolist()
    assert walk.cache.lengths == (15,)


def test_training_learns_the_row() -> None:
    """What is timed is a training step: the loss falls."""
    found = runner(System("tokens", TOKENS, 4.0))
    side, _ = found.side("train", 64, 8)
    ids = found._tokens(64)

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(found._llama(ids)[0, :-1], ids[0, 1:]))

    before = loss()
    for _ in range(5):
        side.run()
    assert loss() < before - 0.05


def test_a_prediction() -> None:
    cost = Cost(flops=100e6, read_bytes=10e6, update_bytes=4e6)
    assert cost.seconds(RATES) == pytest.approx((2e-3, 1e-3, 0.2e-3))
    assert cost.predicted(RATES) == pytest.approx(2.2e-3)
    assert replace(cost, read_bytes=30e6).predicted(RATES) == pytest.approx(3.2e-3)


# --- measuring, by a clock that is told what to say


class Clock:
    """Says the speeds it was given, a little less in every round; counts its groups."""

    def __init__(self, speeds: dict[str, float], fails_at: int | None = None) -> None:
        self.speeds, self.fails_at = speeds, fails_at
        self.groups: list[list[str]] = []

    def measure(self, sides: Sequence[Side], limits: Limits, device: torch.device, progress: Any) -> list[Timing]:
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
    def tools(self) -> Tools:
        return Tools(self.measure, lambda device: RATES)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(PLAN, tmp_path_factory.mktemp("study"), STAMP, tools=Clock(SPEEDS).tools)


def test_rows(rows: list[dict[str, Any]]) -> None:
    assert [(row["phase"], row["system"]) for row in rows] == [
        (phase, system) for phase in ("prefill", "decode", "train") for system in SPEEDS
    ]
    for row in rows:
        assert row["bytes_per_second"] == pytest.approx(SPEEDS[row["system"]] / 1.1)  # the median round
        cost = Cost(row["flops_per_byte"], row["read_bytes_per_byte"], row["update_bytes_per_byte"])
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

    found = measured_in_turn([side("a"), side("b"), side("c")], Limits(repeats=4, seconds=0.0), CPU)
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
        assert fit.interval == pytest.approx((1, 1))
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
    assert latest([*rows, again])[0]["seconds_per_byte"] == 7.0 and len(latest([*rows, again])) == len(rows)
    with pytest.raises(ValueError, match="no rows of `blt study efficiency`"):
        latest([])


def test_paper(rows: list[dict[str, Any]]) -> None:
    page = table(rows)
    assert page.count("| patch 8 |") == 3 + 1 + 3  # phases, systems, residuals
    assert "| operations | all | 12 |" in page and "| the predicted time | train | 4 |" in page
    drawn = draw_scatter(picture(rows)).to_svg("efficiency")
    assert "token 512 at 4.4" in drawn and "operations alone" in drawn


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
