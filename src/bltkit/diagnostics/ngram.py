"""A byte n-gram model: the least that an entropy model has to beat, and cheap enough to build on the spot.

Interpolated Witten-Bell smoothing: each order trusts its counts by how often its context was followed by something it
had already seen, and leaves the rest to the next lower order, down to a uniform byte (Bell, Cleary and Witten 1990).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SYMBOLS = 257
_BEFORE = 256  # what stands in front of a document
_DIGITS = 3
"""Symbols that a context grows by between two replacements: 257^4 times 2^31 contexts is below 2^63."""

Codes = npt.NDArray[np.int64]


def ngram_nats(train: Sequence[bytes], test: Sequence[bytes], order: int = 2) -> npt.NDArray[np.float64]:
    """-ln p of each byte of `test`, document after document, given the `order` bytes before it; counts from `train`.

    Exact for every order: contexts are numbered, never hashed. Raises ValueError for an order below 0.
    """
    if order < 0:
        raise ValueError(f"order = {order} must be at least 0: how many bytes before each one are looked at")
    probability = np.full(sum(map(len, test)), 1 / 256)
    split = sum(map(len, train))
    for length in range(order + 1):
        contexts_of_all, symbols_of_all = _grams([*train, *test], length)
        context, symbol = contexts_of_all[:split], symbols_of_all[:split]
        seen, count = np.unique(context * _SYMBOLS + symbol, return_counts=True)
        contexts, total = np.unique(context, return_counts=True)
        distinct = np.unique(seen // _SYMBOLS, return_counts=True)[1]
        context, symbol = contexts_of_all[split:], symbols_of_all[split:]
        hits = _look_up(seen, count, context * _SYMBOLS + symbol)
        totals, kinds = _look_up(contexts, total, context), _look_up(contexts, distinct, context)
        weight = np.maximum(totals + kinds, 1)
        probability = np.where(totals > 0, (hits + kinds * probability) / weight, probability)
    nats: npt.NDArray[np.float64] = -np.log(probability)
    return nats


def _grams(documents: Sequence[bytes], length: int) -> tuple[Codes, Codes]:
    """The `length` symbols before each byte as one number, equal where these are equal, and the byte.

    Every `_DIGITS` symbols the numbers are replaced by their rank, which is below the number of bytes: so none outgrows
    64 bits.
    """
    pieces = [np.frombuffer(document, np.uint8).astype(np.int64) for document in documents]
    symbols = np.concatenate([np.empty(0, np.int64), *pieces])
    padded = [np.concatenate([np.full(length, _BEFORE), piece]) for piece in pieces]
    context = np.zeros(len(symbols), np.int64)
    for i in range(length):
        if i and i % _DIGITS == 0:
            context = np.unique(context, return_inverse=True)[1].reshape(-1)
        before = [row[i : i + len(piece)] for row, piece in zip(padded, pieces, strict=True)]
        context = context * _SYMBOLS + np.concatenate([np.empty(0, np.int64), *before])
    if length >= _DIGITS:
        context = np.unique(context, return_inverse=True)[1].reshape(-1)
    return context, symbols


def _look_up(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    """values[i] where keys[i] is wanted, 0 where no key is; keys ascend."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
