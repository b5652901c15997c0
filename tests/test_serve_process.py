"""The process that owns the model, and the handle that HTTP has of it: orders go in, events come out, nobody is left
waiting when it ends."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bltkit.checkpoint import Bundle, load_bundle, save_bundle
from bltkit.generate import Request, Sampling, Session, Speculative, generate
from bltkit.patching.patched import patch_text
from bltkit.serve.engine_process import run as serve
from bltkit.serve.handle import Engine, EventStream
from bltkit.serve.limits import Limits
from bltkit.serve.messages import Delta, Drain, Drained, Failed, Figures, Prompted, Report, Submit
from bltkit.serve.settings import EngineSettings
from bltkit.vocab import BOS, EOS, OFFSET
from tests.rows import example
from tests.serve_turns import Turns

LIMITS = Limits(context=2048, memory=64 * 2**20, window=64)


def ids_of(text: bytes) -> list[int]:
    return [BOS, *(byte + OFFSET for byte in text)]


def ar(max_bytes: int = 20, seed: int = 0, **fields: Any) -> Request:
    return Request(sampling=Sampling(temperature=1, seed=seed, logit_bias={EOS: -100}), max_bytes=max_bytes, **fields)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in a checkpoint."""
    path = tmp_path_factory.mktemp("serve") / "model"
    case = example("stride:k=3")
    save_bundle(path, Bundle(case.model, None, case.rule))
    return path


@pytest.fixture
def settings(model: Path) -> EngineSettings:
    return EngineSettings(str(model), device="cpu", threads=1, dtype="float64", limits=LIMITS)


class Loop:
    """One event loop for all tests, so that they may share an engine."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 60))


@pytest.fixture(scope="module")
def run() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.loop.close()


@pytest.fixture(scope="module")
def engine(model: Path, run: Loop) -> Iterator[Engine]:
    """One that all tests share which leave it alive."""
    engine = Engine(EngineSettings(str(model), device="cpu", threads=1, dtype="float64", limits=LIMITS))
    run(engine.start())
    yield engine
    run(engine.drain(1))


async def whole(stream: EventStream, choice: int = 0, read: bool = True) -> bytes:
    data = b""
    async for event in stream:
        if isinstance(event, Delta):
            if read:
                stream.read(event.choice, len(event.chunk.data))
            data += event.chunk.data if event.choice == choice else b""
    return data


def alone(model: Path, text: bytes, request: Request) -> bytes:
    bundle = load_bundle(model, dtype=torch.float64)
    assert bundle.model is not None and bundle.rule is not None
    session = Session.start(bundle.model, bundle.scorer, bundle.rule).extend(ids_of(text))
    return b"".join(chunk.data for chunk in generate(session, request))


def test_it_says_what_it_serves(engine: Engine, model: Path) -> None:
    info = engine.info
    assert engine.state == "ready" and info is not None
    assert (info.name, info.context, info.device, info.weights) == ("model", 2048, "cpu", "float64")
    assert info.strategies == ("ar", "speculative", "auto") and info.memory == 64 * 2**20
    assert str(model.parent) not in repr(info), "where it lies is nobody's business"


def test_requests_side_by_side_are_what_they_are_alone(engine: Engine, model: Path, run: Loop) -> None:
    async def several() -> list[bytes]:
        requests = [
            ar(seed=seed, strategy=strategy) for seed in range(3) for strategy in (ar().strategy, Speculative())
        ]
        return list(await asyncio.gather(*(whole(engine.submit(ids_of(b"abc"), [one])) for one in requests)))

    answers = run(several())
    assert answers == [alone(model, b"abc", ar(seed=seed)) for seed in range(3) for _ in range(2)]


def test_prompt_is_scored_without_choices(engine: Engine, run: Loop) -> None:
    async def events() -> list[Any]:
        return [event async for event in engine.submit(ids_of(b"abc"), prompt_logprobs=2)]

    (prompted,) = run(events())
    assert isinstance(prompted, Prompted)
    assert len(prompted.logprobs) == len(prompted.top_logprobs) == 3 and all(len(t) == 2 for t in prompted.top_logprobs)
    with pytest.raises(ValueError, match="nothing is asked for"):
        engine.submit(ids_of(b"abc"))


def test_cancelled_stream_ends_and_leaves_nothing(engine: Engine, run: Loop) -> None:
    async def cancel() -> Any:
        stream, count = engine.submit(ids_of(b"abc"), [ar(2000)]), 0
        async for event in stream:
            assert isinstance(event, Delta)
            stream.read(0, len(event.chunk.data))
            count += 1
            if count == 5:
                stream.cancel()
        stream.cancel()
        return await engine.report()

    figures = run(cancel())
    assert (figures.running, figures.cache_bytes, figures.finished["cancelled"]) == (0, 0, 1)
    assert (engine.waiting, engine.waiting_bytes) == (0, 0)


def test_slow_reader_pauses(engine: Engine, model: Path, run: Loop) -> None:
    async def slowly() -> bytes:
        stream = engine.submit(ids_of(b"abc"), [ar(200)])
        for _ in range(500):
            figures = await engine.report()
            if figures.parked:
                break
        assert figures.parked == 1
        return await whole(stream)

    assert run(slowly()) == alone(model, b"abc", ar(200))


def test_text_is_cut(engine: Engine, run: Loop) -> None:
    assert run(engine.patch(b"some text")) == patch_text(b"some text", example("stride:k=3").rule)
    with pytest.raises(RuntimeError, match="2,049 bytes"):
        run(engine.patch(b"x" * 2049))


def test_door_counts_what_waits(settings: EngineSettings, run: Loop) -> None:
    async def waits() -> None:
        limits = replace(LIMITS, sequences=1, waiting=3, waiting_bytes=1000)
        engine = Engine(replace(settings, limits=limits))
        await engine.start()
        running = engine.submit(ids_of(b"abc"), [ar(2000)])
        async for _ in running:
            break
        assert engine.waiting == 0 and not engine.full(50, 2000), "who waits for nobody may come in"
        first = engine.submit(ids_of(b"abc"), [ar()])
        assert (engine.waiting, engine.waiting_bytes) == (1, 4)
        assert [engine.full(*sizes) for sizes in ((2, 900), (3, 10), (1, 1000))] == [False, True, True]
        second = engine.submit(ids_of(b"abc"), [ar()])
        second.cancel()
        assert engine.waiting == 1
        running.cancel()
        assert len(await whole(first)) == 20 and (engine.waiting, engine.waiting_bytes) == (0, 0)
        await engine.drain(1)

    run(waits())


def test_drain_finishes_then_ends(settings: EngineSettings, model: Path, run: Loop) -> None:
    async def drains() -> list[Any]:
        engine = Engine(settings)
        await engine.start()
        running = asyncio.ensure_future(whole(engine.submit(ids_of(b"abc"), [ar(40)])))
        await asyncio.sleep(0.05)
        drained = asyncio.ensure_future(engine.drain(30))
        await asyncio.sleep(0)
        assert engine.state == "draining"
        late = [event async for event in engine.submit(ids_of(b"abc"), [ar()])]
        await drained
        assert engine.state == "ended" and engine.exit_code == 0
        await engine.ended()
        gone = [event async for event in engine.submit(ids_of(b"abc"), [ar()])]
        return [await running, late, gone]

    data, late, gone = run(drains())
    assert data == alone(model, b"abc", ar(40))
    assert [event.reason for event in late] == ["draining"] and [event.reason for event in gone] == ["internal"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_for_the_other_process(engine: Engine, model: Path, run: Loop, number: int) -> None:
    """A terminal sends Ctrl-C to both."""
    assert engine.pid is not None
    os.kill(engine.pid, number)
    assert run(whole(engine.submit(ids_of(b"abc"), [ar()]))) == alone(model, b"abc", ar())


def test_death_of_the_process_ends_all_that_waits(settings: EngineSettings, run: Loop) -> None:
    async def dies() -> list[Any]:
        engine = Engine(settings)
        await engine.start()
        stream = engine.submit(ids_of(b"abc"), [ar(2000)])
        events: list[Any] = []
        patch = None
        async for event in stream:
            events.append(event)
            if len(events) == 3:
                engine.kill()
                patch = asyncio.ensure_future(engine.patch(b"abc"))
        with pytest.raises(RuntimeError, match="has ended"):
            await engine.ended()
        assert patch is not None
        for waiting in (patch, engine.report(), engine.patch(b"abc")):
            with pytest.raises(RuntimeError, match="has ended"):
                await waiting
        assert engine.state == "ended" and engine.exit_code != 0
        return events

    *_, last = run(dies())
    assert isinstance(last, Failed) and last.reason == "internal"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "bltkit:tinny"}, "did you mean 'tiny'"),
        ({"model": "nowhere"}, "nowhere"),
        ({"dtype": "float65"}, "float65"),
        ({"weights": "paked", "dtype": None}, "packed"),
        ({"device": "cuda:99"}, "device"),
    ],
    ids=["name", "path", "dtype", "weights", "device"],
)
def test_model_that_cannot_be_served_is_one_line(
    settings: EngineSettings, run: Loop, change: dict[str, str | None], words: str
) -> None:
    """In this process; that one of them goes through the other one's pipe is enough."""
    from bltkit.serve.loading import load

    with pytest.raises(ValueError, match=words) as raised:
        load(replace(settings, **change))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    if change.get("model") == "nowhere":
        with pytest.raises(ValueError, match=words):
            run(Engine(replace(settings, model="nowhere")).start())


def test_process_ends_when_the_other_one_is_gone() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    with pytest.raises(EOFError):
        serve(Turns(example("stride:k=3")).scheduler, theirs)


def test_last_figures_come_before_the_end() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.send([Submit(1, tuple(ids_of(b"abc")), (ar(5),)), Report()])
    ours.send([Report(), Drain(10)])
    serve(Turns(example("stride:k=3")).scheduler, theirs)
    events = []
    while ours.poll(0):
        events += ours.recv()
    reports = [event for event in events if isinstance(event, Figures)]
    assert reports[-1].finished == {"length": 1} and isinstance(events[-1], Drained)


def test_limits_are_checked_when_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"sequences = 0: must be 1 or more"):
        Limits(sequences=0)
    with pytest.raises(ValueError, match=r"prefixes = -1: must be 0 or more"):
        Limits(prefixes=-1)
    assert Limits(prefixes=0, waiting=0).prefixes == 0
