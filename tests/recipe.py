"""Weights of a healthy scale as a pure function of (seed, tensor name, shape), so that golden files need
hold none.

Each tensor is filled from SHAKE-256 of "seed/name", read as little-endian int16 and scaled to unit
variance: no random generator whose stream could change between versions, and any language can rebuild it
bit for bit. Norm gains (1-D) are 1 + 0.1 u; matrices are u / sqrt(fan in), so that every branch of the
model counts in the logits. The entropy model's head is four times as large: entropies then spread over a
nat or more instead of sticking to ln 260.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def tensor(seed: int, name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """The float32 tensor `name` of the model `seed`."""
    count = math.prod(shape)
    noise = hashlib.shake_256(f"{seed}/{name}".encode()).digest(2 * count)
    u = np.frombuffer(noise, dtype="<i2").astype(np.float64).reshape(tuple(shape)) * (math.sqrt(3) / 2**15)
    if len(shape) == 1:
        return np.asarray(1 + 0.1 * u, dtype=np.float32)
    gain = 4.0 if name.endswith("patcher.lm_head.weight") else 1.0
    return np.asarray(u * (gain / math.sqrt(shape[1])), dtype=np.float32)


def tensors(seed: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the model `seed`, by name."""
    return {name: tensor(seed, name, shape) for name, shape in shapes.items()}
