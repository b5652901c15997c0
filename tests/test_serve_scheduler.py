"""The scheduler of the server: whatever it decides changes when bytes come, never which.

In float64 the bytes of every request are exactly those that it has alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.generate import Auto, Autoregressive, Diffusion, Request, Sampling, Speculative, Strategy, Verified
from bltkit.generate.ledger import WeightReads
from bltkit.patching.patched import patch_text
from bltkit.serve.limits import Limits
from bltkit.serve.messages import Delta, Failed, Patch, Patched
from bltkit.serve.pace import WAIT
from bltkit.vocab import BOS, EOS, NEVER_EMITTED, OFFSET, VOCAB_SIZE
from tests import tiny
from tests.rows import TOLERANCE, draw_request, example, tempered
from tests.serve_turns import LIMITS, Clock, Turns
from tests.tiny import Case

STRATEGIES: list[Strategy] = [
    Autoregressive(),
    Speculative(draft=2),
    Speculative(),
    Verified(draft=4),
    Diffusion(draft=4),
    Diffusion(draft=3, first="masked"),
    Auto(),
]


def ids_of(text: bytes) -> list[int]:
    return [BOS, *(byte + OFFSET for byte in text)]


def ar(max_bytes: int = 8, **fields: Any) -> Request:
    return Request(sampling=Sampling(temperature=1, logit_bias={EOS: -100}), max_bytes=max_bytes, **fields)


# Any company, any arrival, any chunking.


@dataclass
class Asked:
    """A request, and what its client does."""

    ids: list[int]
    choices: list[Request]
    prompt_logprobs: int | None
    arrives: int
    """Turn."""
    leaves: int | None
    """Turn of its cancellation."""
    reads: float
    """Share of the turns in which the client reads."""


def draw_asked(data: st.DataObject, shared: list[list[int]], longest: int) -> Asked:
    tail = data.draw(tiny.rows(longest))
    ids = [*data.draw(st.sampled_from(shared)), *tail[1:]] if data.draw(st.booleans()) else tail
    first = replace(draw_request(data, ids), strategy=data.draw(st.sampled_from(STRATEGIES)))
    count = data.draw(st.sampled_from([0, 1, 1, 1, 2, 3]))
    choices = [
        replace(first, sampling=first.sampling.replace(seed=first.sampling.seed + index)) for index in range(count)
    ]
    scored = data.draw(st.sampled_from([None, None, 0, 3])) if choices else data.draw(st.sampled_from([0, 3]))
    leaves = data.draw(st.sampled_from([None, None, None, 3, 9]))
    return Asked(ids, choices, scored, data.draw(st.integers(0, 20)), leaves, data.draw(st.sampled_from([1, 1, 0.3])))


def assert_company_changes_nothing(case: Case, data: st.DataObject, most: int, longest: int) -> None:
    case = tempered(case, data.draw(st.sampled_from([1.0, 0.1])), data.draw(st.sampled_from([1.0, 3.0])))
    shared = [data.draw(tiny.rows(longest)), data.draw(tiny.rows(8))]
    asked = [draw_asked(data, shared, longest) for _ in range(data.draw(st.integers(1, most)))]
    limits = Limits(
        context=4096,
        memory=64 * 2**20,
        prefixes=data.draw(st.sampled_from([0, 100_000, 2**24])),
        sequences=data.draw(st.integers(3, 8 if most <= 8 else 64)),
        window=data.draw(st.sampled_from([3, 4096])),
        snapshot=data.draw(st.sampled_from([4, 16, 512])),
    )
    # Time passes whenever the scheduler looks: pieces of prompts are cut in ways that nobody planned.
    turns = Turns(case, limits, Clock(step=data.draw(st.sampled_from([0.001, 0.01, 0.2]))))
    random = data.draw(st.randoms(use_true_random=False))
    keys: dict[int, int] = {}
    unread: dict[tuple[int, int], int] = {}
    for number in range(10_000):
        for at, one in enumerate(asked):
            if one.arrives == number:
                keys[at] = turns.submit(one.ids, one.choices, one.prompt_logprobs)
            if one.leaves == number and at in keys:
                turns.scheduler.cancel(keys[at])
        for event in turns.turn(read=False):
            if isinstance(event, Delta):
                place = (event.key, event.choice)
                unread[place] = unread.get(place, 0) + len(event.chunk.data)
        for (key, choice), size in unread.items():
            one = next(one for at, one in enumerate(asked) if keys.get(at) == key)
            if size and random.random() < one.reads:
                turns.scheduler.read(key, choice, size)
                unread[key, choice] = 0
        if number > 20 and not turns.scheduler.busy and not any(unread.values()):
            break
    else:
        raise AssertionError("the scheduler does not come to rest")

    for at, one in enumerate(asked):
        if one.leaves is not None:
            continue
        answer = turns.answers[keys[at]]
        assert answer.started and answer.failed is None
        for index, request in enumerate(one.choices):
            chunks, alone = answer.chunks[index], turns.alone(one.ids, request)
            assert answer.data(index) == b"".join(chunk.data for chunk in alone)
            assert answer.finish(index) == alone[-1].finish
            for name in ("logprobs", "opens"):
                mine = [value for chunk in chunks for value in getattr(chunk, name)]
                wanted = [value for chunk in alone for value in getattr(chunk, name)]
                assert mine == pytest.approx(wanted, abs=TOLERANCE)
        if one.prompt_logprobs is None:
            assert answer.prompted is None
        else:
            assert answer.prompted is not None
            wanted_logprobs, all_logprobs = prompt_logprobs(case, one.ids)
            assert list(answer.prompted.logprobs) == pytest.approx(wanted_logprobs, abs=TOLERANCE)
            tops = answer.prompted.top_logprobs
            assert len(tops) == (len(one.ids) - 1 if one.prompt_logprobs else 0)
            for row, values in zip(all_logprobs, tops, strict=False):
                best = row.sort(descending=True).values[: one.prompt_logprobs].tolist()
                assert [value for _, value in values] == pytest.approx(best, abs=TOLERANCE)
    assert_nothing_left(turns)


def prompt_logprobs(case: Case, ids: list[int]) -> tuple[list[float], Tensor]:
    """Of every id but the first, and of all ids that can be emitted in their places; uncached."""
    if len(ids) == 1:
        return [], torch.zeros(0, VOCAB_SIZE)
    every = torch.stack([case.run(ids[:end])[0][-1] for end in range(1, len(ids))]).log_softmax(-1)
    each = every.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return each, every.index_fill(1, torch.tensor(NEVER_EMITTED), float("-inf"))


def assert_nothing_left(turns: Turns) -> None:
    figures = turns.scheduler.figures()
    assert (figures.running, figures.parked, figures.waiting, figures.waiting_bytes) == (0, 0, 0, 0)
    assert figures.cache_bytes == 0 and not turns.scheduler.running.batch.rows
    assert figures.prefix_bytes <= turns.scheduler.prefixes.limit


# Shrinking would run whole servers hundreds of times.
UNSHRUNK = [Phase.explicit, Phase.generate]


@settings(max_examples=6, phases=UNSHRUNK)
@given(tiny.cases(), st.data())
def test_bytes_do_not_depend_on_the_company(case: Case, data: st.DataObject) -> None:
    assert_company_changes_nothing(case, data, most=5, longest=20)


@pytest.mark.slow
@settings(max_examples=10, phases=UNSHRUNK)
@given(tiny.cases(), st.data())
def test_bytes_do_not_depend_on_64_others(case: Case, data: st.DataObject) -> None:
    assert_company_changes_nothing(case, data, most=64, longest=80)


# Leaving, waiting, and who goes first.


def test_cancelled_request_is_gone_within_a_round() -> None:
    turns = Turns(example("stride:k=3"))
    stays, leaves = (turns.submit(ids_of(b"abc"), [ar(40)]) for _ in range(2))
    for _ in range(4):
        turns.turn()
    held = turns.scheduler.figures().cache_bytes
    turns.scheduler.cancel(leaves)
    before = len(turns.answers[leaves].chunks[0])
    turns.turn()
    assert len(turns.scheduler.running.batch.rows) == 1
    assert 0 < turns.scheduler.figures().cache_bytes < held
    turns.run()
    assert len(turns.answers[leaves].chunks[0]) == before, "nothing follows a cancellation"
    assert turns.answers[stays].data() == b"".join(chunk.data for chunk in turns.alone(ids_of(b"abc"), ar(40)))
    assert turns.scheduler.figures().finished == {"cancelled": 1, "length": 1}
    assert_nothing_left(turns)


@pytest.mark.parametrize("after", [0, 1], ids=["waiting", "being read"])
def test_request_is_cancelled_before_its_first_byte(after: int) -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, sequences=1))
    first = turns.submit(ids_of(b"abc"), [ar(6)])
    second = turns.submit(ids_of(b"abc" * 100), [ar(6)])
    for _ in range(after):
        turns.turn()
    turns.scheduler.cancel(second)
    turns.run()
    assert turns.answers[first].finish() == "length" and not turns.answers[second].chunks
    assert_nothing_left(turns)


def test_cancelling_the_unknown_and_the_finished_is_harmless() -> None:
    turns = Turns(example("stride:k=3"))
    key = turns.submit(ids_of(b"abc"), [ar()])
    turns.scheduler.cancel(99)
    turns.scheduler.read(99, 0, 5)
    turns.run()
    turns.scheduler.cancel(key)
    turns.scheduler.read(key, 0, 5)
    turns.run()
    assert turns.scheduler.figures().finished == {"length": 1}


def test_slow_reader_pauses_its_own_sequence_only() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, window=10))
    slow, fast = turns.submit(ids_of(b"abc"), [ar(30)]), turns.submit(ids_of(b"xyz"), [ar(30)])
    while turns.answers[fast].finish() is None:
        for event in turns.turn(read=False):
            if isinstance(event, Delta) and event.key == fast:
                turns.scheduler.read(fast, 0, len(event.chunk.data))
    turns.run(read=False)
    figures = turns.scheduler.figures()
    assert len(turns.answers[slow].data()) == 11 and (figures.running, figures.parked) == (0, 1)
    assert not turns.scheduler.busy and figures.cache_bytes > 0
    while turns.answers[slow].finish() is None:
        size = len(turns.answers[slow].data())
        turns.scheduler.read(slow, 0, 11)
        turns.run(read=False)
        assert len(turns.answers[slow].data()) <= size + 11
    for key, text in ((slow, b"abc"), (fast, b"xyz")):
        assert turns.answers[key].data() == b"".join(chunk.data for chunk in turns.alone(ids_of(text), ar(30)))
    assert_nothing_left(turns)


def test_parked_sequence_is_cancelled() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, window=2))
    key = turns.submit(ids_of(b"abc"), [ar(100)])
    turns.run(read=False)
    assert turns.scheduler.figures().parked == 1
    turns.scheduler.cancel(key)
    turns.run()
    assert_nothing_left(turns)


def test_slow_readers_do_not_lock_others_out() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, sequences=2, window=2))
    slow = [turns.submit(ids_of(b"abc"), [ar(50)]) for _ in range(4)]
    turns.run(read=False)
    assert turns.scheduler.figures().parked == 4
    late = turns.submit(ids_of(b"abc"), [ar(50)])
    turns.run()
    assert not turns.answers[late].started, "at most twice as many as places, or memory would be all that bounds them"
    turns.scheduler.cancel(slow[0])
    turns.run()
    assert turns.answers[late].finish() == "length"


def test_choices_count_as_sequences() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, sequences=4))
    first, second = turns.submit(ids_of(b"abc"), [ar(20)] * 3), turns.submit(ids_of(b"abc"), [ar(5)] * 2)
    turns.turn()
    assert turns.answers[first].started and not turns.answers[second].started
    assert turns.scheduler.figures().waiting == 2
    turns.run()
    assert turns.answers[second].finish(1) == "length"
    five = turns.submit(ids_of(b"abc"), [ar(5)] * 5)
    turns.run()
    failed = turns.answers[five].failed
    assert failed is not None and failed.reason == "no_memory" and "n = 5" in failed.text and "4" in failed.text


def test_requests_wait_for_memory() -> None:
    case = example("stride:k=3", window=None)
    ids, request = ids_of(b"abc" * 20), ar(40)
    needed = Turns(case).scheduler.budget.needed(len(ids) + 40, 1)
    turns = Turns(case, replace(LIMITS, memory=2 * needed + needed // 2, context=len(ids) + 39))
    keys = [turns.submit(ids, [request]) for _ in range(3)]
    turns.turn()
    assert [turns.answers[key].started for key in keys] == [True, True, False]
    while turns.scheduler.busy:
        turns.turn()
        figures = turns.scheduler.figures()
        assert figures.cache_bytes + figures.prefix_bytes <= figures.memory
    alone = b"".join(chunk.data for chunk in turns.alone(ids, request))
    assert [turns.answers[key].data() for key in keys] == [alone] * 3
    large = turns.submit(ids, [request] * 3)
    turns.run()
    failed = turns.answers[large].failed
    assert failed is not None and failed.reason == "no_memory" and f"{3 * needed:,}" in failed.text


def test_memory_that_holds_no_sequence_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"memory = 10,000 bytes.*context, may take .*; give more memory or a shorter"):
        Turns(example("stride:k=3"), replace(LIMITS, memory=10_000))


def test_patches_that_did_not_come_free_memory_for_others() -> None:
    """In advance every byte counts as a patch; what has been read counts as what it is."""
    case = example("stride:k=4", window=None)
    ids, request = ids_of(b"a" * 400), ar(4)
    needed = Turns(case).scheduler.budget.needed(len(ids) + 4, 1)
    turns = Turns(case, replace(LIMITS, memory=int(1.6 * needed), context=len(ids) + 59))
    first = turns.submit(ids, [replace(request, max_bytes=60)])
    second = turns.submit(ids_of(b"b" * 300), [request])
    turns.turn()
    assert not turns.answers[second].started
    turns.until(lambda: turns.answers[second].started)
    assert turns.answers[first].finish() is None, "it starts while the first one runs"


def test_prefix_cache_yields_to_sequences() -> None:
    case = example("stride:k=1", window=None)
    ids = [ids_of(bytes([97 + index]) * 150) for index in range(4)]
    needed = Turns(case).scheduler.budget.needed(len(ids[0]) + 4, 1)
    turns = Turns(case, replace(LIMITS, memory=3 * needed, prefixes=3 * needed, context=len(ids[0]) + 3))
    turns.submit(ids[0], [ar(4)])
    turns.run()
    assert turns.scheduler.prefixes.bytes > 0
    keys = [turns.submit(row, [ar(4)]) for row in ids[1:]]
    turns.turn()
    assert all(turns.answers[key].started for key in keys) and turns.scheduler.prefixes.bytes <= needed
    turns.run()
    assert all(turns.answers[key].finish() == "length" for key in keys)


def test_too_long_prompt_is_refused_with_both_numbers() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, context=10))
    fits, long = turns.submit(ids_of(b"abcdef"), [ar(4)]), turns.submit(ids_of(b"abcdef"), [ar(5)])
    turns.run()
    failed = turns.answers[long].failed
    assert turns.answers[fits].finish() == "length"
    assert failed is not None and failed.reason == "too_long" and "11" in failed.text and "10" in failed.text


def test_strategy_that_the_model_lacks_is_refused() -> None:
    turns = Turns(example("stride:k=3"))
    key = turns.submit(ids_of(b"abc"), [ar(4, strategy=Verified())])
    turns.run()
    failed = turns.answers[key].failed
    assert failed is not None and failed.reason == "unsupported" and "speculative" in failed.text


@pytest.mark.parametrize("request_", [ar(0), ar(1)], ids=["0", "1"])
def test_empty_prompt_and_no_bytes(request_: Request) -> None:
    turns = Turns(example("stride:k=3"))
    key = turns.submit([BOS], [request_], prompt_logprobs=1)
    turns.run()
    assert len(turns.answers[key].data()) == request_.max_bytes and turns.answers[key].finish() == "length"
    prompted = turns.answers[key].prompted
    assert prompted is not None and prompted.logprobs == () == prompted.top_logprobs


# Prompts between rounds.


def test_running_sequences_wait_no_longer_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which reading takes 3 + n and a round 20."""
    turns = Turns(example("stride:k=3"))
    slow_work(turns, monkeypatch)
    running = turns.submit(ids_of(b"abc"), [ar(60)])
    for _ in range(5):
        turns.turn()
    key = turns.submit(ids_of(b"x" * 400), [ar(2)])
    longest, began, before = 0.0, turns.clock.now, len(turns.answers[running].data())
    for _ in range(40):
        turns.turn()
        # A turn that chose another sequence's first byte made no round; the next one reads nothing.
        if len(turns.answers[running].data()) > before:
            longest = max(longest, turns.clock.now - began - 20)
            began, before = turns.clock.now, len(turns.answers[running].data())
    assert turns.answers[key].finish() == "length"
    assert 0.5 * WAIT * 20 < longest <= WAIT * 20 + 3


def test_short_prompt_overtakes_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, prefixes=0))
    slow_work(turns, monkeypatch)
    turns.submit(ids_of(b"abc"), [ar(200)])
    for _ in range(4):
        turns.turn()
    long, short = turns.submit(ids_of(b"x" * 300), [ar(1)]), turns.submit(ids_of(b"y" * 50), [ar(1)])
    ended: list[int] = []
    for _ in range(120):
        turns.turn()
        ended += [key for key in (long, short) if turns.answers[key].finish() and key not in ended]
        # Those that arrive later, however short, do not overtake for ever.
        turns.submit(ids_of(b"z" * 8), [ar(1)])
        if len(ended) == 2:
            break
    assert ended == [short, long]


def slow_work(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading n ids takes 3 + n seconds, a round 20."""
    from bltkit.generate import SequenceBatch
    from bltkit.serve.prompt_reading import PromptReader

    read, step = PromptReader.read, SequenceBatch.step

    def slow_read(self: PromptReader, size: int) -> int:
        count = read(self, size)
        turns.clock.now += 3 + count
        return count

    def slow_step(self: SequenceBatch) -> Any:
        batch, chunks = step(self)
        turns.clock.now += 20 if batch.passes != self.passes else 0
        return batch, chunks

    monkeypatch.setattr(PromptReader, "read", slow_read)
    monkeypatch.setattr(SequenceBatch, "step", slow_step)


# Ends.


def test_deadline_ends_a_request_with_what_it_has() -> None:
    """Bytes that were held back since a stop string might have begun are handed out."""
    case = example("stride:k=3")
    whole = b"".join(chunk.data for chunk in Turns(case).alone(ids_of(b"abc"), ar(60)))
    turns = Turns(case)
    request = ar(60, stop=(whole[5:9] + b"-",), logprobs=True)
    key = turns.submit(ids_of(b"abc"), [request, request], seconds=10)
    other = turns.submit(ids_of(b"abc"), [ar(60)])
    turns.until(lambda: len(turns.answers[other].data()) >= 8)
    assert turns.answers[key].data() == whole[:5]
    turns.clock.now = 10
    turns.turn()
    answer = turns.answers[key]
    assert answer.failed is not None and answer.failed.reason == "timeout" and "10 seconds" in answer.failed.text
    for choice in (0, 1):
        data = answer.data(choice)
        assert len(data) in (8, 9) and whole.startswith(data) and answer.finish(choice) is None
        assert sum(len(chunk.logprobs) for chunk in answer.chunks[choice]) == len(data)
    turns.run()
    assert turns.answers[other].data() == whole
    assert_nothing_left(turns)


def test_deadline_passes_while_waiting_and_while_parked() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, sequences=1, window=4))
    parked = turns.submit(ids_of(b"abc"), [ar(60)], seconds=10)
    turns.run(read=False)
    assert turns.scheduler.seconds_left() == 10
    running = turns.submit(ids_of(b"abc"), [ar(60)])
    waiting = turns.submit(ids_of(b"abc"), [ar(60)], seconds=5)
    turns.turn()
    turns.clock.now = 10
    turns.turn()
    for key in (parked, waiting):
        failed = turns.answers[key].failed
        assert failed is not None and failed.reason == "timeout"
    turns.run()
    assert turns.answers[running].finish() == "length" and turns.scheduler.seconds_left() is None
    assert_nothing_left(turns)


def test_drain_finishes_what_runs_and_takes_nothing_new() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, sequences=1))
    keys = [turns.submit(ids_of(b"abc"), [ar(10)]) for _ in range(2)]
    turns.turn()
    turns.scheduler.drain(100)
    late = turns.submit(ids_of(b"abc"), [ar(10)])
    turns.until(lambda: turns.drained)
    assert [turns.answers[key].finish() for key in keys] == ["length", "length"]
    failed = turns.answers[late].failed
    assert failed is not None and failed.reason == "draining"
    assert turns.drained == 1


def test_drain_ends_at_its_deadline() -> None:
    turns = Turns(example("stride:k=3"), replace(LIMITS, sequences=1))
    running, waiting = (turns.submit(ids_of(b"abc"), [ar(100)]) for _ in range(2))
    for _ in range(5):
        turns.turn()
    turns.scheduler.drain(7)
    turns.turn()
    assert not turns.drained
    turns.clock.now = 7
    turns.turn()
    assert turns.drained == 1 and turns.answers[running].data()
    for key in (running, waiting):
        failed = turns.answers[key].failed
        assert failed is not None and failed.reason == "draining"


def test_idle_server_drains_at_once() -> None:
    turns = Turns(example("stride:k=3"))
    turns.scheduler.drain(100)
    turns.turn()
    assert turns.drained == 1


# Faults of one request.


@dataclass(frozen=True)
class Poison:
    """A constraint that forbids everything behind so many ids, which is a fault of whoever wrote it."""

    left: int

    def allowed(self, remaining: int) -> Tensor:
        return torch.full((VOCAB_SIZE,), self.left > 0)

    def after(self, chosen: int) -> "Poison":
        return Poison(self.left - 1)

    def finished(self, remaining: int) -> bool:
        return False


@pytest.mark.parametrize("left", [0, 3])
def test_fault_of_one_request_is_its_own(left: int, capsys: pytest.CaptureFixture[str]) -> None:
    turns = Turns(example("stride:k=3"))
    keys = [turns.submit(ids_of(b"abc"), [ar(12, strategy=strategy)]) for strategy in STRATEGIES[:3]]
    bad = turns.submit(ids_of(b"abc"), [ar(12), *[ar(12, constraint=Poison(left))] * 2])
    turns.run()
    failed = turns.answers[bad].failed
    assert failed is not None and failed.reason == "internal"
    assert "constraint" in capsys.readouterr().err
    alone = b"".join(chunk.data for chunk in turns.alone(ids_of(b"abc"), ar(12)))
    assert [turns.answers[key].data() for key in keys] == [alone] * 3
    assert_nothing_left(turns)


def test_fault_in_a_prompt_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from bltkit.serve.prompt_reading import PromptReader

    turns = Turns(example("stride:k=3"))
    read = PromptReader.read

    def breaks(self: PromptReader, size: int) -> int:
        if self.ids[1] == ord("x") + OFFSET:
            raise RuntimeError("out of memory")
        return read(self, size)

    monkeypatch.setattr(PromptReader, "read", breaks)
    bad, good = turns.submit(ids_of(b"xyz"), [ar()]), turns.submit(ids_of(b"abc"), [ar()])
    turns.run()
    failed = turns.answers[bad].failed
    assert failed is not None and failed.reason == "internal" and "xyz" not in failed.text
    assert turns.answers[good].finish() == "length"
    assert_nothing_left(turns)


def test_rounds_that_fail_for_all_end_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from bltkit.generate import SequenceBatch

    turns = Turns(example("stride:k=3"))
    keys = [turns.submit(ids_of(b"abc"), [ar(50)]) for _ in range(3)]
    for _ in range(3):
        turns.turn()
    step = SequenceBatch.step

    def breaks(self: SequenceBatch) -> Any:
        if len(self.rows) > 1:
            raise RuntimeError("out of memory")
        return step(self)

    monkeypatch.setattr(SequenceBatch, "step", breaks)
    turns.run()
    assert all(failed is not None and failed.reason == "internal" for failed in (turns.answers[k].failed for k in keys))
    later = turns.submit(ids_of(b"abc"), [ar(5)])
    turns.run()
    assert turns.answers[later].finish() == "length"
    assert_nothing_left(turns)


# What it counts.


def test_figures_add_up() -> None:
    case = tempered(example("stride:k=3"), 0.1)
    turns = Turns(case)
    requests = [ar(20), ar(20, strategy=Speculative(draft=3))]
    keys = [turns.submit(ids_of(b"abcdef"), [request]) for request in requests]
    turns.run()
    figures = turns.scheduler.figures()
    ends = [turns.answers[key].chunks[0][-1].stats for key in keys]
    assert figures.generated_bytes == 40 and figures.prompts == 2 and figures.prompt_bytes == 12
    assert figures.prefix_hits == 1 and figures.prefix_hit_bytes == 6
    assert figures.drafts_proposed == sum(stats.drafted for stats in ends if stats) > 0
    assert figures.drafts_accepted == sum(stats.accepted for stats in ends if stats)
    assert figures.rounds <= 20 and figures.rounds < figures.round_rows <= 2 * figures.rounds
    opens = [opening for key in keys for chunk in turns.answers[key].chunks[0] for opening in chunk.opens]
    assert figures.patches == sum(opens)
    passes = turns.scheduler.counters.passes
    assert figures.weight_bytes_read == WeightReads.of(case.model, case.scorer).total(passes)
    assert (figures.kv_bytes_read, figures.global_passes) == (passes.kv_bytes, passes.latent)
    # One reading of the prompt, and what the two sequences spent: groups of one, which share no pass.
    assert passes.decoder == 1 + sum(stats.decoder_passes for stats in ends if stats)
    assert figures.finished == {"length": 2}


def test_text_is_cut_as_by_patch() -> None:
    turns = Turns(example("space"), replace(LIMITS, context=30))
    turns.scheduler.patch(Patch(-1, b"two words \xff"))
    turns.scheduler.patch(Patch(-2, b"x" * 31))
    turns.run()
    cut, failed = turns.patched
    assert isinstance(cut, Patched) and cut.text == patch_text(b"two words \xff", turns.case.rule)
    assert isinstance(failed, Failed) and failed.reason == "too_long" and "31" in failed.text and "30" in failed.text


@pytest.mark.gpu
def test_scheduler_on_a_gpu() -> None:
    """As alone, on the device."""
    case = replace(example("stride:k=3"))
    case.model.to("cuda")
    turns = Turns(case)
    keys = [turns.submit(ids_of(b"abc" * 20), [ar(30, strategy=strategy)] * 2) for strategy in STRATEGIES[:3]]
    turns.run()
    alone = b"".join(chunk.data for chunk in turns.alone(ids_of(b"abc" * 20), ar(30)))
    assert [turns.answers[key].data(choice) for key in keys for choice in (0, 1)] == [alone] * 6
    assert_nothing_left(turns)
