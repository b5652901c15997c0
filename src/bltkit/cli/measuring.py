"""The verb `bench`, a command for each subject: speeds as rows of JSON, side by side with a peer."""

import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.bench_rows import (
    Source,
    continuation_speeds,
    decoding_speeds,
    form_speeds,
    repeat_limits,
    report_speeds,
    row_speeds,
    server_speeds,
    set_options,
)
from bltkit.cli.terminal import Backend, Device, Json, lists, threads_option
from bltkit.cli.verb import Verb, Verbs

if TYPE_CHECKING:
    from bltkit.terminal.progress import Progress

app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Measure bytes per second, in turn with a peer.")


class PatchesFrom(StrEnum):
    """Where a training step's patches come from."""

    own = "own"
    given = "given"


class PeerDtype(StrEnum):
    """What the weights of peer `llama` are held in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


Preset = Annotated[str | None, typer.Option("--preset", help="Random weights of this shape; default: 69m.")]
Checkpoint = Annotated[str | None, typer.Option("--model", "-m", help="A checkpoint instead of a preset.")]
RowBytes = Annotated[list[int] | None, typer.Option("--context", help="Bytes in the row (repeatable); default: 1024.")]
Batch = Annotated[
    list[int] | None,
    typer.Option("--batch", help="Rows side by side (repeatable); default: 1, of a training step 2."),
]
Forms = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Form of the weights, such as bf16 (repeatable); default: fp32, of `weights` all."),
]
Peer = Annotated[str | None, typer.Option("--peer", help="Side by side with: transformers.")]
BenchThreads = Annotated[
    int | None, typer.Option("--threads", callback=threads_option, help="On both sides; default: torch's.")
]
Repeats = Annotated[int | None, typer.Option("--repeats", help="Minimum number of runs of each side; default: 5.")]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Minimum seconds of each side; default: 2.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Add the rows to this file of JSON lines.")
]


@app.command(cls=Verb)
def prefill(
    preset: Preset = None,
    model: Checkpoint = None,
    context: RowBytes = None,
    peer: Peer = None,
    device: Device = "auto",
    threads: BenchThreads = None,
    repeats: Repeats = None,
    seconds: Seconds = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a prompt is read."""
    _rows("prefill", (preset, model, device), context, [{}], out, as_json, threads, repeats, seconds, peer=peer)


@app.command(cls=Verb)
def train(
    preset: Preset = None,
    model: Checkpoint = None,
    context: RowBytes = None,
    batch: Batch = None,
    peer: Peer = None,
    patches: Annotated[
        PatchesFrom | None,
        typer.Option(help="Cut by each side in every step (own, the default), or told to both (given)."),
    ] = None,
    device: Device = "auto",
    threads: BenchThreads = None,
    repeats: Repeats = None,
    seconds: Seconds = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure training steps, the trainer's own update included."""
    batches = [{"batch": size} for size in batch or [2]]
    options = {"peer": peer, "patches": None if patches is None else patches.value}
    source = preset, model, device
    _rows("train", source, context, batches, out, as_json, threads, repeats, seconds, **options)


@app.command(cls=Verb)
def patch(
    preset: Preset = None,
    model: Checkpoint = None,
    context: RowBytes = None,
    batch: Batch = None,
    peer: Peer = None,
    device: Device = "auto",
    threads: BenchThreads = None,
    repeats: Repeats = None,
    seconds: Seconds = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure how fast the entropy model and the rule cut text into patches."""
    batches = [{"batch": size} for size in batch or [1]]
    _rows("patch", (preset, model, device), context, batches, out, as_json, threads, repeats, seconds, peer=peer)


@app.command(cls=Verb)
def decode(
    preset: Preset = None,
    model: Checkpoint = None,
    context: Annotated[
        list[int] | None,
        typer.Option(help="Bytes of the context (repeatable); default: 1024, of prompts out of --file 256."),
    ] = None,
    batch: Batch = None,
    peer: Annotated[str | None, typer.Option(help="Side by side with: transformers or llama.")] = None,
    peer_dtype: Annotated[PeerDtype | None, typer.Option(help="Of the peer's weights; default: fp32.")] = None,
    weights: Forms = None,
    backend: Backend = "eager",
    temperature: Annotated[float | None, typer.Option(help="Default: 0, which is greedy.")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Bytes of a run; default: 128, of a continued prompt 256.")
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Prompts out of this text (repeatable).")] = None,
    prompts: Annotated[int | None, typer.Option(help="--file: number of prompts from each file; default: 64.")] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            callback=lists("strategies"),
            is_eager=True,
            help="--file: beside ar, such as speculative (repeatable); `list` shows them.",
        ),
    ] = None,
    draft: Annotated[
        list[str] | None, typer.Option(help="--file: bytes drafted a round, or auto (repeatable).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="--file: of the first prompt; default: 0.")] = None,
    device: Device = "auto",
    threads: BenchThreads = None,
    repeats: Annotated[
        int | None, typer.Option(help="Minimum number of runs of each side; default: 5, of continued prompts 1.")
    ] = None,
    seconds: Seconds = None,
    out: Out = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speeds into F.png.")] = None,
    as_json: Json = False,
) -> None:
    """Measure decoding after a context, held to a text's bytes; with --file, what a trained model writes."""
    prompted = {"--prompts": prompts, "--strategy": strategy, "--draft": draft, "--seed": seed}
    if file is None:
        _refuse(prompted, "is for prompts of a text; add --file F and --model M")
    else:
        _refuse({"--preset": preset}, "has random weights, which repeat themselves; continue prompts with --model M")
        _refuse({"--seconds": seconds}, "is for runs that are all the same; with --file give --prompts and --repeats")
        if model is None:
            raise ValueError("--file needs a trained model that continues prompts; add --model M, such as bltkit:tiny")
    if plot is not None and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot {plot}: its name must end in .png")
    source = _source(preset, model, device)
    with _progress("decode") as progress:
        options = _shared(threads, progress) | set_options(
            forms=weights,
            batches=batch,
            backend=backend,
            temperature=temperature,
            peer=peer,
            peer_dtype=_dtype(peer_dtype),
        )
        if file is None:
            options["limits"] = repeat_limits(repeats, seconds)
            measurements = decoding_speeds(source, context or [1024], max_bytes, options)
        else:
            options |= set_options(prompts=prompts, max_bytes=max_bytes, seed=seed, rounds=repeats)
            measurements = continuation_speeds(source, file, context or [256], strategy or [], draft or [], options)
        report_speeds(measurements, out, plot, as_json)


@app.command(cls=Verb)
def weights(
    preset: Preset = None,
    model: Checkpoint = None,
    batch: Batch = None,
    weights: Forms = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text that is scored (repeatable).")] = None,
    device: Device = "auto",
    threads: BenchThreads = None,
    repeats: Repeats = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure what other forms of the weights gain, and what they cost in bits per byte."""
    source = _source(preset, model, device)
    with _progress("weights") as progress:
        options = _shared(threads, progress) | set_options(forms=weights, repeats=repeats)
        report_speeds(form_speeds(source, file or [], batch or [1], options), out, None, as_json)


@app.command(cls=Verb)
def serve(
    preset: Preset = None,
    model: Checkpoint = None,
    context: Annotated[list[int] | None, typer.Option(help="Bytes in the prompt (repeatable); default: 256.")] = None,
    weights: Forms = None,
    temperature: Annotated[float | None, typer.Option(help="Default: 0.8.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes of a request; default: 128.")] = None,
    clients: Annotated[int | None, typer.Option(help="Number that send requests at once; default: 16.")] = None,
    device: Device = "auto",
    threads: BenchThreads = None,
    repeats: Repeats = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure a server under load, beside the engine alone on the same requests."""
    source = _source(preset, model, device)
    with _progress("serve") as progress:
        options = _shared(threads or 1, progress)
        options |= set_options(temperature=temperature, max_bytes=max_bytes, clients=clients, repeats=repeats)
        report_speeds(server_speeds(source, context or [256], weights or ["fp32"], options), out, None, as_json)


def _rows(
    what: str,
    source: Source,
    contexts: Sequence[int] | None,
    batches: Sequence[dict[str, int]],
    out: Path | None,
    as_json: bool,
    threads: int | None,
    repeats: int | None,
    seconds: float | None,
    **options: Any,
) -> None:
    """Measure the subjects that read rows, and report."""
    source = _source(*source)
    with _progress(what) as progress:
        options = set_options(**options) | _shared(threads, progress) | {"limits": repeat_limits(repeats, seconds)}
        if what == "train":
            from bltkit.train.optim import trainers_update

            options["update_of"] = trainers_update
        report_speeds(row_speeds(what, source, contexts or [1024], batches, options), out, None, as_json)


def _source(preset: str | None, model: str | None, device: str) -> Source:
    if preset is not None and model is not None:
        raise ValueError("give --preset or --model, not both")
    return preset, model, device


def _progress(what: str) -> "Progress":
    from bltkit.terminal.progress import Progress

    return Progress(f"bench {what}")


def _shared(threads: int | None, progress: "Progress") -> dict[str, Any]:
    """Options of every subject."""
    return {"threads": threads, "command": shlex.join(["blt", *sys.argv[1:]]), "progress": progress.stage}


def _dtype(name: PeerDtype | None) -> Any:
    import torch

    return None if name is None else {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def _refuse(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} {why}")
