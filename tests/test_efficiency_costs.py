"""What systems of `blt study efficiency` cost, and that what is timed costs that."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bltkit.bench import MachineRates
from bltkit.cost.formulas.operations import mean_visible_keys
from bltkit.cost.ledger import ledger, token_ledger
from bltkit.model import blt_preset, entropy_preset
from bltkit.model.config import StackConfig, TokenShape
from bltkit.study.efficiency.predicted_cost import (
    ByteCost,
    System,
    decoding_cost,
    equal_token_shape,
    reading_cost,
    training_cost,
)
from bltkit.study.efficiency.systems import ReadingWalk, Runner, TokenWalk, runners_of

CPU = torch.device("cpu")
RATES = MachineRates(copy_gb_per_second=20.0, product_gb_per_second={"fp32": 10.0}, matmul_gflops=50.0)
TOKENS = TokenShape(width=64, layers=3, heads=2, ffn_width=96, vocab_size=500)


def runner(system: System) -> Runner:
    return runners_of([system], CPU)[0]


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
    context, num_bytes = 145, 48  # past the window of 128
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
    walk: ReadingWalk = side.run.__self__  # type: ignore[attr-defined]
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
    at_end = 4 * 3 * 128 * (52.5 - mean_visible_keys(40, 256))  # after the context more keys are seen
    assert more.flops - cost.flops == pytest.approx(own.flops_exact + (at_end if phase == "decode" else 0))
    assert more.read_bytes > cost.read_bytes and more.update_bytes == cost.update_bytes
    for one in (side, other):
        if one.prepare is not None:
            one.prepare()
        one.run()


def test_tokens_are_chosen_as_without_a_cache() -> None:
    found = runner(System("tokens", TOKENS, 4.0))
    model = found.learner.model.double()
    ids = found.ids(40)
    walk = TokenWalk(model, ids, 5)
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
    ids = found.ids(64)

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(found.learner.model(ids)[0, :-1], ids[0, 1:]))

    before = loss()
    for _ in range(5):
        side.run()
    assert loss() < before - 0.05


def test_a_prediction() -> None:
    cost = ByteCost(flops=100e6, read_bytes=10e6, update_bytes=4e6)
    assert cost.seconds(RATES) == pytest.approx((2e-3, 1e-3, 0.2e-3))
    assert cost.predicted(RATES) == pytest.approx(2.2e-3)
    assert replace(cost, read_bytes=30e6).predicted(RATES) == pytest.approx(3.2e-3)
