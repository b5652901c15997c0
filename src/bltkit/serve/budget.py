"""Memory of keys and values: what a request may come to take is set aside when it is admitted."""

from dataclasses import dataclass
from pathlib import Path

import torch

from bltkit.generate.memory import SequenceMemory
from bltkit.model import Blt, Scorer

SHARE = 0.5
"""Of the memory that is free once the model is loaded. The rest is for what a pass computes, and for other programs."""

FALLBACK = 2 * 2**30
"""Bytes where the system does not say what is free."""


@dataclass(frozen=True)
class Budget:
    """Bytes of keys and values that may be taken, and how many a sequence takes.

    The number of patches is not known in advance: a byte that is still to come counts as a patch.
    """

    memory: int
    sequence: SequenceMemory

    @classmethod
    def of(cls, model: Blt, scorer: Scorer | None, memory: int | None, device: torch.device) -> "Budget":
        """memory: None takes `SHARE` of what is free on the device."""
        return cls(int(SHARE * free_memory(device)) if memory is None else memory, SequenceMemory.of(model, scorer))

    def needed(self, ids: int, sequences: int, read: int = 0, patches: int = 0) -> int:
        """Bytes that sequences of up to `ids` ids may come to take, spare room included.

        read, patches: ids that were read, and the patches closed in them.
        """
        return sequences * self.sequence.reserved(ids, patches + ids - read)

    def lanes(self, sequences: int) -> int:
        """Sequences that storage is taken for at once: all of them, or as many as the memory holds."""
        return max(1, min(sequences, self.memory // max(1, self.sequence.reserved(1, 1))))


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return FALLBACK
    return min(free, _left_of_group())


def _left_of_group() -> int:
    """Bytes that the control group may still take."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return 2**62
