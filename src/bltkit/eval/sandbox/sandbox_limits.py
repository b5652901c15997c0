"""How much a program in the sandbox may use, and what became of it."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SandboxLimits:
    """What one run may use at most. Whole numbers, at least 1; ValueError otherwise.

    cpu_seconds: of each process. wall_seconds: of the run, whatever its processes do.
    memory_bytes: address space of each process; and resident memory of all together, looked at every 20 ms, so that
        processes which fill memory between two looks are held by `processes` x `memory_bytes` alone.
        What the kernel holds for them (pipes, pairs of sockets) is bound by `processes` x `open_files` alone.
    processes: at a time, threads included.
    file_bytes: of each file. folder_bytes, files: of the work folder, which is in memory.
    open_files: of each process. output_bytes: written to standard output and error together.
    """

    cpu_seconds: int = 5
    wall_seconds: int = 20
    memory_bytes: int = 512 << 20
    processes: int = 8
    file_bytes: int = 16 << 20
    folder_bytes: int = 32 << 20
    files: int = 1000
    open_files: int = 64
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"sandbox: {field.name} = {value}: must be at least 1")


@dataclass(frozen=True)
class ProgramOutcome:
    """What became of a program.

    passed: it got to its end without an exception, and said so with the token that only its driver knew.
    status: exit status, negative for the signal that ended it; None where the sandbox ended it.
    timed_out: of either time.
    reason: one line, empty where it passed.
    stdout, stderr: the last 2,000 bytes of each, as text.
    """

    passed: bool
    status: int | None
    timed_out: bool
    reason: str
    stdout: str = ""
    stderr: str = ""
