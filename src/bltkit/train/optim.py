"""The optimizer as the trainer sees it (BLT 4.7): clip the step's whole gradient, look at its norm, update.

Dense weights, FSDP's shards among them, go through torch's fused AdamW, or the matrices among them through Muon
(`muon.py`); the n-gram tables, whose gradients are sparse, are updated row by row (`sparse_adamw.py`). State has names,
not numbers: `PARAMETER|moment`, so that a checkpoint can be read by any number of processes and by a run that trains
other parts of the model.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import count
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bltkit.config import Config
from bltkit.model.embed import NgramEmbedding
from bltkit.train.muon import Muon, matrices_of
from bltkit.train.schedules import CosineSchedule, Schedule
from bltkit.train.sparse_adamw import RowAdamW

LATENT = "latent."
"""What the names of the global transformer's weights begin with."""

_WRAPPED = "_checkpoint_wrapped_module."


class MuonSection(Config):
    """Muon for the matrices between hidden vectors; embeddings, tables, norms and heads stay with AdamW."""

    lr: PositiveFloat | None = None
    """Of the matrices; by default that which AdamW would give them (`lr`, `latent_lr`), since updates are scaled to
    AdamW's size."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the average of gradients."""


class OptimSection(Config):
    """AdamW, its parameter groups and its schedule (BLT 4.7)."""

    lr: PositiveFloat = 4e-4
    """Highest learning rate."""
    tables_lr: PositiveFloat | None = None
    """Of the hash n-gram tables; by default `lr`."""
    latent_lr: PositiveFloat | None = None
    """Of the global transformer; by default `lr`."""
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator of AdamW's step."""
    muon: MuonSection | None = None
    """`{}` updates matrices by Muon (Jordan et al. 2024) instead of AdamW."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights per update, such as 0.997. Where it is kept, it is what is exported;
    validation measures both."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay per unit of learning rate."""
    decay: Literal["all", "matrices"] = "all"
    """What decays: `all`, as in the released models, or `matrices`: neither norms nor embeddings (tables included)."""
    tables: Literal["rows", "dense"] = "rows"
    """How the n-gram tables are updated: only the rows that a step looked up (`sparse_adamw.py`), or all of them in
    every step, which costs time and memory in proportion to the tables."""
    clip: PositiveFloat = 1.0
    """Largest 2-norm of the gradient of a whole step."""
    schedule: Schedule = CosineSchedule()
    """How the rates go over the run: `cosine`, `wsd`, `constant`, or a table with the fields of one."""
    warmup_steps: NonNegativeInt = 100
    """Steps over which the rate rises from 0."""
    min_lr_ratio: float = Field(default=0.01, ge=0, le=1)
    """Rate at the end as a share of the highest."""
    schedule_steps: PositiveInt | None = None
    """Length of the schedule; by default the first run's trainer.max_steps, which then stays with the checkpoint."""

    def rate(self, step: int, schedule_steps: int) -> float:
        """Share of the full learning rates that update number `step` (from 0) is made with, in [0, 1]."""
        return self.schedule.rate(step, schedule_steps, self.warmup_steps, self.min_lr_ratio)


def learning_rate(config: OptimSection, step: int, schedule_steps: int) -> float:
    """Rate `lr` of update number `step` (from 0)."""
    return config.lr * config.rate(step, schedule_steps)


def build_optimizer(
    config: OptimSection, model: nn.Module, *, sharded_by_rows: Collection[str] = frozenset()
) -> "Optimizer":
    """The optimizer of all weights of `model` that require a gradient; call it when the model is on its device.

    sharded_by_rows: names of parameters that are plain tensors here, but of which every process of the default group
        holds other rows.
    Raises ValueError for a rate of a part that the model does not have, and where nothing is to be trained.
    """
    weights = {name.replace(_WRAPPED, ""): weight for name, weight in model.named_parameters()}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables = {id(module.ngrams) for module in model.modules() if isinstance(module, NgramEmbedding)}
    matrices = {} if config.muon is None else matrices_of(model)
    assert set(sharded_by_rows) <= weights.keys(), "a sharded parameter has to be the model's"
    if config.tables_lr is not None and not tables:
        raise ValueError(f"optim.tables_lr = {config.tables_lr}, but this model has no n-gram tables; leave it out")
    if config.latent_lr is not None and not any(name.startswith(LATENT) for name in weights):
        raise ValueError(
            f"optim.latent_lr = {config.latent_lr}, but this model has no global transformer; leave it out"
        )
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, weight in weights.items():
        if not weight.requires_grad:
            continue
        lr, is_table = config.lr, id(weight) in tables
        if is_table:
            lr = config.tables_lr or lr
        elif name.startswith(LATENT):
            lr = config.latent_lr or lr
        # Norms' gains are the vectors among the weights.
        decays = config.decay == "all" or not (is_table or id(weight) in embeddings or weight.dim() < 2)
        update = "rows" if is_table and config.tables == "rows" else "muon" if id(weight) in matrices else "adamw"
        if update == "muon" and config.muon is not None:
            lr = config.muon.lr or lr
        # One fused call takes either plain tensors or DTensors.
        key = (update, isinstance(weight, DTensor), lr, decays)
        options = {"params": [], "lr": lr, "initial_lr": lr, "weight_decay": config.weight_decay if decays else 0.0}
        groups.setdefault(key, options)["params"].append(weight)
    if not groups:
        raise ValueError("no weight of the model is left to train: freeze less of it")
    common: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}

    def groups_of(update: str) -> list[dict[str, Any]]:
        return [group for (by, *_), group in groups.items() if by == update]

    parts: list[torch.optim.Optimizer] = []
    if dense := groups_of("adamw"):
        parts.append(_with_state(torch.optim.AdamW(dense, fused=True, **common)))
    if orthogonal := groups_of("muon"):
        assert config.muon is not None
        parts.append(Muon(orthogonal, config.lr, matrices, config.muon.momentum))
    if sparse := groups_of("rows"):
        parts.append(RowAdamW(sparse, **common))
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    return Optimizer(config, trained, parts, frozenset(sharded_by_rows))


def trainers_update(model: nn.Module) -> Callable[[], None]:
    """What a training step does with gradients of `model`, at the defaults: clip, update, forget. For benchmarks."""
    for module in model.modules():
        if isinstance(module, NgramEmbedding):
            module.sparse_gradients = True
    optimizer, step = build_optimizer(OptimSection(warmup_steps=0), model), count()

    def update() -> None:
        optimizer.clip()
        optimizer.update(next(step), 1000)

    return update


def _with_state(optimizer: torch.optim.AdamW) -> torch.optim.AdamW:
    """With the moments that torch would only make at the first step."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight] = {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
            }
    return optimizer


class Optimizer:
    """Clips, updates, and gives and takes its state by name. A step is `clip`, then `update` or `discard`."""

    def __init__(
        self,
        config: OptimSection,
        weights: Mapping[str, nn.Parameter],
        parts: Iterable[torch.optim.Optimizer],
        sharded_by_rows: frozenset[str],
    ) -> None:
        self._config = config
        self._weights = dict(weights)
        self._parts = tuple(parts)
        self._sharded_by_rows = sharded_by_rows
        self._owner = {
            id(weight): part for part in self._parts for group in part.param_groups for weight in group["params"]
        }

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        return self._weights

    @torch.no_grad()
    def clip(self) -> Float[Tensor, ""]:
        """Scale the gradients that were added up so that their 2-norm, over all of them together, is at most `clip`.

        Returns the norm before that: of the whole gradient over all processes, on the weights' device. Every process
        has to call it.
        """
        device = next(iter(self._weights.values())).device
        plain: list[Tensor] = []
        own_rows: list[Tensor] = []
        meshed: dict[tuple[Any, ...], list[Tensor]] = {}
        for name, weight in self._weights.items():
            gradient = weight.grad
            if gradient is None:
                continue
            if isinstance(gradient, DTensor):
                assert not any(placed.is_partial() for placed in gradient.placements), "a gradient that is not summed"
                dims = tuple(i for i, placed in enumerate(gradient.placements) if not placed.is_replicate())
                meshed.setdefault((gradient.device_mesh, dims), []).append(gradient.to_local())
                continue
            if gradient.is_sparse:
                by_rows = isinstance(self._owner[id(weight)], RowAdamW)
                weight.grad = gradient = gradient.coalesce() if by_rows else gradient.to_dense()
            values = gradient.values() if gradient.is_sparse else gradient
            (own_rows if name in self._sharded_by_rows else plain).append(values)
        norms = [nn.utils.get_total_norm(plain).to(device)] if plain else []
        for (mesh, dims), tensors in meshed.items():
            squares = nn.utils.get_total_norm(tensors).square()
            for dim in dims:
                dist.all_reduce(squares, group=mesh.get_group(dim))
            norms.append(squares.sqrt())
        if self._sharded_by_rows:
            # Also a process takes part whose rows nobody looked up.
            squares = nn.utils.get_total_norm(own_rows).to(device).square()
            dist.all_reduce(squares)
            norms.append(squares.sqrt())
        if not norms:
            return torch.zeros((), device=device)
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        everything = [*plain, *own_rows, *(tensor for tensors in meshed.values() for tensor in tensors)]
        if everything:
            torch._foreach_mul_(everything, (self._config.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def update(self, step: int, schedule_steps: int) -> float:
        """Update number `step` (from 0) of the run by the gradients as they are, and forget them.

        Returns the rate of what has no rate of its own. Updates that were left out count in the schedule, not in the
        correction of the moments' bias.
        """
        share = self._config.rate(step, schedule_steps)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["initial_lr"] * share
            part.step()
        self.discard()
        return self._config.lr * share

    def discard(self) -> None:
        """Forget the gradients."""
        for weight in self._weights.values():
            weight.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state itself, no copy, complete from the start (so that a checkpoint can be read into it).

        `PARAMETER|exp_avg`, `PARAMETER|exp_avg_sq` (of Muon `PARAMETER|momentum`) are placed like their parameter (a
        DTensor, own rows); `PARAMETER|step` is 0-dim and the same on all processes.
        """
        return {
            f"{name}|{key}": cast(Tensor, value)
            for name, weight in self._weights.items()
            for key, value in self._owner[id(weight)].state[weight].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the state that `tensors` gave; the tensors are taken over, not copied.

        Names that this optimizer does not have are passed over, and what is not named stays as it is: parts of a model
        may be frozen or set free between two runs.
        """
        for name, weight in self._weights.items():
            state = self._owner[id(weight)].state[weight]
            for key, old in state.items():
                new = tensors.get(f"{name}|{key}")
                if new is None:
                    continue
                if new.shape != old.shape:
                    raise ValueError(
                        f"the optimizer's state of {name} is of shape {list(new.shape)}, not {list(old.shape)}: "
                        "the checkpoint belongs to a model of another shape"
                    )
                state[key] = new.detach().to(device=old.device, dtype=old.dtype)
