"""Row-wise AdamW: the slow specification, where it is dense AdamW, and that it costs what it touches."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bltkit.train import sparse_adamw as rows_module
from bltkit.train.sparse_adamw import RowAdamW

LR, BETAS, EPS, DECAY = 0.05, (0.9, 0.95), 1e-8, 0.1
Named = Sequence[tuple[int, list[float]]]
"""A sparse gradient: rows, any of them several times, and their values."""


def slow(table: list[list[float]], steps: Sequence[Named]) -> list[list[float]]:
    """The specification, an element at a time: rows that a step does not name stay as they are in every respect."""
    table = [list(row) for row in table]
    mean = [[0.0] * len(row) for row in table]
    square = [[0.0] * len(row) for row in table]
    for count, named in enumerate(steps, start=1):
        for row in {row for row, _ in named}:
            for i in range(len(table[row])):
                g = sum(values[i] for other, values in named if other == row)
                mean[row][i] = BETAS[0] * mean[row][i] + (1 - BETAS[0]) * g
                square[row][i] = BETAS[1] * square[row][i] + (1 - BETAS[1]) * g * g
                best = mean[row][i] / (1 - BETAS[0] ** count)
                size = math.sqrt(square[row][i] / (1 - BETAS[1] ** count)) + EPS
                table[row][i] = table[row][i] * (1 - LR * DECAY) - LR * best / size
    return table


def sparse(named: Named, like: Tensor) -> Tensor:
    """Uncoalesced, as backward makes it."""
    indices = torch.tensor([[row for row, _ in named]], dtype=torch.long)
    values = torch.tensor([values for _, values in named], dtype=like.dtype).view(len(named), like.shape[1])
    return torch.sparse_coo_tensor(indices, values, like.shape, check_invariants=True)


def build(table: nn.Parameter) -> RowAdamW:
    return RowAdamW([table], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)


entries = st.tuples(st.integers(0, 4), st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2))


@given(steps=st.lists(st.lists(entries, max_size=6), min_size=1, max_size=6))
def test_it_is_the_specification(steps: list[Named]) -> None:
    start = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = nn.Parameter(start.clone())
    optimizer = build(table)
    for named in steps:
        table.grad = sparse(named, table)
        optimizer.step()
    expected = torch.tensor(slow(start.tolist(), steps), dtype=torch.float64)
    torch.testing.assert_close(table.detach(), expected, rtol=1e-9, atol=1e-9)
    touched = {row for named in steps for row, _ in named}
    for row in set(range(5)) - touched:
        assert torch.equal(table[row], start[row])


@pytest.mark.parametrize("sparsely", [True, False])
def test_it_is_dense_adamw_where_every_row_is_touched(sparsely: bool) -> None:
    torch.manual_seed(1)
    ours, theirs = (nn.Parameter(torch.ones(7, 4)) for _ in range(2))
    optimizer, dense = build(ours), torch.optim.AdamW([theirs], LR, BETAS, EPS, DECAY, fused=True)
    for _ in range(20):
        gradient = torch.randn(7, 4)
        ours.grad = gradient.to_sparse(1) if sparsely else gradient.clone()
        theirs.grad = gradient
        optimizer.step()
        dense.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        torch.testing.assert_close(optimizer.state[ours][name], dense.state[theirs][name])


def test_micro_batches_add_up_also_where_they_share_rows() -> None:
    """As the trainer makes the gradients: two backward passes of an embedding bag, then one update."""
    torch.manual_seed(2)
    start, weights = torch.randn(9, 3), torch.randn(6, 3)
    bags = torch.tensor([[0, 4], [4, 4], [1, 0], [0, 8], [8, 8], [2, 4]])
    found = []
    for batches in ([bags], [bags[:3], bags[3:]]):
        table = nn.Parameter(start.clone())
        optimizer = build(table)
        for part, weight in zip(batches, weights.split(6 // len(batches)), strict=True):
            (F.embedding_bag(part, table, mode="sum", sparse=True) * weight).sum().backward()
        assert table.grad is not None and table.grad.is_sparse and not table.grad.is_coalesced()
        optimizer.step()
        found.append(table.detach())
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(found[0][[3, 5, 6, 7]], start[[3, 5, 6, 7]]) and not bool(
        (found[0] == start)[[0, 1, 2, 4]].any()
    )


class Counter(TorchDispatchMode):
    """Elements that operations make or change, and the operations that see a whole table."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.elements = large, 0
        self.on_tables: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [item for item in (*args, result) if isinstance(item, Tensor) and not item.is_sparse]
        if any(item.numel() >= self.large for item in tensors):
            self.on_tables.add(func.overloadpacket.__name__)
        made = result if isinstance(result, (list, tuple)) else [result]
        self.elements += sum(
            item.numel()
            for item in made
            if isinstance(item, Tensor) and not item.is_sparse and item.numel() < self.large
        )
        return result


def test_touching_2000_rows_does_not_cost_30_million_elements() -> None:
    table = nn.Parameter(torch.zeros(120_000, 256))
    optimizer = build(table)
    rows = torch.randint(120_000, (2000,), generator=torch.Generator().manual_seed(0))
    table.grad = torch.sparse_coo_tensor(rows[None], torch.ones(2000, 256), table.shape, check_invariants=False)
    with Counter(table.numel()) as counter:
        optimizer.step()
    # Both copy or overwrite the rows that they are told and leave the rest of the table alone.
    assert counter.on_tables == {"index_select", "index_copy_"}
    touched = len(rows.unique()) * 256
    assert 3 * touched <= counter.elements <= 25 * touched < table.numel() // 2
    assert bool(table.detach().any(1).sum() == len(rows.unique()))


@pytest.mark.slow
def test_and_does_not_take_the_time_either() -> None:
    from time import perf_counter

    table = nn.Parameter(torch.zeros(120_000, 256))
    rows = torch.randint(120_000, (2000,), generator=torch.Generator().manual_seed(0))
    few = torch.sparse_coo_tensor(rows[None], torch.ones(2000, 256), table.shape, check_invariants=False)
    everything = torch.ones_like(table)

    def fastest(optimizer: torch.optim.Optimizer, gradient: Tensor) -> float:
        times = []
        for _ in range(5):
            table.grad = gradient
            begin = perf_counter()
            optimizer.step()
            times.append(perf_counter() - begin)
        return min(times)

    by_rows = fastest(build(table), few)
    assert fastest(torch.optim.AdamW([table], fused=True), everything) > 2 * by_rows


def moved(history: Sequence[float], make: Callable[[nn.Parameter], torch.optim.Optimizer]) -> float:
    """How far, in rates, an element moves in all whose row is named where the gradient is not 0."""
    table = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    optimizer = make(table)
    for g in history:
        table.grad = torch.full((1, 1), g, dtype=torch.float64)
        if isinstance(optimizer, RowAdamW) and g == 0:
            table.grad = sparse([], table)
        optimizer.step()
    return float(-table.detach()) / LR


def test_a_gradient_that_stays_alone_moves_a_row_less_than_dense_adam_would() -> None:
    """The figures of the module's docstring."""

    def dense(table: nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.AdamW([table], LR, BETAS, 1e-30, 0.0)

    def by_rows(table: nn.Parameter) -> torch.optim.Optimizer:
        return RowAdamW([table], LR, BETAS, 1e-30, 0.0)

    late = [0.0] * 500 + [1.0]
    assert moved(late, dense) == pytest.approx(moved(late, by_rows)) == pytest.approx(0.447, abs=1e-3)
    assert moved([*late, *[0.0] * 400], by_rows) == moved(late, by_rows)
    assert moved([*late, *[0.0] * 400], dense) == pytest.approx(5.84, abs=1e-2)
    assert max(moved([0.0] * before + [1.0], by_rows) for before in range(60)) <= 1 + 1e-9


def test_the_same_gradients_give_the_same_bits_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for at_once in (1 << 17, 1 << 17, 7 * 8):
        monkeypatch.setitem(rows_module.AT_ONCE, "cpu", at_once)
        generator = torch.Generator().manual_seed(3)
        table = nn.Parameter(torch.randn(50, 8, generator=generator))
        optimizer = build(table)
        for _ in range(5):
            rows = torch.randint(50, (1, 90), generator=generator)
            values = torch.randn(90, 8, generator=generator)
            table.grad = torch.sparse_coo_tensor(rows, values, table.shape, check_invariants=False)
            optimizer.step()
        found.append([table.detach(), *optimizer.state[table].values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_tables_of_16_bits_have_moments_of_32() -> None:
    table = nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    optimizer = build(table)
    assert {value.dtype for value in optimizer.state[table].values()} == {torch.float32}
    table.grad = sparse([(1, [1.0, -1.0])], table)
    optimizer.step()
    assert table.dtype == torch.bfloat16 and table[0].tolist() == [1.0, 1.0]
    assert table[1].tolist() == pytest.approx([1 - LR * DECAY - LR, 1 - LR * DECAY + LR], rel=4e-3)


def test_state_is_there_before_the_first_step_and_a_table_without_gradient_stays() -> None:
    table = nn.Parameter(torch.ones(3, 2))
    optimizer = build(table)
    assert {name: list(value.shape) for name, value in optimizer.state[table].items()} == {
        "step": [],
        "exp_avg": [3, 2],
        "exp_avg_sq": [3, 2],
    }
    optimizer.step()
    assert torch.equal(table, torch.ones(3, 2)) and float(optimizer.state[table]["step"]) == 0


def test_betas_that_would_never_forget_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.betas = \(0\.9, 1\.0\)"):
        RowAdamW([nn.Parameter(torch.ones(1, 1))], 0.1, (0.9, 1.0))
