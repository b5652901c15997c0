"""Several processes that train together, as torchrun starts them, without its own start-up."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def train_together(count: int, config: Path, out: Path, *more: str) -> list[subprocess.CompletedProcess[str]]:
    """`blt train` in `count` processes; their ends, whatever they are."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bltkit", "train", str(config), "--out", str(out), *more]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ends = []
    for process in started:
        output, errors = process.communicate(timeout=300)
        ends.append(subprocess.CompletedProcess(command, process.returncode, output, errors))
    return ends
