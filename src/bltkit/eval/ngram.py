"""A byte n-gram model: the least that an entropy model has to beat, and cheap enough to build on the spot.

Interpolated Witten-Bell smoothing: each order trusts its counts by how often its context was followed by something it
had already seen, and leaves the rest to the next lower order, down to a uniform byte (Bell, Cleary and Witten 1990).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SYMBOLS = 257
_BEFORE = 256  # what stands in front of a document

Codes = npt.NDArray[np.int64]


def ngram_nats(train: Sequence[bytes], test: Sequence[bytes], order: int = 2) -> npt.NDArray[np.float64]:
    """-ln p of each byte of `test`, document after document, given the `order` bytes before it; counts from `train`."""
    probability = np.full(sum(map(len, test)), 1 / 256)
    for length in range(order + 1):
        context, symbol = _grams(train, length)
        seen, count = np.unique(context * _SYMBOLS + symbol, return_counts=True)
        contexts, total = np.unique(context, return_counts=True)
        distinct = np.unique(seen // _SYMBOLS, return_counts=True)[1]
        context, symbol = _grams(test, length)
        hits = _look_up(seen, count, context * _SYMBOLS + symbol)
        totals, kinds = _look_up(contexts, total, context), _look_up(contexts, distinct, context)
        weight = np.maximum(totals + kinds, 1)
        probability = np.where(totals > 0, (hits + kinds * probability) / weight, probability)
    nats: npt.NDArray[np.float64] = -np.log(probability)
    return nats


def _grams(documents: Sequence[bytes], length: int) -> tuple[Codes, Codes]:
    """The `length` symbols before each byte as one number, and the byte."""
    contexts, symbols = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for document in documents:
        data = np.frombuffer(document, np.uint8).astype(np.int64)
        padded = np.concatenate([np.full(length, _BEFORE), data])
        context = np.zeros(len(data), np.int64)
        for i in range(length):
            context = context * _SYMBOLS + padded[i : i + len(data)]
        contexts.append(context)
        symbols.append(data)
    return np.concatenate(contexts), np.concatenate(symbols)


def _look_up(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    """values[i] where keys[i] is wanted, 0 where no key is; keys ascend."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
