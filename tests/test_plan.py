"""The planner: its counts against real tensors, its arithmetic against sums done by hand."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bltkit import cli
from bltkit.cost.formulas.operations import forward_flops, scorer_flops
from bltkit.cost.planning.activations import activations, meta_model
from bltkit.cost.planning.machine import LINK_SHARE, USABLE, UTILIZATION
from bltkit.cost.planning.planner import plan
from bltkit.cost.planning.training_plan import PlannedRun, TrainingPlan
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig, blt_preset
from bltkit.model.layers import Layer, Transformer
from bltkit.patches import Patches
from bltkit.train import build_model

SHAPE = BltConfig(
    encoder=StackConfig(width=32, layers=1, heads=2, window=48),
    latent=StackConfig(width=96, layers=3, heads=4, kv_heads=2, ffn_width=160),
    decoder=StackConfig(width=32, layers=2, heads=2, window=48),
    ngrams=NgramConfig(buckets=101),
    document_masks=False,
)
ENTROPY = EntropyConfig(width=24, layers=4, heads=2, ffn_width=40, window=12, document_masks=False)
FOLDER = Path(__file__).resolve().parents[1] / "configs"
ROWS, LENGTH, PATCHES = 2, 512, 129
RUN = PlannedRun(SHAPE, max_steps=1000, row_bytes=LENGTH, batch_rows=16, precision="bf16")


def a_batch() -> tuple[Tensor, Patches]:
    starts = torch.zeros(ROWS, LENGTH + 1, dtype=torch.bool)
    starts[:, 0] = True
    starts[:, 1::4] = True
    patches = Patches.from_starts(starts)
    assert patches.max_patches == PATCHES
    return torch.randint(4, 260, (ROWS, LENGTH)), patches


class Watched:
    """The storages of what autograd saves, each once, without the weights'."""

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights = {weight.data_ptr() for weight in weights}
        self.sizes: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no address is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self._kept.append(tensor)
        return tensor

    def __call__(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)


def measured(model: nn.Module, forward: Callable[[], Tensor], low: bool) -> int:
    """What one real forward pass on the CPU keeps."""
    watched = Watched(list(model.parameters()))
    with watched(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        forward()
    # Autocast's copies of the weights are weights, which the plan counts for themselves.
    copies = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) if low else 0
    return sum(watched.sizes.values()) - copies


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["blt", "entropy"])
def test_activations_are_those_of_a_real_forward_pass(kind: str, low: bool) -> None:
    """Within 2 %: kernels differ in a few numbers per row."""
    ids, patches = a_batch()
    dtype = torch.bfloat16 if low else None
    model: nn.Module
    if kind == "blt":
        model = Blt(SHAPE).reset_parameters()
        real = measured(model, lambda: model(ids, patches), low)
        found = activations(SHAPE, ROWS, LENGTH, PATCHES, dtype)
    else:
        model = EntropyModel(ENTROPY).reset_parameters()
        real = measured(model, lambda: model(ids), low)
        found = activations(ENTROPY, ROWS, LENGTH, 1, dtype)
    assert found.kept == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_recomputed_layers_keep_their_inputs(low: bool) -> None:
    """torch's own checkpointing around each layer: what is saved outside, inputs, and the inside of one layer."""
    ids, patches = a_batch()
    model = Blt(SHAPE).reset_parameters()
    weights = list(model.parameters())
    inputs: dict[int, Tensor] = {}
    calls: list[tuple[Layer, tuple[Any, ...]]] = []

    def remember(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, Layer)
        inputs[args[0].untyped_storage().data_ptr()] = args[0]
        calls.append((layer, args))

    stacks = [module for module in model.modules() if isinstance(module, Transformer)]
    whole = {}
    for layer in [layer for stack in stacks for layer in stack.layers]:
        layer.register_forward_pre_hook(remember)
        whole[layer] = layer.forward
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=low)
    outside = Watched(weights)
    with outside(), autocast():
        model(ids, patches)
    inside = []
    for layer, args in calls:
        watched = Watched(weights)
        with watched(), autocast():
            whole[layer](*args)
        cast = sum(2 * m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)) if low else 0
        known = outside.sizes.keys() | inputs.keys()
        inside.append(sum(size for where, size in watched.sizes.items() if where not in known) - cast)
    kept = outside.sizes | {where: x.untyped_storage().nbytes() for where, x in inputs.items()}
    layered = {id(m) for layer, _ in calls for m in layer.modules()}
    rest = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in layered]
    real = sum(kept.values()) + max(inside) - (sum(2 * m.weight.numel() for m in rest) if low else 0)
    found = activations(SHAPE, ROWS, LENGTH, PATCHES, torch.bfloat16 if low else None)
    assert found.recomputed == pytest.approx(real, rel=0.02)
    assert found.recomputed < 0.8 * found.kept


def test_counting_leaves_nothing_behind() -> None:
    """Twice the same, and a model with memory still works afterwards."""
    once = activations(SHAPE, ROWS, LENGTH, PATCHES, torch.bfloat16)
    assert activations(SHAPE, ROWS, LENGTH, PATCHES, torch.bfloat16) == once
    ids, patches = a_batch()
    Blt(SHAPE).reset_parameters()(ids, patches).sum().backward()


def test_weights_and_moments_of_one_process_are_those_of_adamw() -> None:
    model = Blt(SHAPE).reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters())
    ids, patches = a_batch()
    model(ids, patches).sum().backward()
    optimizer.step()
    gradients = sum(w.grad.nbytes for n, w in model.named_parameters() if w.grad is not None and n != "embed.ngrams")
    moments = {w: sum(m.nbytes for m in optimizer.state[w].values() if m.dim()) for w in model.parameters()}
    tables = model.embed.ngrams
    held = plan(RUN, "1x1").held
    assert held["dense weights"] == sum(w.nbytes for w in model.parameters()) - tables.nbytes
    assert held["AdamW moments"] == sum(moments.values()) - moments[tables]
    assert held["dense gradients"] == gradients
    assert (held["n-gram tables"], held["moments of the tables"]) == (tables.nbytes, moments[tables])


@pytest.mark.parametrize(("mesh", "shard"), [("1x4", None), ("2x4", 2), ("2x8", None), ("3x1", 1)])
def test_the_first_process_holds_the_first_chunk_of_every_weight(mesh: str, shard: int | None) -> None:
    """As FSDP2 and the sharded tables cut them: by torch's chunk, along the first dimension."""
    found = plan(RUN.__class__(**{**vars(RUN), "shard": shard, "batch_rows": 48}), mesh)
    weights = dict(meta_model(SHAPE).named_parameters())
    tables = weights.pop("embed.ngrams")
    own = sum(weight.chunk(found.shard)[0].numel() for weight in weights.values())
    assert found.held["dense weights"] == 4 * own
    assert found.held["AdamW moments"] == 8 * own
    assert found.held["n-gram tables"] == 4 * tables.chunk(found.ranks)[0].numel()
    assert found.host_memory == 12 * (own + tables.chunk(found.ranks)[0].numel())


def test_parameters_of_the_released_1b() -> None:
    found = plan(PlannedRun(blt_preset("1b"), 240_000, 24576, 256, 4, 4096, recompute=True, precision="bf16"), "32x8")
    assert (found.params["dense"], found.params["tables"]) == (1_461_867_520, 3_072_012_288)
    assert found.params["total"] == 4_533_879_808
    assert found.params["largest_layer"] == 4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048
    # 4,194,304 patches of 4.5 bytes (docs/model.md 9: about 18.9 MB).
    assert found.text_bytes == 4_194_304 * 4.5
    assert found.fits


def changed(**fields: Any) -> PlannedRun:
    return PlannedRun(**{**vars(RUN), **fields})


def test_operations_of_a_step() -> None:
    """Rows are computed whole, three forward passes each; recomputing and the entropy model come on top."""
    forward = forward_flops(SHAPE, LENGTH / 128, LENGTH) * LENGTH * 16
    assert plan(RUN, "1x1", patch_bytes=4).flops == pytest.approx(3 * forward)
    # Full with 100 patches: the latent transformer runs over these, the local ones over all positions.
    short = changed(row_patches=100)
    assert plan(short, "1x1", patch_bytes=4).flops == pytest.approx(
        3 * forward_flops(SHAPE, LENGTH / 100, LENGTH) * LENGTH * 16
    )
    assert plan(short, "1x1", patch_bytes=4).text_bytes == 16 * 400
    anew = plan(changed(recompute=True), "1x1", patch_bytes=4).flops / forward - 3
    assert 0.5 < anew < 1
    scored = plan(changed(scorer=ENTROPY), "1x1", patch_bytes=4).flops
    assert scored == pytest.approx(3 * forward + scorer_flops(ENTROPY, LENGTH) * LENGTH * 16)
    twice = plan(changed(batch_rows=8, accumulate=2), "1x1", patch_bytes=4)
    assert twice.flops == pytest.approx(3 * forward) and twice.text_bytes == 16 * LENGTH


def test_a_plain_language_model_has_no_patches() -> None:
    found = plan(PlannedRun(ENTROPY, 10, 256, 8, recompute=True), "1x2")
    assert found.params["tables"] == found.traffic["tables"] == 0
    assert found.text_bytes == 8 * 256
    assert found.flops > 3 * scorer_flops(ENTROPY, 256) * 256 * 8


def test_what_a_process_sends() -> None:
    """By hand for 4 processes, 2 of which share the weights, in bf16: in a ring each passes on all parts but one."""
    found = plan(changed(shard=2, accumulate=3), "2x2").traffic
    weights = {name: weight.numel() for name, weight in meta_model(SHAPE).named_parameters() if name != "embed.ngrams"}
    dense = sum(weights.values())
    layered = sum(size for name, size in weights.items() if ".stack.layers." in name)
    assert found["all_gather"] == 3 * (2 * layered / 2 * 2 + 2 * (dense - layered) / 2)
    assert found["reduce_scatter"] == 3 * 4 * dense / 2
    # Two copies of half the weights: each sends its half of them, and then the sum's.
    assert found["all_reduce"] == 3 * 2 * (1 / 2) * 4 * dense / 2
    asked = min(6 * 4 * LENGTH, 6 * 101)  # n-grams of 4 rows, or all rows of the tables
    assert found["tables"] == pytest.approx(3 * 3 / 4 * asked * (2 * 4 * 32 + 8))
    assert all(size == 0 for size in plan(RUN, "1x1").traffic.values())
    replicated = plan(changed(shard=1), "1x4").traffic
    assert replicated["all_gather"] == replicated["reduce_scatter"] == 0 < replicated["all_reduce"]


def test_time() -> None:
    found = plan(RUN, "2x4", device="a100", rate=100)
    assert found.seconds["compute"] == pytest.approx(found.flops / 8 / 100e12)
    dense = found.traffic["all_gather"] + found.traffic["reduce_scatter"]
    assert found.seconds["dense"] == pytest.approx(dense / (LINK_SHARE * 25e9))
    assert found.seconds["step"] == max(found.seconds["compute"], found.seconds["dense"]) + found.seconds["tables"]
    assert found.days == pytest.approx(1000 * found.seconds["step"] / 86400)
    assert found.bytes_per_second == pytest.approx(found.text_bytes / found.seconds["step"])
    # Groups of a node use its own links for weights; only sums of gradients leave it.
    grouped = plan(changed(shard=4), "2x4", device="a100", bandwidth=20)
    inside = (grouped.traffic["all_gather"] + grouped.traffic["reduce_scatter"]) / (LINK_SHARE * 300e9)
    assert grouped.seconds["dense"] == pytest.approx(inside + grouped.traffic["all_reduce"] / 20e9)
    assert plan(RUN, "1x1", device="h200").rate_tflops == pytest.approx(UTILIZATION * 989)


def test_memory_is_what_is_held_and_the_fullest_moment() -> None:
    found = plan(changed(scorer=ENTROPY), "1x2")
    assert found.memory == sum(found.held.values()) + max(sum(parts.values()) for parts in found.passing.values())
    assert found.passing["backward begins"]["activations"] == found.activations["kept"]
    lean = plan(changed(recompute=True), "1x2")
    assert lean.passing["backward begins"]["activations"] == lean.activations["recomputed"] < found.activations["kept"]
    needed = found.memory / 1e9
    assert plan(changed(scorer=ENTROPY), "1x2", memory=needed / USABLE * 1.001).fits is True
    assert plan(changed(scorer=ENTROPY), "1x2", memory=needed / USABLE * 0.999).fits is False
    assert plan(RUN, "1x1", device="cpu").fits is None


def test_gradients_of_rows_do_not_outgrow_the_tables() -> None:
    """A process looks up 6 rows a byte, of 101 each, and owns all of them."""
    row, own = 4 * 32 * 6 * LENGTH * 16, 4 * 32 * 6 * 101
    for times, earlier in ((1, 0), (2, min(row, own)), (50, own)):
        moments = plan(changed(accumulate=times), "1x1").passing
        assert moments["backward begins"]["gradients of table rows"] == earlier
        assert moments["the optimizer's step"]["gradients of table rows"] == earlier + row + min(times * row, own)


def test_more_processes_hold_less() -> None:
    memory = [plan(changed(batch_rows=1024), f"{nodes}x8").memory for nodes in (1, 2, 4, 8)]
    assert memory == sorted(memory, reverse=True)


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({"batch_rows": 9}, {}, "data.batch_rows = 9 is no multiple of the 4"),
        ({}, {"memory": 1e-6}, "trainer.checkpoint_activations = true"),
        ({"row_patches": 64}, {}, "rows of 512 bytes are full with 288"),
        ({}, {"bandwidth": 1e-9}, "communication takes longer"),
        ({"scorer": ENTROPY}, {}, "blt annotate"),
        ({"precision": "fp32"}, {}, "trainer.precision = fp32"),
    ],
)
def test_warnings(fields: dict[str, Any], options: dict[str, float], words: str) -> None:
    quiet = {"bandwidth": 1e9, **options}
    assert any(words in warning for warning in plan(changed(**fields), "2x2", **quiet).warnings)
    assert not any(words in warning for warning in plan(RUN, "2x2", bandwidth=1e9).warnings)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (RUN, {"mesh": "8"}, "--mesh 8: write NODESxDEVICES"),
        (RUN, {"mesh": "0x8"}, "--mesh 0x8"),
        (RUN, {"device": "h10"}, "did you mean 'h100'"),
        (RUN, {"rate": 0.0}, "--rate 0.0 must lie between 1e-09 and 1e"),
        (RUN, {"memory": -1.0}, "--memory -1.0"),
        (RUN, {"patch_bytes": 0.5}, "0.5 bytes per patch .--patch-bytes. must lie between 1 and data.row_bytes"),
        (changed(shard=3), {}, "trainer.shard = 3 does not divide the 4 processes"),
        (changed(shard=8), {}, "trainer.shard = 8"),
    ],
)
def test_mistakes(run: PlannedRun, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(run, **{"mesh": "2x2", **options})


def test_json_and_table() -> None:
    found = plan(changed(scorer=ENTROPY, recompute=True), "2x4")
    assert isinstance(found, TrainingPlan)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"params", "held", "passing", "memory", "seconds", "days", "warnings"} <= data.keys()
    text = found.summary()
    assert all(warning in text for warning in found.warnings)
    assert text.count("fullest") == 1 and "8 x h100 (2x4)" in text


# The command.


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def blt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `blt` in this process."""

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return run


def test_the_command_plans_a_config(blt: Callable[..., Ran]) -> None:
    arguments = ("flops", FOLDER / "8b.toml", "data.batch_rows=64", "trainer.shard=8", "--mesh", "8x8", "--json")
    found = json.loads(blt(*arguments, "--device", "h200", "--rate", "500").out)
    assert {"modules", "total", "total_with_entropy", "params"} <= found.keys()
    planned = found["plan"]
    assert (planned["ranks"], planned["shard"], planned["rows_per_rank"]) == (64, 8, 1)
    assert (planned["rate_tflops"], planned["memory_limit"]) == (500, 141e9)
    with torch.device("meta"):
        assert planned["params"]["total"] == sum(w.numel() for w in build_model(blt_preset("8b")).parameters())
    # Its shards hold the starts, so no entropy model runs; the config recomputes activations.
    assert planned["params"]["scorer"] == 0
    assert planned["passing"]["backward begins"]["activations"] == planned["activations"]["recomputed"]


def test_the_command_counts_the_entropy_model_where_it_runs(blt: Callable[..., Ran]) -> None:
    def planned(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(blt("flops", FOLDER / "20m.toml", *arguments, "--json").out)["plan"]
        return found

    found = planned("--mesh", "1x1", "--device", "cpu")
    assert found["params"]["scorer"] == 1_871_040
    assert found["fits"] is None
    assert planned("patching.rule=space", "--mesh", "1x1")["params"]["scorer"] == 0
    shown = blt("flops", FOLDER / "20m.toml", "--mesh", "1x2").out
    assert "per byte" in shown and "on each device" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bltkit:tiny", "--mesh", "1x1"), "name a training config"),
        (("bltkit:tiny", "optim.lr=1"), "optim.lr=1: bltkit:tiny is no training config"),
        (("{folder}/tiny.toml", "--rate", "5"), "add --mesh"),
        (("{folder}/tiny.toml", "--mesh", "1by1"), "--mesh 1by1"),
        (("{folder}/tiny.toml", "--mesh", "1x1", "--device", "h1000"), "did you mean 'h100'"),
    ],
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], words: str, blt: Callable[..., Ran]) -> None:
    ran = blt("flops", *(argument.format(folder=FOLDER) for argument in arguments))
    assert ran.status == 2
    assert words in ran.err


SCALE = FOLDER.parent / "docs" / "scale.md"
BLOCKS = re.findall(
    r"```sh\nblt flops (\S+)([^\n]*)\n```\n+```text\n(.*?)\n```", SCALE.read_text(encoding="utf-8"), re.S
)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@pytest.mark.parametrize(("config", "options", "printed"), BLOCKS)
def test_the_page_shows_what_the_command_prints(
    config: str, options: str, printed: str, blt: Callable[..., Ran]
) -> None:
    """Words exactly; numbers within 5 %, since what autograd keeps differs a little between versions of torch."""
    ran = blt("flops", FOLDER.parent / config, *options.split())
    found = ran.out.partition("\n\n")[2].strip()
    assert NUMBER.sub("#", found).split() == NUMBER.sub("#", printed).split()
    numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(text)] for text in (found, printed)]
    assert numbers[1] == pytest.approx(numbers[0], rel=0.05, abs=0.02)


def test_the_page_has_tables() -> None:
    assert len(BLOCKS) >= 2
