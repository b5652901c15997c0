"""PatchedText: its figures against the definitions, its JSON against the command-line contract."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bltkit.model import EntropyConfig, EntropyModel
from bltkit.patching import (
    BothRule,
    BpeOracleRule,
    BpeRule,
    ByteRule,
    PatchingRule,
    RiseRule,
    SpaceRule,
    StrideRule,
    ThresholdRule,
)
from bltkit.patching.patched import patch_text
from bltkit.tokens import train_bpe

RULES = st.sampled_from(
    [
        ThresholdRule(threshold=0.5),
        ThresholdRule(threshold=0.9, max_patch_bytes=3),
        RiseRule(rise=0.1),
        BothRule(threshold=0.3, rise=0.1),
        StrideRule(k=2.5),
        ByteRule(),
        SpaceRule(),
        BpeRule(threshold=0.5),
    ]
)


def fake_scores(ids: Tensor) -> Tensor:
    """Scores in [0, 1) that depend on all ids so far."""
    return (ids.cumsum(-1) * 0.6180339887).remainder(1.0).float()


@given(st.binary(max_size=60), RULES)
def test_patches_are_the_text(data: bytes, rule: PatchingRule) -> None:
    patched = patch_text(data, rule, fake_scores)
    assert b"".join(patched.pieces) == data
    assert patched.lengths == tuple(map(len, patched.pieces))
    assert patched.starts == tuple(accumulate((0, *patched.lengths)))[:-1]
    assert patched.starts[:1] == ((0,) if data else ())
    assert patched.scores is not None and len(patched.scores) == len(data)
    if data:
        assert patched.largest == max(patched.lengths) >= patched.mean_patch_bytes
        assert patched.mean_patch_bytes * patched.border_rate == pytest.approx(1)


@given(st.binary(max_size=40), RULES, st.integers(0, 255))
def test_next_opens_is_what_the_next_byte_does(data: bytes, rule: PatchingRule, byte: int) -> None:
    now, later = patch_text(data, rule, fake_scores), patch_text(data + bytes([byte]), rule, fake_scores)
    assert later.starts == now.starts + ((len(data),) if now.next_opens else ())
    assert later.scores is not None and later.scores[-1] == now.next_score


@given(st.binary(max_size=40), st.floats(0, 1, width=16))
def test_json_is_the_contract(data: bytes, threshold: float) -> None:
    answer = json.loads(json.dumps(patch_text(data, ThresholdRule(threshold=threshold), fake_scores).to_json()))
    entropies = answer["entropies"]
    assert answer["num_bytes"] == len(entropies) == len(data)
    assert answer["starts"] == [i for i in range(len(data)) if i == 0 or entropies[i] > threshold]
    assert answer["next"]["opens"] == (not data or answer["next"]["entropy"] > threshold)
    assert b"".join(bytes.fromhex(patch["hex"]) for patch in answer["patches"]) == data
    assert [patch["start"] for patch in answer["patches"]] == answer["starts"]
    assert all(patch["length"] == len(bytes.fromhex(patch["hex"])) for patch in answer["patches"])
    assert answer["threshold"] == threshold and answer["rule"].startswith("threshold")
    assert answer["mean_patch_bytes"] == (len(data) / len(answer["starts"]) if data else 0)


def test_a_score_stands_at_the_byte_that_it_predicts() -> None:
    # The score made at an id is that id: byte i must show its predecessor, byte 0 BOS (1), and next the last byte.
    patched = patch_text(b"\x00\x01\x02", SpaceRule(), lambda ids: ids.float())
    assert patched.scores == (1, 4, 5) and patched.next_score == 6


def test_scores_have_their_kind() -> None:
    boundary = patch_text(b"ab", BpeRule(), fake_scores).to_json()
    assert boundary["entropies"] is None and len(boundary["boundary_logits"]) == 2
    assert boundary["next"]["entropy"] is None and boundary["next"]["boundary_logit"] is not None
    without = patch_text(b"ab", SpaceRule())
    assert without.scores is None and without.score_kind is None and without.next_score is None
    assert without.to_json()["entropies"] is None and without.to_json()["threshold"] is None
    with pytest.raises(ValueError, match=r"'threshold' reads the entropy score .* not the boundary score"):
        patch_text(b"ab", ThresholdRule(threshold=1), fake_scores, score_kind="boundary")
    with pytest.raises(ValueError, match="scores is None"):
        patch_text(b"ab", ThresholdRule(threshold=1))


def test_a_rule_that_cannot_stream_does_not_know_the_next_byte(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe([b"abab abab"] * 4, 258))
    patched = patch_text(b"abab", BpeOracleRule(tokenizer=str(path)))
    assert patched.next_opens is None and len(patched.starts) < 4


def test_texts_longer_than_the_models_memory() -> None:
    config = EntropyConfig(width=16, layers=2, heads=2, ffn_width=32, window=8)
    model = EntropyModel(config).reset_parameters(torch.Generator().manual_seed(0))
    data = bytes(range(256)) * 36  # more than SCORING_CHUNK
    cut = 9000
    scores = model.scores(torch.arange(260)[None])
    rule = ThresholdRule(threshold=float(scores.median()))
    whole, prefix = patch_text(data, rule, model.scores), patch_text(data[:cut], rule, model.scores)
    assert whole.scores is not None and prefix.scores is not None
    assert whole.scores[:cut] == pytest.approx(prefix.scores, abs=1e-5)
    # Past the window a period repeats itself, at any depth of the text.
    assert whole.scores[-256:] == pytest.approx(whole.scores[512:768], abs=1e-3)
    assert 1 < whole.mean_patch_bytes < 256
