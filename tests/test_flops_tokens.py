"""The ledger of token models: published shapes, config.json of Hugging Face, and one unit for all: a byte of text."""

import json
from pathlib import Path
from typing import Any

import pytest

from bltkit.cost.formulas.operations import exact_flops, forward_flops, scorer_flops, token_flops, training_flops
from bltkit.cost.ledger import BYTES_PER_TOKEN, SideBySide, ledger, ledger_of, token_ledger
from bltkit.cost.ledger.drawing import CURVE_SIZES, SIZES, bars, costs_of, curves, write_costs
from bltkit.cost.ledger.token_shape import LLAMAS, TokenShape, parse_token_shape, token_shape_of_hf
from bltkit.model import BltConfig, NgramConfig, StackConfig, entropy_preset
from bltkit.model.presets import blt_preset
from tests.html_pages import check_alone, pictures
from tests.token_models import tiny_llama

TINY_BPE = Path(__file__).resolve().parents[1] / "configs" / "tiny-bpe.toml"
SHAPE = TokenShape(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, vocab_size=512)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("2-7b", 6_738_415_616),
        ("3.2-1b", 1_235_814_400),
        ("3.2-3b", 3_212_749_824),
        ("3-8b", 8_030_261_248),
        ("3-70b", 70_553_706_496),
    ],
)
def test_published_parameters(name: str, params: int) -> None:
    found = ledger_of(f"llama:{name}")
    assert found.params == found.total.params == params
    table = LLAMAS[name].vocab_size * LLAMAS[name].width
    assert found.params_without_embeddings == params - (0 if LLAMAS[name].tied else table)


def test_by_hand() -> None:
    """Two layers of width 32 with half as many key/value heads, over 100 tokens of 4 bytes."""
    found = token_ledger(SHAPE, 4.0, 400)
    keys = 101 / 2
    attention = 2 * (2 * (2 * 32 * 32 + 2 * 32 * 16) + 4 * 32 * keys)
    assert found.modules["attention"].flops_exact == pytest.approx(attention / 4)
    assert found.modules["ffn"].flops_exact == pytest.approx(2 * 2 * 3 * 32 * 48 / 4)
    assert found.modules["head"].flops_exact == pytest.approx(2 * 32 * 512 / 4)
    assert found.modules["attention"].flops_paper == pytest.approx(2 * (4 * 32 * keys + 8 * 32 * 32) / 4)
    assert found.modules["ffn"].flops_paper == pytest.approx(2 * 16 * 32 * 32 / 4)
    assert found.total.flops_train == pytest.approx(3 * found.total.flops_exact)
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32 + 512 * 32
    assert found.total.weight_bytes == pytest.approx(4 * (weights + 32) / 4)
    assert found.total.kv_bytes == pytest.approx(4 * 2 * 2 * 16 * keys / 4)
    assert found.total == found.total_with_entropy
    tied = token_ledger(SHAPE.replace(tied=True), 4.0, 400)
    assert tied.params == found.params - 512 * 32
    assert tied.total.weight_bytes == found.total.weight_bytes


def test_matched_bytes_per_token_halve_the_cost() -> None:
    """At the same number of tokens; at the same bytes scores shrink as well."""
    assert forward_flops(SHAPE, 8.0, 800) == pytest.approx(forward_flops(SHAPE, 4.0, 400) / 2)
    assert forward_flops(SHAPE, 8.0, 800) < forward_flops(SHAPE, 4.0, 800) / 2
    # A transformer over bytes is a token model of one byte a token.
    assert sum(token_flops(SHAPE, 1.0, 300).values()) == forward_flops(SHAPE, 1.0, 300)


def test_a_llama_without_its_weights(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "llama")
    (directory / "model.safetensors").unlink()
    found = ledger_of(f"token:{directory}", bytes_per_token=3.5, context=1024)
    assert found == token_ledger(SHAPE, 3.5, 1024)
    assert ledger_of(f"token:{directory}").bytes_per_token == BYTES_PER_TOKEN
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        ledger_of(f"token:{directory}")


HF: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 512,
}


def test_config_json() -> None:
    assert token_shape_of_hf(HF, "c") == SHAPE
    assert token_shape_of_hf(HF | {"model_type": "mistral", "sliding_window": 9}, "c") == SHAPE.replace(window=9)
    without = {name: value for name, value in HF.items() if name != "num_key_value_heads"}
    assert token_shape_of_hf(without, "c").num_kv_heads == 4
    for change, message in (
        ({"model_type": "gpt2"}, "model_type = 'gpt2'"),
        ({"head_dim": 16}, "head_dim = 16"),
        ({"mlp_bias": True}, "mlp_bias"),
    ):
        with pytest.raises(ValueError, match=message):
            token_shape_of_hf(HF | change, "c")
    with pytest.raises(ValueError, match="vocab_size is missing"):
        token_shape_of_hf({name: value for name, value in HF.items() if name != "vocab_size"}, "c")


def test_written_shapes() -> None:
    text = "llama:width=32,layers=2,heads=4,kv_heads=2,ffn_width=48,vocab_size=512"
    assert parse_token_shape(text) == SHAPE
    assert parse_token_shape("llama:3-8b,vocab_size=32000,tied=true") == LLAMAS["3-8b"].replace(
        vocab_size=32000, tied=True
    )
    for wrong, message in (
        ("llama:3-8", "did you mean '3-8b'"),
        ("llama:width=32,layers=2,heads=4", "vocab_size"),
        ("llama:3-8b,widht=3", "did you mean 'width'"),
        ("llama:3-8b,width", "field=value"),
        ("llama:width=30,layers=2,heads=4,vocab_size=9", "heads 4"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_token_shape(wrong)


def test_numbers_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="would fetch the weights"):
        ledger_of("token:hf:someone/llama")
    with pytest.raises(ValueError, match=r"patch_bytes.*token model"):
        ledger_of("llama:3-8b", 4.0)
    with pytest.raises(ValueError, match=r"bytes_per_token.*no token model"):
        ledger_of("bltkit:tiny", bytes_per_token=4.0)
    with pytest.raises(ValueError, match="bytes_per_token = 0"):
        ledger_of("llama:3-8b", bytes_per_token=0.0)


def test_training_flops() -> None:
    """Three forward passes, the scorer's one where it runs, and what is recomputed."""
    config, scorer = blt_preset("20m"), entropy_preset("20m")
    base = training_flops(config, 4.5, 2048)
    assert base == pytest.approx(3 * sum(exact_flops(config, 4.5, 2048).values()))
    assert training_flops(config, 4.5, 2048, scorer=scorer) == pytest.approx(base + scorer_flops(scorer, 2048))
    for settings in ({}, {"recompute": True}, {"block": 8}, {"block": 8, "recompute": True}):
        online = ledger(config, scorer, 4.5, 2048, **settings).total_with_entropy.flops_train
        stored = ledger(config, scorer, 4.5, 2048, annotated=True, **settings).total_with_entropy.flops_train
        assert online == pytest.approx(training_flops(config, 4.5, 2048, scorer=scorer, **settings))
        assert stored == pytest.approx(training_flops(config, 4.5, 2048, **settings))
    for recompute in (False, True):
        found = token_ledger(SHAPE, 4.0, 400, recompute=recompute).total.flops_train
        assert found == pytest.approx(training_flops(SHAPE, 4.0, 400, recompute=recompute))
        alone = ledger(None, scorer, recompute=recompute, context=2048).total.flops_train
        assert alone == pytest.approx(training_flops(scorer, 1.0, 2048, recompute=recompute))
    assert training_flops(config, 4.5, 2048, recompute=True) / base == pytest.approx(4 / 3, abs=0.1)


def test_what_a_config_says_of_training(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    head = '[model]\npreset = "20m"\n[patching]\nmodel = "not/20m-entropy"\n'
    path.write_text(head)
    online = ledger_of(path)
    assert online.modules["entropy"].flops_train == online.modules["entropy"].flops_exact > 0
    path.write_text(head + '[data]\nsources = [{kind = "annotated", path = "x"}]\n')
    stored = ledger_of(path)
    assert stored.modules["entropy"].flops_train == 0 and "stored" in stored.summary()
    assert ledger_of(path, annotated=False).total_with_entropy == online.total_with_entropy
    path.write_text(head + "[trainer]\ncheckpoint_activations = true\n")
    assert ledger_of(path).total.flops_train > 1.2 * online.total.flops_train
    path.write_text(head + '[objective]\nkind = "block-diffusion"\nblock = 4\n')
    found = ledger_of(path)
    assert found.modules["blocks"].flops_train > 0 == found.modules["blocks"].flops_exact
    assert found.total.flops_exact == online.total.flops_exact
    path.write_text(head + 'rule = "space"\n')
    assert "entropy" not in ledger_of(path).modules


def test_parameters_without_tables() -> None:
    """Of the released models, docs/model.md 10."""
    for preset, tables, whole in (("1b", 3_072_012_288, 4_533_879_808), ("8b", 3_840_015_360, 10_553_570_560)):
        found = ledger(blt_preset(preset), entropy_preset("100m"))
        assert (found.params, found.params - found.params_without_tables) == (whole, tables)
        assert found.params_without_tables - found.params_without_embeddings == 260 * blt_preset(preset).encoder.width


def test_side_by_side() -> None:
    ledgers = (token_ledger(SHAPE, 4.0, 400), token_ledger(SHAPE, 8.0, 800))
    found = SideBySide(("a", "b"), ledgers)
    assert found.ratios()[0] == dict.fromkeys(found.ratios()[0], 1.0)
    assert found.ratios()[1] == pytest.approx(
        {"params": 1, "weight_bytes": 0.5, "kv_bytes": 0.5, "flops_exact": 0.5, "flops_train": 0.5}
    )
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [one["target"] for one in data["models"]] == ["a", "b"] and data["models"][1]["ratios"]["params"] == 1
    assert "x 0.5" in found.summary()


def test_the_inverse_relation() -> None:
    """Parameters constant, twice the bytes a patch: the products of the global part halve, the rest stays as it is."""
    stack = StackConfig(width=16, layers=1, heads=2, window=8)
    config = BltConfig(
        encoder=stack, latent=stack.replace(width=64, window=None), decoder=stack, ngrams=NgramConfig(buckets=11)
    )
    small, large = (exact_flops(config, size, 4) for size in (2.0, 4.0))
    assert small["latent"] / large["latent"] == pytest.approx(2, rel=0.02)
    assert small["encoder"] == large["encoder"] and small["decoder"] == large["decoder"]


@pytest.mark.parametrize("target", ["bltkit:tiny", "llama:3.2-1b"])
def test_pictures(target: str, tmp_path: Path) -> None:
    costs = costs_of(target, 2048)
    for size, kind, parts in bars(costs):
        one = costs.ledgers[size]
        whole = one.total_with_entropy.flops_exact if kind == "exact" else one.total.flops_paper
        assert sum(parts.values()) == pytest.approx((whole or 0.0) / 1e6) and sum(
            one.shares().values()
        ) == pytest.approx(1)
    total = curves(costs).lines[0].points
    assert [x for x, _ in total] == list(CURVE_SIZES) and [y for _, y in total] == sorted((y for _, y in total))[::-1]
    assert len({one.params for one in costs.ledgers.values()}) == 1
    write_costs(target, tmp_path / "c.html", 2048)
    page = check_alone((tmp_path / "c.html").read_text(encoding="utf-8"))
    assert [row[0] for row in page.rows[1:]] == [f"{size:g}" for size in SIZES]
    (picture,) = pictures(page)
    assert all(f">{size:g} bytes per {costs.unit}</text>" in picture for size in SIZES)
    write_costs(target, tmp_path / "c.svg", 2048)
    assert "</svg>" in (tmp_path / "c.svg").read_text()


def test_pictures_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.html"):
        write_costs("bltkit:tiny", tmp_path / "c.gif")
    path = tmp_path / "c.toml"
    path.write_text('[model]\nkind = "entropy"\npreset = "69m"\n')
    with pytest.raises(ValueError, match="draw a BLT"):
        write_costs(str(path), tmp_path / "c.html")


def test_a_training_config_of_a_token_model_is_counted_as_its_shape() -> None:
    config = ledger_of(TINY_BPE, bytes_per_token=3.5, context=2048)
    shape = "llama:width=256,layers=3,heads=4,ffn_width=768,vocab_size=4096"
    assert config.total == ledger_of(shape, bytes_per_token=3.5, context=2048).total
    with pytest.raises(ValueError, match="patch_bytes"):
        ledger_of(TINY_BPE, patch_bytes=4.0)
