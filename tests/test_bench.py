"""Benchmarks measure right answers, both sides in turn, and say what they measured."""

import importlib.util
import json
import time
from dataclasses import replace
from itertools import groupby

import pytest
import torch

from bltkit import bench
from bltkit.bench.peer import compared, peer_of
from bltkit.bench.subject import clear_threshold, row
from bltkit.bench.timing import commit, in_turn, threads_of
from bltkit.checkpoint import Bundle
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig
from bltkit.patching import SpaceRule, ThresholdRule
from bltkit.vocab import BOS, decode

QUICK = bench.Limits(repeats=2, seconds=0.0)
needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the peer extra")


def small() -> bench.Subject:
    stack = StackConfig(width=16, layers=1, heads=2, ffn_width=24, window=16)
    config = BltConfig(
        encoder=stack, latent=stack.replace(width=32, window=None), decoder=stack, ngrams=NgramConfig(buckets=53)
    )
    generator = torch.Generator().manual_seed(1)
    scorer = EntropyModel(EntropyConfig(width=16, layers=1, heads=2, ffn_width=24, window=16))
    model = Blt(config).reset_parameters(generator).eval()
    scores = scorer.reset_parameters(generator).eval().scores(row(256))[0, 1:]
    return bench.Subject("small", model, scorer, ThresholdRule(threshold=clear_threshold(scores)))


def test_the_text_is_the_same_everywhere_in_a_row() -> None:
    ids = row(50, 2)
    assert ids[0, 0] == BOS
    assert decode(ids[0].tolist()) == bench.benchmark_text(49)
    assert decode(ids[1].tolist()) == bench.benchmark_text(99)[50:]
    with pytest.raises(ValueError, match="context = 0"):
        row(0)


def test_a_random_models_patches_have_the_length_asked_for() -> None:
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    threshold = clear_threshold(scores, 4.5)
    assert (scores > threshold).float().mean() == pytest.approx(1 / 4.5, abs=0.02)
    assert (scores - threshold).abs().min() > 1e-4
    assert clear_threshold(torch.ones(1)) == 1.0


@needs_transformers
@pytest.mark.parametrize("what", ["prefill", "decode", "train"])
def test_a_row_with_a_peer(what: str) -> None:
    subject = small()
    weights = {name: weight.clone() for name, weight in subject.model.state_dict().items()}
    found = getattr(bench, what)(subject, 96, peer="transformers", limits=QUICK, threads=1, command="blt bench")
    assert found.max_difference is not None
    assert found.max_difference < 1e-4
    assert found.peer is not None
    assert len(found.ours.seconds) == len(found.peer.seconds) == 2
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["ratio"] == pytest.approx(data["ours"] / data["peer"])
    assert (data["what"], data["preset"], data["context"], data["threads"]) == (what, "small", 96, 1)
    assert (data["dtype"], data["command"]) == ("float32", "blt bench")
    assert {"cpu", "cores", "torch"} <= data["machine"].keys()
    assert all(torch.equal(weights[name], weight) for name, weight in subject.model.state_dict().items())


def test_the_parts_of_a_decoding_step() -> None:
    subject = small()
    found = bench.decode(subject, 64, steps=4, limits=QUICK).parts
    assert found is not None
    assert found.keys() == {
        "other", "entropy", "encoder", "encoder_cross", "latent", "decoder", "decoder_cross"
    }  # fmt: skip
    assert sum(part["share"] for part in found.values()) == pytest.approx(1)
    assert all(part["ms_per_byte"] > 0 for part in found.values())
    # Windows of 16: 15 positions are held, of keys and values of 16 numbers in one layer.
    assert found["entropy"]["kv_bytes"] == found["decoder"]["kv_bytes"] == 15 * 2 * 16 * 4
    assert found["decoder_cross"]["kv_bytes"] == 2 * 2 * 16 * 4
    assert found["latent"]["kv_bytes"] > 0
    hooks = [m for module in (subject.model, subject.scorer) for m in module.modules() if m._forward_hooks]
    assert not hooks


def test_patching_has_no_peer() -> None:
    found = bench.patch(small(), 64, limits=QUICK)
    assert found.ratio is None
    assert found.to_json()["peer"] is None
    assert 1 < found.mean_patch_bytes < 20


def test_wrong_answers_are_no_benchmark() -> None:
    logits = torch.randn(1, 5, 7)
    assert compared(logits, logits + 1e-6) == pytest.approx(1e-6, rel=0.2)
    wrong = logits.clone()
    wrong[0, 3, 2] += 1
    with pytest.raises(RuntimeError, match="first in position 3"):
        compared(wrong, logits)
    with pytest.raises(RuntimeError):
        compared(torch.full_like(logits, torch.nan), logits)


@needs_transformers
def test_a_model_that_the_peer_cannot_be() -> None:
    subject = replace(small(), rule=SpaceRule())
    with pytest.raises(ValueError, match="cannot be said in transformers' format"), peer_of("transformers", subject):
        pass


def test_mistakes() -> None:
    subject = small()
    with pytest.raises(ValueError, match="no peer 'llama2'"):
        bench.prefill(subject, 64, peer="llama2")
    with pytest.raises(ValueError, match="did you mean '400m'"):
        bench.preset_subject("400mm", 64)
    with pytest.raises(ValueError, match="holds no BLT"):
        bench.subject_of("m", Bundle(None, subject.scorer, None))
    with pytest.raises(ValueError, match="steps = 0"):
        bench.decode(subject, 64, steps=0)
    with pytest.raises(ValueError, match="batch = 0"):
        bench.train(subject, 64, batch=0)
    with pytest.raises(ValueError, match="repeats = 0"):
        bench.Limits(repeats=0)
    with pytest.raises(ValueError, match="threads = 0"), threads_of(0):
        pass


def test_sides_take_turns() -> None:
    calls: list[str] = []
    fast, slow = in_turn(
        [("fast", 10, lambda: calls.append("f")), ("slow", 1, lambda: (calls.append("s"), time.sleep(0.02)))],
        bench.Limits(repeats=3, seconds=0.03),
        torch.device("cpu"),
    )
    assert [name for name, _ in groupby(calls)] == ["f", "s"] * 3
    assert sum(fast.seconds) >= 0.03
    assert len(slow.seconds) == 3
    assert slow.bytes_per_second == pytest.approx(1 / sorted(slow.seconds)[1])


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads_of(2) as count:
        assert count == torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_the_commit_is_the_checkouts_own() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
