"""Fine-tuning: parts held still, LoRA in the global transformer, merging, and going on from a checkpoint's shape."""

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.config import parse
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, EntropyTable
from bltkit.patching import parse_rule, patch
from bltkit.train.adapt import (
    AdaptSection,
    LoraSection,
    adapt,
    base_config,
    continue_from,
    freeze,
    merged_state,
    plain_name,
    shares_weights,
)
from tests.tiny import fill
from tests.tiny_training import MODELS, STACK, same

SHAPE = BltConfig.model_validate(MODELS["blt"] | {"latent": STACK | {"width": 32, "layers": 2}})
ENTROPY = EntropyConfig.model_validate(MODELS["entropy"])
TARGETS = ("qkv", "out", "gate_up", "down")
PARTS = {"embed": "embed.", "ngrams": "embed.ngrams", "encoder": "encoder.", "latent": "latent.", "decoder": "decoder."}
TEXT = b"a row of some bytes, and then some more of them"


def model(dtype: torch.dtype = torch.float64, seed: int = 0) -> Blt:
    return cast(Blt, fill(Blt(SHAPE).to(dtype), seed))


def lora_model(lora: LoraSection, *, freeze: Sequence[str] = (), trained: bool = True, seed: int = 0) -> Blt:
    """An adapted model; trained: with adapters that say something, as they do after a step."""
    pytest.importorskip("peft")
    adapted = model()
    adapt(adapted, AdaptSection(freeze=tuple(freeze), lora=lora), seed)
    if trained:
        generator = torch.Generator().manual_seed(5)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return adapted


def logits(of: nn.Module) -> Tensor:
    ids = torch.tensor([[1, *(byte + 4 for byte in TEXT)]])
    return cast(Tensor, of(ids, patch(parse_rule("stride:k=4"), ids)))


def gradients(of: nn.Module) -> dict[str, Tensor]:
    of.zero_grad()
    logits(of).square().sum().backward()
    return {name: weight.grad for name, weight in of.named_parameters() if weight.grad is not None}


def is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


@settings(max_examples=30)
@given(st.lists(st.sampled_from([*PARTS, "latent.stack.layers.1", "decoder.head", "embed.bytes"]), max_size=3))
def test_only_what_is_not_frozen_gets_gradients(names: list[str]) -> None:
    trained = model(torch.float32)
    freeze(trained, names)
    still = tuple(PARTS.get(name, name + ".") for name in names)
    wanted = {name for name, _ in trained.named_parameters() if not name.startswith(still)}
    if wanted:
        assert gradients(trained).keys() == wanted


@pytest.mark.parametrize("name", ["decode", "latent.stack.layers.2", "", "embed.ngram", "stack"])
def test_unknown_parts_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"known: embed, encoder, latent, decoder, ngrams$") as error:
        freeze(model(), (name,))
    assert "\n" not in str(error.value) and repr(name) in str(error.value)


def test_parts_of_an_entropy_model() -> None:
    scorer = EntropyModel(ENTROPY)
    adapt(scorer, AdaptSection(freeze=("embed", "stack")), 0)
    assert {name for name, weight in scorer.named_parameters() if weight.requires_grad} == {
        "norm.weight",
        "head.weight",
    }
    with pytest.raises(ValueError, match=r"known: embed, stack, norm, head$"):
        freeze(scorer, ("ngrams",))


def test_what_cannot_be_adapted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        adapt(model(), AdaptSection(freeze=("embed", "encoder", "latent", "decoder")), 0)
    with pytest.raises(ValueError, match=r"only model\.kind = 'blt'"):
        adapt(EntropyModel(ENTROPY), AdaptSection(lora=LoraSection()), 0)
    for fields in ({"targets": []}, {"targets": ["q"]}, {"rank": 0}, {"alpha": -1}):
        with pytest.raises(ValueError):
            parse(LoraSection, fields, "adapt.lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"bltkit\[lora\]"):
        adapt(model(), AdaptSection(lora=LoraSection()), 0)


def merged_model(adapted: Blt, lora: LoraSection) -> Blt:
    """The ordinary model that a checkpoint of an adapted one holds."""
    with torch.device("meta"):
        whole = Blt(adapted.config)
    whole.load_state_dict(merged_state(adapted.state_dict(), lora), assign=True)
    return whole.eval()


class TestLora:
    def test_a_fresh_adapter_changes_no_output(self) -> None:
        assert torch.equal(logits(lora_model(LoraSection(), trained=False)), logits(model()))

    @settings(max_examples=20)  # each injects anew
    @given(st.lists(st.sampled_from(TARGETS), min_size=1, unique=True), st.integers(1, 40), st.floats(0.1, 64))
    def test_merged_it_computes_the_same(self, targets: list[Any], rank: int, alpha: float) -> None:
        lora = LoraSection(rank=rank, alpha=alpha, targets=tuple(targets))
        adapted = lora_model(lora)
        before = copy.deepcopy(adapted.state_dict())
        merged = merged_model(adapted, lora)
        assert type(merged) is Blt and merged.state_dict().keys() == model().state_dict().keys()
        torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(logits(adapted), logits(model()), rtol=1e-3, atol=1e-3)
        same(before, adapted.state_dict())
        for name, weight in merged.state_dict().items():  # against the definition, and only where it was asked for
            owner = name.removesuffix(".weight")
            if name.startswith("latent.stack.") and owner.rpartition(".")[2] in targets:
                up, down = (before[f"{owner}.lora_{one}.default.weight"] for one in "BA")
                assert up.shape[1] == rank
                torch.testing.assert_close(weight, before[f"{owner}.base_layer.weight"] + alpha / rank * up @ down)
            else:
                assert torch.equal(weight, before[name]) and weight.data_ptr() == adapted.state_dict()[name].data_ptr()

    @pytest.mark.parametrize("frozen", [(), ("embed", "encoder", "decoder"), ("ngrams", "latent")])
    def test_a_step_moves_adapters_and_what_is_not_frozen(self, frozen: tuple[str, ...]) -> None:
        adapted = lora_model(LoraSection(rank=3), freeze=frozen)
        before = copy.deepcopy(adapted.state_dict())
        still = ("latent.", *(PARTS[name] for name in frozen))
        wanted = {name for name in before if is_adapter(name) or not name.startswith(still)}
        assert {name for name, weight in adapted.named_parameters() if weight.requires_grad} == wanted
        assert gradients(adapted).keys() == wanted
        torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], 1e-2).step()
        after = adapted.state_dict()
        assert {name for name, weight in before.items() if not torch.equal(weight, after[name])} == wanted
        same({str(plain_name(name)): w for name, w in before.items() if "latent" in name and not is_adapter(name)},
             {name: w for name, w in model().state_dict().items() if "latent" in name})  # fmt: skip

    def test_names_lead_back(self) -> None:
        adapted = lora_model(LoraSection(targets=("out", "down")))
        plain = [plain_name(name) for name, _ in adapted.named_parameters()]
        assert sorted(filter(None, plain)) == sorted(name for name, _ in model().named_parameters())
        assert plain.count(None) == 2 * 2 * 2  # layers, targets, factors
        assert all(is_adapter(n) == (plain_name(n) is None) for n, _ in adapted.named_parameters())

    def test_numbers_follow_from_the_seed_alone(self) -> None:
        def drawn(seed: int, chance: int) -> dict[str, Tensor]:
            torch.manual_seed(chance)
            state = torch.get_rng_state()
            found = lora_model(LoraSection(), trained=False, seed=seed)
            assert torch.equal(torch.get_rng_state(), state), "torch's own generator was used"
            return {name: weight for name, weight in found.state_dict().items() if is_adapter(name)}

        first = drawn(1, 1)
        same(first, drawn(1, 2))
        other = drawn(2, 1)
        downs = [name for name in first if "lora_A" in name]
        assert not any(torch.equal(first[name], other[name]) for name in downs)
        assert len({first[name].flatten()[0].item() for name in downs}) == len(downs)

    def test_gradient_checkpointing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where nothing in front of the latent stack needs a gradient."""
        adapted = lora_model(LoraSection(), freeze=("embed", "encoder", "decoder"))
        plain = copy.deepcopy(gradients(adapted))
        passes = []
        for layer in adapted.latent.stack.layers:
            forward = layer.forward

            def again(x: Tensor, attend: Any, forward: Any = forward) -> Tensor:
                passes.append(forward)
                return cast(Tensor, checkpoint(forward, x, attend, use_reentrant=False))

            monkeypatch.setattr(layer, "forward", again)
        same(plain, copy.deepcopy(gradients(adapted)))
        assert len(passes) == 2

    def test_training_mode_is_the_models(self) -> None:
        pytest.importorskip("peft")
        evaluated = model().eval()
        adapt(evaluated, AdaptSection(lora=LoraSection()), 0)
        assert not any(module.training for module in evaluated.modules())
        assert torch.equal(logits(evaluated), logits(evaluated))

    def test_mixed_dtypes_are_added_in_the_wider(self) -> None:
        base, down, up = torch.randn(6, 5).bfloat16(), torch.randn(2, 5), torch.randn(6, 2)
        names = ("x.base_layer.weight", "x.lora_A.default.weight", "x.lora_B.default.weight")
        (merged,) = merged_state(dict(zip(names, (base, down, up), strict=True)), LoraSection(rank=2, alpha=3)).items()
        assert merged[0] == "x.weight" and merged[1].dtype == torch.bfloat16
        assert torch.equal(merged[1], (base.float() + 1.5 * up @ down).bfloat16())

    def test_on_the_meta_device(self) -> None:
        """As a model is built that its processes then fill with their shares."""
        lora = LoraSection()
        wanted = lora_model(lora)
        with torch.device("meta"):
            empty = Blt(SHAPE)
        adapt(empty, AdaptSection(lora=lora), 0)
        assert all(weight.is_meta for weight in empty.parameters())
        empty.load_state_dict(wanted.state_dict(), assign=True)
        assert torch.equal(logits(empty), logits(wanted))

    def test_is_saved_as_an_ordinary_checkpoint(self, tmp_path: Path) -> None:
        lora = LoraSection()
        adapted = lora_model(lora)
        save_bundle(tmp_path / "m", Bundle(merged_model(adapted, lora), None, parse_rule("stride:k=4")))
        loaded = load_bundle(tmp_path / "m", dtype=torch.float64).model
        assert loaded is not None
        torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-9, atol=1e-9)


def test_without_lora_a_model_is_its_own_merger() -> None:
    plain = model()
    same(dict(plain.state_dict()), merged_state(plain.state_dict(), None))


class TestContinuing:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> str:
        scorer = cast(EntropyModel, fill(EntropyModel(ENTROPY), 1))
        save_bundle(tmp_path / "m", Bundle(model(torch.float32), scorer, parse_rule("threshold:threshold=1.5")))
        return str(tmp_path / "m")

    def test_the_shape_of_ours_and_of_hugging_faces(self, saved: str) -> None:
        assert base_config(saved) == base_config(saved, "blt") == SHAPE
        assert base_config(saved, "entropy") == ENTROPY
        assert json.loads((Path(saved) / "config.json").read_text())["model_type"] == "blt"
        (Path(saved) / "bltkit.json").unlink()
        plain = base_config(saved)
        loaded = load_bundle(saved).model
        assert loaded is not None and plain == loaded.config and not plain.document_masks
        assert isinstance(base_config("bltkit:tiny"), BltConfig)

    def test_what_is_not_there_is_said(self, saved: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds 'blt', 'entropy'"):
            base_config(saved, "cnn")
        save_bundle(tmp_path / "t", Bundle(None, EntropyTable(torch.zeros(260, 260)), None))
        with pytest.raises(ValueError, match="none that can be trained"):
            base_config(str(tmp_path / "t"))
        with pytest.raises(ValueError, match="no such directory"):
            continue_from({"trainer": {"init": str(tmp_path / "nowhere")}})

    def test_fills_what_is_left_out(self, saved: str) -> None:
        bare = {"trainer": {"init": saved, "max_steps": 3}, "optim": {"lr": 1e-4}}
        filled = continue_from(bare)
        assert filled == bare | {"model": SHAPE.model_dump(), "patching": {"model": saved}}
        masked = continue_from(bare | {"model": {"document_masks": False}})["model"]
        assert masked == SHAPE.model_dump() | {"document_masks": False}
        assert continue_from(bare | {"model": {"kind": "entropy"}}) == bare | {"model": ENTROPY.model_dump()}
        ruled = continue_from(bare | {"patching": {"rule": "stride:k=4"}})["patching"]
        assert ruled == {"model": saved, "rule": "stride:k=4"}
        assert continue_from(bare | {"patching": {"model": "other"}})["patching"] == {"model": "other"}

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"trainer": {"max_steps": 3}},
            {"trainer": 3},
            {"trainer": {"init": 3}},
            {"trainer": {"init": "nowhere"}, "model": {"preset": "tiny"}},
            {"trainer": {"init": "nowhere"}, "model": MODELS["blt"]},
            {"trainer": {"init": "nowhere"}, "model": "tiny"},
        ],
    )
    def test_leaves_the_rest_alone(self, data: dict[str, Any]) -> None:
        before = copy.deepcopy(data)
        assert continue_from(data) == before == data

    def test_shapes_that_share_weights(self) -> None:
        assert shares_weights(SHAPE, SHAPE.replace(document_masks=not SHAPE.document_masks))
        assert not shares_weights(SHAPE, SHAPE.replace(latent=SHAPE.latent.replace(heads=1)))
        assert not shares_weights(SHAPE, ENTROPY)
