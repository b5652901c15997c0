"""Muon: momentum whose direction is orthogonalised, for the matrices of a model (Jordan et al. 2024).

Equal to `torch.optim.Muon` on each matrix, which the tests hold it to, with two differences that torch's does not
offer. Projections that are stored as one product (query, key and value; gate and up) are orthogonalised apart, since
an orthogonal whole would tie what they learn to one another. And matrices may be shards of FSDP2: momentum is kept
and averaged by the shard; the matrices are gathered one by one, each is orthogonalised whole by one process, in
turn, and its result is sent to all, of which each applies its own rows. A step so costs every process an n-th of the
iterations, and twice the matrix over the network.

Updates are scaled by 0.2 sqrt(max(rows, columns)), which gives them the size of AdamW's (Liu et al. 2025, arXiv
2502.16982, eq. 4): rate and weight decay of AdamW can be kept.
"""

from collections.abc import Iterator, Mapping
from typing import Any, overload

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from bltkit.model.cross import CrossAttention
from bltkit.model.fused_linear import Linear
from bltkit.model.layers import FeedForward, SelfAttention

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration; they maximise its slope at zero."""
ITERATIONS = 5
_EPS = 1e-7


def orthogonalised(matrix: Float[Tensor, "M N"]) -> Float[Tensor, "M N"]:
    """An approximation of U V^T of the singular value decomposition U S V^T.

    Singular values end between 0.7 and 1.2 or so, which serves as well as 1 (Jordan et al. 2024). Computed in bf16 on a
    GPU; elsewhere in fp32, since many CPUs are slower in bf16, and one process and several then agree as closely as
    their gradients do.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def matrices_of(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """What Muon updates: `id(weight)` of every matrix between two hidden vectors, with the rows of its parts.

    Left to AdamW are embeddings and tables, norms, and heads, whose outputs are bytes.
    """
    heads = {id(module.head) for module in model.modules() if isinstance(getattr(module, "head", None), Linear)}
    matrices: dict[int, tuple[int, ...]] = {
        id(module.weight): (module.weight.shape[0],)
        for module in model.modules()
        if isinstance(module, Linear) and id(module) not in heads
    }
    for module in model.modules():
        if isinstance(module, SelfAttention) and isinstance(module.qkv, Linear):
            queries = module.out.in_features
            keys = (module.qkv.out_features - queries) // 2
            matrices[id(module.qkv.weight)] = (queries, keys, keys)
        elif isinstance(module, CrossAttention) and isinstance(module.kv, Linear):
            matrices[id(module.kv.weight)] = (module.kv.out_features // 2,) * 2
        elif isinstance(module, FeedForward) and isinstance(module.gate_up, Linear):
            matrices[id(module.gate_up.weight)] = (module.gate_up.out_features // 2,) * 2
    return matrices


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, over matrices [M, N] or FSDP2's shards of them.

    State per matrix: `momentum`, in fp32, placed like the matrix.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        parts: Mapping[int, tuple[int, ...]],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """parts: `id(matrix)` -> rows of each part that is orthogonalised by itself (`matrices_of`)."""
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._parts = parts
        for group in self.param_groups:
            for weight in group["params"]:
                assert weight.dim() == 2, "a matrix is [M, N]"
                self.state[weight] = {"momentum": torch.zeros_like(weight, dtype=torch.float32)}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Any) -> float: ...
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:
        """Update every matrix that has a gradient; all processes have to call it."""
        assert closure is None, "the loss is computed once a step"
        pairs = list(self._momenta())
        updates = self._updates([update for _, _, update in pairs], [weight for weight, _, _ in pairs])
        for (weight, group, _), update in zip(pairs, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.to(weight.dtype), alpha=-group["lr"])
        return None

    def _momenta(self) -> Iterator[tuple[nn.Parameter, dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average, gradient = self.state[weight]["momentum"], weight.grad.float()
                average.lerp_(gradient, 1 - group["momentum"])
                yield weight, group, gradient.lerp(average, group["momentum"])

    def _updates(self, momenta: list[Tensor], weights: list[nn.Parameter]) -> Iterator[Tensor]:
        """Each matrix's update, placed like the matrix; one matrix at a time is gathered."""
        for number, (momentum, weight) in enumerate(zip(momenta, weights, strict=True)):
            parts = self._parts[id(weight)]
            if not isinstance(momentum, DTensor):
                yield _update(momentum, parts)
                continue
            whole, owner = momentum.full_tensor(), number % dist.get_world_size()
            update = _update(whole, parts).contiguous() if dist.get_rank() == owner else torch.empty_like(whole)
            dist.broadcast(update, owner)
            yield distribute_tensor(update, momentum.device_mesh, momentum.placements, src_data_rank=None)


def _update(momentum: Float[Tensor, "M N"], parts: tuple[int, ...]) -> Float[Tensor, "M N"]:
    scaled = [
        orthogonalised(part).to(momentum.dtype).mul_(0.2 * max(part.shape) ** 0.5) for part in momentum.split(parts)
    ]
    return scaled[0] if len(scaled) == 1 else torch.cat(scaled)
