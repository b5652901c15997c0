"""Perturbation probes: change one byte or one latent of the actual model and see what moves.

Cross-attention that is off by one patch still trains and still generates, only worse, or better than it should because
it sees the future. Where the change arrives first says which of the two it is. The patches here are made up, of
several lengths: what is tested is the model, not the rule. Expected positions are derived from the lengths alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bltkit.model import Blt, Scorer
from bltkit.patches import Patches
from bltkit.vocab import OFFSET, encode

_TEXT = b"The five boxing wizards jump quickly at dawn; 27 of them, once, lost (x + y) == 0 to a wall."
_LENGTHS = (4, 1, 3, 6, 2, 5)


@dataclass(frozen=True)
class Alignment:
    """What moved. Movements are shares of the largest logit in absolute value.

    leak: largest movement of the predictions made before the changed byte was known; must be 0.
    response: smallest movement of the prediction made right at the changed byte; must not be 0.
    pooled: for each changed byte, the first patch whose encoder output moved, minus the patch the byte lies in; None
        where none moved. All must be 0.
    read: for each changed latent, the first byte whose prediction moved, minus the last byte of that patch (the first
        that may see it); None where none moved. All must be 0; below 0 sees the future.
    tolerance: movements up to this are rounding.
    """

    leak: float
    response: float
    pooled: tuple[int | None, ...]
    read: tuple[int | None, ...]
    tolerance: float


@torch.no_grad()
def probe_alignment(model: Blt) -> Alignment:
    """Perturb the first and last byte, and the latent, of several patches in the middle of a row."""
    parameter = model.decoder.norm.weight  # not the tables', which may be held in fewer bits than are computed with
    tolerance = _tolerance(parameter.dtype)
    firsts = _first_bytes()
    base = encode(_TEXT).to(parameter.device)
    probed = [j for j in range(len(firsts) // 4, 3 * len(firsts) // 4) if firsts[j + 1] - firsts[j] > 1]
    bytes_changed = [(j, t) for j in probed for t in (firsts[j], firsts[j + 1] - 1)]
    rows = base.repeat(1 + len(bytes_changed), 1)
    for row, (_, t) in enumerate(bytes_changed, 1):
        rows[row, t] = _other(int(base[t]))
    logits, pooled_vectors = _run(model, rows, firsts, {})
    moved = _movement(logits)
    pooled_at = _first_moved(_movement(pooled_vectors.flatten(2)), tolerance)
    latents_changed = dict(enumerate(probed, 1))
    logits, _ = _run(model, base.repeat(1 + len(probed), 1), firsts, latents_changed)
    read_at = _first_moved(_movement(logits), tolerance)
    return Alignment(
        leak=max(float(moved[i, :t].max()) for i, (_, t) in enumerate(bytes_changed)),
        response=min(float(moved[i, t]) for i, (_, t) in enumerate(bytes_changed)),
        pooled=tuple(_minus(at, j) for at, (j, _) in zip(pooled_at, bytes_changed, strict=True)),
        read=tuple(_minus(at, firsts[j + 1] - 1) for at, j in zip(read_at, probed, strict=True)),
        tolerance=tolerance,
    )


@torch.no_grad()
def probe_scorer(scorer: Scorer, parameter: Tensor) -> tuple[float, float]:
    """How far scores in front of a changed byte move (a share of the largest score; must be 0), and the tolerance.

    parameter: any of the scorer's, for its device and dtype.
    """
    base = encode(_TEXT).to(parameter.device)
    columns = range(len(base) // 4, len(base), 7)
    rows = base.repeat(1 + len(columns), 1)
    for row, t in enumerate(columns, 1):
        rows[row, t] = _other(int(base[t]))
    moved = _movement(scorer.scores(rows).unsqueeze(-1))
    return max(float(moved[i, :t].max()) for i, t in enumerate(columns)), _tolerance(parameter.dtype)


def _first_bytes() -> list[int]:
    """Position of each patch's first byte in the probe row, and behind them the row's end."""
    firsts, at, number = [0], 1, 0
    while at < len(_TEXT) + 1:
        firsts.append(at)
        at += _LENGTHS[number % len(_LENGTHS)]
        number += 1
    return [*firsts, len(_TEXT) + 1]


def _run(model: Blt, ids: Tensor, firsts: list[int], flipped: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Logits [R, T, V] and the encoder's patch vectors [R, P, k, D]; latent flipped[row] of a row changes its sign."""
    starts = torch.zeros(ids.shape[0], ids.shape[1] + 1, dtype=torch.bool, device=ids.device)
    starts[:, firsts] = True
    vectors: list[Tensor] = []

    def watch(_: Any, inputs: tuple[Any, ...], latents: Tensor) -> Tensor:
        vectors.append(inputs[0])
        latents = latents.clone()
        for row, j in flipped.items():
            latents[row, j] = -latents[row, j]
        return latents

    with model.latent.register_forward_hook(watch):
        logits = model(ids, Patches.from_starts(starts))
    return logits, vectors[0]


def _movement(outputs: Float[Tensor, "R T V"]) -> Float[Tensor, "R1 T"]:
    """How far each row but the first is from the first, as a share of the first's largest value; NaN counts as far."""
    wide = outputs.float()
    scale = wide[0].abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((wide[1:] - wide[0]).abs().amax(-1) / scale).nan_to_num(nan=torch.inf)


def _first_moved(movement: Float[Tensor, "R T"], tolerance: float) -> list[int | None]:
    return [next((t for t, value in enumerate(row) if value > tolerance), None) for row in movement.tolist()]


def _minus(at: int | None, expected: int) -> int | None:
    return None if at is None else at - expected


def _other(value: int) -> int:
    return OFFSET + (value - OFFSET + 97) % 256


def _tolerance(dtype: torch.dtype) -> float:
    """Rows of a batch may be computed in another order, so equal means equal up to rounding."""
    return max(1e-4, 8 * torch.finfo(dtype).eps)
