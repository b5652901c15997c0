"""The comparison of schemes: its rows, its figures, and what it leaves out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bltkit.cost.formulas.operations import exact_flops
from bltkit.model import (
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
    EntropyTable,
    blt_preset,
)
from bltkit.patching import BothRule, BpeRule, RiseRule, StrideRule, ThresholdRule
from bltkit.tokens import train_bpe
from bltkit.views.compare import RISE, Comparison, compare

TEXT = "Two lines,\nand ünïcode 世界.".encode()


def filled(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    reset: Callable[[torch.Generator], torch.nn.Module] = model.reset_parameters  # type: ignore[assignment]
    return reset(generator)


@pytest.fixture(scope="module")
def scorer() -> EntropyModel:
    model = filled(EntropyModel(EntropyConfig(width=32, layers=1, heads=2, ffn_width=32)))
    assert isinstance(model, EntropyModel)
    return model


@pytest.fixture(scope="module")
def cnn() -> EntropyTable:
    model = filled(CnnEntropy(CnnConfig(width=8)))
    assert isinstance(model, CnnEntropy)
    return model.table()


def names(comparison: Comparison) -> list[str]:
    return [scheme.name for scheme in comparison.schemes]


def test_all_schemes(tmp_path: Path, scorer: EntropyModel, cnn: EntropyTable) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_bpe([TEXT] * 3, 280))
    config = blt_preset("tiny")
    comparison = compare(
        TEXT,
        config=config,
        scorer=scorer,
        rule=ThresholdRule(threshold=5.0),
        cnn=cnn,
        tokenizer=tokenizer,
        context=300,
    )
    assert names(comparison) == ["byte", "stride", "bpe", "space", "entropy", "rise", "both", "cnn", "newline"]
    assert comparison.left_out == ()
    for scheme in comparison.schemes:
        patched = scheme.patched
        assert b"".join(patched.pieces) == TEXT
        assert scheme.latent_flops == exact_flops(config, patched.mean_patch_bytes, 300)["latent"]
    by_name = {scheme.name: scheme.patched for scheme in comparison.schemes}
    assert set(by_name["byte"].lengths) == {1}
    assert set(by_name["stride"].lengths[:-1]) == {4}
    assert by_name["entropy"].rule == by_name["newline"].rule == ThresholdRule(threshold=5.0)
    assert by_name["both"].rule == BothRule(threshold=5.0, rise=RISE)

    table = json.loads(json.dumps(comparison.to_json()))
    assert table["num_bytes"] == len(TEXT) and table["context"] == 300
    row = table["schemes"][1]
    assert row["num_patches"] == len(row["starts"]) == -(-len(TEXT) // 4)
    assert row["mean_patch_bytes"] == len(TEXT) / row["num_patches"] == pytest.approx(1 / row["border_rate"])
    assert row["largest_patch_bytes"] == 4


def test_the_newline_row_forgets_what_stands_before_the_line(scorer: EntropyModel) -> None:
    rule = ThresholdRule(threshold=0.0)
    comparison = compare(b"abc\nde", config=None, scorer=scorer, rule=rule)
    scores = {scheme.name: scheme.patched.scores for scheme in comparison.schemes}
    plain, reset = scores["entropy"], scores["newline"]
    assert plain is not None and reset is not None
    assert reset[:4] == pytest.approx(plain[:4], abs=1e-5)
    assert abs(reset[5] - plain[5]) > 1e-4
    assert scorer.config.reset_at_newline is False


def test_what_is_missing_is_named(scorer: EntropyModel, tmp_path: Path) -> None:
    bare = compare(b"ab", config=None, scorer=None)
    assert names(bare) == ["byte", "stride", "space"]
    assert {row.name: row.reason for row in bare.left_out} == {
        "bpe": "no tokenizer.json was named",
        "entropy": "the model has no entropy model",
        "rise": "the model has no entropy model",
        "both": "the model has no entropy model",
        "cnn": "no CNN entropy table was given",
    }
    assert all(scheme.latent_flops is None for scheme in bare.schemes)
    absent = compare(b"ab", config=None, scorer=scorer, tokenizer=tmp_path / "absent.json")
    assert {row.name for row in absent.left_out} == {"bpe", "cnn", "newline"}
    assert "no such file" in absent.left_out[0].reason


def test_the_models_own_rule_has_a_row(scorer: EntropyModel) -> None:
    def shown(name: str, rule: object, stored: dict[str, RiseRule] | None = None) -> object:
        assert isinstance(rule, StrideRule | RiseRule)
        found = compare(b"abc", config=None, scorer=scorer, rule=rule, calibrated=stored)
        return next(scheme.patched.rule for scheme in found.schemes if scheme.name == name)

    assert shown("stride", StrideRule(k=6)) == StrideRule(k=6)
    assert shown("rise", RiseRule(rise=0.3)) == RiseRule(rise=0.3)
    assert shown("rise", StrideRule(k=6), {"rise": RiseRule(rise=0.7)}) == RiseRule(rise=0.7)
    assert shown("rise", RiseRule(rise=0.3), {"rise": RiseRule(rise=0.7)}) == RiseRule(rise=0.3)
    boundary = filled(BoundaryModel(BoundaryConfig(width=16, layers=1, heads=1, ffn_width=16)))
    assert isinstance(boundary, BoundaryModel)
    comparison = compare(b"abc", config=None, scorer=boundary, rule=BpeRule())
    assert names(comparison) == ["byte", "stride", "space", "own"]
    assert "token borders" in comparison.left_out[1].reason


def test_mistakes(scorer: EntropyModel) -> None:
    with pytest.raises(ValueError, match="text is empty"):
        compare(b"", config=None, scorer=scorer)
    with pytest.raises(ValueError, match=r"no row 'rse'.*'rise'"):
        compare(b"a", config=None, scorer=scorer, calibrated={"rse": RiseRule(rise=1)})
