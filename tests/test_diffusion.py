"""Block rows of the decoder in their training layout (model/masked_blocks.py) against the slow inference layout.

`reference.block_logits` runs the decoder over the clean bytes in front of a block and the block behind them, as
decoding does; the training layout has all blocks at once beside the whole row.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.model import Blt, BltConfig
from bltkit.model.masked_blocks import BlockRows, Tiles
from bltkit.model.window_blocks import WindowBlocks
from bltkit.patches import Patches
from bltkit.patching import patch
from bltkit.vocab import BOS, MASK, PAD
from tests import ours, reference, tiny

MASKED = 0.6


def layout_of(ids: Tensor, case: tiny.Case) -> Patches:
    """Every row's patches under the case's rule."""
    rule, scorer = case.rule, case.scorer
    scores = None if rule.scores is None or scorer is None else tiny.scores_of(scorer, ids)
    return patch(rule, ids, scores, documents=case.config.document_masks)


def corrupted(blocks: BlockRows, seed: int) -> BlockRows:
    """Some cells masked, in every row alike."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.rand(blocks.ids.shape[1:], generator=generator) < MASKED) & blocks.inside
    return blocks.with_ids(blocks.ids.masked_fill(hidden, MASK))


def block_logits(model: Blt, ids: Tensor, patches: Patches, blocks: BlockRows) -> Tensor:
    """[B, N, S, V]."""
    with torch.no_grad():
        logits = model(ids, patches, blocks)
    return logits[:, ids.shape[1] :].unflatten(1, blocks.ids.shape[1:])


@st.composite
def cases(draw: st.DrawFn) -> tiny.Case:
    """Cases that the reference can say: one window for both local stacks, none for the latents."""
    case = draw(tiny.cases())
    config = case.config
    local = config.encoder.window
    latent, decoder = config.latent.replace(window=None), config.decoder.replace(window=local)
    return replace(case, config=config.replace(latent=latent, decoder=decoder))


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(1, 9), st.integers(0, 2**16))
def test_training_layout_is_the_inference_layout(case: tiny.Case, size: int, seed: int) -> None:
    ids = torch.tensor([case.ids])
    patches = layout_of(ids, case)
    if patches.max_patches < 2:
        return
    blocks = corrupted(BlockRows.of(ids, patches, size), seed)
    with torch.no_grad():
        logits = case.model(ids, patches, blocks)
        plain = case.model(ids, patches)
    torch.testing.assert_close(logits[:, : ids.shape[1]], plain, rtol=0, atol=1e-10)
    found = logits[:, ids.shape[1] :].unflatten(1, blocks.ids.shape[1:])
    weights, config = ours.reference_layout(case.model)
    documents, starts = case.config.document_masks, patches.starts[0].tolist()
    for n in range(blocks.first.shape[1]):
        first, inside = int(blocks.first[0, n]), blocks.inside[0, n]
        assert bool(inside.any()) == (case.ids[first] != BOS)
        if not inside.any():
            continue
        cells = blocks.ids[0, n].tolist()
        expected = reference.block_logits(weights, config, case.ids, starts, first, cells, documents=documents)
        np.testing.assert_allclose(found[0, n][inside].numpy(), expected[inside.numpy()], rtol=0, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(tiny.cases(), st.integers(1, 9), st.data())
def test_a_block_is_blind_to_clean_bytes_behind_its_start(case: tiny.Case, size: int, data: st.DataObject) -> None:
    """The leak test: changing such a byte, its patches left as they were, does not move the block's logits."""
    ids = torch.tensor([case.ids, case.ids])
    patches = layout_of(ids, case)
    blocks = corrupted(BlockRows.of(ids, patches, size), 0)
    used = [n for n in range(blocks.first.shape[1]) if blocks.inside[0, n].any()]
    if not used:
        return
    n = data.draw(st.sampled_from(used))
    first = int(blocks.first[0, n])
    at = [t for t in range(first, len(case.ids)) if case.ids[t] > 3]
    if not at:
        return
    changed = ids.clone()
    for t in data.draw(st.lists(st.sampled_from(at), min_size=1, max_size=4)):
        changed[1, t] = data.draw(st.integers(4, 259))
    found = block_logits(case.model, changed, patches, blocks)
    torch.testing.assert_close(found[1, n], found[0, n], rtol=0, atol=1e-12)
    # Its own cells do move it.
    cells = blocks.ids.clone()
    cells[1, n, 0] = MASK if cells[1, n, 0] != MASK else 4
    moved = block_logits(case.model, ids, patches, blocks.with_ids(cells))
    assert not torch.equal(moved[1, n, 0], moved[0, n, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 700), st.integers(1, 16), st.integers(0, 2**16))
def test_every_block_has_one_slot_in_a_tile_of_its_stretch(
    num_rows: int, num_blocks: int, length: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(length, (num_rows, num_blocks), generator=generator).sort(1).values
    zeros = torch.zeros(num_rows, num_blocks, size, dtype=torch.long)
    rows = BlockRows(zeros, first, first, zeros.bool())
    blocks = WindowBlocks.of(length, 1 + seed % length)
    tiles = Tiles.of(rows, blocks)
    assert tiles.index[tiles.slot].tolist() == list(range(num_rows * num_blocks))
    assert int((tiles.index < num_rows * num_blocks).sum()) == num_rows * num_blocks
    own = tiles.stretch[tiles.slot // tiles.per_tile].view(num_rows, num_blocks)
    assert torch.equal(own % blocks.count, first // blocks.size)
    assert torch.equal(own // blocks.count, torch.arange(num_rows)[:, None].expand_as(own))


def test_blocks_end_with_their_document_and_skip_bos() -> None:
    """BOS a b c EOS BOS d e f g (padding); patches at BOS, a, c, BOS, d, f."""
    ids = torch.tensor([[1, 10, 11, 12, 2, BOS, 20, 21, 22, 23, PAD, PAD]])
    opens = torch.zeros(1, 13, dtype=torch.bool)
    opens[0, [0, 1, 3, 5, 6, 8]] = True
    blocks = BlockRows.of(ids, Patches.from_starts(opens, torch.tensor([10])), 4)
    assert blocks.first.tolist() == [[1, 3, 5, 6, 8]]
    assert blocks.latent.tolist() == [[0, 1, 2, 3, 4]]
    assert blocks.ids.tolist() == [[[10, 11, 12, 2], [12, 2, 0, 0], [0, 0, 0, 0], [20, 21, 22, 23], [22, 23, 0, 0]]]
    assert torch.equal(blocks.inside, blocks.ids != PAD)


def test_a_row_does_not_depend_on_its_neighbours_and_gradients_reach_the_table() -> None:
    torch.manual_seed(0)
    rows = [torch.randint(4, 260, (200,)) for _ in range(2)]
    ids = torch.stack(rows)
    ids[:, 0] = BOS
    starts = torch.rand(2, 201) < 0.3
    starts[:, :2] = True
    patches = Patches.from_starts(starts)
    stack = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 24}
    config = BltConfig.model_validate(
        {
            "encoder": stack | {"window": 24},
            "decoder": stack | {"window": 24},
            "latent": stack,
            "ngrams": {"sizes": [3], "buckets": 31},
        }
    )
    model = tiny.fill(Blt(config).double(), 3)
    blocks = corrupted(BlockRows.of(ids, patches, 8), 1)
    together = block_logits(model, ids, patches, blocks)
    for b in range(2):
        alone = Patches.from_starts(starts[b : b + 1])
        own = BlockRows.of(ids[b : b + 1], alone, 8)
        count = own.first.shape[1]
        own = own.with_ids(blocks.ids[b : b + 1, :count])
        found = block_logits(model, ids[b : b + 1], alone, own)
        torch.testing.assert_close(found[0][own.inside[0]], together[b, :count][own.inside[0]], rtol=0, atol=1e-10)
    parameters = list(model.parameters())
    probe = [torch.randn_like(weight) for weight in parameters]

    def value(shift: float) -> Tensor:
        changed = {name: weight + shift * step for (name, weight), step in zip(named, probe, strict=True)}
        logits = torch.func.functional_call(model, changed, (ids, patches, blocks))
        return logits[:, ids.shape[1] :].unflatten(1, blocks.ids.shape[1:])[blocks.inside].logsumexp(-1).sum()

    named = list(model.named_parameters())
    slope = sum((g * p).sum() for g, p in zip(torch.autograd.grad(value(0.0), parameters), probe, strict=True))
    step = 1e-6
    with torch.no_grad():
        numeric = (value(step) - value(-step)) / (2 * step)
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [40, 300])
def test_autocast_follows(length: int) -> None:
    """The bf16 path lays keys out by itself; it must stay near the fp32 one."""
    torch.manual_seed(1)
    ids = torch.randint(4, 260, (1, length))
    ids[:, 0] = BOS
    starts = torch.rand(1, length + 1) < 0.3
    starts[:, :2] = True
    patches = Patches.from_starts(starts)
    stack = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 24, "window": 70}
    config = BltConfig.model_validate({"encoder": stack, "decoder": stack, "latent": stack | {"window": None}})
    model = Blt(config.replace(ngrams=config.ngrams.replace(buckets=31))).reset_parameters(
        torch.Generator().manual_seed(0)
    )
    blocks = corrupted(BlockRows.of(ids, patches, 8), 1)
    exact = block_logits(model, ids, patches, blocks)[blocks.inside]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block_logits(model, ids, patches, blocks)[blocks.inside]
    assert float((rounded.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())
