"""The three standard streams: results on stdout, messages on stderr, whatever either is connected to.

A stream may be closed, full, or a pipe that nobody reads any more. A result that cannot be written is an error of the
command; a message that cannot be written is lost, and the exit status tells. Data is made harmless where a terminal
shows it (`control_characters.py`) and passes untouched into pipes and files.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from bltkit.terminal.control_characters import encodable_json, visible, visible_json

if TYPE_CHECKING:
    from rich.console import Console

USUAL_COLUMNS = 80
MAX_TEXT_BYTES = 1 << 30
"""Text that is read at once from stdin or a file."""
MIN_COLUMNS, MAX_COLUMNS = 20, 10_000
"""Columns of a terminal that tables and help can be laid out in; other widths are taken for `USUAL_COLUMNS`."""


def occupy_closed_streams() -> None:
    """Connect closed standard descriptors to the null device, before any file is opened.

    Else the next file that is opened, which may be one of a checkpoint, gets the number of a standard stream, and what
    a library writes to that stream lands in the file. Python has noted by now that the stream is closed (None in sys).
    """
    for descriptor in range(3):  # ascending: the lowest free number is the one that is given out
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Give stderr a place to write to where it is closed, and both streams a way to write any character.

    Raises ValueError where stdout is closed: the result would be lost.
    """
    stderr = sys.stderr
    with contextlib.ExitStack() as stack:
        if stderr is None:  # print(..., file=None) writes to stdout
            sys.stderr = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            stack.callback(setattr, sys, "stderr", stderr)
        if sys.stdout is None:
            raise ValueError("standard output is closed; redirect it to a file or to /dev/null")
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # names of files that are not UTF-8 come out as the bytes that they are
            utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
            reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        yield


def write_result(text: str, end: str = "\n", flush: bool = False) -> None:
    """Write a result to stdout. Raises BrokenPipeError where its reader has gone, OSError where it cannot be."""
    with _naming_stdout():
        sys.stdout.write((visible(text) if is_terminal(sys.stdout) else text) + end)
        if flush:
            sys.stdout.flush()


def write_rich(renderable: Any) -> None:
    """Write what rich lays out to stdout; errors as in `write_result`."""
    with _naming_stdout():
        console().print(renderable)


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout at once, as they are, for pipes and files; errors as in `write_result`."""
    with _naming_stdout():
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def write_json(value: Any) -> None:
    """One line of JSON on stdout, in ASCII where it takes no more; errors as in `write_result`."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    line = encodable_json(json.dumps(value, ensure_ascii=not unicode, allow_nan=False))
    with _naming_stdout():
        sys.stdout.write((visible_json(line) if is_terminal(sys.stdout) else line) + "\n")


def flush_result() -> None:
    """Hand over all of stdout, and leave nothing that Python would try, and complain about, once more at its exit."""
    try:
        with _naming_stdout():
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def say(line: str) -> None:
    """Write a message to stderr; lost where stderr is closed or full."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write((visible(line) if is_terminal(sys.stderr) else line) + "\n")
            sys.stderr.flush()


def read_stdin() -> bytes:
    """All bytes of stdin. Raises ValueError where it is closed or has no end."""
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError("standard input is closed; give it something to read, or name a file with --file")
    try:
        return read_all(sys.stdin.buffer, "standard input")
    except OSError as error:
        raise OSError(f"standard input cannot be read: {error.strerror}") from None


def read_all(stream: BinaryIO, name: str) -> bytes:
    """All bytes of a stream called `name`. Raises ValueError past `MAX_TEXT_BYTES`: `/dev/zero` has no end."""
    data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"{name} has more than {MAX_TEXT_BYTES >> 20} MiB, which is no text for one call; give a part")
    return data


def is_terminal(stream: Any) -> bool:
    """Does somebody look at it: false also where it is closed."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def usual_width() -> None:
    """Make rich and typer lay out for `USUAL_COLUMNS` where what the environment or the terminal says is no width.

    Both read COLUMNS, LINES and TERMINAL_WIDTH with less care than is needed: at 0 columns nothing is shown at all.
    """
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        value = os.environ.get(name)
        least = 1 if name == "LINES" else MIN_COLUMNS
        if value is not None and not (re.fullmatch("[0-9]{1,5}", value) and least <= int(value) <= MAX_COLUMNS):
            del os.environ[name]
    if "COLUMNS" not in os.environ:
        for stream in (sys.stdin, sys.stdout, sys.stderr):  # the order in which rich asks them
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if 0 < os.get_terminal_size(stream.fileno()).columns < MIN_COLUMNS:
                    os.environ["COLUMNS"] = str(USUAL_COLUMNS)
                break


def console(*, stderr: bool = False) -> "Console":
    """A rich console for data: no markup, no emoji codes, and control characters visible where it is a terminal."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class DataConsole(Console):
        """rich's own controls are segments of a kind of their own; all other text is data."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text) if is_terminal(self.file) else text, **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            segments = super().render(renderable, options)
            if not is_terminal(self.file):
                return segments
            return (
                segment if segment.control else Segment(visible(segment.text), segment.style) for segment in segments
            )

    return DataConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextlib.contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output cannot be written: {error.strerror}") from None
