"""A server under load, beside the engine alone on the same requests.

Three processes: the server (two of its own), this one, which sends requests and reads answers, and one that runs
`SequenceBatch` without a server. They take turns, so that what else the machine does falls on all of them alike. No
prompt occurs twice: the server's prefix cache has nothing to offer.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bltkit.bench.bench_subject import MAX_CONTEXT, BenchSubject, benchmark_text
from bltkit.bench.load import Answer, Body, ServerProcess, closed_loop, served_model
from bltkit.bench.prompt_texts import prompts_of
from bltkit.bench.record import commit, machine
from bltkit.bench.side_process import Remote
from bltkit.bench.timing import MAX_REPEATS, Progress, Timing, silent
from bltkit.checkpoint import Bundle, load_bundle, resolve_model, save_bundle
from bltkit.compute import check_threads
from bltkit.config import parse
from bltkit.generate import Request, Sampling, SequenceBatch, Session
from bltkit.model.quantize import WeightForm, parse_form, reform
from bltkit.vocab import EOS, OFFSET, encode

CLIENTS = 16
NUM_BYTES = 128
"""Bytes of an answer."""
PROMPT_BYTES = 256
WAVES = 5
"""Requests of each client in a run of many."""
SINGLE = 6
"""Requests of the client that is alone."""
BARRED = -100.0
"""Logit bias of what is not to be generated."""


@dataclass(frozen=True)
class ServingRow:
    """One model under load. Sides are timed whole: from the first request sent to the last answer complete."""

    preset: str
    context: int
    """Bytes of a prompt."""
    max_bytes: int
    """Bytes of an answer, exactly."""
    clients: int
    requests: int
    """In a run of many clients."""
    threads: int
    weights: str
    """Form of the weights (`model/quantize.py`) on both sides."""
    batch: Timing
    """`SequenceBatch` alone, `clients` rows side by side, prompts read as rows become free."""
    many: Timing
    """The same requests through the server."""
    steady: tuple[float, ...]
    """Bytes per second of all clients while each has a request, by run: from when as many answers as there are clients
    are complete until the last request is sent. `batch` has no such tail: its rows begin and end together."""
    single: Timing
    """One client, one request after another."""
    first_byte_single: tuple[float, ...]
    """Seconds to the first byte of each answer of the single client."""
    first_byte_many: tuple[tuple[float, ...], ...]
    """The same with all clients, which start apart from one another; by run."""
    rounds: tuple[float, ...]
    """Median seconds between pieces of a running answer, by run of clients that start apart."""
    longest_waits: tuple[float, ...]
    """How long a running answer waited for others' prompts at most, by run: the longest time between two of its pieces,
    without a median round, in median rounds."""
    late_waits: tuple[float, ...]
    """The same of the time between two pieces that 99.9 % do not exceed."""
    identical: int
    """Answers with the bytes that `SequenceBatch` alone gave."""
    compared: int
    commit: str | None
    machine: Mapping[str, Any]
    command: str
    what: str = "serve"

    @property
    def against_batch(self) -> float:
        """Steady throughput of all clients over that of `SequenceBatch` alone: the median of the runs' ratios."""
        return statistics.median(
            rate * seconds / self.batch.bytes_per_run
            for rate, seconds in zip(self.steady, self.batch.seconds, strict=True)
        )

    @property
    def whole_against_batch(self) -> float:
        """The same of whole runs, in which clients begin together and have less and less to do at the end."""
        return statistics.median(a / b for a, b in zip(self.batch.seconds, self.many.seconds, strict=True))

    @property
    def against_single(self) -> float:
        """Steady throughput of all clients over that of one."""
        return statistics.median(self.steady) / self.single.bytes_per_second

    @property
    def first_byte_ratio(self) -> float:
        """95th percentile of the seconds to the first byte with all clients over the single client's median; the median
        of the runs."""
        single = statistics.median(self.first_byte_single)
        return statistics.median(percentile(run, 0.95) for run in self.first_byte_many) / single

    def to_json(self) -> dict[str, Any]:
        """Plain values; speeds are bytes per second of the median run, `runs` has what they are medians of."""
        sides = {"batch": self.batch, "many": self.many, "single": self.single}
        values = {name: value for name, value in asdict(self).items() if name not in sides}
        speeds = {name: side.bytes_per_second for name, side in sides.items()}
        ratios = {
            "against_batch": self.against_batch,
            "whole_against_batch": self.whole_against_batch,
            "against_single": self.against_single,
            "first_byte_ratio": self.first_byte_ratio,
            "longest_wait": max(self.longest_waits),
        }
        return values | speeds | ratios | {"runs": {name: side.to_json() for name, side in sides.items()}}

    def summary(self) -> str:
        """One line for people."""
        first = 1000 * statistics.median(self.first_byte_single)
        parts = (
            f"{self.clients} clients {statistics.median(self.steady):.1f} bytes/s",
            f"{self.against_batch:.2f} times Batch alone ({self.whole_against_batch:.2f} with start and end)",
            f"{self.against_single:.2f} times one client",
            f"first byte of one client {first:.0f} ms, p95 of {self.clients} clients {self.first_byte_ratio:.2f} "
            "times that",
            f"longest wait of a running answer {max(self.longest_waits):.1f} median rounds, 99.9 % within "
            f"{max(self.late_waits):.1f}",
            f"{self.identical} of {self.compared} answers equal those of Batch",
        )
        sizes = f"prompts of {self.context} bytes, {self.max_bytes} bytes each"
        return f"serve {self.preset} ({self.weights} weights), {sizes}: " + ", ".join(parts)


class Alone:
    """The engine without a server, in a process of its own (`Remote`)."""

    def __init__(self, model: str, device: str, threads: int, weights: WeightForm) -> None:
        """model: as users name it."""
        torch.set_num_threads(threads)
        bundle = load_bundle(resolve_model(model), device=torch.device(device), weights="fp32")
        assert bundle.model is not None
        scorer = None if bundle.scorer is None else reform(bundle.scorer, weights)
        self.bundle = replace(bundle, model=reform(bundle.model, weights), scorer=scorer)

    @torch.inference_mode()
    def run(self, prompts: Sequence[bytes], requests: Sequence[Request], rows: int) -> tuple[float, list[bytes]]:
        """Seconds, and each prompt's continuation; `rows` run side by side, and a free one takes the next prompt."""
        model, rule = self.bundle.model, self.bundle.rule
        assert model is not None and rule is not None
        waiting = iter(zip(prompts, requests, strict=True))
        pieces: dict[int, list[bytes]] = {}
        began = time.perf_counter()
        batch = SequenceBatch()
        while True:
            while len(batch.rows) < rows and (item := next(waiting, None)) is not None:
                session = Session.start(model, self.bundle.scorer, rule).extend(encode(item[0]))
                batch = batch.admit(session, [item[1]])
            if not batch.rows:
                break
            batch, chunks = batch.step()
            for key, chunk in chunks:
                pieces.setdefault(key, []).append(chunk.data)
        return time.perf_counter() - began, [b"".join(pieces[key]) for key in range(len(prompts))]


def serving(
    subject: BenchSubject,
    model: str | None = None,
    *,
    clients: int = CLIENTS,
    context: int = PROMPT_BYTES,
    max_bytes: int = NUM_BYTES,
    temperature: float = 0.8,
    threads: int = 1,
    weights: str = "fp32",
    repeats: int = 3,
    device: str = "cpu",
    options: Sequence[str] = (),
    command: str = "",
    progress: Progress = silent,
) -> ServingRow:
    """Start a server, and measure it and `SequenceBatch` alone in turn.

    subject: what is served. model: its name for `blt serve`; None: the subject is saved and served from there.
    temperature: of the samples; request i has seed i. threads: of the server's engine, and of `SequenceBatch` alone.
    options: further ones of `blt serve`.

    Answers are ASCII and do not end early, by logit bias: each piece of text is then one byte, and runs of equal
    length compare.

    Raises ValueError for numbers below 1, an unknown form of weights, and where httpx is missing; RuntimeError where a
    request fails.
    """
    for name, value in {"clients": clients, "context": context, "max_bytes": max_bytes, "repeats": repeats}.items():
        if not 1 <= value <= MAX_REPEATS:
            raise ValueError(f"{name} = {value} must be from 1 to {MAX_REPEATS:,}")
    check_threads(threads, "threads")
    form = parse_form(weights)
    requests = WAVES * clients
    prompts = iter(prompts_of([benchmark_text(MAX_CONTEXT)], repeats * (2 * requests + SINGLE) + clients, context))
    with tempfile.TemporaryDirectory() as directory:
        if model is None:
            model = str(save_bundle(Path(directory) / "model", Bundle(subject.model, subject.scorer, subject.rule)))
        model_options = ["--model", model, "--threads", str(threads), "--device", device, "--weights", form]
        progress("starting the server, and Batch alone")
        with (
            Remote("Batch alone", Alone, model, device, threads, form) as alone,
            ServerProcess(*model_options, *options) as server,
        ):
            load = _Load(server.url, served_model(server.url), max_bytes, temperature, clients, prompts)
            progress("warming up")
            warm = load.bodies(clients)
            closed_loop(server.url, [body for _, body in warm], clients)
            load.batch(alone, [prompt for prompt, _ in warm])
            return _measured(subject, load, alone, requests, repeats, threads, form, command, progress)


@dataclass
class _Load:
    """What is sent."""

    url: str
    model: str
    max_bytes: int
    temperature: float
    clients: int
    prompts: Iterator[bytes]

    def bodies(self, count: int) -> list[tuple[bytes, Body]]:
        """The next prompts with their requests."""
        return [(prompt, self._body(prompt, seed)) for seed, prompt in zip(range(count), self.prompts, strict=False)]

    def batch(self, alone: Remote, prompts: Sequence[bytes]) -> tuple[float, list[bytes]]:
        """`SequenceBatch` alone on what `bodies` gave."""
        options = {"temperature": self.temperature, "top_p": None, "logit_bias": _bias()}
        requests = [
            Request(parse(Sampling, options | {"seed": seed}, "sampling"), self.max_bytes)
            for seed in range(len(prompts))
        ]
        seconds, answers = alone.call("run", prompts, requests, self.clients)
        return seconds, answers

    def _body(self, prompt: bytes, seed: int) -> Body:
        return {
            "model": self.model,
            "prompt": [byte + OFFSET for byte in prompt],
            "max_tokens": self.max_bytes,
            "temperature": self.temperature,
            "seed": seed,
            "logit_bias": {str(value): bias for value, bias in _bias().items()},
        }


def _bias() -> dict[int, float]:
    return dict.fromkeys((EOS, *range(OFFSET + 128, OFFSET + 256)), BARRED)


def _measured(
    subject: BenchSubject,
    load: _Load,
    alone: Remote,
    requests: int,
    repeats: int,
    threads: int,
    weights: WeightForm,
    command: str,
    progress: Progress,
) -> ServingRow:
    seconds: dict[str, list[float]] = {"batch": [], "many": [], "single": []}
    first_single: list[float] = []
    first_many, steady, rounds, longest, late = [], [], [], [], []
    identical = 0
    for repeat in range(repeats):
        progress(f"run {repeat + 1} of {repeats}")
        many, single, apart = load.bodies(requests), load.bodies(SINGLE), load.bodies(requests)
        if repeat % 2:  # who comes first changes from run to run
            answers = _sent(load, many, load.clients)
            took, expected = load.batch(alone, [prompt for prompt, _ in many])
        else:
            took, expected = load.batch(alone, [prompt for prompt, _ in many])
            answers = _sent(load, many, load.clients)
        seconds["batch"].append(took)
        seconds["many"].append(_span(answers))
        steady.append(steady_rate(answers, load.clients))
        identical += sum(answer.text.encode() == data for answer, data in zip(answers, expected, strict=True))
        by_itself = _sent(load, single, 1)
        seconds["single"].append(_span(by_itself))
        first_single += [answer.first_byte_seconds for answer in by_itself]
        mean = statistics.mean(answer.ended - answer.sent for answer in answers)
        answers = _sent(load, apart, load.clients, [mean * i / load.clients for i in range(load.clients)])
        first_many.append(tuple(answer.first_byte_seconds for answer in answers))
        gaps = [gap for answer in answers for gap in answer.gaps] or [math.nan]
        rounds.append(statistics.median(gaps))
        longest.append(max(gaps) / rounds[-1] - 1)
        late.append(percentile(gaps, 0.999) / rounds[-1] - 1)
    return ServingRow(
        preset=subject.name,
        context=len(many[0][0]),
        max_bytes=load.max_bytes,
        clients=load.clients,
        requests=requests,
        threads=threads,
        weights=weights,
        batch=Timing(requests * load.max_bytes, tuple(seconds["batch"])),
        many=Timing(requests * load.max_bytes, tuple(seconds["many"])),
        steady=tuple(steady),
        single=Timing(SINGLE * load.max_bytes, tuple(seconds["single"])),
        first_byte_single=tuple(first_single),
        first_byte_many=tuple(first_many),
        rounds=tuple(rounds),
        longest_waits=tuple(longest),
        late_waits=tuple(late),
        identical=identical,
        compared=repeats * requests,
        commit=commit(),
        machine=machine(subject.device),
        command=command,
    )


def _sent(
    load: _Load, several: Sequence[tuple[bytes, Body]], clients: int, delays: Sequence[float] = ()
) -> list[Answer]:
    answers = closed_loop(load.url, [body for _, body in several], clients, delays)
    for answer in answers:
        if len(answer.text) != load.max_bytes:
            raise RuntimeError(
                f"an answer has {len(answer.text)} bytes, not {load.max_bytes}; logit_bias should keep EOS out"
            )
    return answers


def _span(answers: Sequence[Answer]) -> float:
    return max(answer.ended for answer in answers) - min(answer.sent for answer in answers)


def steady_rate(answers: Sequence[Answer], clients: int) -> float:
    """Bytes of text per second while every client has a request; see `ServingRow.steady`."""
    begin, end = sorted(answer.ended for answer in answers)[clients - 1], max(answer.sent for answer in answers)
    pieces = (piece for answer in answers for at, piece in answer.arrivals if begin < at <= end)
    return sum(len(piece.encode()) for piece in pieces) / (end - begin)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that `share` of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
