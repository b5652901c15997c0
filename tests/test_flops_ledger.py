"""The ledger of `blt flops`: its sums, its reads, and where its numbers come from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit.checkpoint import Bundle, save_bundle
from bltkit.cost.formulas.operations import exact_flops, paper_flops
from bltkit.cost.ledger import PATCH_BYTES, Ledger, ledger, ledger_of
from bltkit.generate.ledger import Stats
from bltkit.generate.memory import SequenceMemory
from bltkit.generate.session_state import Passes
from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    CnnConfig,
    EntropyConfig,
    EntropyModel,
    NgramConfig,
    StackConfig,
    blt_preset,
    entropy_preset,
)
from bltkit.patching import ThresholdRule

SHAPE = BltConfig(
    encoder=StackConfig(width=16, layers=1, heads=2, window=8),
    latent=StackConfig(width=32, layers=3, heads=4, kv_heads=2),
    decoder=StackConfig(width=16, layers=2, heads=2, window=8),
    ngrams=NgramConfig(buckets=101),
)
ENTROPY = EntropyConfig(width=24, layers=4, heads=2, ffn_width=40, window=12)
ENTROPY_PARAMS = 2 * 260 * 24 + 24 + 4 * (4 * 24 * 24 + 3 * 24 * 40 + 2 * 24)
COLUMNS = ("weight_bytes", "kv_bytes", "flops_exact", "flops_train")


def test_the_total_is_the_papers_modules() -> None:
    found = ledger(blt_preset("1b"), entropy_preset("100m"), 4.5, 18432)
    assert found.params == found.total.params == 4_533_879_808
    assert found.modules["entropy"].params == 99_512_064
    assert found.total.flops_exact == pytest.approx(sum(exact_flops(blt_preset("1b"), 4.5, 18432).values()))
    assert found.total.flops_paper == pytest.approx(sum(paper_flops(blt_preset("1b"), 4.5, 18432).values()))
    # docs/model.md 11: the entropy model adds 22 %.
    assert found.total_with_entropy.flops_exact / found.total.flops_exact == pytest.approx(1.22, abs=0.005)
    assert found.total_with_entropy.flops_paper is None
    assert found.total_with_entropy.params == 4_533_879_808 + 99_512_064
    for column in COLUMNS:
        own = sum(getattr(row, column) for name, row in found.modules.items() if name != "entropy")
        assert getattr(found.total, column) == pytest.approx(own)
    assert found.total.flops_train == pytest.approx(3 * found.total.flops_exact)


def test_a_sequence_holds_what_its_session_caches() -> None:
    """Of a session that read a whole row, and not its spare room: keys and values in the shapes of the real stacks."""
    model, scorer = Blt(SHAPE), EntropyModel(ENTROPY)
    memory = SequenceMemory.of(model, scorer)
    for context, size in ((40, 4.0), (7, 1.0), (200, 8.0)):
        counted = ledger(SHAPE, ENTROPY, size, context)
        assert counted.sequence_bytes == memory.held(context + 1, 1 + round(context / size))
        assert f"per sequence of {context} bytes" in counted.summary()
    windows = 2 * 4 * (16 * 7 + 2 * 16 * 7 + 4 * 24 * 11)  # keys and values, fp32: encoder, decoder, entropy model
    assert ledger(SHAPE, ENTROPY, 4.0, 40).sequence_bytes == windows + 2 * 4 * 3 * 16 * 11
    assert ledger(SHAPE, CnnConfig(), 4.0, 40).sequence_bytes == memory.held(41, 11) - 2 * 4 * 4 * 24 * 11
    assert ledger(None, ENTROPY, 1.0, 40).sequence_bytes is None


OTHERS: dict[str, dict[str, Any]] = {
    "encoder": {"decoder_input": "encoder"},
    "embedding": {"decoder_input": "embedding"},
    "no ngrams": {"ngrams": NgramConfig(sizes=())},
    "added": {"decoder_cross_attn": False},
    "last": {"encoder_cross_attn": False, "pooling": "last", "pooled_bytes": 3},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_weights_read_are_those_of_the_generation_ledger(changes: dict[str, Any]) -> None:
    """900 bytes in 200 patches, one pass a byte and one a patch: two independent counts of the same reads."""
    shape = SHAPE.replace(**changes)
    model, scorer = Blt(shape), EntropyModel(ENTROPY)
    passes = Passes(entropy=900, encoder=900, latent=200, decoder=900, ids=900)
    assert ledger(shape, ENTROPY, 4.5, 1024).params == sum(weight.numel() for weight in model.parameters())
    measured = Stats.of(model, scorer, passes, 900, 1.0).weight_gb_read * 1e9 / 900
    found = ledger(shape, ENTROPY, 4.5, 1024).total_with_entropy.weight_bytes
    assert found == pytest.approx(measured, rel=1e-9)
    halved = ledger(shape, ENTROPY, 4.5, 1024, element_bytes=2).total_with_entropy.weight_bytes
    assert halved == pytest.approx(measured / 2, rel=1e-9)


def test_keys_and_values_read_are_those_of_a_cache() -> None:
    """Mean over a row of 300 bytes; the latent transformer has half as many key/value heads as heads."""
    row, patch_bytes = 300, 4
    found = ledger(SHAPE, ENTROPY, patch_bytes, row).modules

    def mean(stack_width: int, layers: int, length: int, window: int) -> float:
        return sum(4 * 2 * layers * stack_width * min(t + 1, window) for t in range(length)) / length

    assert found["decoder"].kv_bytes == pytest.approx(mean(16, 2, row, 8))
    assert found["entropy"].kv_bytes == pytest.approx(mean(24, 4, row, 12))
    assert found["latent"].kv_bytes == pytest.approx(mean(16, 3, row // patch_bytes, row) / patch_bytes)
    # Two cross-attention blocks read the two keys and two values of one patch.
    assert found["decoder_cross"].kv_bytes == 4 * 2 * 2 * 2 * 16
    # Without them it is the vector that is added.
    added = ledger(SHAPE.replace(decoder_cross_attn=False), ENTROPY, patch_bytes, row).modules
    assert added["decoder_cross"].kv_bytes == 4 * 16


@pytest.mark.parametrize(
    ("scorer", "params"),
    [
        (ENTROPY, ENTROPY_PARAMS),
        (BoundaryConfig(**ENTROPY.model_dump(exclude={"kind"})), ENTROPY_PARAMS - 259 * 24),
        (CnnConfig(width=8), 260 * 8 + 16 * 16 + 16 * 260),
    ],
)
def test_scorers_alone(scorer: BoundaryConfig | CnnConfig, params: int) -> None:
    found = ledger(None, scorer)
    assert list(found.modules) == ["entropy"]
    assert found.params == params
    assert found.total == found.total_with_entropy == found.modules["entropy"]


def test_a_checkpoint_tells_its_patch_size(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model, scorer = Blt(SHAPE).reset_parameters(generator), EntropyModel(ENTROPY).reset_parameters(generator)
    bundle = Bundle(model, scorer, ThresholdRule(threshold=1.0), {"mean_patch_bytes": 5.25})
    save_bundle(tmp_path / "m", bundle)
    found = ledger_of(tmp_path / "m", context=2048)
    assert found == replace(ledger(SHAPE, ENTROPY, 5.25, 2048), scorer=str(tmp_path / "m"))
    assert ledger_of(tmp_path / "m", 6.0).patch_bytes == 6.0


def test_a_training_config(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[model]\npreset = "69m"\n[model.latent]\nlayers = 1\n[patching]\nrule = "space"\n')
    base = blt_preset("69m")
    changed = base.replace(latent=base.latent.replace(layers=1))
    assert ledger_of(path) == ledger(changed, None, PATCH_BYTES, 8192)

    path.write_text('[model]\nkind = "entropy"\npreset = "69m"\n')
    assert ledger_of(path) == ledger(None, entropy_preset("69m"), scorer_name=str(path))

    save_bundle(tmp_path / "e", Bundle(None, EntropyModel(ENTROPY).reset_parameters(), None))
    path.write_text(f'[model]\npreset = "1b"\n[patching]\nmodel = "{(tmp_path / "e").as_posix()}"\n')
    assert ledger_of(path).modules["entropy"].params == ENTROPY_PARAMS

    path.write_text('[model]\npreset = "1b"\n[patching]\nmodel = "not/there"\n')
    assumed = ledger_of(path)
    assert assumed.modules["entropy"].params == 99_512_064
    assert assumed.scorer is not None
    assert "not/there" in assumed.scorer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\n", r"section \[model\] is missing"),
        ('[model]\nkind = "blat"\n', "did you mean 'blt'"),
        ('[model]\npreset = "400mm"\n', "did you mean '400m'"),
        ('[model]\npreset = "tiny"\ncross_attn_kk = 3\n', "did you mean 'cross_attn_k'"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ledger_of(path)


def test_numbers_out_of_range() -> None:
    for patch_bytes in (0.0, 9000.0):
        with pytest.raises(ValueError, match="patch_bytes"):
            ledger(SHAPE, None, patch_bytes)
    with pytest.raises(ValueError, match="nothing to count"):
        ledger(None, None)


def test_json() -> None:
    found = ledger(SHAPE, ENTROPY)
    assert isinstance(found, Ledger)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"modules", "total", "total_with_entropy", "params"} <= data.keys()
    assert set(data["modules"]) == {
        "embed", "encoder", "encoder_cross", "latent", "decoder", "decoder_cross", "entropy"
    }  # fmt: skip
    for row in data["modules"].values():
        assert row.keys() == {"params", "weight_bytes", "kv_bytes", "flops_exact", "flops_paper", "flops_train"}
