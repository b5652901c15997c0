"""AdamW for the hash n-gram tables: an update costs what the step's n-grams cost, not what the tables hold.

A step looks up a few thousand of millions of rows, and the sparse gradient names just those. Only they are read,
decayed and moved; the moments of all other rows stay as they are, which others call lazy Adam. Three consequences:

- A row that is not looked up stands still. Dense Adam would push it on by its fading momentum (one isolated gradient
  moves a weight by up to 5.8 rates in all with betas of 0.9 and 0.95, of which the first update makes 0.45) and decay
  it. Rare rows therefore move less than under dense Adam; `optim.tables_lr` is there to make up for it.
- Moments are means over the last times that a row was looked up, not over the last steps.
- The moments' bias is corrected by the number of updates of the whole table, as in dense Adam. A count per row would
  make a row's first update a full rate long, at the price of one more vector to store, shard and reshard; with the
  common count that first update is 0.45 rates late in a run and never more than one.

Where every row is looked up in every step, this is dense AdamW. Nothing is random and rows are summed in the order of
their positions, so the same gradients give the same bits.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim.adamw import adamw

AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements that are updated together, by the kind of device: on a CPU what its cache holds."""


class RowAdamW(torch.optim.Optimizer):
    """AdamW of tables [rows, D] with sparse gradients (coalesced or not: equal rows are added up).

    State per table, as `torch.optim.AdamW` names it: `exp_avg` and `exp_avg_sq` [rows, D], fp32 also for tables of 16
    bits, and `step`. They are allocated at once: whether the memory suffices shows before the first step, and a
    checkpoint always holds the same tensors (on the CPU the pages of rows that were never looked up take no memory all
    the same). A dense gradient names every row.
    """

    def __init__(
        self,
        tables: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"optim.betas = {betas}: both have to be at least 0 and less than 1")
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            for table in group["params"]:
                assert table.dim() == 2, "a table is [rows, D]"
                dtype = torch.promote_types(table.dtype, torch.float32)
                self.state[table] = {
                    "step": torch.zeros((), dtype=torch.float32, device=table.device),
                    "exp_avg": torch.zeros_like(table, dtype=dtype),
                    "exp_avg_sq": torch.zeros_like(table, dtype=dtype),
                }

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the rows that the gradients name."""
        assert closure is None, "the loss is computed once a step"
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if table.grad.is_sparse:
                    gradient = table.grad.coalesce()
                    self._update(table, gradient.indices()[0], gradient.values(), group)
                else:
                    self._update(table, torch.arange(len(table), device=table.device), table.grad, group)
        return None

    def _update(
        self, table: Float[Tensor, "R D"], rows: Int64[Tensor, " U"], gradients: Float[Tensor, "U D"], group: Any
    ) -> None:
        """rows: rising, so that memory is read in its order, and none of them twice."""
        state = self.state[table]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        each = max(1, AT_ONCE.get(table.device.type, AT_ONCE["cuda"]) // table.shape[1])
        for some, values in zip(rows.split(each), gradients.split(each), strict=True):
            weights, m, v = (whole.index_select(0, some) for whole in (table, mean, square))
            weights = weights.to(m.dtype)
            adamw(
                [weights],
                [values.to(m.dtype)],
                [m],
                [v],
                [],
                [state["step"].clone()],  # counts up in there
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            table.index_copy_(0, some, weights.to(table.dtype))
            mean.index_copy_(0, some, m)
            square.index_copy_(0, some, v)
        state["step"] += 1
