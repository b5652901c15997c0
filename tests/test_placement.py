"""Models whose parts lie on several devices: who lies where, what does not fit, and that results stay the same."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import bltkit
from bltkit import cli
from bltkit.checkpoint import Bundle, DeviceMap, load_bundle, placement, save_bundle
from bltkit.checkpoint.chosen_forms import weight_sizes
from bltkit.checkpoint.placement import PartSizes, Placement, part_sizes, spread
from bltkit.cost.formulas.parameters import count_parameters
from bltkit.eval.score import score
from bltkit.generate import Session
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig, attention
from bltkit.model.device_stages import StagedTransformer, TablesApart, put_seams
from bltkit.model.quantize import FormedLinear, parse_form, weight_bytes
from bltkit.patches import Patches
from bltkit.patching import ThresholdRule
from tests import tiny

CPU, ALSO_CPU, META = torch.device("cpu"), torch.device("cpu", 0), torch.device("meta")
"""The second is the same device under another name: layers on it are a stage of their own."""
GPUS = [torch.device("cuda", index) for index in range(3)]
GB = 10**9

LOCAL = StackConfig(width=16, layers=1, heads=2, ffn_width=24, window=6)
CONFIG = BltConfig(
    encoder=LOCAL,
    latent=StackConfig(width=32, layers=4, heads=4, kv_heads=2, ffn_width=24),
    decoder=LOCAL.replace(layers=2),
    ngrams=NgramConfig(sizes=(3, 4), buckets=61),
)


def bundle(config: BltConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Bundle:
    model = tiny.fill(Blt(config), 0).to(dtype)
    scorer = tiny.fill(EntropyModel(EntropyConfig(width=16, layers=2, heads=2, ffn_width=24, window=8)), 1, head=2.0)
    return Bundle(model, scorer.to(dtype), ThresholdRule(threshold=4.00001), {"row_bytes": 64})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "model", bundle(), dtype=torch.bfloat16)


def in_stages(model: Any, first: int) -> Any:
    """The model with its global layers in two stages, and tables apart; all on the CPU."""
    layers = model.config.latent.layers
    put_seams(model, [CPU] * first + [ALSO_CPU] * (layers - first))
    if hasattr(model.embed, "ngrams"):
        model.embed = TablesApart.of(model.embed)
    return model


@settings(max_examples=8)
@given(st.data())
def test_results_are_the_same_through_seams(data: st.DataObject) -> None:
    """Every way of reading: whole rows, bytes, roll-backs, rows that come, go and branch."""
    case = data.draw(tiny.cases())
    plain = case.model
    staged = in_stages(
        tiny.fill(Blt(case.config).double(), case.seed), data.draw(st.integers(0, case.config.latent.layers - 1))
    )
    assert isinstance(staged.latent.stack, StagedTransformer)
    ids = case.ids
    start = [Session.start(model, case.scorer, case.rule, 2) for model in (plain, staged)]
    cut = data.draw(st.integers(1, len(ids)))
    back = data.draw(st.integers(0, cut))
    sessions = [session.extend([ids[:cut], ids]).rollback([back if back < cut else 0, 0]) for session in start]
    sessions = [session.select([1, 0, 1]).extend([[5, 1, 6], [7], []]) for session in sessions]
    sessions = [type(session).join([session, session.fork().extend([[8], [9], [10, 11]])]) for session in sessions]
    sessions = [session.with_room(4).closed_up([4, 0, 3])[0].extend([[5], [6], [7]]) for session in sessions]
    ours, theirs = sessions
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    assert ours.opens == theirs.opens and ours.passes == theirs.passes
    assert [cache.positions for cache in ours.latents] == [cache.positions for cache in theirs.latents]
    assert ours.cache_bytes == theirs.cache_bytes
    row = torch.tensor([ids])
    scores = None if case.scorer is None else tiny.scores_of(case.scorer, row)
    patches = bltkit.patching.patch(case.rule, row, scores, documents=case.config.document_masks)
    torch.testing.assert_close(plain(row, patches), staged(row, patches), rtol=0, atol=0)


def test_generation_and_scores_are_the_same_through_seams() -> None:
    whole, parts = bltkit.load("bltkit:tiny"), bltkit.load("bltkit:tiny")
    in_stages(parts.model, 1)
    prompts = ["def read(", "import ", "a"]
    for strategy in ("ar", "speculative"):
        texts = [
            [result.data for result in lm.generate_many(prompts, max_bytes=24, seed=3, strategy=strategy)]
            for lm in (whole, parts)
        ]
        assert texts[0] == texts[1]
    text = "The five boxing wizards jump quickly." * 4
    assert whole.score(text) == parts.score(text)
    packed = parts.with_weights("packed").generate("def read(", max_bytes=12, seed=3).data
    assert packed == whole.with_weights("packed").generate("def read(", max_bytes=12, seed=3).data


def test_a_model_in_stages_is_saved_as_it_was(tmp_path: Path) -> None:
    whole, parts = bundle(), bundle()
    in_stages(parts.model, 2)
    assert set(parts.model.state_dict()) == set(whole.model.state_dict())  # type: ignore[union-attr]
    assert count_parameters(cast(nn.Module, parts.model)) == count_parameters(cast(nn.Module, whole.model))
    save_bundle(tmp_path / "whole", whole)
    save_bundle(tmp_path / "parts", parts)
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def placed(seams: bool) -> tuple[torch.device, torch.device, list[list[torch.device]]]:
    """Run a model that lies on two devices without data: operations on tensors of both are errors.

    The home device is `meta`; layers 1 and 2 and the tables are on the CPU.
    """
    config = CONFIG.replace(document_masks=False)
    where = Placement((META, CPU, CPU, META), META, CPU)
    starts = torch.zeros(2, 13, dtype=torch.bool)
    starts[:, [0, 1, 3, 7, 12]] = True
    patches = Patches.from_starts(starts)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        model = Blt(config)
        for name, weight in list(model.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            moved = nn.Parameter(torch.empty(weight.shape, device=where.device_of(name)))
            setattr(model.get_submodule(owner), leaf, moved)
        embed = cast(Any, model.embed)
        for name in ("hash_weights", "table_offsets"):
            setattr(embed, name, getattr(embed, name).to(META))
        if seams:
            put_seams(model, where.layers)
        cut = Patches(fake.from_tensor(patches.starts).to(META), fake.from_tensor(patches.num_bytes).to(META), 5)
        logits = model(torch.ones(2, 12, dtype=torch.long).to(META), cut)
        latent = cast(Any, model.latent)
        latents, slots = latent.extend(torch.ones(2, 3, 2, 16, device=META), [latent.stack.empty_cache() for _ in "ab"])
        caches = [slot.keep([2]).select([0]) for slot in slots]
        latents, _ = latent.extend(latents.new_ones(2, 1, 2, 16), caches)
        byte_states = model.embed.extend(torch.ones(2, 9, dtype=torch.long, device=META))
        assert byte_states.device == META
        blocks = [[cast(Any, part)._storage.block.device for part in cache.parts] for cache in caches]
        return logits.device, latents.device, blocks


@pytest.fixture
def _no_kept_rotations() -> Iterator[None]:
    """Rotations that are kept between calls hold no data in a fake mode, and would be used after it."""
    kept = (attention.rotary_frequencies, attention._one)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.usefixtures("_no_kept_rotations")
def test_activations_move_at_the_borders_alone() -> None:
    assert placed(True) == (META, META, [[META, CPU, META]] * 2), "caches lie where their layers are"
    with pytest.raises(RuntimeError, match="devices"):
        placed(False)


def test_every_tensor_is_where_the_map_says(directory: Path) -> None:
    asked = DeviceMap(layers=((0, 1, "meta"), (2, 3, "cpu")), local="cpu")
    model = load_bundle(directory, device_map=asked).model
    assert model is not None
    expected = Placement((META, META, CPU, CPU), CPU, CPU)
    for name, weight in model.named_parameters():
        assert weight.device == expected.device_of(name), name
        assert weight.dtype == torch.bfloat16, "as in the file, unless everything is on the CPU"
    assert {name.split(".")[3] for name, weight in model.named_parameters() if weight.is_meta} == {"0", "1"}
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert list(placement.described(model)) == ["local parts, n-gram tables, layers 2-3 on cpu", "layers 0-1 on meta"]
    local = load_bundle(directory, device_map=DeviceMap(((0, 3, "cpu"),), local="meta"))
    names = {name for name, weight in cast(Any, local.model).named_parameters() if not weight.is_meta}
    assert names == {"embed.ngrams", *(name for name in names if name.startswith("latent.stack.layers."))}
    assert all(weight.is_meta for weight in cast(Any, local.scorer).parameters()), "it runs for every byte"


def test_a_map_of_the_cpu_alone_is_plain_loading(directory: Path) -> None:
    plain = load_bundle(directory)
    for asked in (DeviceMap(((0, 3, "cpu"),)), DeviceMap.parse("layers=0-3:cpu"), DeviceMap.parse("auto")):
        model = cast(Blt, load_bundle(directory, device_map=asked).model)
        pairs = zip(cast(Blt, plain.model).named_parameters(), model.named_parameters(), strict=True)
        for (name, ours), (_, theirs) in pairs:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
        assert type(model.latent.stack) is type(cast(Blt, plain.model).latent.stack)
    assert "bfloat16+float32 on cpu" in repr(bltkit.load(directory, device_map="auto"))
    assert score(plain, "some text") == bltkit.load(directory, device_map="layers=0-3:cpu").score("some text")


def test_sizes_are_those_of_the_tensors() -> None:
    whole = bundle()
    model, scorer = cast(Blt, whole.model), cast(nn.Module, whole.scorer)
    sizes = part_sizes(weight_sizes(model, "fp32", 4), sum(weight_sizes(scorer, "fp32", 4).values()))
    assert sizes.total == sum(weight.nbytes for module in (model, scorer) for weight in module.parameters())
    assert sizes.tables == cast(Any, model.embed).ngrams.nbytes
    layers = cast(Any, model.latent.stack).layers
    assert sizes.layers == tuple(sum(weight.nbytes for weight in layer.parameters()) for layer in layers)
    halved = part_sizes(weight_sizes(model, "fp32", 2), 0).total * 2
    assert halved == sizes.total - sum(weight.nbytes for weight in scorer.parameters())


SIZE = st.integers(1, 10 * GB)


def can_be_cut(layers: Sequence[int], room: Sequence[int]) -> bool:
    """Whether neighbouring layers can go to devices in their order; tries every cut."""
    if not layers:
        return True
    if not room:
        return False
    counts = [count for count in range(len(layers) + 1) if sum(layers[:count]) <= max(0, room[0])]
    return any(can_be_cut(layers[count:], room[1:]) for count in counts)


@given(
    local=SIZE,
    tables=SIZE,
    layers=st.lists(SIZE, min_size=1, max_size=8),
    free=st.lists(st.integers(1, 60 * GB), min_size=1, max_size=4),
)
def test_auto_fills_devices_in_their_order(local: int, tables: int, layers: list[int], free: list[int]) -> None:
    """What can be placed is placed, within what is left of each device; anything else is refused."""
    sizes = PartSizes(local, tables, tuple(layers))
    memory = dict(zip([*GPUS[: len(free) - 1], CPU], free, strict=True))
    devices = list(memory)
    room = [size - max(size // 10, 0 if device == CPU else 512 * 2**20) for device, size in memory.items()]
    room[-1] -= tables
    at = next((number for number, size in enumerate(room) if local <= size), None)
    if at is not None:
        room[at] -= local
    if room[-1] < 0 or at is None or not can_be_cut(layers, room):
        with pytest.raises(ValueError, match="device_map = auto: ") as caught:
            spread(sizes, devices, memory.__getitem__, CPU)
        assert "\n" not in str(caught.value) and all(str(device) in str(caught.value) for device in devices)
        return
    where = spread(sizes, devices, memory.__getitem__, CPU)
    order = [devices.index(device) for device in where.layers]
    assert order == sorted(order) and (where.tables, where.local) == (CPU, devices[at])
    for device, size in where.needed(sizes).items():
        assert size <= memory[device] - memory[device] // 10
    if len(devices) > 1 and sum(layers) <= room[0]:
        assert set(where.layers) == {devices[0]}


def test_auto_for_the_released_sizes() -> None:
    """The 7B in 16 bits: 32 layers of 0.40 GB, 0.6 GB of local parts, tables in their file."""
    sizes = PartSizes(int(0.6 * GB), 0, (int(0.4 * GB),) * 32)
    large = spread(sizes, (GPUS[0], CPU), {GPUS[0]: 24 * GB, CPU: 16 * GB}.__getitem__, CPU)
    assert set(large.layers) == {GPUS[0]} and large.local == GPUS[0] and large.tables == CPU
    small = spread(sizes, (GPUS[0], CPU), {GPUS[0]: 8 * GB, CPU: 16 * GB}.__getitem__, CPU)
    assert small.layers == (GPUS[0],) * 16 + (CPU,) * 16
    two = spread(sizes, (*GPUS[:2], CPU), {GPUS[0]: 8 * GB, GPUS[1]: 8 * GB, CPU: GB}.__getitem__, CPU)
    assert two.layers == (GPUS[0],) * 16 + (GPUS[1],) * 16
    with pytest.raises(
        ValueError, match=r"takes 13\.4 GB .*32 layers of 0\.40 GB.*cuda:0 6\.00 GB, cpu 4\.00 GB.*layer 21"
    ):
        spread(sizes, (GPUS[0], CPU), {GPUS[0]: 6 * GB, CPU: 4 * GB}.__getitem__, CPU)


def test_maps_as_users_write_them(tmp_path: Path) -> None:
    assert DeviceMap.parse("auto") == DeviceMap()
    asked = DeviceMap(((0, 11, "cpu"), (12, 12, "cpu"), (13, 24, "cpu")))
    assert DeviceMap.parse("layers=0-11:cpu,13-24:cpu,12:cpu") == asked
    assert DeviceMap.parse(asked) is asked
    full = "local=cpu, tables=cpu,layers=0-3:cpu"
    assert DeviceMap.parse(full) == DeviceMap(((0, 3, "cpu"),), "cpu", "cpu")
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"layers": {"0-2": "cpu", "3": "cpu"}, "local": "cpu"}))
    for name in (path, str(path)):
        assert DeviceMap.parse(name) == DeviceMap(((0, 2, "cpu"), (3, 3, "cpu")), "cpu")


WRONG = {
    "": "belongs to no part",
    "gpu": "belongs to no part",
    "layers=": "'' is no range",
    "layers=0-3": "'' is no device",
    "layers=0-3:gpu": "no device",
    "layers=0-3:auto": "no device",
    "layers=0-3:meta": "nothing is computed there",
    "layers=3-0:cpu": "'3-0' is no range",
    "layers=a:cpu": "'a' is no range",
    "layers=0-1:cpu,0-1:cpu": "named twice",
    "layers=0-3:cpu,layers=1:cpu": "named twice",
    "local=cpu": "no devices of layers",
    "local=cpu,cpu": "belongs to no part",
    "tables=cpu,layers=0-3:cpu,head=cpu": "unknown part 'head'",
    "layers=0-2:cpu": "layer 3 has no device",
    "layers=0-4:cpu": "the model has layers 0-3",
    "layers=0-2:cpu,2-3:cpu": "layer 2 is named twice",
    "no such.json": "no such.json",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_map_that_is_none(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a", "--model", str(directory), "-n", "1", "--device-map", text]) == 2
    captured = capsys.readouterr()
    assert WRONG[text] in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize(
    "content", ["[1]", '{"layers": 3}', '{"layers": {"0-3": 1}}', '{"layers": {"0-3": "cpu"}, "x": 1}', "{"]
)
def test_a_file_that_holds_none(content: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory.parent / "map.json"
    path.write_text(content)
    assert cli.main(["score", "some text", "--model", str(directory), "--device-map", str(path)]) == 2
    err = capsys.readouterr().err
    assert "map.json" in err and err.count("\n") == 1


def test_what_does_not_fit_is_one_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = DeviceMap(((0, 3, "cpu"),))
    sizes = PartSizes(2 * GB, 0, (GB,) * 4)
    with pytest.raises(ValueError, match=r"cpu is to hold 6\.00 GB, but has 5\.00 GB free; move layers"):
        asked.place(sizes, lambda device: 5 * GB)
    monkeypatch.setattr(placement, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"auto: the model takes .* kB .* free are cpu 1 kB") as caught:
        bltkit.load(directory, device_map="auto")
    assert "\n" not in str(caught.value)


def test_forms_of_weights_go_with_a_map(tmp_path: Path) -> None:
    """Large matrices in the form that was asked for, counted so before anything is read."""
    wide = CONFIG.replace(latent=StackConfig(width=256, layers=2, heads=4, ffn_width=512))
    path = save_bundle(tmp_path / "wide", bundle(wide), dtype=torch.bfloat16)
    with torch.device("meta"):
        empty = Blt(wide)
    tables = cast(Any, empty.embed).ngrams.numel()
    for form in ("int8", "bf16"):
        plain = load_bundle(path, weights=form)
        placed = load_bundle(path, weights=form, device_map=DeviceMap(((0, 1, "cpu"),)))
        model = cast(Blt, placed.model)
        formed = [inner for inner in model.modules() if isinstance(inner, FormedLinear)]
        assert len(formed) > 7 and {inner.form for inner in formed} == {form}
        counted = sum(weight_sizes(empty, parse_form(form), 4).values())
        assert counted == pytest.approx(weight_bytes(model) + 2 * tables, rel=0.02), "tables stay in their 16 bits"
        assert score(plain, "some text to look at") == score(placed, "some text to look at")


def test_verbs_take_a_map_and_say_what_lies_where(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["generate", "a", "-n", "2", "--json"], ["score", "some text"]):
        assert cli.main([*verb, "--model", str(directory), "--device-map", "auto"]) == 0
        assert "device map: local parts, n-gram tables, layers 0-3 on cpu" in capsys.readouterr().err
    for verb in (["generate", "a"], ["score", "a"], ["serve"]):
        assert cli.main([*verb, "--model", str(directory), "--device", "cpu", "--device-map", "auto"]) == 2
        assert "give one of them" in capsys.readouterr().err
    save_bundle(directory.parent / "scorer", Bundle(None, bundle().scorer, None, {}))
    with pytest.raises(ValueError, match="no BLT"):
        bltkit.load(directory.parent / "scorer", device_map="auto")
    with pytest.raises(ValueError, match="give one of them"):
        bltkit.load(directory, device="auto", device_map="auto")


@pytest.mark.gpu
@pytest.mark.parametrize("others", ["the CPU", "a second GPU"])
def test_on_gpus(others: str, directory: Path) -> None:
    second = "cpu" if others == "the CPU" else "cuda:1"
    if second == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    plain = bltkit.load(directory, dtype=torch.float32, device="cuda:0")
    lm = bltkit.load(directory, dtype=torch.float32, device_map=f"layers=0-1:cuda:0,2-3:{second}")
    assert re.search(rf"on cpu\+cuda:0|on cuda:0\+{second}", repr(lm))
    text = "The five boxing wizards jump quickly."
    assert lm.score(text).bits_per_byte == pytest.approx(plain.score(text).bits_per_byte, rel=1e-4)
    session, other = lm.session(text), plain.session(text)
    caches = [cast(Any, part)._storage.block.device for part in cast(Any, session.latents[0]).parts]
    assert caches == [torch.device("cuda:0"), torch.device(second)]
    torch.testing.assert_close(session.logits, other.logits, rtol=1e-3, atol=1e-3)
    assert (
        lm.generate("The", max_bytes=16, temperature=0).data == plain.generate("The", max_bytes=16, temperature=0).data
    )


def test_tables_apart_are_looked_up_where_they_lie() -> None:
    embed = cast(Any, bundle().model).embed
    apart = TablesApart.of(embed)
    ids: Tensor = torch.randint(4, 260, (2, 30))
    torch.testing.assert_close(apart(ids), embed(ids), rtol=0, atol=0)
    assert apart.ngrams is embed.ngrams and set(apart.state_dict()) == set(embed.state_dict())
