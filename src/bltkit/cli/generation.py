"""The verb `generate`: one continuation as it comes, several of one prompt, or those of a file of prompts."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.terminal import (
    Device,
    DeviceMapOption,
    File,
    Json,
    Model,
    ScorerWeights,
    Threads,
    Weights,
    is_terminal,
    lists,
    print_json,
    read_text,
    run_on,
    say,
    say_placement,
    threads_used,
)

if TYPE_CHECKING:
    from bltkit.generate import Generation


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-` reads bytes from stdin.")] = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    prompts: Annotated[
        Path | None, typer.Option(help="Continue a file of prompts: JSON lines with `prompt`, or .txt lines.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="--prompts: add results to this file of JSON lines; a rerun continues it.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="--prompts: prompts side by side, which bounds memory. Default: 16.")
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", "-n", help="Maximum number of bytes to generate.")] = 256,
    strategy: Annotated[
        str,
        typer.Option(
            callback=lists("strategies"),
            is_eager=True,
            help="ar: one byte after another; speculative: the same bytes, drafted (BLT-S); verified: the same, from "
            "blocks (BLT-DV); auto: the same, by whichever way is faster; diffusion: blocks as they are (BLT-D). "
            "Or a paper's name: blt-s, blt-dv, blt-d. `list` shows all fields.",
        ),
    ] = "ar",
    draft: Annotated[
        int | None, typer.Option(help="Bytes drafted a round, or of a block; default: adapts, or as trained.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Blocks: a pass writes bytes more probable than this. diffusion: 0.7.")
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Blocks, in place of alpha: the surest bytes up to so many nats of entropy.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Blocks: at most so many passes. verified: 1.")] = None,
    align_border: Annotated[
        bool, typer.Option("--align-border", help="Blocks begin where the open patch does.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_p: Annotated[float | None, typer.Option(help="Smallest set of bytes with this probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest bytes.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only bytes at least so likely relative to the best.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: bytes of the last 64 become less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="A sample depends on this and the prompt alone.")] = 0,
    num: Annotated[int | None, typer.Option(help="So many samples of the prompt, of seeds SEED, SEED + 1, ...")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this string (repeatable).")] = None,
    valid_utf8: Annotated[bool, typer.Option("--valid-utf8", help="Only bytes that make valid UTF-8.")] = False,
    json_schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only JSON that is valid under the schema in this file, within --max-bytes."),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Only a text that matches this regular expression, within --max-bytes.")
    ] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With --json: every byte's log-probability.")] = False,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    backend: Annotated[
        str,
        typer.Option(help="Runs a step: eager (torch), native (compiled for this CPU); auto: native up to 1 GiB."),
    ] = "eager",
    device: Device = "auto",
    device_map: DeviceMapOption = None,
    threads: Threads = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say on stderr what it cost, and what bounds it.")] = False,
    show_patches: Annotated[
        bool, typer.Option("--show-patches", help="On a terminal: tell patches apart, as `blt patch` does.")
    ] = False,
    no_echo: Annotated[bool, typer.Option("--no-echo", help="On a terminal: leave the dim prompt out.")] = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming. Several samples come one after another, with a line on stderr in front of each.

    Bytes go into pipes and files as they are. On a terminal the prompt is shown dim in front of them, control
    characters are escaped, and a last character that is not complete is not shown.
    """
    if prompts is None:
        for name, value in {"--out": out, "--batch": batch}.items():
            if value is not None:
                raise ValueError(f"{name} {value} is for many prompts; add --prompts F.jsonl")
        if logprobs and not as_json:
            raise ValueError("--logprobs come as JSON; add --json")
        if show_patches and (as_json or not is_terminal(sys.stdout)):
            raise ValueError("--show-patches colours text on a terminal; `blt patch` shows the patches of a text")
    else:
        single = {"PROMPT": prompt, "--file": file, "--num": num, "--stats": stats, "--show-patches": show_patches}
        for name, given in single.items():
            if given is not None and given is not False:
                raise ValueError(f"{name} is for a single prompt; leave it out with --prompts")
        if out is None:
            raise ValueError(f"--prompts {prompts} needs a file for the results; add --out results.jsonl")
    from bltkit.files import read_json_object

    options: dict[str, Any] = {
        "max_bytes": max_bytes,
        "strategy": strategy,
        "draft": draft,
        "alpha": alpha,
        "gamma": gamma,
        "steps": steps,
        "align_border": align_border,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": stop or (),
        "valid_utf8": valid_utf8,
        "json_schema": None if json_schema is None else read_json_object(json_schema),
        "regex": regex,
        "logprobs": logprobs,
    }
    place = run_on(model, device, threads, "sequence" if prompts is None else "rows", device_map)
    loading: dict[str, Any] = {"weights": weights, "scorer_weights": scorer_weights}
    loading |= {"device": place, "device_map": device_map}
    from bltkit.api import ByteLM
    from bltkit.cli.writer import Writer
    from bltkit.generate import Generation

    if prompts is not None and out is not None:
        from bltkit.cli.prompt_job import continue_prompts

        continue_prompts(prompts, out, model, loading, backend, batch, options, as_json)
        return
    data = b"" if prompt is None and file is None else read_text(prompt, file)
    lm = ByteLM.load(model, **loading).with_backend(backend)
    say_placement(device_map, lm)
    first_byte: float | None = None
    held_back = 0
    if num is not None:
        generations = lm.samples(data, num, **options)
        for i, sample in enumerate([] if as_json else generations):
            say(f"sample {i + 1} of {num}, seed {seed + i}:")
            writer = Writer(b"" if no_echo else data, patches=show_patches)
            writer.write(sample.data, sample.opens)
            held_back = writer.end()
    elif as_json:
        generations = [lm.generate(data, **options)]
    else:
        began, chunks = time.perf_counter(), []
        writer = Writer(b"" if no_echo else data, patches=show_patches)
        try:
            for chunk in lm.stream(data, **options):
                chunks.append(chunk)
                if chunk.data and first_byte is None:
                    first_byte = time.perf_counter() - began
                writer.write(chunk.data, chunk.opens)
        except KeyboardInterrupt:
            writer.end()  # so that the message has a line of its own
            raise
        held_back = writer.end()
        generations = [Generation.of(chunks)]
    if as_json:
        samples = [_json(sample, logprobs) | {"seed": seed + i} for i, sample in enumerate(generations)]
        print_json(_json(generations[0], logprobs) | ({} if num is None else {"samples": samples}))
    else:
        say(_account(generations) + _unfinished(held_back))
    if stats:
        assert lm.model is not None
        for line in _stats(generations, first_byte, lm.model.embed.bytes.weight.device):
            say(line)


def _json(made: "Generation", logprobs: bool) -> dict[str, Any]:
    found = {"text": made.text, "bytes_hex": made.data.hex(), "finish": made.finish, "stats": made.stats.to_json()}
    return found | ({"logprobs": list(made.logprobs)} if logprobs else {})


def _account(generations: "Sequence[Generation]") -> str:
    """One line. Samples run side by side from one beginning: the longest was there for every pass."""
    stats = [generation.stats for generation in generations]
    num_bytes, seconds = sum(each.bytes for each in stats), max(each.seconds for each in stats)
    speed = num_bytes / seconds if seconds > 0 else 0.0
    passes = max(each.global_passes for each in stats)
    line = f"{num_bytes} bytes, {speed:.0f} bytes/s, {passes} global pass{'es' * (passes != 1)}, {threads_used()}"
    return line + (f", {accepted}" if (accepted := _accepted(generations)) else "")


def _accepted(generations: "Sequence[Generation]") -> str:
    drafted = sum(generation.stats.drafted for generation in generations)
    accepted = sum(generation.stats.accepted for generation in generations)
    if not drafted:
        return ""
    return f"{accepted} of {drafted} drafted bytes accepted ({accepted / drafted:.0%})"


def _unfinished(num_bytes: int) -> str:
    return f"; the last {num_bytes} bytes begin a character and are not shown" if num_bytes else ""


def _stats(generations: "Sequence[Generation]", first_byte: float | None, device: Any) -> list[str]:
    """What it cost, and the memory traffic beside what this machine does at best (measured here, about a second)."""
    from bltkit.bench.machine_rates import machine_rates

    # Samples run side by side: the one that ran longest was there for every pass.
    longest = max((generation.stats for generation in generations), key=lambda each: each.seconds)
    num_bytes = sum(generation.stats.bytes for generation in generations)
    patches = sum(sum(generation.opens) for generation in generations)
    lines = [] if first_byte is None else [f"first byte: after {first_byte * 1000:.0f} ms, prompt included"]
    speed = num_bytes / longest.seconds if longest.seconds > 0 else 0.0
    lines.append(f"speed: {speed:.0f} bytes/s, {num_bytes} bytes in {longest.seconds:.2f} s")
    if patches:
        lines.append(f"patches: {patches}, {num_bytes / patches:.2f} bytes each")
    lines.append(f"backend: {longest.backend}")
    lines.append(
        f"passes: {longest.decoder_passes} decoder, {longest.encoder_passes} encoder, "
        f"{longest.global_passes} global, {longest.entropy_passes} entropy model"
    )
    if accepted := _accepted(generations):
        lines.append(f"drafts: {accepted}")
    if longest.seconds > 0:
        rate = machine_rates(device, ()).copy_gb_per_second
        used = longest.gb_per_second
        lines.append(f"memory: {used:.1f} of {rate:.1f} GB/s ({used / rate:.0%} of what this machine copies)")
    return lines
