"""Bits per byte: each byte scored once, from the bytes before it alone, whatever the windows and batches."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.checkpoint import Bundle
from bltkit.eval.score import byte_scores, score, windows
from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
    NgramConfig,
    StackConfig,
)
from bltkit.patching import BpeOracleRule, parse_rule, patch
from bltkit.vocab import encode

_RULES = ("threshold:threshold=4.9", "rise:rise=0.0,max_patch_bytes=5", "stride:k=3.5", "space", "byte")


def _bundle(
    rule: str = _RULES[0], *, blt: bool = True, window: int | None = 5, record: dict[str, int] | None = None
) -> Bundle:
    """A random tiny model in float64 whose entropies lie on both sides of the threshold."""
    generator = torch.Generator().manual_seed(1)
    local = StackConfig(width=8, layers=1, heads=2, ffn_width=12, window=window)
    config = BltConfig(
        encoder=local,
        latent=StackConfig(width=16, layers=1, heads=2, ffn_width=12),
        decoder=local,
        ngrams=NgramConfig(sizes=(3, 4), buckets=61),
    )
    scorer = EntropyModel(EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, window=window)).reset_parameters(
        generator
    )
    scorer.head.weight.data *= 3
    model = Blt(config).reset_parameters(generator).double() if blt else None
    return Bundle(model, scorer.double(), parse_rule(rule), record or {})


def _obvious(bundle: Bundle, data: bytes, context: int, stride: int) -> tuple[list[float], list[bool]]:
    """One byte at a time, from the bytes of its window that lie before it: the future is not even there."""
    nats, opens = [], []
    for i in range(len(data)):
        begin = 0 if i < context else -(-(i - context + 1) // stride) * stride
        ids = encode(data[begin:i])[None]
        scores = bundle.scorer.scores(ids) if bundle.rule.scores else None
        patches = patch(bundle.rule, ids, scores)
        logits = bundle.model(ids, patches) if bundle.model else bundle.scorer(ids)
        nats.append(float(-F.log_softmax(logits[0, -1], -1)[4 + data[i]]))
        opens.append(bool(patches.starts[0, -1]))
    return nats, opens


@given(num_bytes=st.integers(0, 60), context=st.integers(1, 30), data=st.data())
def test_every_byte_is_scored_once_with_enough_before_it(num_bytes: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored = []
    for window in windows(num_bytes, context, stride):
        assert window.begin <= window.first < window.stop <= window.begin + context
        assert window.begin % stride == 0
        for byte in range(window.first, window.stop):
            scored.append(byte)
            assert byte - window.begin >= min(byte, context - stride)
    assert scored == list(range(num_bytes))


@settings(max_examples=25)
@given(
    text=st.binary(min_size=1, max_size=40),
    context=st.integers(1, 20),
    rule=st.sampled_from(_RULES),
    blt=st.booleans(),
    data=st.data(),
)
@torch.no_grad()
def test_equals_the_obvious_loop(text: bytes, context: int, rule: str, blt: bool, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    bundle = _bundle(rule, blt=blt)
    nats, opens = _obvious(bundle, text, context, stride)
    batch_bytes = data.draw(st.sampled_from((1, 3 * context, 16384)))
    found = byte_scores(bundle, text, context, stride, batch_bytes=batch_bytes)
    assert found.opens is not None and found.opens.tolist() == opens
    torch.testing.assert_close(found.nats, torch.tensor(nats, dtype=torch.float64), rtol=0, atol=1e-9)
    result = score(bundle, text, context=context, stride=stride)
    assert result.nll_nats == pytest.approx(sum(nats), abs=1e-8)
    assert result.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / len(text))
    assert result.mean_patch_bytes == pytest.approx(len(text) / sum(opens))


@pytest.mark.parametrize("blt", [True, False])
def test_batch_size_changes_nothing(blt: bool) -> None:
    text = bytes(range(256)) * 3
    each = [score(_bundle(blt=blt), text, context=50, batch_bytes=size) for size in (1, 130, 1 << 20)]
    assert [one.mean_patch_bytes for one in each] == [each[0].mean_patch_bytes] * 3
    for one in each[1:]:
        assert one.nll_nats == pytest.approx(each[0].nll_nats, abs=1e-6)


@pytest.mark.parametrize("blt", [True, False])
def test_a_uniform_model_needs_the_log_of_its_vocabulary(blt: bool) -> None:
    bundle = _bundle(blt=blt)
    (bundle.model.decoder if blt else bundle.scorer).head.weight.data.zero_()
    assert score(bundle, b"any text \xff\x00", context=4).bits_per_byte == pytest.approx(math.log2(260))


def test_more_context_is_used() -> None:
    """Windows that hold more of the text give other numbers: the context is really there."""
    bundle = _bundle(window=None)
    assert score(bundle, b"abcabcabcabc", context=12).nll_nats != score(bundle, b"abcabcabcabc", context=2).nll_nats


def test_defaults_come_from_the_training_row() -> None:
    found = score(_bundle(record={"row_bytes": 33}), b"x")
    assert (found.context, found.stride) == (32, 16)
    found = score(_bundle(), b"x")
    assert (found.context, found.stride) == (2048, 1024)
    assert score(_bundle(), "é").num_bytes == 2


def test_json_holds_what_the_command_promises() -> None:
    found = score(_bundle(), b"some text", context=5).to_json()
    assert found.keys() == {"bits_per_byte", "nll_nats", "num_bytes", "mean_patch_bytes", "context", "stride"}
    assert found["num_bytes"] == 9


def test_progress_ends_at_the_last_byte() -> None:
    told: list[tuple[int, int]] = []
    score(_bundle(), b"x" * 100, context=10, batch_bytes=20, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (100, 100)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_convolutional_model_scores_and_places_patches() -> None:
    cnn = CnnEntropy(CnnConfig(width=8)).reset_parameters(torch.Generator().manual_seed(0))
    blt = _bundle()
    alone = score(Bundle(None, cnn, blt.rule, {}), b"some text here", context=6)
    both = score(Bundle(blt.model, cnn, blt.rule, {}), b"some text here", context=6)
    assert alone.mean_patch_bytes == both.mean_patch_bytes
    assert score(Bundle(None, cnn, None, {}), b"some text").mean_patch_bytes is None


def test_mistakes_say_what_to_do() -> None:
    bundle = _bundle()
    with pytest.raises(ValueError, match=r"text: empty.*give at least one byte"):
        score(bundle, b"")
    with pytest.raises(ValueError, match=r"context = 0"):
        score(bundle, b"x", context=0)
    for stride in (0, 9):
        with pytest.raises(ValueError, match=rf"stride = {stride} is not in 1\.\.8"):
            score(bundle, b"x", context=8, stride=stride)
    with pytest.raises(ValueError, match=r"no patching rule"):
        score(Bundle(bundle.model, bundle.scorer, None, {}), b"x")
    with pytest.raises(ValueError, match=r"reads the entropy score.*use a rule that reads none"):
        score(Bundle(bundle.model, None, bundle.rule, {}), b"x")
    with pytest.raises(ValueError, match=r"looks at bytes after the border.*rule 'bpe'"):
        score(Bundle(bundle.model, None, BpeOracleRule(tokenizer="none.json"), {}), b"x")
    boundary = BoundaryModel(BoundaryConfig(width=8, layers=1, heads=2, ffn_width=12)).reset_parameters()
    with pytest.raises(ValueError, match=r"BoundaryModel, which predicts no bytes"):
        score(Bundle(None, boundary, None, {}), b"x")
    bundle.model.decoder.head.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"no finite probabilities; `blt check`"):
        score(bundle, b"x")
