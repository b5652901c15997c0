"""A checkpoint gives back what was saved, bit for bit; transformers reads it, or refuses it where it must."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bltkit.checkpoint import Bundle, load_bundle, save_bundle, store_rule
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
    Quirks,
    StackConfig,
)
from bltkit.patching import parse_rule, patch
from tests import hf, tiny

TOLERANCE = 1e-5
CLEAR = 4e-6  # the oracle's own error: what remains of the tolerance is ours

few = settings(max_examples=15, deadline=None)


def bundle(rule: str = "threshold:threshold=2.5", seed: int = 0, **changes: Any) -> Bundle:
    """A small model with an entropy model; `changes` are fields of its config."""
    stack = StackConfig(width=16, layers=2, heads=2, kv_heads=1, ffn_width=20, window=9)
    config = BltConfig(encoder=stack.replace(layers=1), latent=stack.replace(window=None), decoder=stack)
    config = config.replace(**({"ngrams": config.ngrams.replace(buckets=31)} | changes))
    scorer = EntropyModel(EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, window=7))
    return Bundle(
        tiny.fill(Blt(config), seed), tiny.fill(scorer, seed + 1), parse_rule(rule), {"bytes_seen": 12, "row_bytes": 8}
    )


def tensors(found: Bundle) -> dict[str, torch.Tensor]:
    """All tensors of a bundle by our names."""
    modules = {"model": found.model, "scorer": found.scorer}
    return {
        f"{kind}.{name}": tensor
        for kind, module in modules.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }


def same(found: Bundle, saved: Bundle) -> None:
    """Configs, rule, record and every bit of every tensor."""
    assert (found.rule, found.record) == (saved.rule, saved.record)
    for kind in ("model", "scorer"):
        assert getattr(getattr(found, kind), "config", None) == getattr(getattr(saved, kind), "config", None)
        assert type(getattr(found, kind)) is type(getattr(saved, kind))
    ours, theirs = tensors(found), tensors(saved)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def model_type(directory: Path) -> str:
    return str(json.loads((directory / "config.json").read_text())["model_type"])


def expressible(saved: Bundle) -> bool:
    """Hugging Face's model: an entropy model, a threshold, one window for both local stacks, none for the latent;
    n-grams, and cross-attention on both sides."""
    assert saved.model is not None and saved.rule is not None
    config = saved.model.config
    return (
        isinstance(saved.scorer, EntropyModel)
        and not saved.scorer.config.reset_at_newline
        and (saved.rule.kind, saved.rule.max_patch_bytes) == ("threshold", None)
        and not (config.encoder_cross_attn_all_layers and config.encoder.layers > 1)
        and config.encoder.window == config.decoder.window
        and config.latent.window is None
        and bool(config.encoder.layers and config.ngrams.sizes)
        and (config.pooling, config.pooled_bytes) == ("max", 1)
        and config.encoder_cross_attn
        and config.decoder_cross_attn
    )


@torch.no_grad()
def logits_of(found: Bundle, ids: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] of one row."""
    assert found.model is not None and found.rule is not None
    row = torch.tensor([list(ids)])
    scores = None if found.scorer is None else found.scorer.scores(row)  # type: ignore[union-attr]
    patches = patch(found.rule, row, scores, documents=found.model.config.document_masks)
    return cast(torch.Tensor, found.model(row, patches)[0])


@settings(max_examples=25, deadline=None)
@given(case=tiny.cases(), plain=st.booleans())
def test_saved_and_loaded(case: tiny.Case, plain: bool) -> None:
    model, scorer, rule = case.model, case.scorer, case.rule
    if plain:  # no draw would have all that Hugging Face's model asks for
        config = model.config
        config = config.replace(
            encoder=config.encoder.replace(layers=max(1, config.encoder.layers)),
            latent=config.latent.replace(window=None),
            decoder=config.decoder.replace(window=config.encoder.window),
            ngrams=config.ngrams.replace(sizes=config.ngrams.sizes or (3, 4)),
            pooling="max",
            pooled_bytes=1,
            encoder_cross_attn=True,
            encoder_cross_attn_all_layers=False,
            decoder_cross_attn=True,
        )
        model, rule = tiny.fill(Blt(config).double(), 3), parse_rule("threshold:threshold=4.5")
        entropy = EntropyConfig(width=8, layers=2, heads=2, kv_heads=1, ffn_width=12)
        scorer = tiny.fill(EntropyModel(entropy).double(), 4)
    saved = Bundle(model, scorer, rule, {"steps": 3})
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder) / "c", saved)
        found = load_bundle(Path(folder) / "c", dtype=torch.float64, verify=True)
        assert model_type(Path(folder) / "c") == ("blt" if expressible(saved) else "bltkit")
        assert expressible(saved) or not plain
    same(found, saved)
    assert torch.allclose(logits_of(found, case.ids), logits_of(saved, case.ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["entropy", "boundary", "cnn", "entropy-table"])
def test_scorer_alone(kind: str, tmp_path: Path) -> None:
    stack = {"width": 8, "layers": 2, "heads": 2, "ffn_width": 12}
    cnn = tiny.fill(CnnEntropy(CnnConfig(width=8)), 0)
    scorer = {
        "entropy": lambda: tiny.fill(EntropyModel(EntropyConfig(**stack, reset_at_newline=True)), 0),
        "boundary": lambda: tiny.fill(BoundaryModel(BoundaryConfig(**stack)), 0),
        "cnn": lambda: cnn,
        "entropy-table": cnn.table,
    }[kind]()
    saved = Bundle(None, scorer, parse_rule("threshold:threshold=1.5"))
    save_bundle(tmp_path / "c", saved)
    same(load_bundle(tmp_path / "c"), saved)
    assert model_type(tmp_path / "c") == f"bltkit-{kind}"
    if kind == "entropy":
        names = load_file(tmp_path / "c" / "model.safetensors").keys()
        assert {"embed_tokens.weight", "layers.1.self_attn.k_proj.weight", "norm.weight", "lm_head.weight"} <= names


def test_without_scorer(tmp_path: Path) -> None:
    saved = Bundle(bundle().model, None, parse_rule("stride:k=4.5"))
    save_bundle(tmp_path / "c", saved)
    same(load_bundle(tmp_path / "c"), saved)


def test_a_run_that_diverged_is_saved_too(tmp_path: Path) -> None:
    save_bundle(tmp_path / "c", Bundle(None, bundle().scorer, None, {"loss": float("nan"), "from": Path("a")}))
    assert load_bundle(tmp_path / "c").record == {"loss": None, "from": "a"}


def test_loaded_modules_are_whole(tmp_path: Path) -> None:
    """Built on the meta device: nothing may be left there, and what is computed at construction must be right."""
    saved = bundle()
    save_bundle(tmp_path / "c", saved)
    model = load_bundle(tmp_path / "c").model
    assert model is not None and saved.model is not None
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    for (name, ours), (_, theirs) in zip(model.named_buffers(), saved.model.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path: Path) -> None:
    saved = bundle()
    save_bundle(tmp_path / "c", saved)
    model = load_bundle(tmp_path / "c").model
    assert model is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    same(load_bundle(tmp_path / "c", verify=True), saved)


def test_half_precision_on_disk(tmp_path: Path) -> None:
    saved = bundle()
    save_bundle(tmp_path / "c", saved, dtype=torch.bfloat16)
    wide, stored = load_bundle(tmp_path / "c"), load_bundle(tmp_path / "c", dtype=torch.bfloat16)
    for name, tensor in tensors(saved).items():
        assert torch.equal(tensors(wide)[name], tensor.bfloat16().float()), name
        assert torch.equal(tensors(stored)[name], tensor.bfloat16()), name
    assert {name for name, tensor in tensors(wide).items() if tensor.dtype != torch.float32} == {"model.embed.ngrams"}
    assert {tensor.dtype for tensor in tensors(load_bundle(tmp_path / "c", dtype=torch.float32)).values()} == {
        torch.float32
    }
    assert {tensor.dtype for tensor in load_file(tmp_path / "c" / "model.safetensors").values()} == {torch.bfloat16}
    assert all(tensor.dtype == torch.float32 for tensor in tensors(saved).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_of_16_bits_are_computed_with_in_32(dtype: torch.dtype, tmp_path: Path) -> None:
    """And stay what they are when saved again, in a checkpoint whose dtype is the rest's."""
    save_bundle(tmp_path / "c", bundle(), dtype=dtype)
    kept, wide = load_bundle(tmp_path / "c"), load_bundle(tmp_path / "c", dtype=torch.float32)
    assert kept.model is not None and wide.model is not None
    assert (kept.model.embed.ngrams.dtype, wide.model.embed.ngrams.dtype) == (dtype, torch.float32)
    row = torch.randint(4, 260, (2, 1500))
    assert torch.allclose(kept.model.embed(row), wide.model.embed(row), rtol=0, atol=1e-6)
    ids = [1, *range(4, 40)]
    assert torch.allclose(logits_of(kept, ids), logits_of(wide, ids), rtol=0, atol=1e-5)
    save_bundle(tmp_path / "again", kept)
    same(load_bundle(tmp_path / "again"), kept)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "float32"
    kept.model.embed(row).sum().backward()
    assert kept.model.embed.ngrams.grad is not None and kept.model.embed.ngrams.grad.dtype == dtype


def test_shards(tmp_path: Path) -> None:
    saved = bundle()
    save_bundle(tmp_path / "one", saved)
    save_bundle(tmp_path / "c", saved, max_shard_bytes=10_000)
    shards = sorted(path.name for path in (tmp_path / "c").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for shard in shards:
        stored = load_file(tmp_path / "c" / shard)
        assert all(index["weight_map"][name] == shard for name in stored)
        # Only a tensor that is larger by itself makes a larger file.
        assert len(stored) == 1 or sum(tensor.nbytes for tensor in stored.values()) <= 10_000
    same(load_bundle(tmp_path / "c", verify=True), saved)


def test_a_run_directory_of_links_is_a_checkpoint(tmp_path: Path) -> None:
    saved = bundle()
    save_bundle(tmp_path / "step-00000010", saved)
    (tmp_path / "latest").symlink_to("step-00000010")
    for name in ("config.json", "model.safetensors", "bltkit.json"):
        (tmp_path / name).symlink_to(f"latest/{name}")
    for path in (tmp_path, tmp_path / "latest"):
        same(load_bundle(path, verify=True), saved)


@pytest.mark.parametrize(
    "before, after", [("threshold:threshold=2.5", "stride:k=4.5"), ("stride:k=4.5", "threshold:threshold=1.5")]
)
def test_another_rule_for_the_same_weights(before: str, after: str, tmp_path: Path) -> None:
    """Also through the links of a run directory, which stay links."""
    saved = bundle(before)
    save_bundle(tmp_path / "c", saved, dtype=torch.bfloat16)
    for name in ("config.json", "model.safetensors", "bltkit.json"):
        (tmp_path / name).symlink_to(f"c/{name}")
    store_rule(tmp_path, parse_rule(after))
    save_bundle(tmp_path / "direct", replace(saved, rule=parse_rule(after)), dtype=torch.bfloat16)
    for name in ("config.json", "model.safetensors", "bltkit.json"):
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


@few
@given(
    config=tiny.models(others=False),
    seed=st.integers(0, 2**16),
    ids=hf.rows(),
    shard=st.sampled_from([5_000_000_000, 9_000]),
)
def test_transformers_gives_our_logits(config: BltConfig, seed: int, ids: tuple[int, ...], shard: int) -> None:
    """For one document a row, also where our model masks documents."""
    pytest.importorskip("transformers")
    config = config.replace(
        document_masks=True,
        encoder_cross_attn_all_layers=config.encoder_cross_attn_all_layers and config.encoder.layers == 1,
        latent=config.latent.replace(window=None),
        decoder=config.decoder.replace(window=config.encoder.window, rope_theta=1234.0),
    )
    entropy = EntropyConfig(width=8, layers=2, heads=2, kv_heads=1, ffn_width=12, window=6, norm_eps=1e-4)
    model, scorer = tiny.fill(Blt(config), seed), tiny.fill(EntropyModel(entropy), seed + 1, head=4.0)
    row = torch.tensor([ids])
    scores = scorer.scores(row)
    rule = parse_rule({"kind": "threshold", "threshold": hf.threshold_in_gap(scores[0].numpy())})
    with torch.no_grad():
        logits = model(row, patch(rule, row, scores))[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder) / "c", Bundle(model, scorer, rule), max_shard_bytes=shard)
        theirs = hf.load(Path(folder) / "c")
    assume(hf.rounding_error(theirs, ids) < CLEAR)
    assert np.abs(hf.entropies(theirs, ids) - scores[0].numpy()).max() < TOLERANCE
    assert np.abs(hf.logits(theirs, ids) - logits).max() < TOLERANCE


REFUSED = {
    "stride": bundle("stride:k=4.5"),
    "max_patch_bytes": bundle("threshold:threshold=2.5,max_patch_bytes=8"),
    "single_residual": bundle(quirks=Quirks(doubled_residual=False)),
    "averaged_ngrams": bundle(quirks=Quirks(averaged_ngrams=True)),
    "no_ngrams": bundle(ngrams=NgramConfig(sizes=())),
    "no_encoder_cross": bundle(encoder_cross_attn=False),
    "no_decoder_cross": bundle(decoder_cross_attn=False),
    "mean": bundle(pooling="mean"),
    "no_encoder_layers": bundle(encoder=StackConfig(width=16, layers=0, heads=2, ffn_width=20, window=9)),
    "scorer_alone": Bundle(None, bundle().scorer, None),
}
"""Checkpoints that transformers alone cannot read, by what it lacks."""

LOAD_ALL = """
import json, sys
import transformers

refusals = {}
for directory in sys.argv[1:]:
    for name in ("AutoConfig", "AutoModelForCausalLM", "BltForCausalLM"):
        try:
            getattr(transformers, name).from_pretrained(directory)
        except Exception as error:
            refusals[f"{directory}:{name}"] = str(error)
print(json.dumps(refusals))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Errors of transformers by "NAME:CLASS", raised in a process without our package: once `bltkit.hf` has been
    imported, as another test of this process may have done, the Auto classes load these checkpoints."""
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("refused")
    for name, saved in REFUSED.items():
        save_bundle(directory / name, saved)
    command = [sys.executable, "-c", LOAD_ALL, *REFUSED]
    process = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=600)
    assert process.returncode == 0, process.stderr
    errors: dict[str, str] = json.loads(process.stdout)
    return errors


@pytest.mark.parametrize("name", list(REFUSED))
@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModelForCausalLM", "BltForCausalLM"])
def test_transformers_refuses_what_it_would_get_wrong(name: str, kind: str, refusals: dict[str, str]) -> None:
    assert "bltkit" in refusals[f"{name}:{kind}"]


def test_their_repooling_encoder_is_ours_with_one_cross_attention(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a plain directory, cross-attention in all of several encoder layers: only the last takes effect there."""
    pytest.importorskip("transformers")
    shape = hf.Shape(encoder=hf.Stack(layers=3), encoder_every_layer=True)
    ids = hf.text_ids("only the last one counts")
    theirs = hf.build(hf.Case(shape, seed=4, ids=ids))
    hf.save(theirs, tmp_path / "theirs")
    found = load_bundle(tmp_path / "theirs")
    assert "only the last takes effect" in caplog.text
    assert found.model is not None and not found.model.config.encoder_cross_attn_all_layers
    save_bundle(tmp_path / "ours", found)
    assert np.abs(hf.logits(hf.load(tmp_path / "ours"), ids) - hf.logits(theirs, ids)).max() < TOLERANCE
    assert np.abs(logits_of(found, ids).numpy() - hf.logits(theirs, ids)).max() < TOLERANCE


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    target = save_bundle(tmp_path / "model", bundle())
    modes = {file.name: file.stat().st_mode for file in target.iterdir()}
    assert len(set(modes.values())) == 1, modes
