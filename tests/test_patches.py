"""The `Patches` value: every view of the alignment against loops over the starts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bltkit.patches import Patches


@st.composite
def starts_and_lengths(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """[B, T+1] starts, arbitrary behind the row's end, and [B] num_bytes."""
    length, batch = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    row = st.lists(st.booleans(), min_size=length - 1, max_size=length - 1)
    rest = draw(st.lists(row, min_size=batch, max_size=batch))
    num_bytes = draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
    return torch.tensor([[True, True, *values] for values in rest]), torch.tensor(num_bytes)


def row_of(starts: Tensor, num_bytes: Tensor, b: int) -> tuple[list[bool], int]:
    n = int(num_bytes[b])
    return starts[b, : n + 1].tolist(), n


@given(starts_and_lengths())
def test_a_byte_lies_in_the_latest_patch_opened(given_row: tuple[Tensor, Tensor]) -> None:
    patches = Patches.from_starts(*given_row)
    for b in range(len(given_row[0])):
        starts, n = row_of(*given_row, b)
        expected = [sum(starts[: t + 1]) - 1 for t in range(n)]
        assert patches.byte_patch[b, :n].tolist() == expected
        assert set(patches.byte_patch[b, n:].tolist()) <= {expected[-1]}


@given(starts_and_lengths())
def test_a_prediction_sees_the_latest_complete_patch(given_row: tuple[Tensor, Tensor]) -> None:
    patches = Patches.from_starts(*given_row)
    for b in range(len(given_row[0])):
        starts, n = row_of(*given_row, b)
        opened = [q for q in range(n + 1) if starts[q]]
        for t in range(n):
            # Patch j is complete once byte t is known if the next patch opens at t+1 or before.
            complete = [j for j in range(len(opened) - 1) if opened[j + 1] <= t + 1]
            assert int(patches.byte_latent[b, t]) == complete[-1]


@given(starts_and_lengths())
def test_lengths_and_first_bytes_cover_the_row(given_row: tuple[Tensor, Tensor]) -> None:
    patches = Patches.from_starts(*given_row)
    assert patches.lengths.sum(-1).tolist() == given_row[1].tolist()
    assert patches.max_patches == int(patches.num_patches.max()) == patches.lengths.shape[1]
    for b in range(len(given_row[0])):
        starts, n = row_of(*given_row, b)
        opened = [q for q in range(n) if starts[q]]
        behind = patches.max_patches - len(opened)
        ends = [*opened[1:], n]
        assert int(patches.num_patches[b]) == len(opened)
        assert patches.first_byte[b].tolist() == opened + [n] * behind
        assert patches.lengths[b].tolist() == [e - s for s, e in zip(opened, ends, strict=True)] + [0] * behind
        assert patches.valid[b].tolist() == [t < n for t in range(starts_width(given_row))]


def starts_width(given_row: tuple[Tensor, Tensor]) -> int:
    return given_row[0].shape[1] - 1


@given(starts_and_lengths())
def test_nothing_stands_behind_the_unseen_byte(given_row: tuple[Tensor, Tensor]) -> None:
    patches = Patches.from_starts(*given_row)
    for b in range(len(given_row[0])):
        starts, n = row_of(*given_row, b)
        assert patches.starts[b].tolist() == starts + [False] * (starts_width(given_row) - n)


def test_the_whole_row_counts_by_default() -> None:
    starts = torch.tensor([[True, True, False, True], [True, True, True, False]])
    patches = Patches.from_starts(starts)
    assert patches.num_bytes.tolist() == [3, 3]
    assert patches.lengths.tolist() == [[1, 2, 0], [1, 1, 1]]
    assert patches.to("cpu").starts.equal(starts)


@pytest.mark.parametrize(
    ("starts", "num_bytes", "message"),
    [
        ([[True, False, True]], None, "first two positions must open a patch"),
        ([[False, True, True]], None, "first two positions must open a patch"),
        ([[True, True, True]], [3], "num_bytes must be 1..2"),
        ([[True, True, True]], [0], "num_bytes must be 1..2"),
        ([[True]], None, "num_bytes must be"),
    ],
)
def test_impossible_patches_are_refused(starts: list[list[bool]], num_bytes: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patches.from_starts(torch.tensor(starts), None if num_bytes is None else torch.tensor(num_bytes))
