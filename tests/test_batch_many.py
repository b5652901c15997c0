"""Sixty-four sequences of all kinds that arrive, pause and leave at random: each has the bytes that it has alone."""

import random

import pytest
import torch

from bltkit import vocab
from bltkit.generate import (
    Auto,
    Autoregressive,
    Parked,
    Request,
    Sampling,
    SequenceBatch,
    Speculative,
    Strategy,
    Utf8,
    Verified,
    generate,
)
from tests.rows import example, start, tempered
from tests.test_session import TIE, nearest_tie
from tests.tiny import Case

COUNT = 64
STRATEGIES: list[Strategy] = [Autoregressive(), Speculative(), Speculative(draft=5), Verified(draft=4), Auto()]


def random_request(rng: random.Random, prompt: bytes, plain: bool) -> Request:
    """Options of every kind; of a plain one the next byte depends on logits, position and seed alone."""
    sampling = Sampling(
        temperature=rng.choice([0, 0.7, 1.0, 2.0]),
        seed=rng.randrange(1000),
        top_k=rng.choice([None, 20]),
        min_p=rng.choice([None, 0.01]),
        repetition_penalty=rng.choice([1.0, 1.0 if plain else 1.3]),
        logit_bias=rng.choice([{}, {vocab.EOS: -100.0}, {100: 2.0}]),
    )
    stop = rng.choice([(), (), (b"e",), (b"ab", b"\xff")])
    constraint = Utf8.behind(prompt) if rng.random() < 0.3 and not plain else None
    size, strategy = rng.randint(0, 16), rng.choice(STRATEGIES)
    return Request(sampling, size, stop, constraint, strategy=strategy)


def side_by_side(case: Case, seed: int, plain: bool = False) -> list[tuple[bytes, Request, bytes]]:
    """Prompts, requests, and what a batch made of them, from which sequences pause, and from which others leave."""
    rng, batch, parked = random.Random(seed), SequenceBatch(), list[Parked]()
    prompts = [rng.randbytes(rng.choice([0, 3, 20, 60, 150])) for _ in range(COUNT)]
    asked = [(prompt, random_request(rng, prompt, plain)) for prompt in prompts]
    made, waiting, left = [b""] * COUNT, list(asked), set[int]()
    while batch.rows or waiting or parked:
        for prompt, request in waiting[: rng.choice([0, 0, 1, 3, 24])]:
            session = start(case).extend(vocab.encode(prompt))
            batch = batch.admit(session, [request])
            if rng.random() < 0.1:  # one whose client leaves at once, beside it
                batch = batch.admit(session, [request])
                left.add(batch.next_key - 1)
                asked.insert(batch.next_key - 1, (prompt, request))
                made.append(b"")
            del waiting[0]
        if batch.rows and rng.random() < 0.3:
            batch, some = batch.park([rng.choice(batch.rows).key])
            parked += some
        if parked and (not batch.rows or rng.random() < 0.3):
            batch = batch.resume([parked.pop(rng.randrange(len(parked)))])
        batch, chunks = batch.step()
        for key, chunk in chunks:
            made[key] += chunk.data
        if rng.random() < 0.5:
            batch = batch.cancel(list(left))
            parked = [item for item in parked if item.key not in left]
    assert batch.cache_bytes == 0
    return [(*asked[key], made[key]) for key in range(len(asked)) if key not in left]


def alone(case: Case, prompt: bytes, request: Request) -> bytes:
    """What the request gives by itself."""
    session = start(case).extend(vocab.encode(prompt))
    return b"".join(chunk.data for chunk in generate(session, request))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_sixty_four_sequences(seed: int) -> None:
    """In float64, byte for byte."""
    case = tempered(example(("stride:k=3", "space", "byte")[seed % 3], (8, None)[seed % 4 == 3]), 0.3)
    results = side_by_side(case, seed)
    assert len(results) == COUNT
    for prompt, request, data in results:
        assert data == alone(case, prompt, request), request


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 24))
def test_sixty_four_sequences_in_fp32(seed: int) -> None:
    """But for ties: where two ids are equally probable up to rounding, another one may be chosen, and what follows is
    another text."""
    case = tempered(example("stride:k=3"), 0.3)
    case.model.to(torch.float32)
    ties = 0
    for prompt, request, data in side_by_side(case, seed, plain=True):
        wanted = alone(case, prompt, request)
        if data != wanted:
            same = next(at for at, pair in enumerate(zip(data, wanted, strict=False)) if pair[0] != pair[1])
            ids = vocab.encode(prompt + wanted[:same]).tolist()
            assert nearest_tie(case, ids, request.sampling) < TIE
            ties += 1
    print(f"{ties} ties")
