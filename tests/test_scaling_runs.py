"""The study `scaling`: plans, costs, matched FLOPs, resuming and sharing, with a trainer that only counts."""

import itertools
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from bltkit.config import parse
from bltkit.cost.formulas.operations import forward_flops, scorer_flops
from bltkit.files.json_lines import read_lines
from bltkit.study.driver import selected_units
from bltkit.study.report import to_html, to_markdown
from bltkit.study.scaling.entropy_thresholds import Prepared, prepare
from bltkit.study.scaling.family_configs import BltFamily, grown, parse_family
from bltkit.study.scaling.plan_cost import cost_of
from bltkit.study.scaling.scaling_analysis import points_of
from bltkit.study.scaling.scaling_batches import Seen
from bltkit.study.scaling.scaling_runs import TrunkRun, config_hash, nearest_step
from bltkit.study.scaling.scaling_study import ScalingStudy
from bltkit.study.store import ROWS
from bltkit.study.study import StudyRun
from bltkit.train import TrainConfig
from tests.scaling_plans import STAMP, Counting, plan, size
from tests.test_cli import Blt_, blt

__all__ = ["blt"]

pd = pytest.importorskip("pandas")


def measured(own: ScalingStudy, out: Path, counting: Counting | None = None, **options: Any) -> list[dict[str, Any]]:
    return (counting or Counting()).measure(own, out, **options)


def preset(name: str) -> ScalingStudy:
    study: ScalingStudy = parse(ScalingStudy, ScalingStudy.presets[name](), name)
    return study


def table(rows: list[dict[str, Any]]) -> str:
    """The report's Markdown, with cells that are not padded."""
    study = ScalingStudy.model_construct()
    return re.sub(" +", " ", to_markdown(study, study.sections(pd.DataFrame(rows))))


def points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return points_of(pd.DataFrame(rows)).to_dict("records")  # type: ignore[no-any-return]


def test_the_cpu_plan_is_what_the_issue_asks_for() -> None:
    own = preset("cpu")
    assert len(own.sizes) >= 3 and len(own.budgets) >= 3
    wanted = {"blt-entropy-4.5", "blt-entropy-6", "blt-entropy-8", "blt-space", "blt-stride-6", "bpe-4096"}
    assert wanted <= set(own.families)
    keys = {trunk.key for trunk in own.trunks()}
    for family in ("blt-entropy-4.5", "bpe-4096"):
        assert {f"{family}:s:{seed}" for seed in range(3)} | {
            f"{family}:{name}:0" for name in ("xs", "s", "m", "l")
        } <= keys
    assert not any(f"{family}:xs:1" in keys for family in wanted)
    assert {"blt-entropy-6:m@6:0", "blt-entropy-8:m@8:0"} <= keys
    found = cost_of(own)
    assert found.rows == len(keys) * 3 and {one.key for one in found.units} == keys


@pytest.mark.parametrize("name", ["cpu", "gpu", "cluster"])
def test_what_a_plan_costs_adds_up(name: str) -> None:
    own = preset(name)
    found = cost_of(own)
    for unit, one in zip(own.trunks(), found.units, strict=True):
        assert [one.flops_per_byte * num_bytes for num_bytes in one.num_bytes] == pytest.approx(list(own.budgets))
        trained = own.budgets[-1] + own.decay_share * sum(own.budgets[:-1])
        assert trained < one.spent < 1.2 * trained or unit.family.name.startswith("bpe")
        assert one.hours == pytest.approx(one.spent / own.rate_of(unit) / 3600)
    assert found.flops == pytest.approx(sum(one.spent for one in found.units) + found.scorer_flops)
    assert cost_of(own, rate=1e10).hours == pytest.approx(found.flops / 1e10 / 3600)
    assert all(trunk.key in found.summary() for trunk in own.trunks())


def test_costs_of_a_byte_are_those_of_the_ledger() -> None:
    own = preset("cpu")
    family, small = parse_family("blt-entropy-4.5"), own.sizes[0]
    assert isinstance(family, BltFamily)
    scorer = parse(TrainConfig, _entropy(), "test").model
    cost = family.cost(small, 4.4, 1024, scorer)
    assert cost.exact == forward_flops(family.model(small), 4.4, 1024) and cost.scorer == scorer_flops(scorer, 1024)
    assert cost.training(10) == 10 * (3 * cost.exact + cost.scorer) and cost.training(10, False) == 30 * cost.exact
    assert parse_family("blt-space").cost(small, 4.4, 1024, scorer).scorer == 0


def test_token_models_cost_what_their_own_count_says() -> None:
    """Once the trainer has them."""
    own = preset("cpu")
    family, small = parse_family("bpe-4096"), own.sizes[0]
    try:
        config: TrainConfig = parse(TrainConfig, family.sections(small, None, None) | _steps(), "test")
    except ValueError as error:
        pytest.skip(f"model.kind = 'bpe' is not there: {error}")
    cost = family.cost(small, 3.3, 1024, None)
    assert cost.exact == pytest.approx(forward_flops(config.model, 3.3, 1024), rel=1e-9)
    assert cost.scorer == 0 and cost.paper > 0


def _steps() -> dict[str, Any]:
    return {"trainer": {"max_steps": 1}}


def _entropy() -> dict[str, Any]:
    return {"model": {"kind": "entropy", "width": 48, "layers": 2, "heads": 1, "window": 128}} | _steps()


@pytest.mark.parametrize("patch", [6.0, 8.0, 12.0])
def test_a_model_that_grows_with_its_patch_costs_the_same_at_inference(patch: float) -> None:
    for one in preset("gpu").sizes:
        base, family = parse_family("blt-entropy-4.5"), parse_family(f"blt-entropy-{patch:g}")
        larger = grown(one, family, 4.5, 4096)
        before, after = base.cost(one, 4.5, 4096, None).exact, family.cost(larger, patch, 4096, None).exact
        assert after == pytest.approx(before, rel=0.03) and larger.width > one.width
        assert larger.name == f"{one.name}@{patch:g}" and larger.local == one.local


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ["blt-entropy"]}, "family 'blt-entropy'; did you mean 'blt-entropy-4.5'"),
        ({"families": ["blt-stride-0.5"]}, "a patch holds at least 1 byte"),
        ({"families": ["bpe-100"]}, "a vocabulary holds the 256 bytes"),
        ({"families": ["blt-space", "blt-space"]}, "families names one twice"),
        ({"budgets": [2e9, 1e9]}, "ascending order"),
        ({"seeded": ["blt-spaces"]}, "seeded names 'blt-spaces'.*did you mean 'blt-space'"),
        ({"seeds_at": "c"}, "seeds_at names 'c'"),
        ({"sizes": [size("a", 17)]}, "size 'a': latent: width 17 must be an even multiple"),
        ({"fixed_inference": {"sizes": ["c"]}}, "fixed_inference.sizes names 'c'"),
        ({"budget": [1e9]}, "unknown key 'budget'; did you mean 'budgets'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan(**changes)
    assert "\n" not in str(caught.value)


def test_units_are_chosen_by_name() -> None:
    own = plan()
    assert len(own.trunks()) == 2 * 2 + 2 and len(own.units()) == 3 * 6
    names = [unit.name for unit in selected_units(own, ["blt-space:*:0"])]
    assert names == [f"blt-space:{size}:0:{budget}" for size in "ab" for budget in ("2e08", "4e08", "8e08")]
    assert selected_units(own, ["*:*:*"]) == selected_units(own) == list(own.units())
    for wrong in ("blt-space:a:7", "blt-spaces:a:0"):
        with pytest.raises(ValueError, match=f"--only '{wrong}'"):
            selected_units(own, [wrong])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), st.integers(1, 50_000))
def test_a_run_ends_at_the_step_nearest_to_its_budget(costs: list[int], budget: int) -> None:
    """The slow way looks at all steps; beyond the last one text goes on as it ended."""
    costs = costs + [costs[-1]] * (budget // costs[-1] + 1)
    spent = list(itertools.accumulate(costs))
    seen = [Seen(number + 1, value, 1) for number, value in enumerate(spent)]
    found = nearest_step(budget, iter(seen), lambda one: float(one.num_bytes))
    assert abs(found.num_bytes - budget) == min(abs(value - budget) for value in spent)


def test_rows_of_all_families_meet_their_budgets_within_a_step(tmp_path: Path) -> None:
    rows = measured(plan(), tmp_path)
    assert len(rows) == 6 * 3
    for row in rows:
        step = row["flops"] / row["steps"]
        assert abs(row["flops"] - row["budget"]) <= step
        assert 0.7 < row["decay_begins"] / row["steps"] < 0.9
        assert row["flops"] == pytest.approx(row["bytes_seen"] * 3 * row["forward_flops_per_byte"], rel=1e-12)
        assert row["params"] > row["params_multiplied"] > 0 and row["flops_paper"] > 0
        assert row["by_source"] == {"text": {"bits_per_byte": 2.0 + row["seed"], "num_bytes": 100}}
        config: TrainConfig = parse(TrainConfig, row["config"], "row")
        assert (config.trainer.max_steps, config.trainer.seed, config.trainer.branch) == (
            row["steps"],
            row["seed"],
            None,
        )
        assert config.optim.rate(row["decay_begins"] - 1, row["steps"]) == 1
    assert not list(tmp_path.glob("runs/*/trunk")) and not list(tmp_path.glob("runs/*/*/step-*"))


def test_a_trunk_is_trained_once_for_all_budgets(tmp_path: Path) -> None:
    counting = Counting()
    rows = measured(plan(), tmp_path, counting, only=["blt-space:a:0"])
    steps = sum(last - first for _, first, last in counting.trained)
    branches = sum(row["steps"] - row["decay_begins"] for row in rows)
    assert steps == max(row["decay_begins"] for row in rows) + branches


def test_a_study_that_dies_anywhere_ends_with_the_same_rows(tmp_path: Path) -> None:
    own, only = plan(), ["blt-space:a:*"]
    whole = Counting()
    expected = measured(own, tmp_path / "whole", whole, only=only)
    for dies_at in range(len(whole.trained)):
        out, counting = tmp_path / str(dies_at), Counting(dies_at=dies_at)
        with pytest.raises(KeyboardInterrupt):
            measured(own, out, counting, only=only)
        before = [name for name, *_ in counting.trained]
        counting.dies_at = None
        found = measured(own, out, counting, only=only)
        again = sum(last - first for _, first, last in counting.trained)
        assert again == sum(last - first for _, first, last in whole.trained), "a step was trained twice"
        assert _plain(found, out) == _plain(expected, tmp_path / "whole") and before
        assert measured(own, out, Counting(dies_at=0), only=only) == found, "nothing is left to train"


def _plain(rows: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    return json.loads(json.dumps(rows).replace(str(out), "OUT"))  # type: ignore[no-any-return]


def test_budgets_may_come_later_above_and_below(tmp_path: Path) -> None:
    only = ["blt-space:a:0"]
    measured(plan(budgets=[4e8], keep_models=True), tmp_path, only=only)
    said: list[str] = []
    rows = measured(plan(budgets=[2e8, 4e8, 8e8], keep_models=True), tmp_path, only=only, say=said.append)
    assert [row["budget"] for row in rows] == [4e8, 2e8, 8e8]
    apart = measured(plan(keep_models=True), tmp_path / "apart", only=only)
    by_budget = {row["budget"]: row["bits_per_byte"] for row in apart}
    assert {row["budget"]: row["bits_per_byte"] for row in rows} == by_budget
    assert list(tmp_path.glob("runs/*/2e+08/step-*"))


def test_units_of_another_process_are_left_to_it(tmp_path: Path) -> None:
    own, said = plan(), list[str]()
    place = tmp_path / "runs" / "blt-space_a_0"
    place.mkdir(parents=True)
    with FileLock(place / ".lock"):
        rows = measured(own, tmp_path, say=said.append)
    assert len(rows) == 5 * 3 and "blt-space:a:0:2e08: already running in another process; skipping" in said
    assert len(measured(own, tmp_path)) == 6 * 3


def test_a_study_stops_when_its_time_is_over(tmp_path: Path) -> None:
    own, said, counting = plan(), list[str](), Counting()
    first = measured(own, tmp_path, counting, minutes=5, say=said.append)
    assert 0 < len(first) < 18 and "time limit reached; rerun the command to resume at" in said[-1]
    rounds = 1
    while len(measured(own, tmp_path, counting, minutes=5)) < 18:
        rounds += 1
        assert rounds < 100
    assert len(measured(own, tmp_path, Counting(dies_at=0))) == 18


def test_another_plan_does_not_mix_with_the_rows_that_are_there(tmp_path: Path) -> None:
    measured(plan(), tmp_path, only=["blt-space:a:0"])
    with pytest.raises(ValueError, match="holds rows of blt-space:a:0:2e08 with basis"):
        measured(plan(warmup_steps=3), tmp_path)
    with pytest.raises(ValueError, match="begun with another text"):
        prepared = plan(families=["blt-entropy-4.5"], scorer={"steps": 1})
        (tmp_path / "prepared.json").write_text('{"scorer": null, "fingerprint": null, "rules": {}, "reached": {}}')
        prepare(prepared, [4.5], StudyRun(tmp_path, [], list, {}))
    with pytest.raises(ValueError, match="are 1 steps, too few for 2 steps of warm-up"):
        measured(plan(budgets=[5e6]), tmp_path / "small")
    with pytest.raises(ValueError, match=r"trains on 8 processes.*--dry-run"):
        measured(plan(processes=8), tmp_path / "large")


def test_the_hash_of_a_config_is_of_what_decides_its_numbers(tmp_path: Path) -> None:
    own = plan()
    prepared = Prepared(None, None, {}, {})
    here, elsewhere = (
        TrunkRun(own, own.trunks()[0], prepared, StudyRun(out, [], list, {})) for out in (tmp_path, tmp_path / "other")
    )
    one = here.config(10, 2).model_dump(mode="json")
    other = elsewhere.config(10, 2).model_dump(mode="json")
    assert one != other and config_hash(one, None) == config_hash(other, None)
    later = here.config(11, 3).model_dump(mode="json")
    assert config_hash(one, None) != config_hash(later, None) != config_hash(later, "f")
    trunk = here.config(8)
    assert all(trunk.optim.rate(step, 8) == 1 for step in range(2, 30))


def test_the_report_says_what_the_rows_hold(tmp_path: Path) -> None:
    own = plan(sizes=[size("a", 16), size("b", 32), size("c", 48)], fixed_inference={"sizes": ["a"], "rule": "stride"})
    rows = measured(own, tmp_path)
    frame, text = pd.DataFrame(rows), table(rows)
    figures, sections = own.figures(frame), own.sections(frame[frame["size"] != "c"])  # two sizes have no fits
    assert list(figures) == ["isoflop", "flops", "bytes", "inference"]
    page = to_html(own, sections, figures, own.facts(frame))
    for heading in ("What was measured", "The best size of a budget", "Crossovers", "Patch and model grown together"):
        assert f"## {heading}" in text and heading in page
    assert "blt-space and blt-stride-6: at 8e+08 FLOPs" in page and page.count("<img ") == 4
    some = next(row for row in points(rows) if row["seed"] == 1)
    assert f"| {some['family']} | {some['size']} | 2e08 |" in text
    alone = table(rows[:1])
    assert "No intervals: no family, size and budget has two seeds" in alone


def test_rates_are_measured_in_turn_and_give_the_seconds(tmp_path: Path) -> None:
    """A median over rounds for each family and size; the report's seconds are bytes by these."""
    own, counting = plan(), Counting()
    rows = measured(own, tmp_path, counting)
    assert all(math.isnan(point["rated_seconds"]) for point in points(rows)) and " seconds |" not in table(rows)
    before = len(counting.trained)
    measured(own.replace(rates=True, rounds=3), tmp_path, counting)
    order = [Path(directory).name for directory, _, _ in counting.trained[before:]]
    assert len(order) == 3 * 4 and order[:4] == order[4:8] == order[8:] and len(set(order)) == 4
    whole = read_lines(tmp_path / ROWS)
    rates = [row for row in whole if row["what"] == "scaling-rate"]
    known = {(row["family"], row["size"]): row["seconds_per_byte"] for row in rates}
    assert known.keys() == {(f, s) for f in own.families for s in "ab"}
    for row in rates[-4:]:
        assert len(row["all"]) == 3 and row["seconds_per_byte"] == statistics.median(row["all"])
        assert {name: row[name] for name in STAMP} == STAMP and row["threads"] == own.threads
    for point in points(whole):
        rate = known[point["family"], point["size"]]
        assert point["rated_seconds"] == pytest.approx(point["bytes_seen"] * rate)
    assert " seconds |" in table(whole) and measured(own, tmp_path, counting) == whole
    assert measured(own.replace(rates=True, rounds=3), tmp_path, counting) == whole, "a round is measured once"
    assert not (tmp_path / "rates").exists()


def test_the_command_tells_what_a_plan_costs(blt: Blt_) -> None:
    found = blt("study", "scaling", "--plan", "gpu", "--only", "bpe-32768:*:0", "--dry-run", "--json").json()
    assert found["rows"] == 9 and found["plan"] == "gpu"
    shown = blt("study", "scaling", "--dry-run", "--rate", "50").out.decode()
    assert "blt-entropy-8:m@8:0" in shown and "hours on one process" in shown
    for arguments, message in (
        (["--plan", "gpus"], "--plan 'gpus' is neither a TOML file nor one of smoke, cpu, gpu, cluster"),
        ([], "needs --out DIR"),
        (["--rate", "5", "--out", "x"], "--rate is for --dry-run"),
        (["--dry-run", "--set", "seed=1"], "unknown key 'seed'; did you mean 'seeds'"),
        (["--out", "x", "--report", "--minutes", "1"], "--minutes is for measuring"),
        (["--out", "x", "--report"], "there is no rows.jsonl"),
    ):
        assert message in blt("study", "scaling", *arguments).mistake()
