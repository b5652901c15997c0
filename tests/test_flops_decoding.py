"""The ledger of decoding strategies: against the passes of real runs, and against rounds worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bltkit import vocab
from bltkit.cost.formulas.fast_blt import paper_passes
from bltkit.cost.ledger import Decoding, PassRates, expected, ledger, ledger_of
from bltkit.cost.ledger.passes import read_stats
from bltkit.generate import STRATEGIES, Request, Session, Stats, generate, strategy_of
from bltkit.generate.strategies import Strategy, parse_strategy
from bltkit.model import BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig
from bltkit.patching import parse_rule
from tests import tiny
from tests.rows import GREEDY, by, example, tempered

ENTROPY = EntropyConfig(width=8, layers=1, heads=2, ffn_width=12)


def run(strategy: Strategy, num_bytes: int, rule: str, scored: bool = True, **fields: Any) -> tuple[Stats, BltConfig]:
    """Stats of a real run of a tiny model in fp32, and its shape."""
    case = tempered(replace(example("byte", diffusion_block=8, **fields), dtype=torch.float32), 0.2)
    scorer = tiny.fill(EntropyModel(ENTROPY), 0) if scored else None
    session = Session.start(case.model, scorer, parse_rule(rule)).extend(vocab.encode(b"some text"))
    session.model.embed.ngrams.data.mul_(0.01)  # a text that repeats, and is easy to draft
    *_, last = generate(session, by(strategy, Request(GREEDY, num_bytes)))
    assert last.stats is not None
    return last.stats, case.config


NEVER = "threshold:threshold=100.0,max_patch_bytes=3"


@pytest.mark.parametrize("decoder_input", ["encoder", "embedding"])
@pytest.mark.parametrize("kind", sorted(STRATEGIES))
def test_weights_read_are_those_of_the_runs_own_ledger(kind: str, decoder_input: str) -> None:
    """From its stats alone: what else it counted, ids of each kind, follows from them."""
    strategy = strategy_of(kind)
    stats, config = run(strategy, 40, NEVER, decoder_input=decoder_input)
    rates = PassRates.of_stats(stats.to_json(), strategy, config)
    found = ledger(config, ENTROPY, 3.0, 64, passes=rates, strategy=kind)
    # `auto` may have drafted in shorter blocks than the stats let us know: some rows of a table.
    tolerance = 0.01 if kind == "auto" else 1e-9
    read = found.total_with_entropy.weight_bytes * stats.bytes
    assert read == pytest.approx(1e9 * stats.weight_gb_read, rel=tolerance)
    assert found.paper_bytes is not None
    assert found.paper_bytes * stats.bytes == pytest.approx(1e9 * stats.paper_gb, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "decoder_input"),
    [
        ("ar", "encoder"),
        ("speculative:draft=1", "embedding"),
        ("speculative:draft=5", "encoder"),
        ("verified:draft=4", "encoder"),
        ("verified:draft=8,steps=3", "embedding"),
        ("diffusion:draft=4,steps=1", "encoder"),
        ("diffusion:draft=4,steps=1,first=masked", "embedding"),
    ],
)
def test_expected_passes_are_those_of_a_run(text: str, decoder_input: str) -> None:
    """Where every byte is a patch, so that every pass closes some; the share that is kept as it was."""
    strategy, scored = parse_strategy(text), decoder_input == "encoder"
    rule, made = "threshold:threshold=-1.0" if scored else "byte", 96
    stats, config = run(strategy, made + 1, rule, scored, decoder_input=decoder_input)
    assert stats.bytes == made + 1
    accepted = stats.accepted / stats.drafted if strategy.exact and stats.drafted else None
    rates, _ = expected(strategy, config, 1.0, accepted=accepted, entropy=scored)
    real = PassRates.of_stats(stats.to_json(), strategy, config).to_json()
    for name, rate in rates.to_json().items():
        # The first byte needs no round.
        counted = real[name] if name == "block" else real[name] * (made + 1) / made
        assert counted == pytest.approx(rate, rel=0.07), name
    scorer = ENTROPY if scored else None
    found = ledger(config, scorer, 1.0, 256, passes=rates, strategy=text).total_with_entropy
    assert found.weight_bytes * made == pytest.approx(1e9 * stats.weight_gb_read, rel=0.07)


def test_rounds_by_hand() -> None:
    config = example("byte", diffusion_block=8).config
    rates, notes = expected(parse_strategy("speculative:draft=8"), config, 4.0, accepted=0.75)
    # 1 + 6 bytes a round: 8 drafting passes of encoder and decoder, and one over 9 ids.
    assert rates == PassRates(
        entropy=1 / 7,
        encoder=9 / 7,
        latent=(1 - 0.75**9) / 7,
        decoder=9 / 7,
        ids=9 / 7,
        draft_ids=8 / 7,
        cells=0,
        block=1,
    )
    assert "7.00 bytes" in notes[0] and "75%" in notes[0]
    rates, _ = expected(parse_strategy("verified:alpha=0.3"), config, 4.0, accepted=1.0, unmasking=2.5, entropy=False)
    assert rates == PassRates(0, 1 / 8, (1 - 0.75**8) / 8, 3.5 / 8, 1.0, cells=2.5, block=8)
    rates, _ = expected(parse_strategy("diffusion:latent=open"), config, 4.0, unmasking=2.0)
    assert rates.latent == pytest.approx((1 - 0.75**8 + 0.75) / 8)
    assert rates.open_latents == pytest.approx(0.75 / 8)


@given(accepted=st.floats(0, 1), draft=st.integers(1, 16))
def test_rounds_of_the_papers_accounting(accepted: float, draft: int) -> None:
    config = example("byte").config
    rates, _ = expected(parse_strategy(f"speculative:draft={draft}"), config, 1.0, accepted=accepted)
    paper = paper_passes(1, draft, accepted, draft + 1, latent_reuse=True)
    assert (rates.decoder, rates.latent) == pytest.approx((paper.decoder, paper.encoder))


def test_byte_by_byte_is_the_plain_ledger() -> None:
    config = example("byte").config
    rates, _ = expected(parse_strategy("ar"), config, 4.0)
    plain = ledger(config, ENTROPY, 4.0, 512)
    found = ledger(config, ENTROPY, 4.0, 512, passes=rates, strategy="ar")
    for column in ("weight_bytes", "kv_bytes", "flops_exact", "flops_train", "params"):
        own = getattr(found.total_with_entropy, column)
        assert own == pytest.approx(getattr(plain.total_with_entropy, column), rel=1e-12)


def test_wrong_drafts_cost_operations_and_right_ones_save_reads() -> None:
    config = example("byte").config
    ledgers = []
    for accepted in (0.0, 0.5, 1.0):
        rates, _ = expected(parse_strategy("speculative:draft=4"), config, 4.0, accepted=accepted)
        ledgers.append(ledger(config, ENTROPY, 4.0, 512, passes=rates, strategy="s").total_with_entropy)
    plain = ledger(config, ENTROPY, 4.0, 512).total_with_entropy
    assert ledgers[0].flops_exact > ledgers[1].flops_exact > ledgers[2].flops_exact > plain.flops_exact
    assert ledgers[0].weight_bytes > plain.weight_bytes > ledgers[2].weight_bytes
    assert {one.flops_train for one in ledgers} == {plain.flops_train}


def test_keys_and_values_read_are_those_of_a_run() -> None:
    """Of a row from its beginning; the ledger's queries see their own key as well, which a run does not count."""
    case = replace(example("byte", window=None), dtype=torch.float32)
    session = Session.start(case.model, None, parse_rule("byte")).extend([vocab.BOS])
    *_, last = generate(session, by(strategy_of("ar"), Request(GREEDY, 100)))
    assert last.stats is not None
    found = ledger(case.config, None, 1.0, 100)
    read = (found.total.kv_bytes - found.modules["decoder_cross"].kv_bytes) * last.stats.bytes
    assert read == pytest.approx(1e9 * last.stats.kv_gb_read, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["ar", "speculative:draft=4", "verified:draft=4"])
def test_products_of_a_run(text: str) -> None:
    """Operations that torch counts while a model decodes. It does not see scores on the CPU, so the model is wide next
    to its row, where they are few.
    """
    stack = StackConfig(width=128, layers=1, heads=2, ffn_width=256)
    config = BltConfig(
        encoder=stack,
        latent=stack.replace(width=256),
        decoder=stack,
        ngrams=NgramConfig(buckets=31),
        diffusion_block=8,
    )
    case = replace(example("byte"), config=config, dtype=torch.float32)
    session = Session.start(case.model, None, parse_rule("byte")).extend([vocab.BOS])
    strategy = parse_strategy(text)
    with FlopCounterMode(display=False) as counter:
        *_, last = generate(session, by(strategy, Request(GREEDY, 49)))
    assert last.stats is not None
    rates = PassRates.of_stats(last.stats.to_json(), strategy, config)
    found = ledger(config, None, 1.0, 49, passes=rates, strategy=text)
    assert counter.get_total_flops() / 49 == pytest.approx(found.total.flops_exact, rel=0.1)


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("speculative", {"accepted": 0.5}, "draft=8"),
        ("speculative:draft=4", {}, "--accepted"),
        ("speculative:draft=4", {"accepted": 75.0}, "accepted = 75"),
        ("speculative:draft=4", {"accepted": 0.5, "unmasking": 2.0}, "unmasking"),
        ("verified:draft=4,alpha=0.3", {"accepted": 0.5}, "--unmasking"),
        ("verified:draft=4,alpha=0.3", {"accepted": 0.5, "unmasking": 9.0}, "1 to 3 passes"),
        ("verified", {"accepted": 0.5}, "verified:draft=8"),
        ("verified:align_border=true,draft=4", {"accepted": 0.5}, "stats"),
        ("diffusion:draft=4", {"unmasking": 2.0, "accepted": 0.5}, "accepted"),
        ("auto", {"accepted": 0.5}, "stats"),
        ("ar", {"accepted": 0.5}, "accepted"),
    ],
)
def test_what_has_to_be_said(text: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected(parse_strategy(text), example("byte").config, 4.0, **given)


def test_a_file_of_stats(tmp_path: Path) -> None:
    stats, config = run(strategy_of("ar"), 20, NEVER)
    file = tmp_path / "g.json"
    file.write_text(json.dumps({"text": "", "stats": stats.to_json()}))
    assert read_stats(file) == stats.to_json()
    rates, notes = Decoding("ar", stats=file).rates(config, 3.0, True)
    assert rates.decoder == stats.decoder_passes / 20 and str(file) in notes[0]
    with pytest.raises(ValueError, match="--accepted"):
        Decoding("ar", accepted=0.5, stats=file).rates(config, 3.0, True)
    file.write_text("{}")
    with pytest.raises(ValueError, match="bytes is missing"):
        Decoding("ar", stats=file).rates(config, 3.0, True)
    for text, message in (("[]", "holds no stats"), ("no", "not JSON .*; write it with blt generate")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_stats(file)


def test_of_an_embedded_model() -> None:
    plain = ledger_of("bltkit:tiny-d")
    found = ledger_of("bltkit:tiny-d", decoding=Decoding("verified", accepted=0.5))
    assert found.strategy == "verified" and found.passes is not None
    assert found.total_with_entropy.weight_bytes < plain.total_with_entropy.weight_bytes
    assert "50% of the drafted bytes kept" in found.summary()
    with pytest.raises(ValueError, match="strategy"):
        ledger_of("llama:3-8b", decoding=Decoding("ar"))
