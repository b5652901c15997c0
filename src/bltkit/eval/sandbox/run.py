"""One run of the sandbox seen from outside: the launcher is started, fed and listened to, and always ended.

A program's output is read as it comes and only its tail kept; who writes too much is ended. When `attend` returns no
process of the run is left: the launcher ends after the first process of the pid namespace, and that after all others.
"""

import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bltkit.eval.sandbox.sandbox_limits import SandboxLimits

GRACE = 10.0
"""Seconds that building and ending a run may take beyond its wall time."""
TAIL = 2000
"""Bytes kept of each pipe."""
# -I -S: nothing of the user's environment, and no site-packages; the folder comes last, behind the standard library.
START = "import sys; sys.path.append(sys.argv.pop(1)); from inside.launcher import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Heard:
    """What came out of a run: the ends of what the program and its launcher wrote.

    result: of the driver, or of a program that pretends to be it. status: of the launcher alone.
    """

    stdout: str
    stderr: str
    result: bytes
    status: str
    flooded: bool


class _Ear:
    """The read end of a pipe: how much came, and the tail of it."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.amount = 0
        self.tail = b""

    def take(self) -> bool | None:
        """Whether something came; None at the end."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return False
        self.amount += len(data)
        self.tail = (self.tail + data)[-TAIL:]
        return True if data else None

    @property
    def text(self) -> str:
        return self.tail.decode("utf-8", "replace")


def attend(limits: SandboxLimits, message: bytes) -> Heard:
    """Run to the end a launcher whose driver reads `message`."""
    life, keep = os.pipe()
    status, say = os.pipe()
    result, answer = os.pipe()
    inner = {"life": life, "status": say, "result": answer}
    try:
        process = _start(limits, inner)
    except BaseException:
        for descriptor in (keep, status, result):
            os.close(descriptor)
        raise
    finally:
        for descriptor in inner.values():
            os.close(descriptor)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    ears = {
        "stdout": _Ear(process.stdout.fileno()),
        "stderr": _Ear(process.stderr.fileno()),
        "result": _Ear(result),
        "status": _Ear(status),
    }
    try:
        try:
            _listen(process, message, ears, limits)
        finally:
            os.close(keep)  # the warden leaves, and with it all others
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for ear in ears.values():  # written before the end, and not yet read
            while ear.take() and not _flooded(ears, limits):
                pass
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        os.close(status)
        os.close(result)
    return Heard(
        ears["stdout"].text, ears["stderr"].text, ears["result"].tail, ears["status"].text, _flooded(ears, limits)
    )


def _start(limits: SandboxLimits, inner: dict[str, int]) -> "subprocess.Popen[bytes]":
    numbers = inner | {
        "cpu_seconds": limits.cpu_seconds,
        "wall_milliseconds": limits.wall_seconds * 1000,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
        "folder_bytes": limits.folder_bytes,
        "files": limits.files,
        "open_files": limits.open_files,
    }
    arguments = [f"{name}={number}" for name, number in numbers.items()]
    # A virtual environment's interpreter is a link; the file system inside has only what the link leads to.
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return subprocess.Popen(
        [interpreter, "-I", "-S", "-c", START, str(Path(__file__).parent), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={},
        cwd="/",
        pass_fds=tuple(inner.values()),
        start_new_session=True,
    )


def _listen(process: "subprocess.Popen[bytes]", message: bytes, ears: dict[str, _Ear], limits: SandboxLimits) -> None:
    """Until the launcher closes `status`, too much was written, or time is over."""
    end = time.monotonic() + limits.wall_seconds + GRACE
    rest = memoryview(message)
    stdin = process.stdin
    assert stdin is not None
    os.set_blocking(stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        for ear in ears.values():
            selector.register(ear.descriptor, selectors.EVENT_READ, ear)
        while (left := end - time.monotonic()) > 0 and not _flooded(ears, limits):
            for key, _ in selector.select(left):
                if isinstance(key.data, _Ear):
                    if key.data.take() is None:
                        selector.unregister(key.fd)
                        if key.data is ears["status"]:
                            return
                    continue
                try:
                    rest = rest[os.write(stdin.fileno(), rest[: 1 << 16]) :]
                except BrokenPipeError:
                    rest = rest[:0]
                if not rest:
                    selector.unregister(stdin)
                    stdin.close()


def _flooded(ears: dict[str, _Ear], limits: SandboxLimits) -> bool:
    return sum(ear.amount for ear in ears.values()) > limits.output_bytes
