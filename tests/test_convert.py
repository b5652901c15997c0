"""`blt convert`: nothing is lost on the way, nothing is assumed, and what is wrong with a file costs one line."""

import importlib.util
import json
import math
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bltkit
from bltkit import cli
from bltkit.checkpoint import hf_config, load_bundle, store_rule
from bltkit.convert import convert, stream
from bltkit.patching import BothRule, RiseRule, ThresholdRule
from tests import meta_layout
from tests.meta_layout import edit, write_hub, write_original
from tests.shared import SHARED

LAYOUTS = {"original": write_original, "hub": write_hub}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder in one of Meta's layouts; the entropy model's behind `entropy:`."""
    model = (
        load_file(folder / "model.safetensors")
        if (folder / "model.safetensors").exists()
        else torch.load(folder / "blt" / "consolidated.pth", weights_only=True)["model"]
    )
    entropy = torch.load(folder / "entropy_model" / "consolidated.pth", weights_only=True)["model"]
    return {**model, **{f"entropy:{name}": tensor for name, tensor in entropy.items()}}


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal names, dtypes, shapes and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def contents(folder: Path, *, but: str = "") -> dict[str, bytes]:
    """Every file of a folder; names that end with `but` left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not (but and path.name.endswith(but)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> str:
    """The one line of a conversion that fails with status 2 and leaves nothing behind."""
    out = source.parent / "new" / "out"
    before = sorted(source.parent.rglob("*"))
    assert cli.main(["convert", str(source), str(out), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("blt: ") and captured.err.count("\n") == 1, captured.err
    assert sorted(source.parent.rglob("*")) == before
    return captured.err


# There and back


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_meta_there_and_back(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = LAYOUTS[layout](tmp_path / "meta", entropy_dtype=dtype)
    result = convert(source, tmp_path / "ours")
    back = convert(tmp_path / "ours", tmp_path / "back", to="meta")
    assert (result.source, result.target) == (back.target, back.source)
    assert same_tensors(tensors_of(source), tensors_of(tmp_path / "back"))
    # The zip archives of torch.save hold a number of their own, everything else is the same file.
    assert contents(source, but=".pth") == contents(tmp_path / "back", but=".pth")
    bundle = load_bundle(tmp_path / "ours", dtype=None, verify=True)
    assert bundle.scorer is not None and bundle.model is not None


def test_hugging_face_there_and_back(tmp_path: Path) -> None:
    convert(write_original(tmp_path / "meta"), tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf" / "bltkit.json").exists()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"transformers_version": "5"}))
    (tmp_path / "hf" / "generation_config.json").write_text("{}")
    (tmp_path / "hf" / "README.md").write_text("# A card\n")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"left where it is")
    convert(tmp_path / "hf", tmp_path / "ours")
    (tmp_path / "ours" / "README.md").write_text("# A longer card\n")  # people edit it
    convert(tmp_path / "ours", tmp_path / "back", to="hf")
    card = {"README.md": b"# A longer card\n"}
    assert contents(tmp_path / "hf", but=".bin") | card == contents(tmp_path / "back")


def test_hugging_face_to_meta_and_back(tmp_path: Path) -> None:
    convert(write_original(tmp_path / "meta"), tmp_path / "hf", to="hf")
    assert convert(tmp_path / "hf", tmp_path / "pth", to="meta").target == "meta-pth"
    assert same_tensors(tensors_of(tmp_path / "meta"), tensors_of(tmp_path / "pth"))
    convert(tmp_path / "pth", tmp_path / "back", to="hf")
    assert contents(tmp_path / "hf") == contents(tmp_path / "back")


def test_another_rule_changes_its_fields_alone(tmp_path: Path) -> None:
    source = write_original(tmp_path / "meta")
    convert(source, tmp_path / "ours")
    store_rule(tmp_path / "ours", ThresholdRule(threshold=2.25, max_patch_bytes=7))
    convert(tmp_path / "ours", tmp_path / "back", to="meta")
    assert same_tensors(tensors_of(source), tensors_of(tmp_path / "back"))
    old = json.loads((source / "entropy_model" / "params.json").read_text())
    new = json.loads((tmp_path / "back" / "entropy_model" / "params.json").read_text())
    old["data"]["patcher_args"] |= {"threshold": 2.25, "max_patch_length": 7}
    assert new == old


@pytest.mark.parametrize("to", ["ours", "meta", "hf"])
def test_a_model_of_the_package(to: str, tmp_path: Path) -> None:
    convert("bltkit:tiny", tmp_path / "out", to=to)
    convert(tmp_path / "out", tmp_path / "again")
    text = b"The same logits, after whatever way."
    ids = [1, *(byte + 4 for byte in text)]
    assert torch.equal(bltkit.load("bltkit:tiny").logits(ids), bltkit.load(tmp_path / "again").logits(ids))


# What is read


def test_every_value_is_the_files(tmp_path: Path) -> None:
    convert(write_hub(tmp_path / "meta"), tmp_path / "ours")
    bundle = load_bundle(tmp_path / "ours")
    assert bundle.model is not None and bundle.rule == ThresholdRule(threshold=1.40625)
    model, scorer = bundle.model.config, bundle.scorer.config  # type: ignore[union-attr]
    for stack, width, layers, heads, kv_heads, ffn in (
        (model.encoder, 16, 1, 2, 2, 48),
        (model.decoder, 16, 2, 2, 2, 48),
        (model.latent, 48, 2, 6, 3, 128),
    ):
        assert (stack.width, stack.layers, stack.heads, stack.num_kv_heads, stack.ffn) == (
            width, layers, heads, kv_heads, ffn,
        )  # fmt: skip
        assert (stack.rope_theta, stack.norm_eps) == (123456.0, 2e-5)
    assert (model.encoder.window, model.decoder.window, model.latent.window) == (20, 20, None)
    assert (model.max_positions, model.max_patch_positions, model.cross_attn_k) == (700, 300, 2)
    assert (model.ngrams.sizes, model.ngrams.buckets, model.ngrams.functions) == ((3, 5), 31, 2)
    assert (model.encoder_cross_attn_all_layers, model.decoder_cross_attn_all_layers) == (False, True)
    assert (scorer.width, scorer.layers, scorer.heads, scorer.num_kv_heads, scorer.ffn) == (24, 2, 4, 2, 64)
    assert (scorer.window, scorer.rope_theta, scorer.norm_eps, scorer.max_positions) == (12, 77777.0, 3e-6, 900)


NAMES = {
    "local_decoder.output.weight": "lm_head.weight",
    "local_encoder.tok_embeddings.weight": "model.local_encoder.embed_tokens.weight",
    "global_transformer.layers.1.feed_forward.w1.weight": "model.global_transformer.layers.1.mlp.gate_proj.weight",
    "global_transformer.layers.1.feed_forward.w3.weight": "model.global_transformer.layers.1.mlp.up_proj.weight",
    "local_decoder.cross_attn_layers.1.cross_attn_norm_kv.weight": (
        "model.local_decoder.cross_attn_layers.1.k_norm.weight"
    ),
    "entropy:output.weight": "model.patcher.lm_head.weight",
    "entropy:layers.0.ffn_norm.weight": "model.patcher.layers.0.post_attention_layernorm.weight",
}


def test_names_of_tensors(tmp_path: Path) -> None:
    source = write_original(tmp_path / "meta")
    bltkit.convert(source, tmp_path / "ours")
    theirs, ours = tensors_of(source), load_file(tmp_path / "ours" / "model.safetensors")
    for name, converted in NAMES.items():
        assert torch.equal(theirs[name], ours[converted])
    tables = [theirs[f"encoder_hash_tok_embedding.{index}.weight"] for index in range(4)]
    assert torch.equal(torch.cat(tables), ours["model.encoder_hash_tok_embedding.weight"])


@pytest.mark.parametrize(
    "fields, rule",
    [
        ({"monotonicity": True}, RiseRule(rise=1.40625)),
        ({"monotonicity": True, "max_patch_length": 9}, RiseRule(rise=1.40625, max_patch_bytes=9)),
        ({"threshold_add": 0.5}, BothRule(threshold=1.40625, rise=0.5, skip_third=True)),
        ({"max_patch_length": 12}, ThresholdRule(threshold=1.40625, max_patch_bytes=12)),
    ],
    ids=str,
)
def test_rules_that_hugging_face_does_not_know(
    fields: dict[str, Any], rule: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_original(tmp_path / "meta")
    for key, value in fields.items():
        edit(source / "entropy_model" / "params.json", "data.patcher_args", key, value)
    assert "Hugging Face's format" in refused(capsys, source, "--to", "hf")
    convert(source, tmp_path / "ours")
    assert load_bundle(tmp_path / "ours").rule == rule
    store_rule(tmp_path / "ours", ThresholdRule(threshold=1.0))
    store_rule(tmp_path / "ours", rule)
    convert(tmp_path / "ours", tmp_path / "back", to="meta")
    assert contents(source, but=".pth") == contents(tmp_path / "back", but=".pth")


def test_an_entropy_model_without_a_window(tmp_path: Path) -> None:
    source = write_original(tmp_path / "meta")
    edit(source / "entropy_model" / "params.json", "entropy_model", "attn_bias_type", "causal")
    edit(source / "entropy_model" / "params.json", "entropy_model", "sliding_window")
    convert(source, tmp_path / "ours")
    assert load_bundle(tmp_path / "ours").scorer.config.window is None  # type: ignore[union-attr]


def test_what_is_left_out_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "meta")
    entropy = source / "entropy_model"
    tensors = torch.load(entropy / "consolidated.pth", weights_only=True)["model"]
    (entropy / "consolidated.pth").unlink()
    extra = {"rope_embeddings.freqs_cis": torch.zeros(3), "step": 7}
    torch.save({"state_dict": tensors | extra, "optimizer": {}}, entropy / "consolidated_with_rope.pth")
    assert cli.main(["convert", str(source), str(tmp_path / "ours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        f"not used, 2 fields of {source}/blt/params.json: data, model.seed",
        f"not used, 3 fields of {entropy}/params.json: name, data.seq_len, entropy_model.dropout",
        f"not used, 3 tensors of {entropy}/consolidated_with_rope.pth: rope_embeddings.freqs_cis, optimizer, step",
        "licence: LICENSE",
    ]
    assert (tmp_path / "ours" / "LICENSE").read_bytes() == b"Terms\r\nof use\n"
    assert cli.main(["convert", str(source), str(tmp_path / "two"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["unused_fields"][f"{source}/blt/params.json"] == ["data", "model.seed"]


def test_tensors_without_a_wrapper(tmp_path: Path) -> None:
    source = write_original(tmp_path / "meta")
    tensors = torch.load(source / "blt" / "consolidated.pth", weights_only=True)["model"]
    torch.save(tensors, source / "blt" / "consolidated.pth")
    assert not convert(source, tmp_path / "ours").unused_tensors


# Where things lie


def test_places_of_the_entropy_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "meta")
    (source / "entropy_model" / "LICENSE").write_text("Other terms")
    beside = convert(source / "blt", tmp_path / "beside")
    assert beside.companions == ("LICENSE", "entropy_model-LICENSE")
    assert contents(tmp_path / "beside")["LICENSE"] == (source / "LICENSE").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(source / "entropy_model", elsewhere)
    assert "has no entropy model" in (line := refused(capsys, source)) and "--entropy" in line
    named = convert(source, tmp_path / "named", entropy=elsewhere)
    assert named.companions == ("LICENSE", "elsewhere-LICENSE")
    assert "LICENSE" in convert(source / "blt", tmp_path / "inner", entropy=elsewhere).companions
    weights = "model.safetensors"
    assert (tmp_path / "named" / weights).read_bytes() == (tmp_path / "beside" / weights).read_bytes()
    assert "is no entropy model" in refused(capsys, source, "--entropy", str(tmp_path))
    assert "--entropy DIR" in refused(capsys, elsewhere)
    shutil.copytree(source / "blt", source / "blt_7b")
    assert "holds blt and blt_7b; name one" in refused(capsys, source, "--entropy", str(elsewhere))


def test_sources_and_targets_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "meta")
    assert "no such directory" in refused(capsys, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds neither config.json nor params.json" in refused(capsys, tmp_path / "empty")
    assert cli.main(["convert", str(source), str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did you mean 'meta'"):
        convert(source, tmp_path / "x", to="mets")
    convert(source, tmp_path / "ours")
    assert "leave out --entropy" in refused(capsys, tmp_path / "ours", "--entropy", str(source / "entropy_model"))
    with pytest.raises(ValueError, match="`blt convert "):
        load_bundle(write_hub(tmp_path / "hub"))


def test_models_without_a_place_in_meta_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(write_original(tmp_path / "meta"), tmp_path / "ours")
    store_rule(tmp_path / "ours", BothRule(threshold=1.0, rise=0.5))
    assert "skip_third = False" in refused(capsys, tmp_path / "ours", "--to", "meta")
    shutil.copytree(tmp_path / "ours", tmp_path / "stride")
    store_rule(tmp_path / "stride", bltkit.load("bltkit:tiny").with_patching("stride:k=4").rule)  # type: ignore[arg-type]
    assert "know rules of entropies only" in refused(capsys, tmp_path / "stride", "--to", "meta")


# Bad fields

FIELDS = (
    ("blt/params.json", "model", [key for key in meta_layout.ARGS if key != "seed"]),
    ("entropy_model/params.json", "entropy_model",
     [key for key in meta_layout.PARAMS["entropy_model"] if key != "dropout"]),
    ("entropy_model/params.json", "data.patcher_args",
     [key for key in meta_layout.PARAMS["data"]["patcher_args"] if key != "patching_mode"]),
    ("entropy_model/params.json", "data", ["patcher_args"]),
    ("entropy_model/params.json", "", ["entropy_model", "data"]),
)  # fmt: skip


@pytest.mark.parametrize("file, section, keys", FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_missing_field_is_named(file: str, section: str, keys: list[str], tmp_path: Path) -> None:
    source = write_original(tmp_path / "meta")
    before = (source / file).read_bytes()
    for key in keys:
        edit(source / file, section, key)
        name = f"{section}.{key}".lstrip(".")
        with pytest.raises(ValueError, match=rf"{re.escape(file)}: field {re.escape(name)} is missing"):
            convert(source, tmp_path / "out")
        (source / file).write_bytes(before)
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out")  # with all of them


@pytest.mark.parametrize(
    "file, section, key, value, expected",
    [
        ("blt", "model", "dim_global", "48", "field model.dim_global is '48'; expected an integer"),
        ("blt", "model", "dim_global", True, "field model.dim_global is True; expected an integer"),
        ("blt", "model", "dim_global", 0, "field model.dim_global is 0; expected a positive integer"),
        ("blt", "model", "dim_global", 2**40, "expected an integer below 2^31"),
        ("blt", "model", "n_layers_global", 10**9, "describes 1000000005 layers"),
        ("blt", "model", "n_layers_global", -1, "latent.layers"),
        ("blt", "model", "encoder_hash_byte_group_nb_functions", 10**8, "n-gram tables"),
        ("blt", "model", "encoder_hash_byte_group_size", [], "expected a list of integers"),
        ("blt", "model", "encoder_hash_byte_group_size", [3, "5"], "expected a list of integers"),
        ("blt", "model", "rope_theta", None, "field model.rope_theta is None; expected a number"),
        ("blt", "model", "norm_eps", "1e-5", "expected a number"),
        ("blt", "model", "cross_attn_all_layers_decoder", 1, "expected true or false"),
        ("blt", "model", "vocab_size", 256, "field model.vocab_size is 256; expected 260"),
        ("blt", "model", "n_kv_heads_global", 4, "must divide heads"),
        ("blt", "model", "dim_local_decoder", 32, "encoder.width 16 and decoder.width 32"),
        ("blt", "", "model", [1], "field model is [1]; expected an object"),
        ("entropy_model", "entropy_model", "attn_bias_type", "alibi", "'local_block_causal' (a window) or 'causal'"),
        ("entropy_model", "entropy_model", "sliding_window", None, "entropy_model.sliding_window is None"),
        ("entropy_model", "data.patcher_args", "threshold", None, "data.patcher_args.threshold is None"),
        ("entropy_model", "data.patcher_args", "patching_mode", "space", "is 'space'; expected 'entropy'"),
        ("entropy_model", "data.patcher_args", "max_patch_length", 0, "max_patch_bytes"),
    ],
)
def test_a_wrong_field_is_named(
    file: str, section: str, key: str, value: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_original(tmp_path / "meta")
    edit(source / file / "params.json", section, key, value)
    line = refused(capsys, source)
    assert expected in line and f"{source}/{file}/params.json" in line


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model": {"x": NaN}}', "\xff\xfe"], ids=repr)
def test_a_file_that_is_no_json_object(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "meta")
    (source / "blt" / "params.json").write_bytes(text.encode("latin-1"))
    assert f"{source}/blt/params.json" in refused(capsys, source)


# Bad weights


class Bomb:
    """What runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


def change(edit_tensors: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        edit_tensors(content["model"])
        torch.save(content, path)

    return apply


def flip(path: Path) -> None:
    """One bit in the middle of the tensors."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


NORM = "local_decoder.norm.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an object": (lambda path: torch.save({"model": {"a": Bomb()}}, path), "holds more than tensors"),
    "an object beside": (change(lambda tensors: tensors.update(a=Bomb())), "holds more than tensors"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})), "is a pickle"),
    "the old format": (
        lambda path: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        "is a pickle",
    ),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "is damaged or incomplete"),
    "the beginning alone": (lambda path: path.write_bytes(path.read_bytes()[:2]), "is no .pth file"),
    "empty": (lambda path: path.write_bytes(b""), "is no .pth file"),
    "a bit": (flip, "Bad CRC-32"),
    "no tensors": (lambda path: torch.save({"model": {"a": 1}}, path), "holds no tensors under 'model'"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "holds a list"),
    "a tensor is missing": (change(lambda tensors: tensors.pop(NORM)), f"tensor {NORM} is missing"),
    "a tensor's shape": (
        change(lambda tensors: tensors.update({NORM: torch.ones(17)})),
        f"tensor {NORM} has shape [17], but",
    ),
    "a table's shape": (
        change(lambda tensors: tensors.update({"encoder_hash_tok_embedding.1.weight": torch.ones(30, 16)})),
        "tensor encoder_hash_tok_embedding.1.weight has shape [30, 16], but",
    ),
    "tables of two dtypes": (
        change(lambda tensors: tensors.update({"encoder_hash_tok_embedding.1.weight": torch.ones(31, 16)})),
        "have two dtypes",
    ),
    "integers": (
        change(lambda tensors: tensors.update({NORM: torch.ones(16, dtype=torch.int64)})),
        f"tensor {NORM} has dtype int64",
    ),
    "sparse": (
        change(lambda tensors: tensors.update({"local_decoder.output.weight": torch.ones(260, 16).to_sparse()})),
        "stored in full",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    "nothing": (lambda path: path.unlink(), "holds no weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_pickles(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "meta")
    harm, expected = DAMAGES[damage]
    harm(source / "blt" / "consolidated.pth")
    capsys.readouterr()
    line = refused(capsys, source)
    assert expected in line and str(source / "blt") in line


def test_pickles_without_checksums(tmp_path: Path) -> None:
    """torch writes zeros where it was told to; that is no damage."""
    torch.serialization.set_crc32_options(False)
    try:
        source = write_original(tmp_path / "meta")
    finally:
        torch.serialization.set_crc32_options(True)
    convert(source, tmp_path / "ours")


@pytest.mark.parametrize("place", ["hub", "ours", "hf"])
def test_bad_safetensors(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_hub(tmp_path / "hub")
    if place != "hub":
        convert(source, tmp_path / place, to=place)
    folder = tmp_path / place
    weights = folder / "model.safetensors"
    sound = weights.read_bytes()
    for data in (sound[:-10], sound[:100], b"", b"\xff" * 64):
        weights.write_bytes(data)
        assert str(weights) in refused(capsys, folder)
    tensors = load_file(write_hub(tmp_path / "again") / "model.safetensors") if place == "hub" else None
    if place == "ours":  # one bit, which bltkit.json tells
        weights.write_bytes(sound[:-5] + bytes([sound[-5] ^ 1]) + sound[-4:])
        assert "sha256" in refused(capsys, folder)
    if tensors is not None:
        tensors["local_decoder.norm.weight"] = torch.ones(3)
        save_file(tensors, weights)
        assert "tensor local_decoder.norm.weight has shape [3], but" in refused(capsys, folder)
    weights.unlink()
    assert str(folder) in refused(capsys, folder)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_original(tmp_path / "meta")

    def full(tensor: Tensor) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream, "_slices", full)
    with pytest.raises(OSError, match=r"needs [0-9,]+ bytes"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


@pytest.mark.parametrize("to", ["ours", "hf", "meta"])
def test_the_system_stops_the_writing(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond 20 kB: as near to a full disk as a test gets without being root."""
    source = write_original(tmp_path / "meta")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert cli.main(["convert", str(source), str(tmp_path / "out"), "--to", to]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


# The writer


def test_the_stream_is_what_the_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SLICE_BYTES", 100)
    whole = torch.randn(37, 12)
    tensors: dict[str, Tensor] = {
        "wide": torch.randn(5, 3, dtype=torch.float64), "ö": torch.randn(7), "half": torch.randn(9).half(),
        "b": torch.randn(31, 7).bfloat16(), "scalar": torch.tensor(2.5), "none": torch.empty(0, 4),
        "turned": torch.randn(8, 6).T, "stacked": whole,
    }  # fmt: skip
    stacks = {name: [tensor] for name, tensor in tensors.items()} | {"stacked": list(whole.split(10))}
    entry = stream.write_stream(tmp_path / "ours", stacks)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", {"format": "pt"})
    data = (tmp_path / "ours").read_bytes()
    assert data == (tmp_path / "theirs").read_bytes()
    assert entry.bytes == len(data)


def test_shards(tmp_path: Path) -> None:
    tensors = {name: torch.randn(10, 10) for name in "abc"}
    stacks = {name: [tensor] for name, tensor in tensors.items()}
    entries = stream.write_shards(tmp_path, stacks, 800)
    assert sorted(entries) == sorted(path.name for path in tmp_path.iterdir())
    assert len(entries) == 3 and "model.safetensors.index.json" in entries
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 1200
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


# Hugging Face's side


def make_meta() -> Any:
    """The script that draws a model of `transformers` and writes it in Meta's layouts."""
    if SHARED is None or not (path := SHARED / "tools" / "make_meta.py").exists():
        pytest.skip("needs the shared tools")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("make_meta", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def equals_transformers(folder: Path, seed: int) -> float:
    """Convert both layouts of one drawn model; tensors, settings and logits must be those of the original.

    Returns the largest difference of our logits.
    """
    from transformers import BltForCausalLM

    from bltkit.convert.meta_config import settings_of

    make_meta().main(folder, seed)
    wanted = load_file(folder / "hf" / "model.safetensors")
    theirs = load_bundle(folder / "hf")
    for layout in ("hub", "original"):
        convert(folder / layout, folder / "ours" / layout)
        out = folder / "ours" / layout
        assert same_tensors(load_file(out / "model.safetensors"), wanted)
        ours = load_bundle(out)
        assert settings_of(ours.model.config, ours.scorer.config, ours.rule) == settings_of(  # type: ignore[union-attr, arg-type]
            theirs.model.config, theirs.scorer.config, theirs.rule  # type: ignore[union-attr, arg-type]
        )  # fmt: skip
        convert(out, folder / "back" / layout, to="meta")
        assert contents(folder / layout, but=".pth") == contents(folder / "back" / layout, but=".pth")
        assert same_tensors(tensors_of(folder / layout), tensors_of(folder / "back" / layout))
    convert(folder / "hf", folder / "ours" / "hf")
    convert(folder / "ours" / "hf", folder / "back" / "hf", to="hf")
    assert contents(folder / "hf") == contents(folder / "back" / "hf", but="README.md")
    ids = [1, *(byte + 4 for byte in "A sentence of bytes, längere Wörter, 1234.".encode())]
    models = [
        BltForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (folder / "hf", folder / "ours" / "original")
    ]
    with torch.no_grad():
        original, converted = (model(torch.tensor([ids]), use_cache=False).logits[0] for model in models)
    assert torch.equal(original, converted)
    return float((original - bltkit.load(folder / "ours" / "hub").logits(ids)).abs().max())


@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers(seed: int, tmp_path: Path) -> None:
    assert equals_transformers(tmp_path, seed) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 53))
def test_equals_transformers_for_many(seed: int, tmp_path: Path) -> None:
    assert equals_transformers(tmp_path, seed) < 1e-5


def test_weights_that_only_hugging_face_stores(tmp_path: Path) -> None:
    """Tied heads are written out, and blocks without effect are left out and reported."""
    pytest.importorskip("transformers")
    from tests import hf

    ids = hf.text_ids("Some words, some more words.")
    shape = hf.Shape(encoder=hf.Stack(layers=2), encoder_every_layer=True)
    hf.save(hf.build(hf.Case(shape, 3, ids)), tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    result = convert(tmp_path / "hf", tmp_path / "ours")
    (unused,) = result.unused_tensors.values()
    assert unused and all(name.startswith("model.local_encoder.cross_attn_layers.0.") for name in unused)
    ours = bltkit.load(tmp_path / "ours", verify=True)
    assert torch.equal(bltkit.load(tmp_path / "hf").logits(ids), ours.logits(ids))
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert not hf_config.read_config(written, tmp_path).tied


PUBLISHED = (
    " alex and i am a student at the university of michigan. i am a senior majoring in computer science and minoring "
    "in mathematics. i am also a member of the michigan math club and the michigan computer s"
)
"""Greedy text of the 1B after "my name is", as transformers' tests pin it."""
PUBLISHED_IDS, PUBLISHED_LOGITS = [1, 42, 21, 12, 43, 23, 1, 4], torch.tensor([-10.5, -10.6875, -6.25])
"""A row of ids, and the first logits of its first or last position (the source names none), in steps of bfloat16."""


@pytest.mark.network
@pytest.mark.parametrize("name", ["itazap/blt-1b-hf", "facebook/blt-1b"])
def test_released_weights(name: str, tmp_path: Path) -> None:
    """The converted 1B writes what is published: 9 GB to fetch, 9 GB to write, and a login that accepted the terms."""
    convert(f"hf:{name}", tmp_path / "ours")
    assert (tmp_path / "ours" / "README.md").exists()
    lm = bltkit.load(tmp_path / "ours", verify=True)
    first, last = lm.logits(PUBLISHED_IDS)[[0, -1], :3]
    assert min((row - PUBLISHED_LOGITS).abs().max() for row in (first, last)) < 0.1
    assert lm.generate("my name is", max_bytes=len(PUBLISHED), temperature=0).text == PUBLISHED


# Memory

PEAK = """
import sys, threading, time
from pathlib import Path
import torch
from bltkit.convert import convert

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
done = True
watcher.join()
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process")
def test_memory_does_not_depend_on_the_model(tmp_path: Path) -> None:
    """Four tables of 0.6 GB each, there and back: less than 1 GB of anonymous memory, less than one table more."""
    width, buckets = meta_layout.LOCAL, 18_750_000
    source = write_original(tmp_path / "meta")
    edit(source / "blt" / "params.json", "model", "encoder_hash_byte_group_vocab", buckets)
    needed = 4 * 4 * buckets * width * 2
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of disk")
    drawn = torch.load(source / "blt" / "consolidated.pth", weights_only=True)["model"]
    for index in range(4):  # mapped, so that this process holds none of them either
        file = tmp_path / f"table{index}"
        table = torch.from_file(str(file), shared=True, size=buckets * width, dtype=torch.bfloat16)
        table.fill_(index + 1.0)
        drawn[f"encoder_hash_tok_embedding.{index}.weight"] = table.view(buckets, width)
    torch.save({"model": drawn}, source / "blt" / "consolidated.pth")
    del drawn, table
    for index in range(4):
        (tmp_path / f"table{index}").unlink()
    peaks = {}
    for start, end, to in (("meta", "ours", "ours"), ("ours", "back", "meta")):
        command = [sys.executable, "-c", PEAK, str(tmp_path / start), str(tmp_path / end), to]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[f"{start} to {end}"] = int(done.stdout)
        if start == "meta":
            shutil.rmtree(tmp_path / "meta")
    print({way: f"{peak / 1e6:.0f} MB" for way, peak in peaks.items()})
    assert max(peaks.values()) < min(1e9, buckets * width * 2)
    back = torch.load(tmp_path / "back" / "blt" / "consolidated.pth", weights_only=True, mmap=True)["model"]
    for index in range(4):
        table = back[f"encoder_hash_tok_embedding.{index}.weight"]
        assert math.isclose(float(table[0].float().mean()), index + 1) and torch.equal(table[0], table[-1])
    shutil.rmtree(tmp_path / "back")
    shutil.rmtree(tmp_path / "ours")
