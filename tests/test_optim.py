"""The trainer's optimizer: who is in which group, one norm for all gradients, state by name, one process or several."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bltkit.config import parse
from bltkit.model import Blt
from bltkit.train import build_model
from bltkit.train.config import ModelConfig
from bltkit.train.optim import MuonSection, OptimSection, build_optimizer, learning_rate
from bltkit.train.schedules import WsdSchedule
from tests.tiny_training import MODELS

TABLES = "embed.ngrams"
EMBEDDINGS = {TABLES, "embed.bytes.weight", "embed.weight"}


def build(kind: str = "blt", seed: int = 0) -> nn.Module:
    model = build_model(parse(ModelConfig, MODELS[kind], "test"))
    return cast(nn.Module, model.reset_parameters(torch.Generator().manual_seed(seed)))


def gradients(model: nn.Module, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Whole gradients, that of the tables with most rows zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: scale * torch.randn(w.shape, generator=generator) for name, w in model.named_parameters()}
    if TABLES in found:
        found[TABLES][torch.rand(len(found[TABLES]), generator=generator) < 0.8] = 0
    return found


def halves(whole: Tensor) -> Tensor:
    """Sparse and uncoalesced, each row in two parts."""
    half = (whole / 2).to_sparse(1)
    rows, values = torch.cat([half.indices()] * 2, 1), torch.cat([half.values()] * 2)
    return torch.sparse_coo_tensor(rows, values, whole.shape, check_invariants=False)


def give(model: nn.Module, whole: dict[str, Tensor], sparse: bool = True) -> None:
    """Set them; the tables' as backward does."""
    for name, weight in model.named_parameters():
        weight.grad = whole[name].clone()
        if name == TABLES and sparse:
            weight.grad = halves(whole[name])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_each_part_has_its_rate_and_its_decay() -> None:
    """Where every gradient is zero, a weight is only multiplied by 1 - rate * decay."""
    config = OptimSection(
        lr=0.01, tables_lr=0.04, latent_lr=0.02, decay="matrices", weight_decay=0.5, schedule="constant", warmup_steps=0
    )
    for decay in ("all", "matrices"):
        model = build()
        before = weights(model)
        optimizer = build_optimizer(config.replace(decay=decay), model)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.clip()
        assert optimizer.update(0, 10) == 0.01
        for name, weight in model.named_parameters():
            rate = 0.04 if name == TABLES else 0.02 if name.startswith("latent.") else 0.01
            still = decay == "matrices" and (name in EMBEDDINGS or "norm" in name)
            torch.testing.assert_close(weight.detach(), before[name] * (1 if still else 1 - rate * 0.5), msg=name)


def test_the_first_update_of_every_part() -> None:
    """After one update the corrected moments are the gradient and its square: all move by their rate."""
    model = build()
    before, whole = weights(model), gradients(model)
    config = OptimSection(lr=0.01, tables_lr=0.03, weight_decay=0.0, clip=1e9, schedule=WsdSchedule(), warmup_steps=4)
    optimizer = build_optimizer(config, model)
    give(model, whole)
    optimizer.clip()
    assert optimizer.update(1, 10) == learning_rate(config, 1, 10) == 0.01 * 2 / 4
    for name, weight in model.named_parameters():
        rate = (0.03 if name == TABLES else 0.01) / 2
        torch.testing.assert_close(weight.detach(), before[name] - rate * whole[name].sign(), rtol=1e-4, atol=1e-6)
        assert weight.grad is None


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_one_norm_for_sparse_and_dense(sparse: bool, scale: float) -> None:
    model = build()
    whole = gradients(model, scale=scale)
    give(model, whole, sparse)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in whole.values()))
    assert float(build_optimizer(OptimSection(clip=1.0), model).clip()) == pytest.approx(norm, rel=1e-6)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad.to_dense(), whole[name] * min(1.0, 1.0 / (norm + 1e-6)))
    ours = torch.cat([cast(Tensor, weight.grad).to_dense().flatten() for weight in model.parameters()])
    assert float(ours.norm()) <= 1 + 1e-5


def test_dense_gradients_are_clipped_as_torch_does() -> None:
    ours, theirs = build("entropy"), build("entropy")
    for model in (ours, theirs):
        give(model, gradients(model))
    norm = build_optimizer(OptimSection(clip=0.5), ours).clip()
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


def test_a_step_without_gradients_and_one_that_is_left_out() -> None:
    model = build()
    before = weights(model)
    optimizer = build_optimizer(OptimSection(), model)
    assert float(optimizer.clip()) == 0
    give(model, gradients(model))
    optimizer.clip()
    optimizer.discard()
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert not any(bool(value.any()) for value in optimizer.tensors().values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_norm(bad: float) -> None:
    for name in (TABLES, "decoder.head.weight"):
        model = build()
        whole = gradients(model)
        whole[name][3] = bad
        give(model, whole)
        assert not math.isfinite(float(build_optimizer(OptimSection(), model).clip()))


def steps(model: nn.Module, optimizer: Any, numbers: range) -> None:
    for step in numbers:
        give(model, gradients(model, seed=step))
        optimizer.clip()
        optimizer.update(step, 10)


@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_state_goes_by_name_and_goes_on_bit_for_bit(tables: str) -> None:
    config = OptimSection(tables=tables, lr=1e-2, warmup_steps=2)
    whole, half, rest = build(), build(), build(seed=1)
    optimizer = build_optimizer(config, whole)
    steps(whole, optimizer, range(8))
    first = build_optimizer(config, half)
    steps(half, first, range(4))
    rest.load_state_dict(half.state_dict())
    second = build_optimizer(config, rest)
    assert second.tensors().keys() == {
        f"{name}|{key}" for name in weights(whole) for key in ("step", "exp_avg", "exp_avg_sq")
    }
    kept = {key: value.clone() for key, value in first.tensors().items()}
    second.load(kept | {"gone|exp_avg": torch.ones(1)})
    steps(rest, second, range(4, 8))
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, rest.get_parameter(name)), name
    for key, value in optimizer.tensors().items():
        assert torch.equal(value, second.tensors()[key]), key
    assert {float(value) for key, value in second.tensors().items() if key.endswith("|step")} == {8.0}


def test_a_run_may_change_how_tables_are_updated() -> None:
    """Both ways keep the same state, and where all rows are touched, make the same update."""
    model = build()
    optimizer = build_optimizer(OptimSection(tables="rows"), model)
    steps(model, optimizer, range(3))
    found = []
    for tables in ("rows", "dense"):
        other = build(seed=1)
        other.load_state_dict(model.state_dict())
        further = build_optimizer(OptimSection(tables=tables), other)
        further.load({key: value.clone() for key, value in optimizer.tensors().items()})
        everywhere = {name: torch.ones_like(weight) for name, weight in other.named_parameters()}
        give(other, everywhere)
        further.clip()
        further.update(3, 10)
        found.append(weights(other))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name])


def test_state_of_another_shape_is_refused() -> None:
    optimizer = build_optimizer(OptimSection(), build())
    with pytest.raises(ValueError, match=r"embed\.ngrams is of shape \[2, 2\], not \[122, 16\]: .* another shape"):
        optimizer.load({f"{TABLES}|exp_avg": torch.ones(2, 2)})


def test_frozen_weights_stay_and_have_no_state() -> None:
    model = build()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("latent.") and "norm" not in name)
    before = weights(model)
    optimizer = build_optimizer(OptimSection(lr=0.1, warmup_steps=0), model)
    give(model, gradients(model))
    optimizer.clip()
    optimizer.update(0, 10)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == optimizer.weights.keys() == {key.partition("|")[0] for key in optimizer.tensors()}
    assert changed and all(name.startswith("latent.") and "norm" not in name for name in changed)
    for weight in model.parameters():
        weight.requires_grad_(False)
    with pytest.raises(ValueError, match="left to train"):
        build_optimizer(OptimSection(), model)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("entropy", {"tables_lr": 0.1}, "optim.tables_lr = 0.1, but this model has no n-gram tables"),
        ("cnn", {"latent_lr": 0.1}, "optim.latent_lr = 0.1, but this model has no global transformer"),
    ],
)
def test_a_rate_of_a_part_that_is_not_there(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(OptimSection(**fields), build(kind))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "wds"}, "schedule: unknown schedule 'wds'; did you mean 'wsd'?"),
        ({"schedule": {"kind": "wsd", "decay_step": 1}}, "did you mean 'decay_steps'?"),
        ({"decay": "none"}, "decay = 'none'"),
        ({"tables": "row"}, "tables = 'row'"),
        ({"table_lr": 1.0}, "did you mean 'tables_lr'?"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio = 1.5"),
    ],
)
def test_mistakes_in_the_section(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(OptimSection, fields, "optim")
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- several processes

SHARED = OptimSection(lr=0.01, tables_lr=0.02, latent_lr=0.03, decay="matrices", clip=0.5, warmup_steps=0)
KINDS = ("blt", "boundary")
"""A boundary model's head has one row: the second process holds none of it."""


def own(size: int, rank: int, num: int) -> slice:
    each = -(-size // num)
    return slice(rank * each, min(size, (rank + 1) * each))


def in_two(rank: int, folder: Path, shared: OptimSection) -> None:
    """One of two processes: dense weights as FSDP shards or HSDP copies, tables as this process's rows."""
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    for kind in KINDS:
        for shape in ((2,), (2, 1)):
            whole, model = build(kind), build(kind)
            alone = build_optimizer(_for(kind, shared), whole)
            ignored = set()
            if isinstance(model, Blt):
                size = len(model.embed.ngrams)
                rows = own(size, rank, 2)
                model.embed.ngrams = nn.Parameter(model.embed.ngrams.detach()[rows].clone())
                ignored = {model.embed.ngrams}
            names = ("replicate", "shard")[-len(shape) :]
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            fully_shard(model, mesh=mesh, ignored_params=ignored)
            optimizer = build_optimizer(
                _for(kind, shared), model, sharded_by_rows={TABLES} if isinstance(model, Blt) else frozenset()
            )
            for step in range(3):
                everything = gradients(whole, seed=step)
                if step == 2 and isinstance(model, Blt):
                    everything[TABLES][own(size, 1, 2)] = 0  # nobody looks up what the second process holds
                give(whole, everything)
                for name, weight in model.named_parameters():
                    if isinstance(weight, DTensor):
                        weight.grad = distribute_tensor(everything[name], weight.device_mesh, weight.placements)
                    else:
                        weight.grad = halves(everything[name][rows])
                torch.testing.assert_close(optimizer.clip(), alone.clip())
                assert optimizer.update(step, 5) == alone.update(step, 5)
            for name, weight in model.named_parameters():
                one = whole.get_parameter(name).detach()
                found = weight.full_tensor() if isinstance(weight, DTensor) else weight
                torch.testing.assert_close(found.detach(), one if found.shape == one.shape else one[rows])
            if shape == (2,):
                state = {key: value for key, value in optimizer.tensors().items() if TABLES not in key}
                dcp.save(state, checkpoint_id=folder / kind)
                if rank == 0:
                    torch.save(alone.tensors(), folder / f"{kind}.pt")
    dist.destroy_process_group()


def _for(kind: str, shared: OptimSection) -> OptimSection:
    return shared if kind == "blt" else shared.replace(tables_lr=None, latent_lr=None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("muon", [None, MuonSection()], ids=["adamw", "muon"])
def test_two_processes_make_the_update_of_one_and_one_goes_on_from_theirs(
    muon: MuonSection | None, tmp_path: Path
) -> None:
    shared = SHARED.replace(muon=muon)
    run: Callable[..., Any] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    run(in_two, (tmp_path, shared), nprocs=2)
    for kind in KINDS:
        optimizer = build_optimizer(_for(kind, shared), build(kind))
        state = {key: value for key, value in optimizer.tensors().items() if TABLES not in key}
        dcp.load(state, checkpoint_id=tmp_path / kind, no_dist=True)
        expected = torch.load(tmp_path / f"{kind}.pt")
        for key, value in optimizer.tensors().items():
            if TABLES not in key:
                torch.testing.assert_close(value, expected[key])
                assert bool(value.any()), key
