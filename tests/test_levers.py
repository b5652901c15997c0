"""Training levers: Muon, the moving average of weights, zero outputs, stages of row lengths; alone and resumed."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bltkit.config import parse
from bltkit.data import Corpus, Loader
from bltkit.data.corpus import RowShape
from bltkit.train import read_metrics
from bltkit.train.ema import WeightAverage
from bltkit.train.muon import Muon, matrices_of, orthogonalised
from bltkit.train.optim import OptimSection, build_optimizer
from bltkit.train.stages import StagedLoader, part_size
from tests.test_optim import build, steps
from tests.tiny_training import Workplace, same, state_of

MUON = "optim.muon={}"
EMA = "optim.ema=0.9"
ZERO = "trainer.zero_outputs=true"
STAGES = "data.stages=[{until=0.25, shorter=4}, {until=0.65, shorter=2}]"
ALL = (MUON, EMA, ZERO, STAGES)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.at(tmp_path)


# ---------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16), (1, 16), (48, 1)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(matrix * 1e-3))
    assert 0.65 < float(values.min()) <= float(values.max()) < 1.25
    # The directions are those of the matrix.
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert float((left.T @ orthogonalised(matrix) @ right.T).diagonal().min()) > 0.6


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(8, 4)).any()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_matrix_alone_is_updated_as_torch_does(decay: float) -> None:
    """torch computes in bf16: equal to its precision."""
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (nn.Parameter(torch.ones(24, 16)) for _ in range(2))
    our = Muon([{"params": [ours], "lr": 0.02, "weight_decay": decay}], 0.02, {id(ours): (24,)})
    their = torch.optim.Muon([theirs], lr=0.02, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(6):
        ours.grad = torch.randn(24, 16, generator=generator)
        theirs.grad = ours.grad.clone()
        our.step()
        their.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    assert (ours - 1).abs().max() > 0.03, "it moved"


def test_parts_of_one_product_are_updated_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    whole = nn.Parameter(torch.zeros(12, 8))
    parts = [nn.Parameter(torch.zeros(rows, 8)) for rows in (6, 3, 3)]
    joint = Muon([{"params": [whole], "lr": 0.1}], 0.1, {id(whole): (6, 3, 3)})
    apart = Muon([{"params": parts, "lr": 0.1}], 0.1, {id(part): (len(part),) for part in parts})
    for _ in range(3):
        whole.grad = torch.randn(12, 8, generator=generator)
        for part, gradient in zip(parts, whole.grad.split([6, 3, 3]), strict=True):
            part.grad = gradient.clone()
        joint.step()
        apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts]))


@pytest.mark.parametrize("kind", ["blt", "entropy", "bpe", "cnn", "megabyte"])
def test_muon_takes_the_matrices_and_adamw_the_rest(kind: str) -> None:
    model = build(kind)
    parts = matrices_of(model)
    names = {name for name, weight in model.named_parameters() if id(weight) in parts}
    for name, weight in model.named_parameters():
        outside = any(word in name for word in ("norm", "embed", "bytes", "head", "queries")) or weight.dim() != 2
        if "mix" in name or "conv" in name:
            continue  # a convolution's layers are the model's own
        assert (name in names) != outside, name
        if name in names:
            assert sum(parts[id(weight)]) == len(weight)
            assert len(parts[id(weight)]) == (3 if "qkv" in name else 2 if "gate_up" in name or ".kv." in name else 1)
    if names:
        optimizer = build_optimizer(parse(OptimSection, {"muon": {"lr": 0.05}}, "optim"), model)
        moments = {key.partition("|") for key in optimizer.tensors()}
        assert {name for name, _, key in moments if key == "momentum"} == names
        assert not names & {name for name, _, key in moments if key != "momentum"}


def test_the_rate_of_muon_is_its_own() -> None:
    """With a zero gradient only the decay moves a weight: by its own rate."""
    model = build()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = parse(OptimSection, {"muon": {"lr": 0.05}, "lr": 0.01, "weight_decay": 0.5, "warmup_steps": 0}, "optim")
    optimizer = build_optimizer(config.replace(schedule="constant"), model)
    parts = matrices_of(model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.clip()
    optimizer.update(0, 10)
    for name, weight in model.named_parameters():
        rate = 0.05 if id(weight) in parts else 0.01
        torch.testing.assert_close(weight.detach(), before[name] * (1 - rate * 0.5), rtol=1e-5, atol=1e-7)


def test_muons_state_goes_by_name_and_resumes_bit_for_bit() -> None:
    config = parse(OptimSection, {"muon": {}, "lr": 1e-2, "warmup_steps": 2}, "optim")
    whole, half, rest = build(), build(), build(seed=1)
    optimizer, first = build_optimizer(config, whole), build_optimizer(config, half)
    steps(whole, optimizer, range(8))
    steps(half, first, range(4))
    rest.load_state_dict(half.state_dict())
    second = build_optimizer(config, rest)
    second.load({key: value.clone() for key, value in first.tensors().items()})
    steps(rest, second, range(4, 8))
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, rest.get_parameter(name)), name


# ---------------------------------------------------------------- the average of the weights


def test_the_average_by_hand() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = WeightAverage({"w": weight}, 0.5)
    expected = 0.0
    for step in range(20):
        with torch.no_grad():
            weight.fill_(step + 1.0)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    torch.testing.assert_close(average.tensors()["w"], torch.full((3,), expected))
    with average.applied():
        torch.testing.assert_close(weight.detach(), torch.full((3,), expected))
    assert torch.equal(weight.detach(), torch.full((3,), 20.0))


def test_the_average_of_bf16_weights_is_kept_in_fp32() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    average = WeightAverage({"w": weight}, 0.999)
    with torch.no_grad():
        weight.fill_(1 + 2**-7)
    for step in range(9000, 9200):
        average.update(step)
    assert 1.001 < float(average.tensors()["w"][0]) < 1.008, "in bf16 it would stand still at 1"


def test_what_is_exported_is_the_average_and_both_are_validated(place: Workplace) -> None:
    result = place.train("run", "blt", EMA)
    state, exported = state_of(place.path / "run" / "latest"), place.weights("run")
    assert any(not torch.equal(exported[name], state[f"model.{name}"]) for name in exported)
    for name, weight in exported.items():
        torch.testing.assert_close(weight, state[f"ema.{name}"], msg=name)
    last = read_metrics(place.path / "run")[-1]
    assert last["validation_bits_per_byte"] == result.bits_per_byte
    assert last["validation_raw_bits_per_byte"] != last["validation_bits_per_byte"]


def test_a_run_may_begin_an_average_later(place: Workplace) -> None:
    """A branch of a trunk without one begins with the trunk's weights."""
    place.train("trunk", "cnn", "trainer.max_steps=5", "optim.schedule='constant'")
    place.train("branch", "cnn", f"trainer.branch='{place.path / 'trunk'}'", "optim.ema=0.9999")
    trunk, branch = place.weights("trunk"), place.weights("branch")
    state = state_of(place.path / "branch" / "latest")
    for name, weight in branch.items():
        torch.testing.assert_close(weight, state[f"ema.{name}"])
        assert (weight - trunk[name]).abs().max() <= (state[f"model.{name}"] - trunk[name]).abs().max() + 1e-6


def test_a_part_that_is_set_free_begins_an_average_and_leaves_the_others(place: Workplace) -> None:
    place.train("run", "blt", EMA, "adapt.freeze=['decoder']", "trainer.max_steps=5")
    before = state_of(place.path / "run" / "latest")
    place.train("run", "blt", EMA, "optim.lr=1e-12", "trainer.max_steps=6", resume=True)
    after = state_of(place.path / "run" / "latest")
    for name, average in ((name, tensor) for name, tensor in after.items() if name.startswith("ema.")):
        weight = before[name.replace("ema.", "model.")]
        expected = torch.lerp(before.get(name, weight), weight, 1 - 6 / 15)
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6, msg=name)
        assert (name in before) != name.startswith("ema.decoder"), name


def test_the_room_for_averages_is_asked_for(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, int]]()
    monkeypatch.setattr("bltkit.train.trainer.check_room", lambda path, *sizes: asked.append(sizes))
    for out, more in (("plain", ()), ("average", (EMA,))):
        place.train(out, "entropy", *more, "trainer.max_steps=1")
        (file,) = (place.path / out / "latest" / "state").glob("*.distcp")
        assert 0.8 * file.stat().st_size < asked[-1][1] <= file.stat().st_size
    assert asked[1][1] > 1.2 * asked[0][1]


# ---------------------------------------------------------------- zero outputs


def test_every_layer_begins_as_the_identity(place: Workplace) -> None:
    place.train("run", "blt", ZERO, "optim.lr=1e-12", "optim.weight_decay=0", "trainer.max_steps=1")
    weights = place.weights("run")
    ends = [name for name in weights if name.endswith(("attention.out.weight", "down.weight", "cross.out.weight"))]
    assert len(ends) >= 6
    for name, weight in weights.items():
        is_end = ".out." in name or ".down." in name
        assert bool(weight.abs().max() < 1e-6) == is_end, name


def test_zeros_that_would_be_nowhere(place: Workplace) -> None:
    with pytest.raises(ValueError, match=r"trainer\.zero_outputs begins a new model, trainer\.init an old one"):
        place.config("entropy", ZERO, "trainer.init='run'")
    with pytest.raises(ValueError, match="kind 'cnn' has neither attention nor feed-forwards"):
        place.train("run", "cnn", ZERO)


# ---------------------------------------------------------------- stages of row lengths


def shapes_of(place: Workplace, workers: int = 0, steps: int = 20, schedule: int = 20) -> list[tuple[Any, ...]]:
    data = place.config("entropy", STAGES).data
    corpus = Corpus.from_sources(data.sources, data.validation_fraction)

    def loader_of(shape: RowShape) -> Loader:
        size = part_size(corpus, data)
        return Loader(corpus, shape.row_bytes, shape.batch_rows, 3, part_size=size, workers=workers)

    loader, seen = StagedLoader(data, loader_of), []
    for step in range(steps):
        loader.move_to(step, schedule)
        batch = next(loader)
        seen.append((tuple(batch.ids.shape), batch.ids.sum().item(), json.dumps(loader.state)))
    loader.close()
    return seen


def test_stages_follow_the_schedule(place: Workplace) -> None:
    shapes = [shape for shape, _, _ in shapes_of(place)]
    assert shapes == [(8, 16)] * 5 + [(4, 32)] * 8 + [(2, 64)] * 7
    assert shapes_of(place, workers=2, steps=12) == shapes_of(place, steps=12)


def test_a_stage_begins_where_no_text_was_read(place: Workplace) -> None:
    """Within an epoch no document is read in two stages."""
    positions = [json.loads(state) for _, _, state in shapes_of(place)]
    for before, after in itertools.pairwise(positions):
        if before["row_bytes"] != after["row_bytes"]:
            assert (after["epoch"], after["part"]) > (before["epoch"], before["part"])


def test_stages_that_cannot_be(place: Workplace) -> None:
    for stages, words in (
        ("[{until=0.5, shorter=2}, {until=0.5, shorter=4}]", "has to end after the one before it"),
        ("[{until=1.5, shorter=2}]", "until = 1.5"),
        ("[{until=0.5, shorter=16}]", "leaves rows of 4 bytes; use at most 8"),
        ("[{until=0.5, shorter=4}] data.row_patches=8", "leaves rows of 16 bytes and 2 patches; use at most 2"),
        ("[{until=0.5, shorter=2}] data.row_bytes=8", "leaves rows of 4 bytes; such rows cannot be shorter"),
        ("[{until=0.3, shorter=7}, {until=0.5, shorter=7}]", "tells stages apart by their size"),
        ("[{until=0.5, shorter=1}]", "shorter = 1"),
    ):
        with pytest.raises(ValueError, match=words):
            place.config("entropy", *f"data.stages={stages}".replace("] data", "]|data").split("|"))


def test_a_branch_keeps_its_trunks_stages(place: Workplace) -> None:
    place.train("without", "entropy", "trainer.max_steps=2")
    place.train("with", "entropy", STAGES, "trainer.max_steps=2")
    for trunk, more in (("without", (STAGES,)), ("with", ())):
        with pytest.raises(ValueError, match=r"data\.stages: the saved position was made by a run"):
            place.train("branch", "entropy", f"trainer.branch='{place.path / trunk}'", *more)


# ---------------------------------------------------------------- all of them, resumed


@pytest.mark.parametrize("muon", ["{}", "{lr=0.01}"])
def test_a_run_keeps_its_update_rule(muon: str, place: Workplace) -> None:
    """A branch may take another one, with moments that begin at zero."""
    place.train("run", "cnn", "trainer.max_steps=2")
    place.train("other", "cnn", f"optim.muon={muon}", "trainer.max_steps=2")
    for out, more in (("run", (f"optim.muon={muon}",)), ("other", ())):
        with pytest.raises(ValueError, match=r"optim\.muon\.\w+ = .* differs from the run's own"):
            place.train(out, "cnn", *more, resume=True)
    place.train("other", "cnn", "optim.muon={lr=0.02}", "trainer.max_steps=3", resume=True)


@pytest.mark.parametrize(
    "more", [(MUON,), (EMA,), (ZERO,), (STAGES,), ALL], ids=["muon", "ema", "zero outputs", "stages", "all"]
)
def test_ten_steps_are_four_and_two_and_four(more: tuple[str, ...], place: Workplace) -> None:
    whole = place.train("whole", "blt", *more)
    for stop in (4, 6, 10):
        parts = place.train("parts", "blt", f"trainer.max_steps={stop}", *more, resume=stop > 4)
    same(place.tensors("parts"), place.tensors("whole"))
    assert place.losses("parts") == place.losses("whole")
    assert parts.bits_per_byte == whole.bits_per_byte
