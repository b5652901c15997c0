"""An object that lives in a process of its own and answers calls over a pipe.

What a side of a comparison holds in memory is then its own alone, and neither side's threads or allocator meet the
other's.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STATUS = Path("/proc/self/status")
LEAVING_SECONDS = 10.0


class Remote:
    """`make(*arguments)` in a new process; use it in a `with`. make: importable by its name, as is what it is given."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        """Returns once the object is made. name: for errors."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns. Raises what it raises, RuntimeError where its process has ended."""
        self._connection.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(LEAVING_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            result, error = self._connection.recv()
        except EOFError:
            self._process.join(LEAVING_SECONDS)
            raise RuntimeError(
                f"the process of {self.name} ended (exit code {self._process.exitcode}; -9 is often too little memory)"
            ) from None
        if error is not None:
            raise error
        return result


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        target = make(*arguments)
    except Exception as error:  # whatever it is, the other process is to raise it
        connection.send((None, error))
        return
    connection.send((None, None))
    while True:
        try:
            method, given = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send((getattr(target, method)(*given), None))
        except Exception as error:
            connection.send((None, error))


def resident_bytes(peak: bool = False) -> int | None:
    """Memory that this process holds, or held at most; None where the system does not say."""
    field = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)
