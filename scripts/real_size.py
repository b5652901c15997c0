"""Memory and speed of models of the released sizes: the rows of docs/real_size.jsonl.

Run:  python -m scripts.real_size convert SRC DST            `blt convert`, with its memory
      python -m scripts.real_size rates [--baseline SRC]     GB/s of weights by form and width, beside a copy
      python -m scripts.real_size resident MODEL FORM ...    a process that loads, reads 256 bytes and writes 64
      python -m scripts.real_size decode MODEL FORM ...      `ar` and `speculative` at 4.5 bytes per patch
      python -m scripts.real_size prefill MODEL FORM ...     reading 2,000 bytes
MODEL is a checkpoint, such as `scripts.released_size` writes. One thread unless `--threads` says otherwise. Prints a
JSON row for each measurement; `--out` appends them to a file as well.

Weights are random, and EOS is never drawn. Patches have 4.5 bytes by a threshold that is calibrated on samples of the
model itself, written under a stride of 4.5 bytes. Drafts are accepted less often than a trained model's, whose decoder
depends less on the newest latent: `--cross-scale F` sets the norm weights of the patch vectors that the decoder reads
(1 in the file). That changes neither the bytes read nor the products made. Each row has the factor and the acceptance
that it led to.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from bltkit import bench
from bltkit.bench.bench_subject import PATCH_BYTES, BenchSubject, benchmark_text, clear_threshold, subject_of
from bltkit.bench.generate import NO_EOS, generate, strategies_of
from bltkit.bench.prompt_texts import prompts_of
from bltkit.bench.record import commit, machine
from bltkit.bench.side_process import STATUS
from bltkit.checkpoint import load_bundle
from bltkit.generate import Batch, Request, Sampling, Session
from bltkit.model.cross import CrossAttention
from bltkit.patching import StrideRule, ThresholdRule
from bltkit.vocab import encode

WIDTHS = (1024, 2048, 4096)
NUM_BYTES = 2**28
"""Of weights and of the copied buffer: eight times the largest cache of the machine."""
READ, WRITTEN = 256, 64
"""Bytes of `resident`."""
PREFILL = 2000
SECONDS_BETWEEN = 0.02

RATES = """
import json, sys, torch
try:
    from bltkit.bench.machine_rates import RateSizes as Size, machine_rates
except ImportError:  # their names of before
    from bltkit.bench.rates import Size, machine_rates
threads, width, num_bytes = map(int, sys.argv[1:4])
torch.set_num_threads(threads)
measured = machine_rates(torch.device("cpu"), sys.argv[4:], Size(num_bytes, width, matmul_width=256))
print(json.dumps({"copy": measured.copy_gb_per_second, **measured.product_gb_per_second}))
"""
"""GB/s of one process; it runs with an older checkout's package as well."""

Row = dict[str, Any]


def loaded(model: str, form: str) -> BenchSubject:
    """A checkpoint with its weights in a form."""
    return subject_of(Path(model).name, load_bundle(model, weights=form))


def stamp(command: Sequence[str]) -> Row:
    """Circumstances, for every row."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "threads": torch.get_num_threads(),
        "affinity": cores,
        "load": os.getloadavg()[0],
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "command": "python -m scripts.real_size " + " ".join(command),
    }


def rates(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each width: medians over processes, which take turns with those of the baseline."""
    trees = {"here": None} if options.baseline is None else {"here": None, "baseline": options.baseline}
    for width in options.widths:
        rounds: dict[str, list[Row]] = {side: [] for side in trees}
        for _ in range(options.rounds):
            for side, source in trees.items():
                environment = os.environ | ({} if source is None else {"PYTHONPATH": source})
                forms = [form for form in options.forms if side == "here" or form != "int4"]
                numbers = [str(number) for number in (options.threads, width, options.num_bytes)]
                command = [sys.executable, "-c", RATES, *numbers, *forms]
                output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                rounds[side].append(json.loads(output))
        row: Row = {"what": "rates", "width": width, "rounds": options.rounds, "num_bytes": options.num_bytes}
        for side, rows in rounds.items():
            medians = {name: statistics.median(figures[name] for figures in rows) for name in rows[0]}
            row[side] = {"gb_per_second": medians}
            row[side]["share_of_copy"] = {
                name: statistics.median(figures[name] / figures["copy"] for figures in rows)
                for name in rows[0]
                if name != "copy"
            }
        if options.baseline is not None:
            pairs = list(zip(rounds["here"], rounds["baseline"], strict=True))
            names = [name for name in rounds["baseline"][0] if name != "copy"]
            row["against_baseline"] = {
                name: statistics.median(ours[name] / theirs[name] for ours, theirs in pairs) for name in names
            }
        yield row


def resident_once(model: str, form: str) -> Row:
    """Load, read, write: what that takes, in the process that does it."""
    began = time.perf_counter()
    subject = loaded(model, form)
    seconds = time.perf_counter() - began
    after_load = memory()
    ids = encode(benchmark_text(READ))
    rule = ThresholdRule(threshold=clear_threshold(subject.scorer.scores(ids[None])[0, 1:]))
    session = Session.start(subject.model, subject.scorer, rule).extend([ids.tolist()])
    batch, made = Batch().admit(session, [Request(Sampling(seed=0, logit_bias=NO_EOS), WRITTEN)]), 0
    while batch.rows:
        batch, chunks = batch.step()
        made += sum(len(chunk.data) for _, chunk in chunks)
    end = memory()
    return {
        "load_seconds": seconds,
        "written_bytes": made,
        "seconds": time.perf_counter() - began,
        "vm_hwm_gb": end["VmHWM"],
        "rss_gb": end["VmRSS"],
        "rss_anon_gb": end["RssAnon"],
        "rss_file_gb": end["RssFile"],
        "vm_hwm_after_load_gb": after_load["VmHWM"],
    }


def memory(process: str | int = "self") -> dict[str, float]:
    """GB (1e9 bytes) of what a process holds, by the names of /proc; nothing of one that has ended."""
    try:
        lines = Path(STATUS.as_posix().replace("self", str(process))).read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon", "RssFile")))
    return {name.rstrip(":"): int(value) * 1024 / 1e9 for name, value, *_ in fields}


def watched(command: Sequence[str]) -> tuple[float, float, str]:
    """Run a command: seconds, the most anonymous memory that it held in GB, and its output."""
    began, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        with subprocess.Popen(command, stdout=output) as process:
            while process.poll() is None:
                peak = max(peak, memory(process.pid).get("RssAnon", 0.0))
                time.sleep(SECONDS_BETWEEN)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
        output.seek(0)
        return seconds, peak, output.read()


def convert(options: argparse.Namespace) -> Iterator[Row]:
    """One row."""
    verb = ["convert", options.model, options.to, "--json"]
    seconds, peak, output = watched([sys.executable, "-c", "import bltkit.cli; bltkit.cli.run()", *verb])
    result = json.loads(output)
    names = ("source", "target", "num_tensors", "num_bytes")
    yield {"what": "convert", "seconds": seconds, "peak_rss_anon_gb": peak, **{name: result[name] for name in names}}


def resident(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each form: the fastest load of several processes, and the largest memory of any."""
    for form in options.forms:
        runs: list[Row] = []
        for _ in range(options.rounds):
            inner = ["resident-once", options.model, form, "--threads", str(options.threads)]
            _, peak, output = watched([sys.executable, str(Path(__file__).resolve()), *inner])
            runs.append(json.loads(output) | {"peak_rss_anon_gb": peak})
        row: Row = {"what": "resident", "model": Path(options.model).name, "form": form, "read_bytes": READ}
        row |= min(runs, key=lambda run: run["load_seconds"])
        row |= {name: max(run[name] for run in runs) for name in ("vm_hwm_gb", "peak_rss_anon_gb")}
        yield row | {"all_load_seconds": [run["load_seconds"] for run in runs]}


def calibrated(subject: BenchSubject, prompts: Sequence[bytes], max_bytes: int, temperature: float) -> BenchSubject:
    """With a threshold at which the model's own continuations of `prompts` have patches of 4.5 bytes.

    They have the seeds of those that are measured. Where patches hardly matter to the bytes, they are the same bytes.
    """
    session = Session.start(subject.model, None, StrideRule(k=PATCH_BYTES), len(prompts))
    session = session.extend([encode(prompt).tolist() for prompt in prompts])
    samplings = [Sampling(temperature=temperature, seed=seed, logit_bias=NO_EOS) for seed in range(len(prompts))]
    requests = [Request(sampling, max_bytes) for sampling in samplings]
    batch, made = Batch().admit(session, requests), [b""] * len(prompts)
    while batch.rows:
        batch, chunks = batch.step()
        for key, chunk in chunks:
            made[key] += chunk.data
    scores = [
        subject.scorer.scores(encode(prompt + data)[None])[0, 1 + len(prompt) :]
        for prompt, data in zip(prompts, made, strict=True)
    ]
    return replace(subject, rule=ThresholdRule(threshold=clear_threshold(torch.cat(scores))))


@torch.no_grad()
def cross_scaled(subject: BenchSubject, factor: float) -> BenchSubject:
    """The same model, whose decoder blocks read patch vectors of norm weight `factor`; changed in place."""
    for block in subject.model.decoder.cross:
        cast(CrossAttention, block).kv_norm.weight.fill_(factor)
    return subject


def decode(options: argparse.Namespace) -> Iterator[Row]:
    """Rows of `blt bench decode`, for each form and factor: `ar`, then the strategies."""
    text = benchmark_text(100_000)
    strategies, prompts = strategies_of(options.strategies), prompts_of([text], options.prompts, options.context)
    for form in options.forms:
        subject = loaded(options.model, form)
        for factor in options.cross_scale:
            scaled = cross_scaled(subject, factor)
            ready = calibrated(scaled, prompts, options.max_bytes, options.temperature)
            settings: Row = {"cross_scale": factor, "rule": str(ready.rule)}
            for row in generate(
                ready,
                [text],
                (options.context,),
                strategies=strategies,
                forms=(cast(Any, form),),
                prompts=options.prompts,
                max_bytes=options.max_bytes,
                temperature=options.temperature,
                eos=False,
                threads=options.threads,
                progress=tell,
            ):
                tell(row.summary())
                yield row.to_json() | settings


def prefill(options: argparse.Namespace) -> Iterator[Row]:
    """A row of `blt bench prefill` for each form."""
    for form in options.forms:
        subject = loaded(options.model, form)
        scores = subject.scorer.scores(encode(benchmark_text(PREFILL))[None])[0, 1:]
        subject = replace(subject, rule=ThresholdRule(threshold=clear_threshold(scores)))
        limits = bench.RepeatLimits(repeats=options.rounds, seconds=0.0)
        row = bench.prefill(subject, PREFILL, limits=limits, threads=options.threads)
        tell(row.summary())
        yield row.to_json() | {"form": form, "rule": str(subject.rule)}


def tell(line: str) -> None:
    """Progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure models of the released sizes.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("convert", "rates", "resident", "resident-once", "decode", "prefill"):
        sub = verbs.add_parser(verb)
        if verb != "rates":
            sub.add_argument("model")
        if verb == "convert":
            sub.add_argument("to")
        default = ["fp32", "packed", "fp16", "bf16", "int8"] if verb == "rates" else None
        if verb != "convert":
            sub.add_argument("forms", nargs="*" if default else "+", default=default)
        sub.add_argument("--threads", type=int, default=1)
        sub.add_argument("--rounds", type=int, default=3)
        sub.add_argument("--out", type=Path)
        if verb == "rates":
            sub.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
            sub.add_argument("--num-bytes", type=int, default=NUM_BYTES)
            sub.add_argument("--baseline", help="src folder of another checkout")
        if verb == "decode":
            sub.add_argument("--strategies", nargs="+", default=["speculative"])
            sub.add_argument("--cross-scale", type=float, nargs="+", default=[1.0])
            sub.add_argument("--context", type=int, default=256)
            sub.add_argument("--prompts", type=int, default=4)
            sub.add_argument("--max-bytes", type=int, default=128)
            sub.add_argument("--temperature", type=float, default=0.8)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rows, and append them to `--out`."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    if options.verb == "resident-once":
        print(json.dumps(resident_once(options.model, options.forms[0])))
        return
    verbs = {"convert": convert, "rates": rates, "resident": resident, "decode": decode, "prefill": prefill}
    command = sys.argv[1:] if arguments is None else arguments
    for row in verbs[options.verb](options):
        line = json.dumps(row | stamp(command))
        print(line, flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
