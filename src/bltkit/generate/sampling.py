"""From logits to ids: greedy, or drawn after bias, repetition penalty, temperature, top-k, top-p and min-p.

The noise of a draw is a function of (seed, position) alone. So a byte depends neither on the device and the
batch nor on how the bytes before it were found, and two models that look at the same position see the same
noise: what a draft proposes and what the model would say agree where their distributions do.

Everything is float64 in numpy on the CPU (260 numbers a choice: a launch anywhere else costs more than the work),
and a choice has the same bits alone and in any batch: operations are elementwise, comparisons, counts or
sequential sums along one row.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Num
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator
from torch import Tensor

from bltkit.config import Config
from bltkit.generate.top_logprobs import Tops, tops_of
from bltkit.vocab import NEVER_EMITTED, VOCAB_SIZE

_NEVER = list(NEVER_EMITTED)


MAX_BIAS = 100.0
"""Largest absolute value of a bias; more than lies between the logits of a trained model."""

# A generator costs as much to set up as its numbers for 3 positions, so several positions share one. More would
# make a miss dearer where there are more rows than blocks are kept (128 blocks of 33 kB).
_BLOCK = 16


class Sampling(Config):
    """How a row's ids are chosen. Ids 0, 1 and 3 are never chosen; 2 (EOS) may be.

    The order: bias, repetition penalty, temperature, top-k, top-p, min-p. Each filter sees what the one before it left,
    and the most probable id always stays.
    """

    temperature: NonNegativeFloat = 0.8
    """0: always the most probable id (the lowest of equals)."""
    top_k: PositiveInt | None = None
    """Keep this many of the most probable ids (of equals, the lower id first)."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Keep the fewest of the most probable ids whose probabilities sum to at least this."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Keep ids at least this many times as probable as the most probable one."""
    repetition_penalty: float = Field(default=1.0, ge=1e-6, le=1e6)
    """Logits of seen ids are divided by it where positive and multiplied by it where negative (CTRL,
    arXiv 1909.05858, section 4.1); 1 changes nothing, above 1 repeats less."""
    repetition_window: PositiveInt = 64
    """An id counts as seen if it is among the row's last so many. In longer text every letter has been seen."""
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id (a byte's value + 4, or 2 for EOS) and what is added to its raw logit, -100 to 100; also given as
    a mapping."""

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, value: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        for chosen, bias in value:
            if not 0 <= chosen < VOCAB_SIZE or chosen in NEVER_EMITTED:
                raise ValueError(
                    f"id {chosen} cannot be emitted; give 2 (EOS) or a byte's value + 4, up to {VOCAB_SIZE - 1}"
                )
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise ValueError(f"bias {bias:g} of id {chosen} is beyond -{MAX_BIAS:g} to {MAX_BIAS:g}")
        if len(dict(value)) < len(value):
            raise ValueError("an id is given twice; give each one bias")
        return tuple(sorted(value))

    def pick(self, logits: Float[Tensor, " V"], position: int) -> int:
        """The id at `position` of a row, given the raw logits for it; `choose` for one, with nothing seen."""
        return choose([self], logits[None, None], [position]).ids[0][0]

    def probabilities(
        self,
        logits: Float[Tensor, " V"],
        allowed: Bool[Tensor, " V"] | None = None,
        seen: Bool[Tensor, " V"] | None = None,
    ) -> Float64[Tensor, " V"]:
        """What `choose` draws from, on the CPU; at temperature 0 all mass is on one id. Raises as `choose` does."""
        scores = torch.from_numpy(_log_weights([self], _emittable(logits, allowed), seen)[0])
        if self.temperature > 0:
            return scores.softmax(0)
        return torch.zeros_like(scores).index_fill(0, scores.argmax(), 1.0)


@dataclass(frozen=True)
class Choice:
    """Ids for R rows of S columns, as plain numbers: what follows them is control flow."""

    ids: list[list[int]]
    logprobs: list[list[float]] | None
    """Natural logarithms of the chosen ids' probabilities, where asked for. The distribution is the model's own: at
    temperature 1, before bias, penalty and filters, over the ids that can be emitted and the constraint allows."""
    certainty: "Certainty | None" = None
    """Where asked for."""
    tops: list[list[Tops]] | None = None
    """The most probable ids of each column, of the same distribution, where asked for; empty in other rows."""


@dataclass(frozen=True, eq=False)
class Certainty:
    """How sure the model is of each column: of its own distribution, as `Choice.logprobs` has it."""

    largest: Float64[np.ndarray, "R S"]
    """The probability of the most probable id."""
    entropy: Float64[np.ndarray, "R S"]
    """In nats."""


def choose(
    rows: Sequence[Sampling],
    logits: Float[Tensor, "R S V"],
    positions: Sequence[int],
    *,
    allowed: Bool[Tensor, "R S V"] | None = None,
    seen: Bool[Tensor, "R S V"] | None = None,
    logprobs: bool = False,
    tops: Sequence[int] = (),
    certainty: bool = False,
    decided: Sequence[Sequence[int]] = (),
) -> Choice:
    """The id for every row and column; of one row and column it depends on nothing but what stands there.

    rows: how each row chooses.
    logits: raw, of any floating type, on any device.
    positions: the position in its row of the id that column 0 is for; column s is for the one s further on.
    allowed: ids that may be chosen; None allows all.
    seen: ids that a repetition penalty applies to (`seen_along`); None is none.
    tops: of each row, the number of most probable ids to name in every column; none when absent.
    decided: of each row, what somebody else has chosen in its first columns: nothing is chosen there, and
        log-probabilities are those of these ids.

    Raises ValueError where logits are not finite, and where `allowed` leaves no id that the model can emit.
    """
    num_rows, num_columns, num_ids = logits.shape
    assert len(rows) == len(positions) == num_rows
    emittable = _emittable(logits, allowed)
    scores = _log_weights(rows, emittable, seen)
    if any(row.temperature > 0 for row in rows):
        silence = np.zeros((num_columns, num_ids))
        noise = [
            _gumbel(row.seed, at, num_columns, num_ids) if row.temperature > 0 else silence
            for row, at in zip(rows, positions, strict=True)
        ]
        scores = scores + (noise[0] if num_rows == 1 else np.concatenate(noise))
    chosen: Int64[np.ndarray, " N"] = scores.argmax(-1)
    for row, values in enumerate(decided):
        chosen[row * num_columns : row * num_columns + len(values)] = values
    ids: list[list[int]] = chosen.reshape(num_rows, num_columns).tolist()
    if not logprobs and not certainty and not any(tops):
        return Choice(ids, None)
    emittable = emittable - emittable.max(-1, keepdims=True)
    weights = np.exp(emittable)
    total = weights.cumsum(-1)[:, -1]
    chosen_logprobs, sure, alternatives = None, None, None
    if logprobs:
        chosen_logprobs = (
            (emittable[np.arange(len(emittable)), chosen] - np.log(total)).reshape(num_rows, num_columns).tolist()
        )
    if certainty:
        # An id without weight adds nothing, where 0 times minus infinity would be no number.
        products = np.multiply(weights, emittable, out=np.zeros_like(emittable), where=weights > 0)
        entropy = np.log(total) - products.cumsum(-1)[:, -1] / total
        sure = Certainty((1 / total).reshape(num_rows, num_columns), entropy.reshape(num_rows, num_columns))
    if any(tops):
        alternatives = tops_of((emittable - np.log(total)[:, None]).reshape(logits.shape), tops)
    return Choice(ids, chosen_logprobs, sure, alternatives)


def seen_along(ids: Sequence[int], drafts: Sequence[int], window: int) -> Bool[Tensor, "S V"]:
    """What each of len(drafts) + 1 columns has seen: the last `window` of `ids` and of the drafts before it.

    ids: the row so far, or at least its last `window` ids.
    """
    row = [*ids[-window:], *drafts]
    seen = np.zeros((len(drafts) + 1, VOCAB_SIZE), dtype=np.bool_)
    for column in range(len(drafts) + 1):
        end = len(row) - len(drafts) + column
        seen[column, row[max(0, end - window) : end]] = True
    return torch.from_numpy(seen)


def _emittable(logits: Float[Tensor, "*S V"], allowed: Bool[Tensor, "*S V"] | None) -> Float64[np.ndarray, "N V"]:
    """The logits in float64, all columns of all rows under one another; -inf where an id cannot be chosen."""
    copy = logits.detach().to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
    emittable: Float64[np.ndarray, "N V"] = copy.numpy().reshape(-1, logits.shape[-1])
    emittable[:, _NEVER] = -np.inf
    # The largest is NaN where anything is; -inf alone is a way of saying "never".
    if not np.isfinite(emittable.max(-1)).all():
        raise ValueError("the logits are not finite: the model's weights are broken, or its training diverged")
    if allowed is not None:
        np.copyto(emittable, -np.inf, where=~allowed.cpu().numpy().reshape(emittable.shape))
        if emittable.max(-1).min() == -np.inf:
            raise ValueError("the constraint allows no id that the model can emit; it must always leave one")
    return emittable


def _log_weights(
    rows: Sequence[Sampling], emittable: Float64[np.ndarray, "N V"], seen: Bool[Tensor, "*S V"] | None
) -> Float64[np.ndarray, "N V"]:
    """Logarithms of what is drawn from, up to a constant; N / R successive columns belong to each row.

    Rows of all settings go together. A setting that a row does not have is given the value that changes nothing.
    """
    if any(row.logit_bias for row in rows):
        biases = np.stack([_bias(row.logit_bias, emittable.shape[-1]) for row in rows])
        emittable = emittable + np.repeat(biases, len(emittable) // len(rows), 0)
    if seen is not None and any(row.repetition_penalty != 1 for row in rows):
        penalty = _spread([row.repetition_penalty for row in rows], emittable)
        penalised = np.where(emittable > 0, emittable / penalty, emittable * penalty)
        emittable = np.where(seen.cpu().numpy().reshape(emittable.shape), penalised, emittable)
    if all(row.temperature == 0 for row in rows):
        return emittable
    # The shift keeps a tiny temperature from overflowing; beyond the largest number -inf is right.
    temperatures = [row.temperature or 1.0 for row in rows]
    with np.errstate(over="ignore") if min(temperatures) < 1e-100 else nullcontext():
        scores = (emittable - emittable.max(-1, keepdims=True)) / _spread(temperatures, emittable)
    if all(row.top_k is None and row.top_p is None and row.min_p is None for row in rows):
        return scores
    return _filter(rows, scores)


@lru_cache(maxsize=128)
def _bias(pairs: tuple[tuple[int, float], ...], num_ids: int) -> Float64[np.ndarray, " V"]:
    """What is added to every logit; read-only."""
    bias = np.zeros(num_ids)
    for chosen, value in pairs:
        bias[chosen] = value
    bias.setflags(write=False)
    return bias


def _filter(rows: Sequence[Sampling], scores: Float64[np.ndarray, "N V"]) -> Float64[np.ndarray, "N V"]:
    """Scores (0 is the largest of a row) with -inf where a filter takes an id out.

    In the order of probability each filter keeps a beginning, so all that is to find is how many ids stay.
    """
    num_lines, num_ids = scores.shape
    lines = np.arange(num_lines)
    ascending = np.sort(scores, axis=-1)
    weights = np.exp(ascending)[:, ::-1]
    kept = np.full(num_lines, num_ids)
    if any(row.top_k is not None for row in rows):
        kept = np.minimum(kept, _spread([min(row.top_k or num_ids, num_ids) for row in rows], scores)[:, 0])
    if any(row.top_p is not None for row in rows):
        mass = weights.cumsum(-1)
        # 1 keeps everything, whatever rounding does to the sum.
        share = _spread([np.inf if row.top_p is None or row.top_p == 1 else row.top_p for row in rows], scores)
        enough = mass[:, :-1] < share * mass[lines, kept - 1, None]
        kept = np.minimum(kept, 1 + enough.sum(-1))
    if any(row.min_p is not None for row in rows):
        likely = weights >= _spread([row.min_p or 0.0 for row in rows], scores)
        kept = np.minimum(kept, likely.sum(-1))
    least = ascending[lines, num_ids - kept, None]
    stays = scores >= least
    if (stays.sum(-1) > kept).any():
        # The border runs between equals: the lower ids stay.
        above, equal = scores > least, scores == least
        stays = above | (equal & (equal.cumsum(-1) <= (kept - above.sum(-1))[:, None]))
    return np.where(stays, scores, -np.inf)


def _spread(values: Sequence[float], like: Float64[np.ndarray, "N V"]) -> Num[np.ndarray, "#N 1"]:
    """One value a row -> one value a line of `like`, or one for all."""
    if len(values) == 1:
        return np.array([values])
    return np.repeat(np.asarray(values), len(like) // len(values))[:, None]


def _gumbel(seed: int, position: int, num_columns: int, num_ids: int) -> Float64[np.ndarray, "S V"]:
    """Gumbel noise for successive positions: log-weights plus this have their maximum at an id drawn from them."""
    first, last = position // _BLOCK, (position + num_columns - 1) // _BLOCK
    blocks = [_gumbel_block(seed, block, num_ids) for block in range(first, last + 1)]
    joined = blocks[0] if first == last else np.concatenate(blocks)
    start = position - first * _BLOCK
    return joined[start : start + num_columns]


@lru_cache(maxsize=128)
def _gumbel_block(seed: int, block: int, num_ids: int) -> Float64[np.ndarray, "S V"]:
    """The noise of the positions from `block` * _BLOCK on, kept for the next of them; read-only."""
    # A counter-based generator: any (seed, block) without those before it, and raw bits that numpy promises to keep.
    key = np.array([seed % 2**64, block], dtype=np.uint64)
    bits = np.random.Philox(key=key).random_raw((_BLOCK, num_ids))
    # 52 bits: with one more, half a step below 1 would round to 1, whose noise is infinite.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: Float64[np.ndarray, "S V"] = -np.log(-np.log(uniform))
    noise.setflags(write=False)
    return noise
