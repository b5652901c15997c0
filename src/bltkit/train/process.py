"""What a run asks of the process that it lives in: threads, determinism, and to be told of signals.

All of it is put back as it was when the run ends: who calls `bltkit.train` from Python has other plans for the process.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bltkit.compute import check_threads

KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}
"""oneDNN keeps a compiled kernel for every shape that it has met, 1,024 by default. In bf16, with as many patches in a
batch as its text has, that came to more than 5 GB for a model of a million parameters; a step needs far fewer."""


@contextlib.contextmanager
def numerics(threads: int | None, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Threads and determinism as the run wants them, and no more kernels in memory than it needs.

    Raises ValueError for more threads than this machine runs, and for a GPU whose matrix products are not told to be
    deterministic: they read that once, from the environment.
    """
    if deterministic and device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise ValueError(
            "trainer.deterministic = true on a GPU needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment; set it "
            "in front of the command"
        )
    for name, value in KERNELS.items():  # read once, when the first kernel is made
        os.environ.setdefault(name, value)
    if threads is not None:
        check_threads(threads, "trainer.threads")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(deterministic or before[1])
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields "has somebody asked to stop?": Ctrl-C and SIGTERM do; a second Ctrl-C stops at once.

    A second SIGTERM does not: where a scheduler sends one to all processes, torchrun sends another to its own.
    """
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: nobody can press Ctrl-C here
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
