"""The verb `serve`: a model behind OpenAI's interface."""

import re
from pathlib import Path
from typing import Annotated

import typer

from bltkit.cli.terminal import Backend, Device, DeviceMapOption, Json, Model, ScorerWeights, Threads, Weights

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def serve(
    model: Model = "bltkit:tiny",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the model towards clients. Default: MODEL.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line; or BLTKIT_API_KEY in the environment.")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may ask (repeatable); * for all. Default: none.")
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="Sequences that are generated side by side.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Sequences that may wait; more are answered with 429.")] = 256,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For all caches, such as 2G. Default: half of what is free.")
    ] = None,
    prefix_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of it for the prefix cache; 0: none. Default: a quarter of --memory."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Bytes of prompt and answer together. Default: a training row's, else 2048."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds for a request, which then ends with what it has; 0: no bound.")
    ] = 600,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds for running requests to finish after SIGTERM or Ctrl-C.")
    ] = 30,
    threads: Threads = None,
    device: Device = "auto",
    device_map: DeviceMapOption = None,
    weights: Weights = None,
    scorer_weights: ScorerWeights = None,
    backend: Backend = "eager",
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights in memory, in place of --weights: float64, float32, bfloat16, float16."),
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Write a line for each request.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a model over HTTP: OpenAI's completions and chats, many at once. SIGTERM or Ctrl-C ends it in order.

    A line on stderr says where it listens, once the model is loaded; with --json also an object on stdout.
    """
    try:
        from bltkit.serve.program import ServerSettings
        from bltkit.serve.program import serve as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bltkit"):
            raise
        raise ValueError(
            f"`blt serve` needs {error.name}, which is not installed: pip install 'bltkit[serve]'"
        ) from None
    from bltkit.serve.limits import Limits
    from bltkit.serve.security import Access, allowed_origins, read_keys
    from bltkit.serve.settings import EngineSettings

    limits = Limits(
        context=context,
        sequences=max_sequences,
        memory=None if memory is None else size_of(memory, "--memory"),
        prefixes=None if prefix_memory is None else size_of(prefix_memory, "--prefix-memory"),
        waiting=max_waiting,
    )
    if device_map is not None and device != "auto":
        raise ValueError(f"--device {device} beside --device-map {device_map}: give one of them")
    settings = ServerSettings(
        EngineSettings(model, name, device, device_map, threads, weights, scorer_weights, dtype, limits, backend),
        host,
        port,
        Access(read_keys(api_key_file), allowed_origins(cors or [])),
        timeout or None,
        drain_seconds,
        log_requests,
        as_json,
    )
    raise typer.Exit(run(settings))


def size_of(text: str, option: str) -> int:
    """Bytes of a size such as 1500, 512M or 1.5G. Raises ValueError that names the option."""
    form = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if form is None:
        raise ValueError(f"{option} {text!r} is no size; give bytes, or a number with K, M, G or T, such as 2G")
    return int(float(form[1]) * _UNITS[form[2].upper()])
