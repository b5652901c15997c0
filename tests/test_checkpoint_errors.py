"""What can go wrong with a directory costs one clear line, never a half-written or a deleted checkpoint."""

import contextlib
import errno
import json
import pickle
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bltkit.checkpoint import (
    Bundle,
    atomic_directory,
    load_bundle,
    locate,
    resolve_model,
    save_bundle,
    weights,
    write_atomic,
)
from bltkit.checkpoint.licences import PATTERNS
from tests.test_checkpoint import bundle, same

Damage = Callable[[Path], Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "c", bundle())


def edit_json(name: str, **changes: Any) -> Damage:
    """Sets keys, `a__b` being b inside a; None takes a key out."""

    def edit(directory: Path) -> None:
        data = json.loads((directory / name).read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            table = data
            for part in outer:
                table = table[part]
            if value is None:
                del table[last]
            else:
                table[last] = value
        (directory / name).write_text(json.dumps(data))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return edit


def cut(name: str, size: int) -> Damage:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:size])


def write(name: str, text: str) -> Damage:
    return lambda directory: (directory / name).write_text(text)


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def plain(*then: Damage) -> Damage:
    """As somebody else would have published it: without bltkit.json."""

    def damage(directory: Path) -> None:
        remove("bltkit.json")(directory)
        for step in then:
            step(directory)

    return damage


def in_shards(directory: Path) -> None:
    save_bundle(directory, bundle(), overwrite=True, max_shard_bytes=20_000)


def without_second_shard(directory: Path) -> None:
    in_shards(directory)
    next(directory.glob("model-00002-*")).unlink()


Q = "model.local_decoder.layers.1.self_attn.q_proj.weight"
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "no config": (remove("config.json"), ["config.json is missing"]),
    "no weights": (remove("model.safetensors"), ["model.safetensors is missing", "bltkit.json lists it"]),
    "no weights at all": (plain(remove("model.safetensors")), ["holds no model.safetensors"]),
    "broken json": (cut("config.json", 40), ["config.json: not JSON"]),
    "json list": (write("config.json", "[]"), ["config.json holds no JSON object"]),
    "broken own json": (cut("bltkit.json", 40), ["bltkit.json: not JSON"]),
    "truncated": (cut("model.safetensors", 30_000), ["model.safetensors is damaged", "30000 bytes"]),
    "truncated, of somebody else": (
        plain(cut("model.safetensors", 30_000)),
        ["model.safetensors is no complete", "30000 bytes"],
    ),
    "empty": (cut("model.safetensors", 0), ["model.safetensors is damaged", "0 bytes"]),
    "empty, of somebody else": (
        plain(cut("model.safetensors", 0)),
        ["model.safetensors is no complete", "0 bytes"],
    ),
    "missing tensor": (plain(edit_tensors(lambda t: t.pop(Q))), ["model.safetensors", f"{Q} is missing"]),
    "unexpected": (
        plain(edit_tensors(lambda t: t.update(more=t[Q].clone()))),
        ["model.safetensors", "unexpected tensor more"],
    ),
    "shape": (plain(edit_tensors(lambda t: t.update({Q: t[Q][:-1].clone()}))), [Q, "[15, 16]", "[16, 16]"]),
    "dtype": (plain(edit_tensors(lambda t: t.update({Q: t[Q].to(torch.int8)}))), [Q, "I8", "floating point"]),
    "shard missing": (without_second_shard, ["model-00002-of", "is missing", "bltkit.json lists it"]),
    "shard of somebody else missing": (
        lambda d: (without_second_shard(d), remove("bltkit.json")(d)),
        ["model-00002-of", "is missing", "index.json names it"],
    ),
    "index leads out": (
        lambda d: (
            in_shards(d),
            plain(edit_json("model.safetensors.index.json", weight_map__x="../x.safetensors"))(d),
        ),
        ["index.json names '../x.safetensors"],
    ),
    "newer format": (edit_json("bltkit.json", format=99), ["bltkit.json has format 99", "upgrade"]),
    "unknown key": (edit_json("bltkit.json", model__encoder__widht=3), ["bltkit.json", "widht", "'width'"]),
    "two opinions": (
        edit_json("config.json", patching_threshold=9.0),
        ["disagree on patching_threshold", "9.0", "2.5"],
    ),
    "own without bltkit.json": (plain(edit_json("config.json", model_type="bltkit")), ["bltkit.json is missing"]),
    "other model": (plain(edit_json("config.json", model_type="llama")), ["holds a token model (a Llama)", "token:"]),
    "meta": (plain(write("config.json", '{"args": {}}')), ["model_type is None", "`blt convert"]),
    "patching mode": (
        plain(edit_json("config.json", patching_mode="space")),
        ["patching_mode is 'space'", "'entropy'"],
    ),
    "k": (plain(edit_json("config.json", decoder_config__cross_attn_k=3)), ["decoder_config.cross_attn_k is 3"]),
    "k absent": (
        plain(edit_json("config.json", cross_attn_k=4, encoder_config__cross_attn_k=None)),
        ["encoder_config.cross_attn_k is 2"],
    ),
    "activation": (plain(edit_json("config.json", global_config__hidden_act="gelu")), ["global_config.hidden_act"]),
    "rope": (
        plain(edit_json("config.json", patcher_config__rope_parameters={"rope_type": "yarn"})),
        ["patcher_config.rope_parameters", "'yarn'"],
    ),
    "vocabulary": (plain(edit_json("config.json", vocab_size=512)), ["vocab_size is 512", "260"]),
    "head width": (plain(edit_json("config.json", decoder_config__head_dim=32)), ["decoder_config.head_dim is 32"]),
    "heads": (plain(edit_json("config.json", global_config__num_attention_heads=3)), ["config.json", "heads 3"]),
    "not a number": (plain(edit_json("config.json", global_config__hidden_size="wide")), ["config.json", "'wide'"]),
    "no object": (plain(edit_json("config.json", global_config=7)), ["global_config is 7"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_directory(name: str, directory: Path) -> None:
    damage, words = DAMAGES[name]
    damage(directory)
    with pytest.raises(ValueError) as error:
        load_bundle(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_null_switches_patching_off_there_and_is_refused_here(directory: Path) -> None:
    remove("bltkit.json")(directory)
    config = json.loads((directory / "config.json").read_text())
    for key in ("patch_size", "patching_threshold"):
        (directory / "config.json").write_text(json.dumps(config | {key: None}))
        with pytest.raises(ValueError, match=f"{key} is null"):
            load_bundle(directory)


def test_changed_weights_are_found_on_demand(directory: Path) -> None:
    load_bundle(directory, verify=True)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    load_bundle(directory)
    with pytest.raises(ValueError, match="is damaged or changed"):
        load_bundle(directory, verify=True)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    for name in ("pytorch_model.bin", "consolidated.pth"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "blt"}')
        (folder / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError, match=rf"{name} but no model.safetensors.*pickles.*convert the weights"):
            load_bundle(folder)
    assert not (tmp_path / "ran").exists()


def test_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    for name, text in (("file", "is a file"), ("nothing", "does not exist"), ("broken", "does not exist")):
        with pytest.raises(ValueError, match=text):
            load_bundle(tmp_path / name)


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a model nor a scorer"):
        save_bundle(tmp_path / "c", Bundle(None, None, None))
    assert list(tmp_path.iterdir()) == []


def test_overwriting(directory: Path) -> None:
    new = bundle("threshold:threshold=1.5", seed=9)
    with pytest.raises(ValueError, match="exists already"):
        save_bundle(directory, new)
    same(load_bundle(directory), bundle())
    save_bundle(directory, new, overwrite=True)
    same(load_bundle(directory), new)
    (directory / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis.txt, which is no part of a checkpoint"):
        save_bundle(directory, new, overwrite=True)
    (directory / "thesis.txt").unlink()
    with pytest.raises(ValueError, match="is a file"):
        save_bundle(directory / "config.json", new, overwrite=True)
    assert [path.name for path in directory.parent.iterdir()] == ["c"]


def test_a_new_place(tmp_path: Path) -> None:
    """Parents are made, and an empty directory counts as none."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b" / "c", tmp_path / "empty"):
        save_bundle(path, bundle())
        same(load_bundle(path), bundle())


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system lets no file grow beyond 20 kB: as near to a full disk as a test gets without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_system_stops_the_writing(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OSError) as error:
        save_bundle(tmp_path / "c", bundle())
    assert error.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_everything_as_it_was(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = weights.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(args[1])
        if len(calls) == 3:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(*args, **kwargs)

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError) as error:
        save_bundle(directory, bundle(seed=9), overwrite=True, max_shard_bytes=9_000)
    assert error.value.errno == errno.ENOSPC and len(calls) == 3
    assert [path.name for path in directory.parent.iterdir()] == ["c"]
    same(load_bundle(directory, verify=True), bundle())


def test_a_failing_swap_brings_the_old_one_back(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError):
        save_bundle(directory, bundle(seed=9), overwrite=True)
    assert [path.name for path in directory.parent.iterdir()] == ["c"]
    same(load_bundle(directory), bundle())


def test_further_files_arrive_with_the_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "step") as inside:
        (inside / "state").mkdir()
        (inside / "state" / "0.bin").write_bytes(b"x")
        assert not (tmp_path / "step").exists()
    assert (tmp_path / "step" / "state" / "0.bin").read_bytes() == b"x"
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_write_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", b"one")
    write_atomic(tmp_path / "f", b"two")
    (tmp_path / "link").symlink_to("f")
    write_atomic(tmp_path / "link", b"three")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "f").read_bytes() == b"three"
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        write_atomic(tmp_path / "f", b"four")
    assert (tmp_path / "f").read_bytes() == b"three"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "link"]


def test_names_of_models(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_embedded_root", lambda: tmp_path / "embedded")
    with pytest.raises(ValueError, match="embeds none"):
        resolve_model("bltkit:tiny")
    save_bundle(tmp_path / "embedded" / "tiny", bundle())
    assert resolve_model("bltkit:tiny") == tmp_path / "embedded" / "tiny"
    assert resolve_model(str(directory)) == directory
    for name, text in (
        ("bltkit:tinyy", "did you mean 'tiny'"),
        ("bltkit:../../etc", "known: tiny"),
        ("tiny", "did you mean bltkit:tiny"),
        ("nowhere", "no such directory"),
        (str(directory / "config.json"), "is a file"),
        ("hf:onlyname", "OWNER/NAME"),
    ):
        with pytest.raises(ValueError, match=text):
            resolve_model(name)


def test_the_hub(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **more: asked.append((name, more)) or str(directory))
    assert resolve_model("hf:owner/name") == directory
    ((name, options),) = asked
    assert name == "owner/name" and {"*.json", "*.safetensors", *PATTERNS} <= set(options["allow_patterns"])
    assert not any(pattern.endswith(weights.PICKLES) or pattern == "*" for pattern in options["allow_patterns"])

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    monkeypatch.setattr("bltkit.checkpoint.fetch.hub_or_cache", lambda: contextlib.nullcontext(None))
    with pytest.raises(ValueError, match="hf:owner/name could not be fetched: no route to host") as error:
        resolve_model("hf:owner/name")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"bltkit\[hub\]"):
        resolve_model("hf:owner/name")
