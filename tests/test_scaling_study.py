"""The study `scaling` for real: tiny models on a few kilobytes, through every station. Slow."""

from pathlib import Path
from typing import Any

import pytest

from bltkit.config import parse
from bltkit.data import Corpus
from bltkit.files.json_lines import read_lines
from bltkit.study.driver import run_study
from bltkit.study.scaling.scaling_batches import seen_by, steps_ahead
from bltkit.study.scaling.scaling_study import ScalingStudy
from bltkit.train import TrainConfig, train
from bltkit.train.run_directory import RunDirectory
from tests.scaling_plans import plan
from tests.test_cli import Blt_, blt
from tests.tiny_training import Workplace

__all__ = ["blt"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace.at(tmp_path_factory.mktemp("scaling"))


def tiny(place: Workplace, **changes: Any) -> ScalingStudy:
    """Entropy and stride, one size, two budgets of about 20 and 40 steps."""
    fields: dict[str, Any] = {
        "families": ["blt-entropy-4.5", "blt-stride-6"],
        "budgets": [1.6e8, 3.2e8],
        "seeds": 1,
        "sources": [str(place.path / "0*.txt"), str(place.path / "1*.txt")],
        "validation_fraction": 0.2,
        "calibration_bytes": 2000,
        "scorer": {"width": 16, "layers": 1, "ffn_width": 24, "window": 16, "steps": 5},
    }
    found = plan(**(fields | changes))
    return found.replace(sizes=found.sizes[:1])


@pytest.fixture(scope="module")
def rows(place: Workplace) -> list[dict[str, Any]]:
    return run_study(tiny(place), place.path / "study", {"commit": None}).rows()


@pytest.mark.slow
def test_every_row_meets_its_budget_within_a_step(rows: list[dict[str, Any]], place: Workplace) -> None:
    assert [(row["family"], row["budget"]) for row in rows] == [
        (family, budget) for family in ("blt-entropy-4.5", "blt-stride-6") for budget in (1.6e8, 3.2e8)
    ]
    own = tiny(place)
    corpus = Corpus.from_sources(list(own.sources), own.validation_fraction)
    held = {source.label for number, source in enumerate(own.sources) if len(corpus.held_out_of(number).validation)}
    for row in rows:
        assert abs(row["flops"] - row["budget"]) <= row["flops"] / row["steps"], row["family"]
        assert (row["flops_of_scorer"] > 0) == (row["family"] == "blt-entropy-4.5") == (row["scorer"] is not None)
        assert row["seconds"] > 0 and row["by_source"].keys() == held


@pytest.mark.slow
def test_the_config_in_a_row_gives_its_number_again(rows: list[dict[str, Any]], place: Workplace) -> None:
    """One run without trunk or branch; and the whole study once more, elsewhere."""
    for row in rows:
        config: TrainConfig = parse(TrainConfig, row["config"], "row")
        name = f"again-{row['family']}-{row['budget']:g}"
        found = train(config, place.path / name, say=lambda line: None)
        assert found.bits_per_byte == pytest.approx(row["bits_per_byte"], abs=1e-6)
        assert (found.steps, found.bytes_seen) == (row["steps"], row["bytes_seen"])
        assert found.train_flops == pytest.approx(row["flops_without_scorer"], rel=1e-9)
    again = run_study(tiny(place), place.path / "elsewhere", {"commit": None}).rows()
    for one, other in zip(rows, again, strict=True):
        assert one["bits_per_byte"] == pytest.approx(other["bits_per_byte"], abs=1e-6)
        assert one["config_hash"] == other["config_hash"] and one["by_source"] == other["by_source"]


@pytest.mark.slow
def test_the_steps_ahead_are_those_that_training_counts(place: Workplace) -> None:
    config = place.config("blt", "trainer.max_steps=3", "patching.rule=space")
    train(config, place.path / "ahead", say=lambda line: None)
    checkpoint = RunDirectory(place.path / "ahead").latest()
    assert checkpoint is not None
    ahead = steps_ahead(config, checkpoint)
    expected = [next(ahead) for _ in range(7)]
    longer = config.replace(trainer=config.trainer.replace(max_steps=10))
    train(longer, place.path / "ahead", resume=True, say=lambda line: None)
    latest = RunDirectory(place.path / "ahead").latest()
    assert latest is not None and seen_by(latest) == expected[-1] and expected[0].step == 4


@pytest.mark.slow
def test_a_token_model_takes_part(place: Workplace) -> None:
    """Once the trainer has them."""
    own = tiny(place, families=["bpe-300"], budgets=[2e8])
    try:
        rows = run_study(own, place.path / "tokens", {}).rows()
    except ValueError as error:
        if "model.kind = 'bpe'" not in str(error):
            raise
        pytest.skip(f"model.kind = 'bpe' is not there: {error}")
    (row,) = rows
    assert row["unit"] == "token" and row["unit_bytes"] > 1.1
    assert abs(row["flops"] - row["budget"]) <= row["flops"] / row["steps"]
    config: TrainConfig = parse(TrainConfig, row["config"], "row")
    found = train(config, place.path / "tokens-again", say=lambda line: None)
    assert found.bits_per_byte == pytest.approx(row["bits_per_byte"], abs=1e-6)


@pytest.mark.slow
def test_the_command_measures_and_reports(blt: Blt_, place: Workplace) -> None:
    from bltkit.config import dump_toml

    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    (place.path / "plan.toml").write_text(dump_toml(tiny(place).model_dump(mode="json", exclude_none=True)))
    out = place.path / "command"
    arguments = ["study", "scaling", "--plan", place.path / "plan.toml", "--out", out, "--only", "blt-stride-6:*:*"]
    found = blt(*arguments, "--json").json()
    assert (
        [row["family"] for row in found["rows"]]
        == ["blt-stride-6"] * 2
        == [row["family"] for row in read_lines(out / "rows.jsonl")]
    )
    assert all(Path(figure).is_file() for figure in found["figures"]) and len(found["figures"]) == 2 * 3
    assert "seconds of training" not in (out / "report.html").read_text(encoding="utf-8")
    assert len(blt(*arguments, "--rates", "--json").json()["figures"]) == 2 * 4
    found = blt(*arguments, "--json").json()
    assert blt("study", "scaling", "--out", out, "--report", "--json").json() == found
