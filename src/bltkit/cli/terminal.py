"""What every verb has in common: its options, the bytes it reads, what goes to stdout and what to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

Text = Annotated[str | None, typer.Argument(help="The text; `-` reads bytes from stdin.")]
File = Annotated[Path | None, typer.Option("--file", help="Read the text's bytes from this file.")]
Model = Annotated[str, typer.Option(help="Checkpoint directory, bltkit:NAME or hf:OWNER/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def read_text(text: str | None, file: Path | None) -> bytes:
    """The bytes that a verb works on. Raises ValueError unless there is one of the two."""
    from bltkit.vocab import to_bytes

    if (text is None) == (file is None):
        raise ValueError("give a TEXT (`-` for stdin) or --file F, one of them")
    if file is not None:
        return read_file(file)
    assert text is not None
    return sys.stdin.buffer.read() if text == "-" else to_bytes(text)


def read_file(file: Path) -> bytes:
    """All of a file. Raises ValueError for a directory, OSError where it cannot be read."""
    if file.is_dir():
        raise ValueError(f"{file} is a directory; name a file")
    return file.read_bytes()


def there(device: str) -> Any:
    """The torch.device of this name. Raises ValueError where this machine, or its torch, has none."""
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch that was built without it
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None


def show(result: Any, as_json: bool) -> None:
    """A result as JSON or as its summary."""
    if as_json:
        print_json(result.to_json())
    else:
        print(result.summary())


def print_json(value: Any) -> None:
    """One line, in ASCII where stdout takes no more."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not unicode, allow_nan=False))


def say(line: str) -> None:
    """On stderr."""
    print(line, file=sys.stderr)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, told (done, total), None while the total is not known; silent where stderr is no terminal."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
