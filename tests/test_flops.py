"""The closed forms of `cost.formulas.operations`: the published table, and torch's own counter on the meta device."""

from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bltkit.cost.formulas.operations import exact_flops, forward_flops, mean_visible_keys, paper_flops, scorer_flops
from bltkit.model import Blt, BltConfig, EntropyModel, NgramConfig, StackConfig, blt_preset, entropy_preset
from bltkit.patches import Patches

MODULES = ("latent", "encoder", "decoder", "encoder_cross", "decoder_cross")

# docs/model.md 11: MFLOP per byte at 18,432 bytes, paper formula and exact, by module and total. The paper's decoder of
# the 8B is 244.46 there, printed as 245 (rounded twice, by way of 244.5).
TABLE = [
    ("1b", 4.5, (652, 26, 236, 6, 55, 976), (664, 28, 250, 7, 57, 1006)),
    ("1b", 6.0, (472, 26, 236, 6, 50, 790), (481, 28, 250, 6, 52, 817)),
    ("1b", 8.0, (344, 26, 236, 5, 47, 659), (351, 28, 250, 6, 48, 683)),
    ("8b", 4.5, (3102, 41, 244, 12, 74, 3474), (3126, 43, 260, 15, 84, 3528)),
    ("8b", 8.0, (1686, 41, 244, 10, 59, 2040), (1700, 43, 260, 12, 64, 2079)),
]


@pytest.mark.parametrize(("preset", "patch_bytes", "paper", "exact"), TABLE)
def test_the_published_table(preset: str, patch_bytes: float, paper: tuple[int, ...], exact: tuple[int, ...]) -> None:
    config = blt_preset(preset)
    for found, wanted in (
        (paper_flops(config, patch_bytes, 18432), paper),
        (exact_flops(config, patch_bytes, 18432), exact),
    ):
        mega = [found[module] / 1e6 for module in MODULES]
        # Half a unit of the last printed digit, and what one sum of the table is off by (790.55 stands as 790).
        assert [*mega, sum(mega)] == pytest.approx(wanted, abs=0.56, rel=0)


def test_the_entropy_model_costs_220_megaflop() -> None:
    assert scorer_flops(entropy_preset("100m"), 18432) / 1e6 == pytest.approx(220.3, abs=0.05)


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 7), (7, 3), (9, 1), (5, 20)])
def test_mean_visible_keys_counts_them(length: int, window: int | None) -> None:
    seen = sum(min(t + 1, window or length) for t in range(length))
    assert mean_visible_keys(length, window) == pytest.approx(seen / length)


@dataclass(frozen=True)
class Counted:
    """What torch counts of one row."""

    products: dict[str, float]
    attention: dict[str, float]


def count(config: BltConfig, length: int, patch_bytes: int) -> Counted:
    """torch's counter over a row of `length` bytes in patches of `patch_bytes`, without weights or memory."""
    with torch.device("meta"):
        model = Blt(config.replace(document_masks=False)).to("meta")  # the hash weights stay behind
        starts = torch.zeros(1, length + 1, dtype=torch.bool)
        ids = torch.zeros(1, length, dtype=torch.long)
        patches = Patches(starts, torch.full((1,), length), length // patch_bytes)
        with FlopCounterMode(display=False) as counter:
            model(ids, patches)
    products, attention = {}, {}
    for module, operations in counter.get_flop_counts().items():
        # All products of the model are plain matrix products; attention's are batched, or a kernel of its own.
        products[module] = float(operations.get(torch.ops.aten.mm, 0))
        attention[module] = float(sum(operations.values())) - products[module]
    return Counted(products, attention)


SHAPES = {
    "projected": BltConfig(
        encoder=StackConfig(width=32, layers=1, heads=4, ffn_width=80),
        latent=StackConfig(width=48, layers=3, heads=4, kv_heads=2, ffn_width=112),
        decoder=StackConfig(width=32, layers=2, heads=2, ffn_width=64),
        cross_attn_k=2,
        ngrams=NgramConfig(buckets=11),
    ),
    "plain": BltConfig(
        encoder=StackConfig(width=32, layers=2, heads=4),
        latent=StackConfig(width=96, layers=2, heads=4),
        decoder=StackConfig(width=32, layers=1, heads=4),
        cross_attn_k=3,
        ngrams=NgramConfig(buckets=11),
        encoder_cross_attn_all_layers=True,
    ),
    "megabyte": BltConfig(
        encoder=StackConfig(width=32, layers=0, heads=4),
        latent=StackConfig(width=64, layers=3, heads=4),
        decoder=StackConfig(width=32, layers=2, heads=4),
        ngrams=NgramConfig(sizes=()),
        pooling="last",
        pooled_bytes=4,
        encoder_cross_attn=False,
        decoder_cross_attn=False,
    ),
    "spacebyte": BltConfig(
        encoder=StackConfig(width=32, layers=2, heads=4),
        latent=StackConfig(width=48, layers=3, heads=4),
        decoder=StackConfig(width=32, layers=2, heads=4),
        ngrams=NgramConfig(sizes=()),
        pooling="last",
        encoder_cross_attn=False,
        decoder_cross_attn=False,
    ),
    "added mean": BltConfig(
        encoder=StackConfig(width=32, layers=2, heads=4),
        latent=StackConfig(width=48, layers=1, heads=4),
        decoder=StackConfig(width=32, layers=2, heads=4),
        ngrams=NgramConfig(buckets=11),
        pooling="mean",
        encoder_cross_attn_all_layers=True,
        decoder_cross_attn=False,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_counts_the_same(shape: str) -> None:
    """Products exactly. Causal attention, which torch counts in full, is (T + 1) / 2 of T keys in the closed form.

    The scores of cross-attention are sums of elementwise products here, which torch does not count.
    """
    config, length, patch_bytes = SHAPES[shape], 120, 4
    counted = count(config, length, patch_bytes)
    closed = exact_flops(config, patch_bytes, length)
    stages = {"encoder": config.encoder, "latent": config.latent, "decoder": config.decoder}
    blocks = {"encoder": config.num_encoder_cross, "latent": 0, "decoder": config.num_decoder_cross}
    for stage, stack in stages.items():
        bytes_per_query = patch_bytes if stage == "latent" else 1
        queries = length // bytes_per_query
        full = 4 * stack.width * queries * queries * stack.layers
        assert counted.attention[f"Blt.{stage}"] == full
        causal = full * (queries + 1) / 2 / queries
        uncounted = 4 * stack.width * config.cross_attn_k * blocks[stage] * length
        total = closed[stage] + closed.get(f"{stage}_cross", 0)
        assert counted.products[f"Blt.{stage}"] == pytest.approx(total * length - causal - uncounted, rel=1e-12)


def test_torch_counts_the_entropy_model_the_same() -> None:
    config, length = entropy_preset("69m").replace(window=None, document_masks=False), 100
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        EntropyModel(config)(torch.zeros(1, length, dtype=torch.long))
    hidden = 4 * config.width * config.layers * length * (length - (length + 1) / 2)
    assert counter.get_total_flops() - hidden == pytest.approx(forward_flops(config, 4.5, length) * length, rel=1e-12)
