"""The verb `generate`: one continuation as it comes, or several of one prompt."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.terminal import (
    Device,
    File,
    Json,
    Model,
    Threads,
    is_terminal,
    print_json,
    print_text,
    read_text,
    run_on,
    say,
    threads_used,
    write_bytes,
)

if TYPE_CHECKING:
    from bltkit.api import ByteLM, Generation


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-` reads bytes from stdin.")] = None,
    file: File = None,
    model: Model = "bltkit:tiny",
    max_bytes: Annotated[int, typer.Option("--max-bytes", "-n", help="Maximum number of bytes to generate.")] = 256,
    strategy: Annotated[
        str,
        typer.Option(
            help="ar: one byte after another; speculative: the same bytes, drafted (BLT-S); verified: the same, from "
            "blocks (BLT-DV); auto: the same, by whichever way is faster; diffusion: blocks as they are (BLT-D)."
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
    logprobs: Annotated[bool, typer.Option("--logprobs", help="With --json: every byte's log-probability.")] = False,
    weights: Annotated[
        str, typer.Option(help="Their form: fp32, packed, fp16, bf16, int8; auto: the fastest of fp32 and packed.")
    ] = "fp32",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming. Several samples come one after another, with a line on stderr in front of each."""
    if strategy == "list":
        from bltkit.generate.strategies import describe_strategies

        print_text(describe_strategies())
        return
    if logprobs and not as_json:
        raise ValueError("--logprobs come as JSON; add --json")
    data = b"" if prompt is None and file is None else read_text(prompt, file)
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
        "logprobs": logprobs,
    }
    place = run_on(model, device, threads, "sequence")
    from bltkit.api import ByteLM

    lm = ByteLM.load(model, device=place).with_weights(weights)
    if num is not None:
        made = lm.samples(data, num, **options)
    else:
        made = [lm.generate(data, **options) if as_json else _stream(lm, data, options)]
    if as_json:
        samples = [_json(one, logprobs) | {"seed": seed + i} for i, one in enumerate(made)]
        print_json(_json(made[0], logprobs) | ({} if num is None else {"samples": samples}))
        return
    if num is not None:
        for i, one in enumerate(made):
            say(f"sample {i + 1} of {num}, seed {seed + i}:")
            with _stdout() as write:
                write(one.data)
    say(_account(made))


def _stream(lm: "ByteLM", prompt: bytes, options: dict[str, Any]) -> "Generation":
    """Hands bytes out as they come."""
    from bltkit.api import Generation

    chunks = []
    with _stdout() as write:
        for chunk in lm.stream(prompt, **options):
            chunks.append(chunk)
            write(chunk.data)
    return Generation.of(chunks)


@contextmanager
def _stdout() -> Iterator[Any]:
    """Writes bytes as they are, a line's end behind them; to a terminal only whole characters."""
    from bltkit.vocab import Utf8Stream

    terminal, characters = is_terminal(sys.stdout), Utf8Stream()

    def write(data: bytes) -> None:
        if terminal:
            print_text(characters.feed(data), end="", flush=True)
        else:
            write_bytes(data)

    yield write
    if terminal:
        print_text(characters.end(), flush=True)
    else:
        write_bytes(b"\n")


def _json(made: "Generation", logprobs: bool) -> dict[str, Any]:
    found = {"text": made.text, "bytes_hex": made.data.hex(), "finish": made.finish, "stats": made.stats.to_json()}
    return found | ({"logprobs": list(made.logprobs)} if logprobs else {})


def _account(made: "Sequence[Generation]") -> str:
    """One line. Samples run side by side from one beginning: the longest was there for every pass."""
    stats = [one.stats for one in made]
    num_bytes, seconds = sum(one.bytes for one in stats), max(one.seconds for one in stats)
    drafted, accepted = sum(one.drafted for one in stats), sum(one.accepted for one in stats)
    speed = num_bytes / seconds if seconds > 0 else 0.0
    line = f"{num_bytes} bytes, {speed:.0f} bytes/s, {max(one.global_passes for one in stats)} global passes"
    line += f", {threads_used()}"
    return line + (f", {accepted} of {drafted} drafted bytes accepted" if drafted else "")
