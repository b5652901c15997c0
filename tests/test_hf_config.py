"""config.json of others: absent keys and older spellings mean here what they mean to transformers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bltkit.checkpoint import load_bundle
from bltkit.checkpoint.hf_config import DEFAULTS, expresses, read_config, write_config
from bltkit.model import blt_preset, entropy_preset
from bltkit.patching import ThresholdRule
from tests import hf

SMALL = {"hidden_size": 64, "num_attention_heads": 4}
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "small widths": dict.fromkeys(DEFAULTS, SMALL),
    "window null": {"local_attention_window_len": None},
    "encoder's own window is overruled": {"encoder_config": {"sliding_window": 7}},
    "patcher window null": {"patcher_config": {"sliding_window": None}},
    "older rope": {
        "encoder_config": {"rope_theta": 1234.0},
        "decoder_config": {"rope_theta": 7.0, "rope_scaling": None},
    },
    "both ropes": {
        "global_config": {"rope_theta": 1.5, "rope_parameters": {"rope_type": "default", "rope_theta": 99.0}}
    },
    "rope half said": {"patcher_config": {"rope_theta": 55.0, "rope_parameters": {"rope_type": "default"}}},
    "eps": {"encoder_config": {"norm_eps": 1e-3}, "global_config": {"rms_norm_eps": 1e-4}},
    "kv heads": {"decoder_config": {"num_key_value_heads": None}, "patcher_config": {"num_key_value_heads": 4}},
    "ffn null": {"encoder_config": {"intermediate_size": None}},
    "ffn of another width": {"encoder_config": {"hidden_size": 96}, "decoder_config": {"hidden_size": 96}},
    "decoder first layer": {"decoder_config": {"cross_attn_all_layers": False, "num_hidden_layers": 3}},
    "hash": {"encoder_hash_byte_group_size": [2, 5], "encoder_hash_byte_group_vocab": 11},
    "k": {"cross_attn_k": 4, "encoder_config": {"cross_attn_k": 4}, "decoder_config": {"cross_attn_k": 4}},
}


@pytest.mark.parametrize("name", CASES)
def test_read_as_transformers_does(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    data = CASES[name]
    theirs = transformers.BltConfig(**copy.deepcopy(data))  # it writes into what it is given
    read = read_config(data, Path("config.json"))
    assert read.scorer is not None
    stacks = {
        "encoder_config": read.model.encoder,
        "decoder_config": read.model.decoder,
        "global_config": read.model.latent,
        "patcher_config": read.scorer,
    }
    for key, stack in stacks.items():
        section = getattr(theirs, key)
        assert (stack.width, stack.layers, stack.heads, stack.num_kv_heads, stack.ffn, stack.norm_eps) == (
            section.hidden_size,
            section.num_hidden_layers,
            section.num_attention_heads,
            section.num_key_value_heads,
            section.intermediate_size,
            section.rms_norm_eps,
        ), key
        assert stack.rope_theta == section.rope_parameters["rope_theta"], key
    assert read.model.encoder.window == read.model.decoder.window == theirs.encoder_config.sliding_window
    assert read.scorer.window == theirs.patcher_config.sliding_window
    assert read.model.cross_attn_k == theirs.cross_attn_k
    assert read.model.decoder_cross_attn_all_layers == theirs.decoder_config.cross_attn_all_layers
    assert list(read.model.ngrams.sizes) == list(theirs.encoder_hash_byte_group_size)
    assert read.model.ngrams.buckets == theirs.encoder_hash_byte_group_vocab
    assert read.rule == ThresholdRule(threshold=theirs.patching_threshold)
    assert not read.model.document_masks and not read.scorer.document_masks


def test_released_shape_is_the_preset() -> None:
    """Transformers' defaults are the released 1B but for the encoder's FFN width, which is not rounded there."""
    read = read_config({"encoder_config": {"intermediate_size": 2816}}, Path("config.json"))
    rule = ThresholdRule(threshold=read.rule.threshold)
    assert read.scorer is not None
    assert write_config(read.model, read.scorer, rule) == write_config(blt_preset("1b"), entropy_preset("100m"), rule)


def test_written_config_is_complete() -> None:
    """Nothing of what is written falls back to a default there."""
    transformers = pytest.importorskip("transformers")
    model, scorer = blt_preset("tiny"), entropy_preset("tiny")
    written = write_config(model, scorer, ThresholdRule(threshold=1.25))
    theirs = transformers.BltConfig(**copy.deepcopy(written)).to_dict()
    for key, value in written.items():
        if isinstance(value, dict):
            assert {name: theirs[key][name] for name in value} == value, key
        elif key != "model_type":
            assert theirs[key] == value, key


def test_an_unknown_field_is_never_lost() -> None:
    """What the format cannot say shows as soon as it differs from its default."""
    model, scorer, rule = blt_preset("tiny"), entropy_preset("tiny"), ThresholdRule(threshold=1.25)
    assert expresses(model, scorer, rule)
    assert expresses(model.replace(document_masks=False), scorer, rule)
    assert expresses(model.replace(diffusion_block=8), scorer, rule)
    assert not expresses(model.replace(decoder_input="embedding"), scorer, rule)
    assert not expresses(model.replace(latent=model.latent.replace(window=8)), scorer, rule)
    assert not expresses(model.replace(decoder=model.decoder.replace(window=8)), scorer, rule)
    assert not expresses(model, scorer.replace(reset_at_newline=True), rule)
    assert not expresses(model, None, rule)
    assert not expresses(None, scorer, rule)


def test_max_patch_length_becomes_the_rules() -> None:
    read = read_config({"max_patch_length": 6}, Path("config.json"))
    assert read.rule.max_patch_bytes == 6


def test_patcher_may_be_absent() -> None:
    assert read_config({"patch_in_forward": False}, Path("config.json")).scorer is None


def test_tied_head(tmp_path: Path) -> None:
    """The head may be missing where config.json ties it; it is then a copy of the byte embedding."""
    pytest.importorskip("transformers")
    hf.save(hf.model_of(hf.Shape(), seed=1), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight is missing"):
        load_bundle(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = load_bundle(tmp_path).model
    assert model is not None
    embedding, head = model.embed.bytes.weight, model.decoder.head.weight
    assert torch.equal(embedding, head) and embedding.data_ptr() != head.data_ptr()
