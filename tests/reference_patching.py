"""The slow, obvious patching: one row, plain loops from the definitions, which fast code must equal.

A rule is asked "does position q open a patch?" given everything before q; documents and the maximum length
are applied around it. fp32 differences are taken as such.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PAD, BOS, OFFSET = 0, 1, 4
Opens = Callable[[Sequence[int], Sequence[float], int], bool]


def row_starts(
    fields: dict[str, Any], ids: Sequence[int], scores: Sequence[float] | None, *, documents: bool
) -> list[bool]:
    """Does position q = 0..N open a patch. `fields` is the rule as a mapping with its `kind`."""
    begins = [q for q, value in enumerate(ids) if q == 0 or (documents and value == BOS)]
    starts: list[bool] = []
    for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
        document_scores = [0.0] * (end - begin) if scores is None else scores[begin:end]
        own = document_starts(fields, ids[begin:end], document_scores)
        # The last answer of a document is about its next byte, the next document's BOS.
        starts += own if end == len(ids) else own[:-1]
    return starts


def document_starts(fields: dict[str, Any], ids: Sequence[int], scores: Sequence[float]) -> list[bool]:
    """As `row_starts`, of one document."""
    opens = RULES[fields["kind"]](fields)
    starts = [q <= 1 or opens(ids, scores, q) for q in range(len(ids) + 1)]
    longest = fields["max_patch_bytes"]
    return starts if longest is None else cut(starts, longest)


def cut(starts: Sequence[bool], longest: int) -> list[bool]:
    """In a patch from s on, s + m, s + 2m, ... open patches too (m = longest)."""
    result = list(starts)
    s = 0
    for q, opens in enumerate(starts):
        if opens:
            s = q
        if (q - s) % longest == 0:
            result[q] = True
    return result


def threshold(fields: dict[str, Any]) -> Opens:
    return lambda ids, e, q: e[q - 1] > fields["threshold"]


def rise(fields: dict[str, Any]) -> Opens:
    return lambda ids, e, q: q == 2 or risen(e, q) > fields["rise"]


def both(fields: dict[str, Any]) -> Opens:
    def opens(ids: Sequence[int], e: Sequence[float], q: int) -> bool:
        if q == 2:
            return True
        if q == 3 and fields["skip_third"]:
            return False
        return e[q - 1] > fields["threshold"] and risen(e, q) > fields["rise"]

    return opens


def risen(e: Sequence[float], q: int) -> float:
    return float(np.float32(e[q - 1]) - np.float32(e[q - 2]))


def stride(fields: dict[str, Any]) -> Opens:
    return lambda ids, e, q: any(q == 1 + math.floor(i * fields["k"]) for i in range(q + 1))


def byte(fields: dict[str, Any]) -> Opens:
    return lambda ids, e, q: True


def space(fields: dict[str, Any]) -> Opens:
    def ends(ids: Sequence[int], q: int) -> bool:
        return ids[q] < OFFSET or (space_like(ids[q]) and not space_like(ids[q - 1]))

    return lambda ids, e, q: ends(ids, q - 1)


def random(fields: dict[str, Any]) -> Opens:
    def mixed(x: int) -> int:
        x = (x + FACTORS[0]) % 2**64
        x = (x ^ (x >> 30)) * FACTORS[1] % 2**64
        x = (x ^ (x >> 27)) * FACTORS[2] % 2**64
        return x ^ (x >> 31)

    def opens(ids: Sequence[int], e: Sequence[float], q: int) -> bool:
        x = mixed((q - 1 + (fields["seed"] << 32)) % 2**64)
        for back in range(8):
            x = mixed(x + (ids[q - 1 - back] if q - 1 - back >= 0 else PAD))
        return (x >> 32) % 2**31 < math.ceil(2**31 / fields["k"])

    return opens


def space_like(value: int) -> bool:
    byte_value = value - OFFSET
    if byte_value < 0:
        return True
    return chr(byte_value) not in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" and not (
        0x80 <= byte_value <= 0xBF
    )


FACTORS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Of splitmix64."""

RULES: dict[str, Callable[[dict[str, Any]], Opens]] = {
    "threshold": threshold,
    "rise": rise,
    "both": both,
    "stride": stride,
    "byte": byte,
    "space": space,
    "random": random,
    "bpe": threshold,  # another score, the same comparison
}


def bpe_lengths(tokenizer: dict[str, Any], words: Sequence[str]) -> list[int]:
    """Bytes in each token, by merging the pair of lowest rank until none is left.

    `tokenizer` is a tokenizer.json; `words` are the pre-tokenizer's words, one character per byte.
    """
    merges = [tuple(merge) for merge in tokenizer["model"]["merges"]]
    rank = {pair: number for number, pair in enumerate(merges)}
    lengths = []
    for word in words:
        parts = list(word)
        while True:
            known = [(rank[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in rank]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        lengths += [len(part) for part in parts]
    return lengths
