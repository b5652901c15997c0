"""Scorers: texts longer than what is computed at once, and scores that equal what the model's outputs say."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bltkit.model import BoundaryConfig, BoundaryModel, CnnConfig, CnnEntropy, EntropyConfig, EntropyModel
from bltkit.model.entropy import ByteTransformer, entropy
from bltkit.vocab import encode
from tests import tiny

CHUNK = "bltkit.model.entropy.SCORING_CHUNK"
TEXT = b"one line\nand another, longer one"


def model(config: EntropyConfig | BoundaryConfig) -> ByteTransformer:
    made = EntropyModel(config) if isinstance(config, EntropyConfig) else BoundaryModel(config)
    return tiny.fill(made.double(), 3)


@torch.no_grad()
def at_once(scorer: ByteTransformer, ids: Tensor) -> Tensor:
    return scorer.score(scorer(ids))


@settings(max_examples=25)
@given(tiny.scorers(False) | tiny.scorers(True), tiny.rows(), tiny.rows())
def test_a_text_longer_than_a_chunk_is_scored_as_one(config: Any, one: list[int], two: list[int]) -> None:
    if isinstance(config, CnnConfig):
        return  # two bytes of context: it has no chunks
    scorer, length = model(config), min(len(one), len(two))
    ids = torch.tensor([one[:length], two[:length]])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CHUNK, 5)
        found = scorer.scores(ids)
    torch.testing.assert_close(found, at_once(scorer, ids), atol=1e-12, rtol=0)


def test_context_crosses_the_border_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a cut at the border would be seen: the test above can fail."""
    scorer = model(EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, window=4))
    ids = encode(TEXT)[None]
    monkeypatch.setattr(CHUNK, 10)
    found = scorer.scores(ids)
    cut = torch.cat([at_once(scorer, piece) for piece in ids.split(10, 1)], 1)
    moved = ((found - cut).abs() > 1e-9)[0]
    borders = range(10, ids.shape[1], 10)
    assert all(bool(moved[at : at + 3].all()) for at in borders)
    assert int(moved.sum()) == sum(min(3, ids.shape[1] - at) for at in borders)


@pytest.mark.parametrize("context", [1, 2])
def test_the_table_of_a_cnn_holds_its_entropies(context: int) -> None:
    cnn = tiny.fill(CnnEntropy(CnnConfig(width=8, context=context)), 1, head=4.0)
    ids = torch.stack((encode(TEXT + b"\n" + TEXT, eos=True), encode(b"ab" * 32 + b"!", eos=True)))
    ids[0, 30] = 1  # a second document
    with torch.no_grad():
        expected = entropy(cnn(ids))
    torch.testing.assert_close(cnn.scores(ids), expected)
    torch.testing.assert_close(cnn.table().scores(ids), expected)


def test_entropy_by_hand() -> None:
    assert float(entropy(torch.zeros(260))) == pytest.approx(5.5606816, abs=1e-6)  # ln 260
    half = torch.tensor([0.0, 0.0, -torch.inf]).clamp_min(-1e4)
    assert float(entropy(half)) == pytest.approx(0.6931472, abs=1e-6)
    assert entropy(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32
    assert entropy(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
