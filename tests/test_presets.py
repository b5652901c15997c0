"""The named shapes have the published sizes (docs/model.md 10). On the meta device: no memory, no time."""

import pytest
import torch
from torch import nn

from bltkit.model import (
    BLT_PRESETS,
    ENTROPY_PRESETS,
    Blt,
    BltConfig,
    EntropyModel,
    blt_preset,
    entropy_preset,
)
from bltkit.model.presets import expand_preset


def size(*modules: nn.Module | nn.Parameter) -> int:
    """Parameters of modules, and of single parameters."""
    parameters = [
        weight for module in modules for weight in (module.parameters() if isinstance(module, nn.Module) else [module])
    ]
    return sum(weight.numel() for weight in parameters)


def on_meta(config: BltConfig) -> Blt:
    with torch.device("meta"):
        return Blt(config)


@pytest.mark.parametrize(
    ("name", "tables", "encoder", "latent", "decoder", "head", "total"),
    [
        ("1b", 3_072_012_288, 19_406_848, 1_284_608_000, 157_586_432, 266_240, 4_533_879_808),
        ("8b", 3_840_015_360, 33_761_280, 6_497_239_040, 182_222_080, 332_800, 10_553_570_560),
    ],
)
def test_the_released_sizes(
    name: str, tables: int, encoder: int, latent: int, decoder: int, head: int, total: int
) -> None:
    model = on_meta(blt_preset(name))
    assert size(model.embed.ngrams) == tables
    assert size(model.embed.bytes, model.encoder) == encoder
    assert size(model.latent) == latent
    assert size(model.decoder) - size(model.decoder.head) == decoder
    assert size(model.decoder.head) == head
    assert size(model) == total


def test_the_released_entropy_model() -> None:
    with torch.device("meta"):
        assert size(EntropyModel(entropy_preset("100m"))) == 99_512_064


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        # Without the hash tables, which the names of the grid leave out.
        ("20m", 13e6, 14e6),
        ("69m", 33e6, 34e6),
        ("400m", 0.4e9, 0.7e9),
        ("1b", 1.4e9, 1.5e9),
        ("2b", 2.2e9, 2.3e9),
        ("4b", 4.2e9, 4.3e9),
        ("8b", 6.7e9, 6.8e9),
    ],
)
def test_every_size_can_be_built(name: str, low: float, high: float) -> None:
    model = on_meta(blt_preset(name))
    assert low < size(model) - size(model.embed.ngrams) < high


def test_every_preset_is_on_the_list() -> None:
    """A new size needs its line above; `tiny` is whatever the package embeds."""
    others = {"megabyte-tiny", "spacebyte-tiny"}
    assert set(BLT_PRESETS) == {"tiny", "20m", "69m", "400m", "1b", "2b", "4b", "8b", *others}
    assert size(on_meta(BLT_PRESETS["tiny"])) * 2 < 12e6  # in bf16, as the package ships it


@pytest.mark.parametrize("name", ["20m", "69m"])
def test_our_own_sizes_count_tables_and_entropy_model(name: str) -> None:
    with torch.device("meta"):
        entropy = EntropyModel(ENTROPY_PRESETS[name])
    assert f"{round((size(on_meta(BLT_PRESETS[name])) + size(entropy)) / 1e6)}m" == name


def test_unknown_names_suggest_known_ones() -> None:
    with pytest.raises(ValueError, match="did you mean '400m'"):
        blt_preset("400mm")
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        entropy_preset("papr")


def test_a_section_changes_single_fields_of_its_preset() -> None:
    section = {"preset": "69m", "latent": {"layers": 5}, "cross_attn_k": 4}
    found = BltConfig.model_validate(expand_preset(section))
    base = blt_preset("69m")
    assert found == base.replace(latent=base.latent.replace(layers=5), cross_attn_k=4)
    assert section == {"preset": "69m", "latent": {"layers": 5}, "cross_attn_k": 4}
    assert expand_preset({"kind": "entropy", "preset": "69m"})["width"] == 256
    with pytest.raises(ValueError, match="presets are names"):
        expand_preset({"kind": "cnn", "preset": "tiny"})
