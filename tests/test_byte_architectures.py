"""Byte models of other kinds than BLT: MegaByte- and SpaceByte-like ones, and a transformer over bytes.

That they are causal, that their state is exact and that documents stay apart is in the contract tests, for which
`tests/tiny.py` draws them as well; here are the slow specification of their parts, their sizes, and their training.
"""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.checkpoint import Bundle, load_bundle
from bltkit.cost.ledger import ledger_of
from bltkit.eval import score
from bltkit.model import (
    BLT_PRESETS,
    ENTROPY_PRESETS,
    Blt,
    BltConfig,
    EntropyConfig,
    EntropyModel,
    NgramConfig,
    blt_preset,
    entropy_preset,
)
from bltkit.model.families import blt_params, byte_params, sized_blt
from bltkit.model.one_segment import OneSegment
from bltkit.model.presets import expand_preset
from bltkit.model.segment_ops import Latents, RowsOfLatents, Segments
from bltkit.patches import Patches
from bltkit.patching import parse_rule, patch
from bltkit.train import read_metrics
from tests import ours, reference, tiny
from tests.processes import train_together
from tests.test_blt import IDS, STARTS
from tests.test_blt import config as shape
from tests.tiny_training import MODELS, Workplace

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
KINDS = ("blt", "megabyte", "spacebyte", "entropy")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


# ------------------------------------------------------------ what it computes


@pytest.mark.parametrize(
    ("pooled", "encoder", "decoder", "ngrams"),
    list(
        product(
            [("max", 1), ("mean", 1), ("last", 1), ("last", 3)], ["none", "last", "all", "no layers"], [0, 1], [0, 1]
        )
    ),
)
def test_equals_the_specification(pooled: tuple[str, int], encoder: str, decoder: int, ngrams: int) -> None:
    base = shape()
    config = base.replace(
        pooling=pooled[0],
        pooled_bytes=pooled[1],
        encoder=base.encoder.replace(layers=0 if encoder == "no layers" else 2),
        encoder_cross_attn=encoder != "none",
        encoder_cross_attn_all_layers=encoder == "all",
        decoder_cross_attn=bool(decoder),
        ngrams=base.ngrams if ngrams else NgramConfig(sizes=()),
    )
    model = tiny.fill(Blt(config).double(), 5)
    with torch.no_grad():
        found = model(torch.tensor([IDS]), Patches.from_starts(torch.tensor([STARTS])))[0].numpy()
    weights, layout = ours.reference_layout(model)
    wanted = reference.forward(weights, layout, IDS, STARTS, documents=True)["logits"]
    assert np.abs(found - wanted).max() < 1e-10


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3), st.integers(1, 4))
def test_means_and_last_bytes(lengths: list[list[int]], count: int) -> None:
    """Rows of patches, padded; each patch by itself, and by the short way for a row that is one patch."""
    sizes = [[1, *own] for own in lengths]
    longest = max(map(sum, sizes))
    starts = torch.zeros(len(sizes), longest + 1, dtype=torch.bool)
    for row, own in enumerate(sizes):
        starts[row, np.cumsum([0, *own[:-1]])] = True
    patches = Patches.from_starts(starts, torch.tensor(list(map(sum, sizes))))
    x = torch.randn(len(sizes) * longest, 3, dtype=torch.float64)
    means, lasts = Segments.of(patches).mean(x), Segments.of(patches).last(x, count)
    for row, own in enumerate(sizes):
        at = row * longest
        for j in range(patches.max_patches):
            slot, size = row * patches.max_patches + j, own[j] if j < len(own) else 0
            wanted = torch.zeros(count, 3, dtype=torch.float64)
            for back in range(min(count, size)):
                wanted[count - 1 - back] = x[at + size - 1 - back]
            assert torch.equal(lasts[slot], wanted)
            alone = x[at : at + size]
            if size:
                torch.testing.assert_close(means[slot], alone.sum(0) / size)
                torch.testing.assert_close(OneSegment().mean(alone)[0], means[slot])
                assert torch.equal(OneSegment().last(alone, count)[0], wanted)
            else:
                assert not means[slot].any()
            at += size


def test_their_gradients() -> None:
    starts = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    patches = Patches.from_starts(starts, torch.tensor([7, 4]))
    segments, index = Segments.of(patches), patches.byte_latent
    x = torch.randn(14, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(segments.mean, (x,))
    assert torch.autograd.gradcheck(lambda x: segments.last(x, 2), (x,))
    vectors = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    for latents, columns in ((Latents(index, 4), index), (RowsOfLatents((index, index[:, ::2]), 4), None)):
        assert torch.autograd.gradcheck(latents.spread, (vectors,))
        if columns is not None:
            assert torch.equal(latents.spread(vectors), vectors[torch.arange(2)[:, None], columns])


@pytest.mark.parametrize("kind", ["blt", "megabyte", "spacebyte"])
def test_every_weight_is_trained(kind: str) -> None:
    """Of the paths that a byte's loss takes back, none is cut: n-grams that occur, layers, projections."""
    config = BltConfig.model_validate({**MODELS[kind], "encoder": {**MODELS["blt"]["encoder"], "layers": 1}})
    model = tiny.fill(Blt(config).double(), 0)
    ids = torch.tensor([IDS])
    model(ids, patch(parse_rule("space"), ids)).logsumexp(-1).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    assert ("embed.ngrams" in dict(model.named_parameters())) == (kind == "blt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooled_bytes": 2}, "pooled_bytes = 2 is of pooling = 'last'"),
        ({"encoder_cross_attn": False, "encoder_cross_attn_all_layers": True}, "needs encoder_cross_attn = true"),
        ({"encoder": {"layers": 0}, "encoder_cross_attn_all_layers": True}, "encoder.layers of 1 or more"),
        ({"decoder": {"layers": 0}}, "decoder.layers = 0: only the encoder"),
        ({"latent": {"layers": 0}}, "latent.layers = 0: only the encoder"),
        ({"pooling": "cross"}, "pooling"),
    ],
)
def test_shapes_that_there_are_none_of(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BltConfig.model_validate(expand_preset({"preset": "tiny", **changes}))


# ------------------------------------------------------------ sizes


def size(config: BltConfig | EntropyConfig) -> int:
    """Parameters but for the n-gram tables, by building it."""
    with torch.device("meta"):
        model = Blt(config) if isinstance(config, BltConfig) else EntropyModel(config)
    return sum(weight.numel() for name, weight in model.named_parameters() if name != "embed.ngrams")


@settings(max_examples=30, deadline=None)
@given(tiny.models())
def test_parameters_are_counted_in_closed_form(config: BltConfig) -> None:
    assert blt_params(config) == size(config)


def test_those_of_the_presets_too() -> None:
    for blt in BLT_PRESETS.values():
        assert blt_params(blt) == size(blt)
    for entropy in ENTROPY_PRESETS.values():
        assert byte_params(entropy) == size(entropy)
    near = [blt_params(BLT_PRESETS[name]) for name in ("megabyte-tiny", "spacebyte-tiny")]
    for count in (*near, byte_params(ENTROPY_PRESETS["byte-tiny"])):
        assert count == pytest.approx(blt_params(BLT_PRESETS["tiny"]), rel=0.07)


@pytest.mark.parametrize("name", ["3m", "10m", "50m", "400m", "1.5b", "8b"])
@pytest.mark.parametrize("family", ["blt", "megabyte", "spacebyte", "byte"])
def test_a_size_gives_a_shape(family: str, name: str) -> None:
    wanted = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    kind = "entropy" if family == "byte" else "blt"
    fields = expand_preset({"kind": kind, "preset": f"{family}-{name}"})
    config: Any = (EntropyConfig if family == "byte" else BltConfig).model_validate(fields)
    count, stack = (byte_params(config), config) if family == "byte" else (blt_params(config), config.latent)
    assert count == pytest.approx(wanted, rel=0.12)
    assert 24 < stack.width / stack.layers < 160
    if family == "blt":
        tables = config.ngrams.num_tables * config.ngrams.buckets * config.encoder.width
        assert tables == pytest.approx(wanted / 2, rel=0.01)


def test_sizes_that_there_are_no_shapes_of() -> None:
    with pytest.raises(ValueError, match=r"megabyte of 5,000 parameters: the nearest shape has \d"):
        sized_blt("megabyte", 5e3)
    with pytest.raises(ValueError, match=r"model.kind = 'entropy'"):
        blt_preset("byte-20m")
    with pytest.raises(ValueError, match=r"model.kind = 'blt'"):
        entropy_preset("spacebyte-20m")
    with pytest.raises(ValueError, match="did you mean 'megabyte-tiny'"):
        blt_preset("megabyte-tinny")


def test_the_ledger_counts_them() -> None:
    """Without cross-attention, n-grams, local encoder or scorer nothing is charged for them."""
    megabyte, space, byte = (ledger_of(CONFIGS / f"{name}-tiny.toml") for name in ("megabyte", "spacebyte", "byte"))
    assert megabyte.scorer is None and space.scorer is None
    assert megabyte.modules["encoder"].params == megabyte.modules["encoder"].flops_exact == 0
    for found in (megabyte, space):
        assert found.modules["encoder_cross"].flops_paper == found.modules["decoder_cross"].flops_paper == 0
        assert found.modules["embed"].params == 260 * 128
        assert found.params == found.total.params == sum(row.params for row in found.modules.values())
    assert found.modules["encoder"].flops_exact > 0
    assert byte.params == byte_params(ENTROPY_PRESETS["byte-tiny"])
    assert byte.total.flops_exact > 3 * megabyte.total.flops_exact  # patches are what makes bytes cheap


# ------------------------------------------------------------ training, and what is compared


def test_they_train_on_the_same_bytes(place: Workplace) -> None:
    """At every step as many; and scored over the same ones."""
    seen = {}
    for kind in KINDS:
        place.train(kind, kind)
        rows = read_metrics(place.path / kind)
        seen[kind] = {row["step"]: row["bytes_seen"] for row in rows if "loss" in row}
        losses = [row["loss"] for row in rows if "loss" in row]
        assert losses[-1] < losses[0]
    assert all(seen[kind] == seen["entropy"] and len(seen[kind]) == 10 for kind in KINDS)
    bundles = {kind: load_bundle(place.path / kind) for kind in KINDS}
    scores = {kind: score(bundle, b"the of and a to " * 12) for kind, bundle in bundles.items()}
    assert len({(found.num_bytes, found.context, found.stride) for found in scores.values()}) == 1
    for kind, found in scores.items():
        assert 1 < found.bits_per_byte < math.log2(260), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_nothing_costs_the_same(kind: str) -> None:
    """Bits per byte are over the same bytes whatever the architecture: log2 260 each where all ids are as likely."""
    fields = MODELS[kind]
    model: Any = EntropyModel(EntropyConfig.model_validate(fields)) if kind == "entropy" else None
    blt = None if kind == "entropy" else Blt(BltConfig.model_validate(fields))
    tiny.fill(blt or model, 0)
    with torch.no_grad():
        (model.head if blt is None else blt.decoder.head).weight.zero_()
    found = score(Bundle(blt, model, None if blt is None else parse_rule("space")), "ä bc" * 50, context=32)
    assert found.num_bytes == 250
    assert found.bits_per_byte == pytest.approx(math.log2(260), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["megabyte", "entropy"])
def test_two_processes_train_them_as_one(kind: str, place: Workplace) -> None:
    """Models without n-gram tables have nothing that is sharded by rows."""
    from bltkit.config import dump_toml

    path = place.path / "config.toml"
    path.write_text(dump_toml(place.fields(kind)))
    place.train("one", kind)
    for end in train_together(2, path, place.path / "two"):
        assert end.returncode == 0, end.stderr[-2000:]
    alone, together = place.losses("one"), place.losses("two")
    assert alone.keys() == together.keys()
    for step, figures in alone.items():
        assert together[step] == pytest.approx(figures, rel=1e-4)
