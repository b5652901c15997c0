"""The model against the executable specification, where released weights and their format do not go.

Encoder cross-attention in every layer refines one set of queries (the reference; Hugging Face's port pools anew),
and the paper's own forms: a residual that counts once, averaged n-grams, documents kept apart.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bltkit.model import Blt, BltConfig, NgramConfig, Quirks, StackConfig
from bltkit.patches import Patches
from bltkit.vocab import encode
from tests import ours, reference, tiny

IDS = [*encode(b"some words, ", eos=True).tolist(), *encode(b"then others").tolist()]
STARTS = [q in (0, 1, 4, 5, 9, 13, 14, 15, 19, 20, 26) for q in range(len(IDS) + 1)]


def config(**changes: Any) -> BltConfig:
    stack = StackConfig(width=8, layers=3, heads=2, kv_heads=1, ffn_width=12, window=6)
    return BltConfig(
        encoder=stack,
        latent=stack.replace(width=12, layers=2, window=None),
        decoder=stack.replace(layers=2),
        ngrams=NgramConfig(sizes=(2, 3, 5), buckets=31, functions=2),
        **changes,
    )


def specified(model: Blt, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float64]:
    """Logits by the specification, which is told of quirks that are off by changing the one place of each."""
    quirks, embed, cross = model.config.quirks, reference.embed, reference.cross_attention
    if not quirks.doubled_residual:
        monkeypatch.setattr(reference, "cross_attention", lambda w, c, q, kv, mask: cross(w, c, q, kv, mask) - q)
    if quirks.averaged_ngrams:
        tables = model.config.ngrams.num_tables
        monkeypatch.setattr(reference, "embed", lambda *a, **options: embed(*a, **options) / (tables + 1))
    weights, layout = ours.reference_layout(model)
    return reference.forward(weights, layout, IDS, STARTS, documents=model.config.document_masks)["logits"]


@pytest.mark.parametrize(
    ("every_layer", "first_only", "doubled", "averaged", "masks"),
    [case for case in product([False, True], repeat=5) if sum(case) in (1, 2, 5)],
)
def test_equals_the_specification(
    every_layer: bool, first_only: bool, doubled: bool, averaged: bool, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = config(
        encoder_cross_attn_all_layers=every_layer,
        decoder_cross_attn_all_layers=not first_only,
        quirks=Quirks(doubled_residual=doubled, averaged_ngrams=averaged),
        document_masks=masks,
    )
    model = tiny.fill(Blt(shape).double(), 5)
    with torch.no_grad():
        found = model(torch.tensor([IDS]), Patches.from_starts(torch.tensor([STARTS])))[0].numpy()
    wanted = specified(model, monkeypatch)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-10
