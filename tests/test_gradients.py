"""Gradients: the published architecture's own on the golden case, and those of the hand-written functions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor

from bltkit.checkpoint import load_bundle
from bltkit.checkpoint.names import blt_parts
from bltkit.model import StackConfig
from bltkit.model.cross import CrossAttention
from bltkit.model.segment_ops import Latents, Segments
from bltkit.patches import Patches
from bltkit.patching import patch
from tests import tiny
from tests.shared import SHARED


@pytest.mark.skipif(SHARED is None, reason="needs the golden files beside the repository")
def test_the_golden_loss_and_gradient_norms(tmp_path: Path) -> None:
    """Loss: every id but the first is a label, mean. Their gradients were computed in fp32, ours in float64."""
    assert SHARED is not None
    golden = SHARED / "golden"
    (tmp_path / "config.json").write_text((golden / "config_k2.json").read_text())
    with np.load(golden / "weights_k2.npz") as weights:
        tensors = {name: weights[name].astype(np.float32) for name in weights}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    bundle = load_bundle(tmp_path, dtype=torch.float64)
    assert bundle.model is not None and bundle.scorer is not None and bundle.rule is not None
    with np.load(golden / "case_a_entropy.npz") as case:
        ids = torch.from_numpy(case["input_ids"]).long()[None]
    patches = patch(bundle.rule, ids, bundle.scorer.scores(ids), documents=False)

    loss = F.cross_entropy(bundle.model(ids, patches)[0, :-1], ids[0, 1:])
    loss.backward()
    expected = json.loads((golden / "golden.json").read_text())
    assert loss.item() == pytest.approx(expected["loss_case_a"], abs=5e-6)
    norms = {}
    for name, weight in bundle.model.named_parameters():
        assert weight.grad is not None, name
        parts = blt_parts(name, weight.shape)
        pieces = weight.grad.split([part.shape[0] for part in parts])
        norms |= {part.name: float(piece.norm()) for part, piece in zip(parts, pieces, strict=True)}
    assert norms == pytest.approx(expected["grad_l2_case_a"], rel=1e-5)


def two_rows() -> Patches:
    """Of 7 and 4 bytes, padding and an unequal number of patches with them."""
    starts = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    return Patches.from_starts(starts, torch.tensor([7, 4]))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_pooling(kv_heads: int) -> None:
    config = StackConfig(width=4, layers=1, heads=2, kv_heads=kv_heads, ffn_width=4)
    block = tiny.fill(CrossAttention(config, doubled_residual=True).double(), 0)
    segments = Segments.of(two_rows())
    assert torch.autograd.gradcheck(lambda z, h: block.pool(z, h, segments), (draw(2, 4, 2, 4), draw(2, 7, 4)))


def test_reading_a_latent() -> None:
    block = tiny.fill(CrossAttention(StackConfig(width=4, layers=1, heads=1, ffn_width=4), False).double(), 0)
    index = two_rows().byte_latent
    latents, row = Latents(index, 4), torch.arange(2)[:, None]

    def read(h: Tensor, vectors: Tensor) -> Tensor:
        k, v = block.patch_keys_values(vectors)
        found = block.read(h, (k, v), latents)
        torch.testing.assert_close(found, block.read(h, (k[row, index], v[row, index])), atol=1e-12, rtol=0)
        return found

    assert torch.autograd.gradcheck(read, (draw(2, 7, 4), draw(2, 4, 2, 4)))


def test_sums_and_their_way_back() -> None:
    segments = Segments.of(two_rows())
    assert torch.autograd.gradcheck(segments.spread, (draw(2, 4, 3),))
    assert torch.autograd.gradcheck(segments.sum, (draw(14, 3),))
    assert torch.autograd.gradcheck(segments.maximum, (draw(14, 3),))


def test_ties_in_the_maximum_share_the_gradient() -> None:
    """As `amax` does in the released architecture."""
    patches = two_rows()
    x = torch.tensor([[1.0, 2, 2, 5, 5, 5, 3], [0, 4, 4, 4, 1, 9, 9]], dtype=torch.float64)
    x = x.flatten()[:, None].requires_grad_()
    weight = torch.arange(1.0, 9.0, dtype=torch.float64)[:, None]
    (found,) = torch.autograd.grad((Segments.of(patches).maximum(x) * weight).sum(), x)
    wanted, at = torch.zeros(14, dtype=torch.float64), 0
    for row, lengths in enumerate(patches.lengths.tolist()):
        begin = 7 * row
        for length in lengths:
            if length:
                piece = x.detach()[begin : begin + length, 0].requires_grad_()
                (share,) = torch.autograd.grad(piece.amax() * weight[at, 0], piece)
                wanted[begin : begin + length] = share
            begin, at = begin + length, at + 1
    torch.testing.assert_close(found[:, 0], wanted)
    assert found[3:6, 0].tolist() == pytest.approx([1.0, 1.0, 1.0])  # three ties of patch 2, whose weight is 3


def test_a_long_patch_in_bfloat16_loses_no_bytes() -> None:
    """A sum of thousands of terms has to be made in fp32."""
    size = 4000
    block = tiny.fill(CrossAttention(StackConfig(width=8, layers=1, heads=1, ffn_width=4), True), 0).bfloat16()
    starts = torch.zeros(1, size + 1, dtype=torch.bool)
    starts[:, :2] = True
    segments = Segments.of(Patches.from_starts(starts))
    z, h = torch.randn(1, 2, 1, 8).bfloat16(), torch.randn(1, size, 8).bfloat16()
    with torch.no_grad():
        found = block.pool(z, h, segments).double()
        exact = block.double().pool(z.double(), h.double(), segments)
    assert float((found - exact).abs().max()) < 0.05
