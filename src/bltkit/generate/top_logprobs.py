"""The most probable ids of a position beside the chosen one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

Tops = tuple[tuple[int, float], ...]
"""Ids with the natural logarithms of their probabilities, the most probable first; of equals the lower id first."""


def most_probable(logprobs: Float64[np.ndarray, "S V"], count: int) -> list[Tops]:
    """Of each column the `count` most probable ids, without those that have no probability."""
    order = np.argsort(-logprobs, axis=-1, kind="stable")[:, :count]
    values = np.take_along_axis(logprobs, order, -1)
    return [
        tuple((at, value) for at, value in zip(ids, row, strict=True) if value > -np.inf)
        for ids, row in zip(order.tolist(), values.tolist(), strict=True)
    ]


def tops_of(logprobs: Float64[np.ndarray, "R S V"], counts: Sequence[int]) -> list[list[Tops]]:
    """`most_probable` of each row; nothing where its count is 0."""
    return [
        most_probable(row, count) if count else [()] * len(row) for row, count in zip(logprobs, counts, strict=True)
    ]
