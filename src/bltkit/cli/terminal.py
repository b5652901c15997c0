"""What every verb has in common: its options, the bytes it reads, what goes to stdout and what to stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.compute import DEVICES, SMALL, Work, check_threads, default_threads, device_of, share_cores, threads_used
from bltkit.terminal.streams import (
    console,
    is_terminal,
    read_all,
    read_stdin,
    say,
    write_bytes,
    write_json,
    write_result,
    write_rich,
)

if TYPE_CHECKING:
    from bltkit.terminal.progress import Progress

Text = Annotated[str | None, typer.Argument(help="The text; `-` reads bytes from stdin.")]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text's bytes from this file.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Checkpoint directory, bltkit:NAME (see `blt models`) or hf:OWNER/NAME[@REVISION]."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FORM",
        help="Form of the large matrices: fp32, packed, bf16, fp16, int8, int4; auto: the fastest that rounds no "
        "weight of the file. Default: as stored; fp32 up to 2 GiB, beyond that in the file's 16 bits.",
    ),
]
ScorerWeights = Annotated[
    str | None,
    typer.Option("--scorer-weights", metavar="FORM", help="Form of the entropy model's; default: as the file has it."),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="Runs a step: eager (torch), native (compiled for this CPU); auto: native up to 1 GiB.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help=f"{DEVICES}; auto: a GPU where there is one that helps, else the CPU.")
]

DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="MAP",
        help="In place of --device, one for each part of the model: auto fills GPUs, then the CPU; or a JSON file, "
        "or layers=0-11:cuda:0,12-24:cpu.",
    ),
]


def threads_option(count: int | None) -> int | None:
    """Check --threads. Raises ValueError with the bound."""
    return None if count is None else check_threads(count, "--threads")


def workers_option(count: int | None) -> int | None:
    """Check --workers. Raises ValueError with the bound."""
    return None if count is None else check_threads(count, "--workers")


_LISTED = {
    "rules": "bltkit.patching.rules:RULES",
    "strategies": "bltkit.generate.strategies:STRATEGIES",
    "tasks": "bltkit.eval.tasks:TASKS",
    "noises": "bltkit.eval.noise:NOISES",
}


def lists(kinds: str) -> Any:
    """The callback of an option that takes `kinds`: with the value `list` it prints all of them and ends the command.

    The option needs `is_eager=True` too, so that who asks for the list owes no other argument.
    """

    def show_list(value: Any) -> Any:
        if value in ("list", "help") or value in (["list"], ["help"]):
            from bltkit.registry import resolve

            print_text(resolve(_LISTED[kinds]).listing())
            raise typer.Exit
        return value

    return show_list


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        callback=threads_option,
        help="Threads of the CPU. Default: as the environment says; else 1 where a small model writes, and all cores "
        "for rows of text.",
    ),
]


def read_text(text: str | None, file: Path | None) -> bytes:
    """The bytes that a verb works on. Raises ValueError unless there is one of the two."""
    from bltkit.vocab import to_bytes

    if (text is None) == (file is None):
        raise ValueError("give a TEXT (`-` for stdin) or --file F, one of them")
    if text == "-" or str(file) == "-":
        return read_stdin()
    if file is not None:
        return read_file(file)
    assert text is not None
    return to_bytes(text)


def read_file(file: Path) -> bytes:
    """All of a file. Raises ValueError for a directory and for a device without an end, OSError if it is unreadable."""
    if file.is_dir():
        raise ValueError(f"{file} is a directory; name a file")
    with file.open("rb") as stream:
        return read_all(stream, str(file))


def run_on(model: str | None, device: str, threads: int | None, work: Work, device_map: str | None = None) -> Any:
    """The torch.device that a verb computes on, with so many threads set for the process; a GPU is named on stderr.

    model: MODEL, whose size decides what is left open; None: large. device_map: that the user gives in place of a
    device; then this is the CPU. Raises ValueError where there is no such device, and for both.
    """
    if device_map is not None:
        if device != "auto":
            raise ValueError(f"--device {device} beside --device-map {device_map}: give one of them")
        device = "cpu"
    share_cores()
    import torch

    size = SMALL if model is None or (threads is not None and device != "auto") else _num_weights(model)
    torch.set_num_threads(default_threads(size, work) if threads is None else threads)
    place = device_of(device, "--device", small=work == "sequence" and size < SMALL)
    if place.type == "cuda":
        say(f"device: {place} ({torch.cuda.get_device_name(place)})")
    elif place.type != "cpu":
        say(f"device: {place}")
    return place


def say_placement(device_map: str | None, lm: Any) -> None:
    """Which part of a loaded model lies where, on stderr, if the user asked for a map. lm: `ByteLM`."""
    if device_map is not None:
        from bltkit.checkpoint.placement import described

        say(f"device map: {'; '.join(described(lm.model))}")


def show(result: Any, as_json: bool) -> None:
    """A result as JSON or as its summary."""
    if as_json:
        print_json(result.to_json())
    else:
        print_text(result.summary())


def print_text(text: str = "", end: str = "\n", flush: bool = False) -> None:
    """Print a result on stdout."""
    write_result(text, end, flush)


def print_rich(renderable: Any) -> None:
    """Print on stdout what rich lays out."""
    write_rich(renderable)


def print_json(value: Any) -> None:
    """One line on stdout, in ASCII where it takes no more."""
    write_json(value)


@contextmanager
def progress_bar(what: str, unit: str = "") -> "Iterator[Progress]":
    """Progress on stderr, told (done, total), None while the total is not known; unit: what is counted."""
    from bltkit.terminal.progress import Progress

    with Progress(what, unit) as progress:
        yield progress


def _num_weights(model: str) -> int:
    """About how many numbers a MODEL has, by the size of its files; `SMALL` where there are none to be seen."""
    from bltkit.checkpoint import resolve_model

    directory = resolve_model(model.removeprefix("token:"))
    files = [file for file in directory.glob("*.safetensors") if file.is_file()]  # loading says what others are
    return sum(file.stat().st_size for file in files) // 4 or SMALL


__all__ = [
    "Backend",
    "Device",
    "DeviceMapOption",
    "File",
    "Json",
    "Model",
    "ScorerWeights",
    "Text",
    "Threads",
    "Weights",
    "console",
    "is_terminal",
    "lists",
    "print_json",
    "print_rich",
    "print_text",
    "progress_bar",
    "read_file",
    "read_text",
    "run_on",
    "say",
    "say_placement",
    "show",
    "threads_option",
    "threads_used",
    "workers_option",
    "write_bytes",
]
