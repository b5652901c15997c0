"""The prefix cache: what it holds, what it forgets, and that a prompt's state is the same with it and without."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.generate import Request, Sampling, Session
from bltkit.serve.messages import Submit
from bltkit.serve.prefixes import SHARED, Prefix, PrefixCache, key_of, storages
from bltkit.serve.prompt_reading import PromptReader
from bltkit.vocab import BOS, EOS, OFFSET
from tests import tiny
from tests.rows import example, start, storage_bytes
from tests.serve_turns import LIMITS, Turns
from tests.tiny import Case

LARGE = 2**30
CASE = example("stride:k=3")


def ids_of(text: bytes) -> list[int]:
    return [BOS, *(byte + OFFSET for byte in text)]


def kept(cache: PrefixCache, text: bytes, tops: int | None = None) -> Session:
    session = start(CASE).extend(ids_of(text))
    cache.add(ids_of(text), Prefix(len(text) + 1, session, tops=tops))
    return session


def read_all(reader: PromptReader, size: int = 1000) -> PromptReader:
    while reader.left:
        reader.read(size)
    return reader


def reader_of(case: Case, ids: list[int], cache: PrefixCache, snapshot: int, tops: int | None = None) -> PromptReader:
    return PromptReader.of(Submit(1, tuple(ids), (Request(),), tops), start(case), cache, snapshot)


def test_longest_prefix_is_taken() -> None:
    cache = PrefixCache(LARGE)
    for text in (b"", b"ab", b"abcd", b"ax"):
        kept(cache, text)
    assert [getattr(cache.longest(ids_of(text)), "length", 0) for text in (b"abc", b"abcd", b"abcde", b"b", b"")] == [
        3,
        5,
        5,
        1,
        1,
    ]
    assert cache.longest([BOS + 1]) is None


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=8), st.lists(st.integers(0, 2), max_size=6)
)
def test_longest_and_parting_are_what_a_search_finds(rows: list[list[int]], ids: list[int]) -> None:
    """Ids of which the two bytes matter."""
    spread = [1, 256, 257]
    rows, ids = [[spread[value] for value in row] for row in rows], [spread[value] for value in ids]
    cache, session = PrefixCache(LARGE), start(CASE).extend([BOS])
    for row in rows:
        cache.add(row, Prefix(len(row), session))
    common = [next((n for n, (a, b) in enumerate(zip(row, ids, strict=False)) if a != b), None) for row in rows]
    shared = [min(len(row), len(ids)) if n is None else n for row, n in zip(rows, common, strict=True)]
    assert cache.parting(ids) == max(shared, default=0)
    whole = [len(row) for row, n in zip(rows, shared, strict=True) if n == len(row)]
    prefix = cache.longest(ids)
    assert (None if prefix is None else prefix.length) == max(whole, default=None)


def test_keys_are_ordered_as_ids_are() -> None:
    rows = [[1], [1, 255], [1, 256], [2], [259, 0]]
    assert sorted(rows) == sorted(rows, key=key_of)


@settings(max_examples=5)
@given(tiny.cases())
def test_bytes_are_those_of_the_storage(case: Case) -> None:
    """As the tests' own count has it, which looks for tensors in another way."""
    session = replace(start(case).extend(case.ids), reading=None)
    assert sum(nbytes for _, nbytes in storages(session)) == storage_bytes(session, without=("texts",))


def test_shared_storage_counts_once() -> None:
    cache, session = PrefixCache(LARGE), start(CASE).extend(ids_of(b"abcdef"))
    cache.add(ids_of(b"abcdef"), Prefix(7, session))
    alone = cache.bytes
    longer = session.extend(ids_of(b"ghi")[1:])
    cache.add(ids_of(b"abcdefghi"), Prefix(10, longer))
    apart = sum(sum(nbytes for _, nbytes in storages(replace(one, reading=None))) for one in (session, longer))
    assert alone < cache.bytes < apart
    cache.add(ids_of(b"abcdefghi"), Prefix(10, longer))
    assert len(cache) == 2, "the same ids are held once"
    cache.shrink(0)
    assert (len(cache), cache.bytes) == (0, 0)
    assert cache.longest(ids_of(b"abcdef")) is None and cache.parting(ids_of(b"abcdef")) == 0


def test_log_probabilities_count_as_memory() -> None:
    ids = ids_of(b"some text of sixty bytes, or about as many as that, no matter")
    sizes = []
    for tops in (None, 0, 5):
        cache = PrefixCache(LARGE)
        read_all(reader_of(CASE, ids, cache, 1000, tops))
        sizes.append(cache.bytes)
        cache.shrink(0)
        assert cache.bytes == 0
    assert sizes[0] < sizes[1] < sizes[2]


def test_least_recently_used_go_first() -> None:
    cache = PrefixCache(LARGE)
    for text in (b"a", b"b", b"c"):
        kept(cache, text)
    cache.longest(ids_of(b"a"))
    cache.limit = cache.bytes
    kept(cache, b"d")
    assert [cache.longest(ids_of(text)) is not None for text in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.bytes <= cache.limit


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    cache = PrefixCache(1000)
    kept(cache, b"abc")
    assert (len(cache), cache.bytes) == (0, 0)


def test_log_probabilities_are_there_or_the_prefix_does_not_serve() -> None:
    cache, ids = PrefixCache(LARGE), ids_of(b"some text of sixty bytes, or about as many as that, no matter")
    read_all(reader_of(CASE, ids, cache, 16))
    scored = read_all(reader_of(CASE, ids, cache, 16, tops=2))
    assert scored.hit == 0 and len(scored.scored.logprobs) == len(ids) - 1
    again = reader_of(CASE, [*ids, 70], cache, 16, tops=2)
    assert again.hit == len(ids) and read_all(again).scored.logprobs[:-1] == scored.scored.logprobs
    assert again.scored.top_logprobs[:-1] == scored.scored.top_logprobs
    assert reader_of(CASE, [*ids, 70], cache, 16, tops=3).hit == 0
    assert reader_of(CASE, [*ids, 71], cache, 16).hit == len(ids), "who asks for none takes any"


def test_states_are_kept_at_borders_and_where_prompts_part() -> None:
    cache, shared = PrefixCache(LARGE), b"x" * 60
    read_all(reader_of(CASE, ids_of(shared + b"a" * 60), cache, 50))
    assert reader_of(CASE, ids_of(shared + b"b" * 60), cache, 50).hit == 50
    assert len(shared) + 1 - 50 < SHARED, "too little to be worth a state"
    longer = b"x" * 99
    read_all(reader_of(CASE, ids_of(longer), cache, 1000))
    read_all(reader_of(CASE, ids_of(longer + b"y" * 200), cache, 1000))
    second = ids_of(longer + b"y" * 100 + b"z" * 50)
    assert reader_of(CASE, second, cache, 1000).hit == 100
    read_all(reader_of(CASE, second, cache, 1000))
    assert reader_of(CASE, ids_of(longer + b"y" * 100 + b"w"), cache, 1000).hit == 200


@settings(max_examples=4)
@given(tiny.cases(), st.data())
def test_state_is_the_same_with_and_without(case: Case, data: st.DataObject) -> None:
    """Also where sessions of the cache went on in between, and prompts were read in any pieces."""
    cache, prompts = PrefixCache(data.draw(st.sampled_from([2 * 10**5, LARGE]))), [[BOS]]
    for _ in range(5):
        stem = data.draw(st.sampled_from(prompts))
        ids = [*stem[: data.draw(st.integers(1, len(stem)))], *data.draw(tiny.rows(40))[1:]]
        tops = data.draw(st.sampled_from([None, None, 0, 2]))
        reader = read_all(
            reader_of(case, ids, cache, data.draw(st.sampled_from([3, 20]))), data.draw(st.integers(1, 30))
        )
        alone = start(case).extend(ids)
        torch.testing.assert_close(reader.session.logits, alone.logits, atol=1e-10, rtol=0)
        assert reader.session.opens == alone.opens and reader.session.positions == alone.positions
        more = data.draw(tiny.rows(5))[1:] or [EOS]
        torch.testing.assert_close(reader.session.extend(more).logits, alone.extend(more).logits, atol=1e-10, rtol=0)
        assert reader.tops is None or tops is not None or len(reader.logprobs) == len(ids) - 1
        assert cache.bytes <= cache.limit
        prompts.append(ids)


@pytest.mark.parametrize("prefixes", [0, LARGE])
def test_answers_are_the_same_with_and_without(prefixes: int) -> None:
    turns = Turns(CASE, replace(LIMITS, prefixes=prefixes, snapshot=16))
    request = Request(sampling=Sampling(temperature=1, seed=3), max_bytes=10)
    texts = [b"one prompt and its rest", b"one prompt and its rest", b"one prompt and its other end", b"one prompt"]
    for text in texts:
        key = turns.submit(ids_of(text), [request, request])
        turns.run()
        alone = b"".join(chunk.data for chunk in turns.alone(ids_of(text), request))
        assert [turns.answers[key].data(choice) for choice in (0, 1)] == [alone] * 2
    assert turns.scheduler.figures().prefix_hits == (2 if prefixes else 0)
