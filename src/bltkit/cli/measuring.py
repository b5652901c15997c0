"""The verb `bench`: speeds as rows of JSON, side by side with a peer."""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.terminal import Device, Json, lists, print_json, print_text, read_file, say, threads_option

if TYPE_CHECKING:
    from bltkit.bench import BenchRow, BenchSubject, ServingRow
    from bltkit.bench.weight_forms import WeightsRow

Source = tuple[str | None, str | None, str]
"""Preset and model, one of them or neither, and the device."""

SCORED_BYTES = 16_384
"""Of the benchmark text, where no file is given."""

NOT_SERVE = "is for what runs in this process, not for serve"


class BenchTarget(StrEnum):
    """What `blt bench` measures."""

    prefill = "prefill"
    decode = "decode"
    train = "train"
    patch = "patch"
    weights = "weights"
    serve = "serve"


class PatchesFrom(StrEnum):
    """Where a training step's patches come from."""

    own = "own"
    given = "given"


class PeerDtype(StrEnum):
    """What the weights of peer `llama` are held in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def bench(
    what: Annotated[BenchTarget, typer.Argument(help="What is measured.")],
    preset: Annotated[str | None, typer.Option(help="Random weights of this shape; default: 69m.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A checkpoint instead of a preset.")] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(help="Bytes in the row or prompt (repeatable); default: 1024, of a prompt 256."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Rows side by side (repeatable); default: 1, of a training step 2.")
    ] = None,
    peer: Annotated[str | None, typer.Option(help="Side by side with: transformers; decode: also llama.")] = None,
    peer_dtype: Annotated[PeerDtype | None, typer.Option(help="decode: of the peer's weights; default: fp32.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Their form, such as bf16 (repeatable); default: fp32, of `weights` all.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="decode: what runs a step, eager (default), native or auto.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="decode: default 0, which is greedy; serve: default 0.8.")
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="decode: prompts out of this text (repeatable); weights: scored.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="decode --file: how many, as many from each file; default: 64.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="decode: bytes of a run; default: 128, of a continued prompt 256.")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            callback=lists("strategies"),
            is_eager=True,
            help="decode --file: beside ar, such as speculative (repeatable); `list` shows them.",
        ),
    ] = None,
    patches: Annotated[
        PatchesFrom | None,
        typer.Option(help="train: cut by each side in every step (own, the default), or told to both (given)."),
    ] = None,
    draft: Annotated[
        list[str] | None, typer.Option(help="decode --file: bytes drafted a round, or auto (repeatable).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="decode --file: of the first prompt; default: 0.")] = None,
    clients: Annotated[int | None, typer.Option(help="serve: that send requests at once; default: 16.")] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(callback=threads_option, help="On both sides; default: torch's.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Runs of each side at least; default: 5, of continued prompts 1.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds of each side at least; default: 2.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Add the rows to this file of JSON lines.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="decode: draw the speeds into F.png.")] = None,
    as_json: Json = False,
) -> None:
    """Measure bytes per second, in turn with a peer.

    decode: behind a context, held to a text's bytes; with --file what a trained model writes behind prompts. weights:
    what other forms of the weights gain, and what they cost in bits per byte. serve: a server under load, beside the
    engine alone on the same requests.
    """
    prompted: dict[str, Any] = {"--prompts": prompts, "--strategy": strategy, "--draft": draft, "--seed": seed}
    decoding: dict[str, Any] = {
        "--peer-dtype": peer_dtype,
        "--backend": backend,
        "--temperature": temperature,
        "--max-bytes": max_bytes,
        "--plot": plot,
    }
    formed: dict[str, Any] = {"--weights": weights, "--file": file}
    if what == BenchTarget.serve:
        common = {"--temperature": temperature, "--max-bytes": max_bytes}
        unused = {"--batch": batch, "--peer": peer, "--seconds": seconds}
        _refuse({name: value for name, value in decoding.items() if name not in common} | prompted | unused, NOT_SERVE)
    elif what != BenchTarget.decode:
        _refuse(decoding | prompted, f"is for `blt bench decode`, not for {what.value}")
    elif file is None:
        _refuse(prompted, "is for prompts of a text; add --file F and --model M")
    else:
        _refuse({"--preset": preset}, "has random weights, which repeat themselves; continue prompts with --model M")
        _refuse({"--seconds": seconds}, "is for runs that are all the same; with --file give --prompts and --repeats")
        if model is None:
            raise ValueError("--file needs a trained model that continues prompts; add --model M, such as bltkit:tiny")
    if what != BenchTarget.serve:
        _refuse({"--clients": clients}, f"is for `blt bench serve`, not for {what.value}")
    if what != BenchTarget.train:
        _refuse({"--patches": patches}, f"is for `blt bench train`, not for {what.value}")
    if what == BenchTarget.serve:
        _refuse({"--file": file}, NOT_SERVE)
    elif what not in (BenchTarget.decode, BenchTarget.weights):
        _refuse(formed, f"is for decode, weights and serve, not for {what.value}")
    if what == BenchTarget.prefill:
        _refuse({"--batch": batch}, "is for decode, train, patch and weights; prefill reads one row")
    if what == BenchTarget.weights:
        _refuse({"--peer": peer}, "is for what a peer does as well; nobody else does weights")
        _refuse({"--context": context, "--seconds": seconds}, "is for what reads a row, not for weights")
    if preset is not None and model is not None:
        raise ValueError("give --preset or --model, not both")
    if plot is not None and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot {plot}: its name must end in .png")

    from bltkit.terminal.progress import Progress

    progress = Progress(f"bench {what.value}")
    shared: dict[str, Any] = {
        "threads": threads,
        "command": shlex.join(["blt", *sys.argv[1:]]),
        "progress": progress.stage,
    }
    source = preset, model, device
    measurements: Iterable[BenchRow | WeightsRow | ServingRow]
    if what == BenchTarget.serve:
        asked = {"temperature": temperature, "max_bytes": max_bytes, "clients": clients, "repeats": repeats}
        measurements = _serve(
            source, context or [256], weights or ["fp32"], shared | {"threads": threads or 1} | _given(**asked)
        )
    elif what == BenchTarget.weights:
        measurements = _weights(source, file or [], batch or [1], shared | _given(forms=weights, repeats=repeats))
    elif what != BenchTarget.decode:
        default = {BenchTarget.train: [2], BenchTarget.patch: [1]}.get(what)
        batches = [{}] if default is None else [{"batch": size} for size in batch or default]
        cut = None if patches is None else patches.value
        shared |= {"limits": _limits(repeats, seconds)} | _given(peer=peer, patches=cut)
        if what == BenchTarget.train:
            from bltkit.train.optim import trainers_update

            shared |= {"update_of": trainers_update}
        measurements = _each(what, source, context or [1024], batches, shared)
    else:
        shared |= _given(
            forms=weights,
            backend=backend,
            batches=batch,
            temperature=temperature,
            peer=peer,
            peer_dtype=_dtype(peer_dtype),
        )
        if file is None:
            measurements = _decode(source, context or [1024], max_bytes, shared | {"limits": _limits(repeats, seconds)})
        else:
            shared |= _given(prompts=prompts, max_bytes=max_bytes, seed=seed, rounds=repeats)
            measurements = _continue(source, file, context or [256], strategy or [], draft or [], shared)
    with progress:
        _report(measurements, out, plot, as_json)


def _each(
    what: BenchTarget,
    source: Source,
    contexts: Sequence[int],
    batches: Sequence[dict[str, int]],
    options: dict[str, Any],
) -> "Iterator[BenchRow]":
    from bltkit import bench as benchmarks

    subject = _subject(source, [benchmarks.row(max(contexts))])
    for context in contexts:
        for batch in batches:
            yield getattr(benchmarks, what.value)(subject, context, **batch, **options)


def _decode(
    source: Source, contexts: Sequence[int], num_bytes: int | None, options: dict[str, Any]
) -> "Iterator[BenchRow]":
    from bltkit import bench as benchmarks

    size = benchmarks.NUM_BYTES if num_bytes is None else num_bytes
    rows = [benchmarks.decoding_rows(context, size) for context in contexts]
    return benchmarks.decode(_subject(source, rows), contexts, num_bytes=size, **options)


def _continue(
    source: Source,
    files: Sequence[Path],
    contexts: Sequence[int],
    strategies: Sequence[str],
    drafts: Sequence[str],
    options: dict[str, Any],
) -> "Iterator[BenchRow]":
    from bltkit import bench as benchmarks

    several = benchmarks.strategies_of(strategies, _drafts(drafts))
    texts = [read_file(file) for file in files]
    for file, data in zip(files, texts, strict=True):
        if not data:
            raise ValueError(f"--file {file} is empty, there is nothing to continue; give a text")
    return benchmarks.generate(_subject(source, []), texts, contexts, strategies=several, **options)


def _weights(
    source: Source, files: Sequence[Path], batches: Sequence[int], options: dict[str, Any]
) -> "Iterator[WeightsRow]":
    from bltkit import bench as benchmarks
    from bltkit.checkpoint import Bundle, load_bundle, resolve_model
    from bltkit.eval.score import score

    texts = {file: read_file(file) for file in files}
    for file, data in texts.items():
        if not data:
            raise ValueError(f"--file {file} is empty, there is nothing to score; give a text, or leave --file out")
    text = b"".join(texts.values()) if texts else benchmarks.benchmark_text(SCORED_BYTES)
    subject = _subject(source, [benchmarks.row(SCORED_BYTES)])
    # Windows are as long as the model's training row, which its record says.
    record = {} if source[1] is None else load_bundle(resolve_model(source[1]), device="meta").record

    def bits_per_byte(model: Any, scorer: Any, data: bytes) -> float:
        return score(Bundle(model, scorer, subject.rule, record), data).bits_per_byte

    for batch in batches:
        yield from benchmarks.weights(subject, text, bits_per_byte, batch=batch, **options)


def _serve(
    source: Source, contexts: Sequence[int], forms: Sequence[str], options: dict[str, Any]
) -> "Iterator[ServingRow]":
    from bltkit import bench as benchmarks

    subject = _subject(source, [benchmarks.row(max(contexts))])
    for context in contexts:
        for form in forms:
            options |= {"context": context, "weights": form, "device": str(subject.device)}
            yield benchmarks.serving(subject, source[1], **options)


def _report(
    measurements: "Iterable[BenchRow | WeightsRow | ServingRow]", out: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Rows as they come: where a run is broken off, the file has what was measured."""
    from bltkit.bench import append_rows

    if out is not None:
        append_rows(out, [])  # a place that cannot be written to is found out first
    rows = []
    for row in measurements:
        rows.append(row)
        if out is not None:
            append_rows(out, [row])
        if not as_json:
            print_text(row.summary(), flush=True)
    if as_json:
        print_json(rows[0].to_json() if len(rows) == 1 else {"rows": [row.to_json() for row in rows]})
    if plot is not None:
        from bltkit.views.speed import write_speeds

        for place in write_speeds([row.to_json() for row in rows], plot):
            say(f"wrote {place}")


def _refuse(options: dict[str, Any], why: str) -> None:
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ValueError(f"{given} {why}")


def _given(**options: Any) -> dict[str, Any]:
    """Without those that are not: these have their defaults where they are used."""
    return {name: value for name, value in options.items() if value is not None}


def _subject(source: Source, rows: Sequence[Any]) -> "BenchSubject":
    """A preset is cut on the rows that are to be read."""
    from bltkit import bench as benchmarks
    from bltkit.checkpoint import load_bundle, resolve_model
    from bltkit.compute import device_of

    preset, model, device = source
    place = device_of(device, "--device")
    if place.type != "cpu":
        say(f"device: {place}")
    if model is not None:
        return benchmarks.subject_of(model, load_bundle(resolve_model(model), weights="fp32")).on(place)
    return benchmarks.preset_subject("69m" if preset is None else preset, *rows).on(place)


def _limits(repeats: int | None, seconds: float | None) -> Any:
    from bltkit.bench import RepeatLimits

    return RepeatLimits(**_given(repeats=repeats, seconds=seconds))


def _dtype(name: PeerDtype | None) -> Any:
    import torch

    return None if name is None else {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def _drafts(given: Sequence[str]) -> list[int | None]:
    for value in given:
        if value != "auto" and not (value.isdecimal() and int(value) > 0):
            raise ValueError(f"--draft {value}: a number of bytes from 1 on, or auto")
    return [None if value == "auto" else int(value) for value in given]
