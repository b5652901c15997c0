"""What the bytes of a text carry by another's account: a context-mixing model that knows nothing but the text so far.

A judge of entropies must not be related to what it judges. This one is a compressor's model (Mahoney, "Adaptive
Weighing of Context Models for Lossless Data Compression", 2005): each byte is eight binary decisions down a tree; in
every node each context of 0 to 5 bytes gives a probability from what it saw there, and weights that learn with every
decision mix their logits. The two probabilities of a node sum to 1, so those of the 256 bytes do.

The decisions of one byte touch different states, maps and weights, so they are computed at once and nothing is
approximated. About 25 microseconds a byte.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

ORDERS = 6
"""Contexts of 0 .. 5 bytes."""

_LIMIT = 127
"""Largest count of a bit that a state tells apart."""
_FLOOR = 1e-5
"""Least probability that a context gives a bit: keeps logits finite."""
_LEAST = 1e-6
"""Least probability of a mixed bit."""
_RATE = 0.005
"""How fast the probability of a state follows the bits seen in it."""
_WEIGHT = 0.25
_FIRST_STEP, _LAST_STEP, _STEP_BYTES = 0.02, 0.002, 20_000
"""Steps of the weights, from the first byte down to that many."""
_BEFORE = 256  # what stands in front of the text
_SYMBOLS = 257
_TOLD = 4096

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


def context_mixing_nats(
    data: bytes, primed: bytes = b"", *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Numbers:
    """-ln p of each byte of `data`, each predicted from the bytes before it alone.

    primed: read first, and learnt from, but not scored. progress: told (bytes done, bytes in all).
    """
    whole = np.frombuffer(primed + data, np.uint8).astype(np.int64)
    bits = (whole[:, None] >> np.arange(7, -1, -1)) & 1
    ones = _probabilities_of_one(whole, bits, progress)
    nats: Numbers = -np.log(np.where(bits == 1, ones, 1 - ones)).sum(1)
    return nats[len(primed) :]


def _probabilities_of_one(whole: Integers, bits: Integers, progress: Callable[[int, int], None]) -> Numbers:
    """[N, 8]: of each decision, before it is known."""
    nodes = (whole[:, None] | 256) >> np.arange(8, 0, -1)  # 1 .. 255: the decisions before, behind a leading 1
    slots, num_slots = _slots(whole, nodes)
    following, initial = _states()
    states = np.zeros(num_slots, np.int64)
    # Maps of their own for each of the 8 decisions: a byte then never needs a number that it is about to change.
    maps = np.tile(initial, 8 * ORDERS)
    first_of_map = (np.arange(8 * ORDERS) * len(initial)).reshape(8, ORDERS)
    by_node = np.full((256, ORDERS), _WEIGHT)
    by_known = np.full((8 * (ORDERS + 1), ORDERS), _WEIGHT)
    decision = np.arange(8)
    found = np.empty((len(whole), 8))
    for at in range(len(whole)):
        slot, node, bit = slots[at], nodes[at], bits[at]
        state = states[slot]
        place = first_of_map + state
        probability = maps[place]
        logit = np.log(probability / (1 - probability))
        # Two mixers: one for each node, one for how many contexts have been seen here. Their logits are averaged.
        known = (state != 0).sum(1) * 8 + decision
        weights, other_weights = by_node[node], by_known[known]
        mixed, other_mixed = (weights * logit).sum(1), (other_weights * logit).sum(1)
        found[at] = _squashed((mixed + other_mixed) / 2)
        step = max(_LAST_STEP, _FIRST_STEP * (1 - at / _STEP_BYTES))
        by_node[node] = weights + (step * (bit - _squashed(mixed)))[:, None] * logit
        by_known[known] = other_weights + (step * (bit - _squashed(other_mixed)))[:, None] * logit
        seen = bit[:, None]
        maps[place] = np.clip(probability + (seen - probability) * _RATE, _FLOOR, 1 - _FLOOR)
        states[slot] = following[2 * state + seen]
        if at % _TOLD == 0:
            progress(at, len(whole))
    progress(len(whole), len(whole))
    return found


def _slots(whole: Integers, nodes: Integers) -> tuple[Integers, int]:
    """[N, 8, ORDERS]: a number for each context and node that occurs, and how many there are."""
    found = np.empty((*nodes.shape, ORDERS), np.int64)
    count = 0
    for order in range(ORDERS):
        padded = np.concatenate([np.full(order, _BEFORE), whole])
        context = np.zeros(len(whole), np.int64)
        for i in range(order):
            context = context * _SYMBOLS + padded[i : i + len(whole)]  # 257^5 * 256 < 2^63: nothing is hashed
        kinds, number = np.unique((context[:, None] * 256 + nodes).ravel(), return_inverse=True)
        found[:, :, order] = number.reshape(nodes.shape) + count
        count += len(kinds)
    return found, count


def _states() -> tuple[Integers, Numbers]:
    """Counts (zeros, ones) as one number, 0 for nothing seen: the state after each bit, and a first probability of 1.

    A bit takes three quarters of what the other's count has beyond 2: what a context did lately counts for more.
    """
    zeros, ones = np.divmod(np.arange((_LIMIT + 1) ** 2), _LIMIT + 1)
    after_zero = np.minimum(zeros + 1, _LIMIT) * (_LIMIT + 1) + _faded(ones)
    after_one = _faded(zeros) * (_LIMIT + 1) + np.minimum(ones + 1, _LIMIT)
    return np.stack([after_zero, after_one], 1).ravel(), (ones + 0.4) / (zeros + ones + 0.8)


def _faded(count: Integers) -> Integers:
    return np.where(count <= 2, count, 2 + (count - 2) // 4)


def _squashed(logit: Numbers) -> Numbers:
    """Its probability, in fixed bounds."""
    with np.errstate(over="ignore"):
        probability: Numbers = np.clip(1 / (1 + np.exp(-logit)), _LEAST, 1 - _LEAST)
    return probability
