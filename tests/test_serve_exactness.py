"""The bytes of a request: those of `lm.generate`, whatever else runs, over HTTP and in float64.

Sequences of random lengths, strategies, seeds, options and arrival times run side by side; each is compared with the
same request alone in this process.
"""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bltkit.vocab import OFFSET
from tests.serve_client import Library, Served, events_of, eventually, raw, saved_model, serve, streamed

PROMPTS = [b"", b"x", b"The sky is", "Größe".encode(), b"\xff\xfe\x00", b"ab" * 40, b"def f(x):\n    return", b"\n" * 9]
STRATEGIES = ["ar", "speculative", "speculative:draft=3", "verified", "auto", "diffusion"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "random", chat=True)


@pytest.fixture(scope="module")
def lm(directory: Path) -> Iterator[Library]:
    with Library(directory) as library:
        yield library


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Served]:
    with serve(directory, "--dtype", "float64", "--max-sequences", "64") as served:
        yield served
        assert eventually(served.idle), "sequences were left behind"


def drawn(choose: random.Random, longest: int) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """A prompt, and its options as fields of a request and as keywords of `lm.generate`."""
    prompt = choose.choice(PROMPTS)
    seed, size = choose.randrange(2**40), choose.randrange(longest + 1)
    fields: dict[str, Any] = {"max_tokens": size, "seed": seed, "temperature": choose.choice([0, 0.5, 1.0, 1.3])}
    options: dict[str, Any] = {"max_bytes": size, "seed": seed, "temperature": fields["temperature"]}
    shared: dict[str, Any] = {}
    if choose.random() < 0.3:
        shared["top_k"] = choose.choice([1, 5, 40])
    if choose.random() < 0.3:
        shared["top_p"] = choose.choice([0.5, 0.95])
    if choose.random() < 0.2:
        shared["min_p"] = 0.02
    if choose.random() < 0.2:
        shared["repetition_penalty"] = 1.3
    if choose.random() < 0.2:
        shared["valid_utf8"] = True
    if choose.random() < 0.2:
        bias = {choose.randrange(OFFSET, 260): choose.choice([-100, -3, 2.5]) for _ in range(3)}
        fields["logit_bias"], options["logit_bias"] = {str(value): size for value, size in bias.items()}, bias
    if choose.random() < 0.6:
        shared["strategy"] = choose.choice(STRATEGIES)
    if choose.random() < 0.3:
        shared["stop"] = choose.choice([["e"], ["a", "\n"], ["xyz"]])
    return prompt, fields | shared, options | shared


def asked_together(
    server: Served, several: list[tuple[bytes, dict[str, Any], dict[str, Any]]], choose: random.Random
) -> list[tuple[bytes, str | None]]:
    """Bytes and finish reason of each, sent from a thread each, at random times, half of them as streams."""
    delays = [choose.random() for _ in several]
    streams = [choose.random() < 0.5 for _ in several]

    def ask(at: int) -> tuple[bytes, str | None]:
        time.sleep(delays[at])
        prompt, fields, _ = several[at]
        ids = [byte + OFFSET for byte in prompt]
        if streams[at]:
            with server.streaming(ids, **fields) as response:
                _, data, finish = streamed(events_of(response))
            return data, finish
        choice = server.complete(ids, **fields)["choices"][0]
        return raw(choice), choice["finish_reason"]

    with ThreadPoolExecutor(len(several)) as pool:
        return list(pool.map(ask, range(len(several))))


def check(server: Served, lm: Library, seed: int, count: int, longest: int) -> None:
    choose = random.Random(seed)
    several = [drawn(choose, longest) for _ in range(count)]
    answers = asked_together(server, several, choose)
    for (prompt, fields, options), (data, finish) in zip(several, answers, strict=True):
        expected = lm.generate(prompt, **options)
        assert (data, finish) == (expected.data, "length" if expected.finish == "length" else "stop"), fields


def test_every_request_has_its_bytes_alone(server: Served, lm: Library) -> None:
    check(server, lm, seed=0, count=16, longest=24)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_64_sequences_have_their_bytes_alone(server: Served, lm: Library, seed: int) -> None:
    check(server, lm, seed, count=64, longest=80)


def test_prompts_in_every_form(server: Served, lm: Library) -> None:
    text = "Größe\n"
    data = text.encode()
    ids = [byte + OFFSET for byte in data]
    expected = lm.generate(text, max_bytes=16, temperature=1.0, seed=4).data
    for prompt in (text, ids, [1, *ids], [text], [ids], [[1, *ids]]):
        assert server.data(prompt, max_tokens=16, seed=4) == expected
    several = [text, "x", "", text]
    choices = server.complete(several, max_tokens=16, seed=4)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [raw(choice) for choice in choices] == [
        lm.generate(prompt, max_bytes=16, temperature=1.0, seed=4).data for prompt in several
    ]
    default = server.complete(text, seed=4)["choices"][0]
    assert raw(default) == expected, "16 bytes at temperature 1 by default"


def test_choice_i_is_that_of_seed_plus_i(server: Served, lm: Library) -> None:
    expected = [lm.generate("x", max_bytes=20, temperature=1.0, seed=7 + i).data for i in range(4)]
    answer = server.complete("x", max_tokens=20, seed=7, n=4)
    assert [raw(choice) for choice in answer["choices"]] == expected
    assert answer["usage"]["completion_tokens"] == sum(map(len, expected))
    events = server.events("x", max_tokens=20, seed=7, n=4)
    assert [streamed(events, index)[1] for index in range(4)] == expected
    # Of several prompts: the choices of each stand together.
    choices = server.complete(["x", "y"], max_tokens=20, seed=7, n=2)["choices"]
    other = [lm.generate("y", max_bytes=20, temperature=1.0, seed=7 + i).data for i in range(2)]
    assert [raw(choice) for choice in choices] == [*expected[:2], *other]


def test_a_prefix_that_is_cached_changes_nothing(server: Served, lm: Library) -> None:
    prompt = ("The quick brown fox jumps over the lazy dog. " * 30)[:1300]
    expected = lm.generate(prompt, max_bytes=20, temperature=1.0, seed=1).data
    longer = lm.generate(prompt + "And", max_bytes=20, temperature=1.0, seed=1).data
    shorter = lm.generate(prompt[:700], max_bytes=20, temperature=1.0, seed=1).data
    before = server.metric("prefix_cache_hits_total")
    for _ in range(2):
        assert server.data(prompt, max_tokens=20, seed=1) == expected
        assert server.data(prompt + "And", max_tokens=20, seed=1) == longer
        assert server.data(prompt[:700], max_tokens=20, seed=1) == shorter
    assert server.metric("prefix_cache_hits_total") > before, "the same text was read again and again"


def test_log_probabilities_are_those_of_generate(server: Served, lm: Library) -> None:
    for strategy in ("ar", "speculative", "diffusion"):
        expected = lm.generate("x", max_bytes=30, temperature=0.9, seed=3, strategy=strategy, logprobs=True)
        choice = server.complete("x", max_tokens=30, temperature=0.9, seed=3, strategy=strategy, logprobs=0)["choices"][
            0
        ]
        assert raw(choice) == expected.data
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(list(expected.logprobs), abs=1e-9)


def test_patches_are_those_of_the_library(server: Served, lm: Library) -> None:
    text = "Patches are a value. Größe."
    found = server.posted("/v1/patches", {"model": server.model, "input": text})
    expected = lm.patches(text)
    assert {name: found[name] for name in ("starts",)} == {"starts": expected["starts"]}
    choice = server.complete("x", max_tokens=10, seed=3, temperature=0.9)
    assert choice["usage"]["prompt_tokens"] == 1
