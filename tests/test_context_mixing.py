"""The context-mixing model: a distribution, the same as written out slowly, stronger than bigrams and bzip2."""

import bz2
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.data.sources import StdlibSource
from bltkit.diagnostics.ngram import ngram_nats
from bltkit.study.entropy_quality.context_mixing import context_mixing_nats

SMALL = st.lists(st.sampled_from(b"ab \xe3\x81"), max_size=40).map(bytes)


def faded(count: int) -> int:
    return count if count <= 2 else 2 + (count - 2) // 4


def squashed(logit: float) -> float:
    return min(max(1 / (1 + math.exp(-logit)), 1e-6), 1 - 1e-6)


def slow(data: bytes) -> list[float]:
    """Bit by bit, with a dictionary for whatever is learnt and an update right after each bit."""
    counts: dict[object, tuple[int, int]] = defaultdict(lambda: (0, 0))
    maps: dict[object, float] = {}
    weights: dict[object, list[float]] = defaultdict(lambda: [0.25] * 6)
    nats = []
    for at, byte in enumerate(data):
        before = [256] * 5 + list(data[:at])
        node, cost = 1, 0.0
        for depth in range(8):
            bit = byte >> (7 - depth) & 1
            keys = [(order, tuple(before[len(before) - order :]), node) for order in range(6)]
            states = [counts[key] for key in keys]
            places = [(depth, order, state) for order, state in enumerate(states)]
            ones = [maps.get(at, (s[1] + 0.4) / (sum(s) + 0.8)) for at, s in zip(places, states, strict=True)]
            logits = [math.log(p / (1 - p)) for p in ones]
            mixers = [("node", node), ("known", sum(sum(s) > 0 for s in states), depth)]
            sums = [sum(w * x for w, x in zip(weights[mixer], logits, strict=True)) for mixer in mixers]
            p = squashed(sum(sums) / 2)
            cost -= math.log(p if bit else 1 - p)
            step = max(0.002, 0.02 * (1 - at / 20_000))
            for mixer, total in zip(mixers, sums, strict=True):
                away = bit - squashed(total)
                weights[mixer] = [w + step * away * x for w, x in zip(weights[mixer], logits, strict=True)]
            for key, place, state, one in zip(keys, places, states, ones, strict=True):
                maps[place] = min(max(one + (bit - one) * 0.005, 1e-5), 1 - 1e-5)
                zeros, seen = state
                counts[key] = (faded(zeros), min(seen + 1, 127)) if bit else (min(zeros + 1, 127), faded(seen))
            node = 2 * node + bit
        nats.append(cost)
    return nats


@settings(max_examples=15, deadline=None)
@given(SMALL)
def test_equals_the_slow_version(data: bytes) -> None:
    np.testing.assert_allclose(context_mixing_nats(data), slow(data), rtol=1e-9, atol=1e-12)


def test_equals_the_slow_version_where_counts_reach_their_limit() -> None:
    data = b"\x00" * 300 + b"\xff\x00" * 20
    np.testing.assert_allclose(context_mixing_nats(data), slow(data), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("before", [b"", "ありがとう, thank you, th".encode()])
def test_probabilities_of_all_bytes_sum_to_one(before: bytes) -> None:
    every = [math.exp(-context_mixing_nats(before + bytes([value]))[-1]) for value in range(256)]
    assert math.isclose(sum(every), 1, abs_tol=1e-9)
    if before:
        assert max(every) > 2 * min(every), "it has learnt nothing"


@settings(max_examples=15, deadline=None)
@given(SMALL, SMALL, SMALL)
def test_what_comes_later_changes_nothing_and_priming_is_reading_without_a_score(a: bytes, b: bytes, c: bytes) -> None:
    nats = context_mixing_nats(a + b)
    np.testing.assert_array_equal(context_mixing_nats(a + c)[: len(a)], nats[: len(a)])
    np.testing.assert_array_equal(context_mixing_nats(b, a), nats[len(a) :])


def test_is_stronger_than_bigrams_and_than_a_compressor() -> None:
    text = next(one.data for one in StdlibSource().documents() if one.name == "argparse.py")[:24_000]
    half = len(text) // 2
    before, data = text[:half], text[half:]
    assert context_mixing_nats(data, before).sum() < 0.8 * ngram_nats([before], [data]).sum()
    assert context_mixing_nats(text).sum() / math.log(2) < 8 * len(bz2.compress(text, 9))
    repeated = b"to be or not to be, that is the question: " * 60
    assert context_mixing_nats(repeated[420:], repeated[:420]).sum() < ngram_nats([repeated], [repeated[420:]]).sum()


def test_noise_costs_eight_bits_a_byte() -> None:
    data = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8).tobytes()
    assert 7.99 < context_mixing_nats(data).mean() / math.log(2) < 8.4


def test_surprisals_follow_known_entropies() -> None:
    """After `a` comes `b`, after `b` one of two, after the others one of sixteen: 0, 1 and 4 bits."""
    random = np.random.default_rng(1)
    data, entropies = bytearray(b"a"), [4.0]
    while len(data) < 12_000:
        last = data[-1]
        if last == ord("a"):
            choices: bytes = b"b"
        else:
            choices = b"ac" if last == ord("b") else b"acdefghijklmnopq"
        data.append(int(random.choice(list(choices))))
        entropies.append(math.log2(len(choices)))
    bits = context_mixing_nats(bytes(data)) / math.log(2)
    late, known = bits[6000:], np.array(entropies)[6000:]
    for entropy in (0, 1, 4):
        assert late[known == entropy].mean() == pytest.approx(entropy, abs=0.25)


def test_nothing_in_nothing_out_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    assert len(context_mixing_nats(b"")) == 0
    context_mixing_nats(b"abc", b"de", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5, 5)
